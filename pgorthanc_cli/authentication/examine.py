"""Examine a login: the server's first answers, a login attempt, every sslmode. Nothing is changed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2.extensions import libpq_version, make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.authentication import server_side, verdict
from pgorthanc_cli.authentication.model import LoginReport, SslMode, Tls
from pgorthanc_cli.constants import SSLMODES
from pgorthanc_cli.db import transport, wire
from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.server import hba

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# With these libpq sends no password, whatever .pgpass and PGPASSWORD hold: no login fails, and nothing that counts
# failed logins locks the role.
_NO_PASSWORD = {"password": "", "passfile": "/dev/null/none"}
# The parameter require_auth came with PostgreSQL 16.
_REQUIRE_AUTH_SINCE = 160000
_TLS_FAILURE = re.compile(r"certificate|SSL error")
_UNMET = re.compile(r"authentication method requirement|channel binding")


@dataclass(frozen=True)
class Probe:
    """The first answers of a server, in plain text and within TLS.

    Attributes:
        encrypted: None: the server offers no TLS, `no_tls` says why.
        distrust: Why libpq refuses the server's certificate with sslmode=require, which it verifies if there is a
            root certificate. With sslmode=prefer it then continues in plain text.
    """

    client: transport.Client
    sslmode: str
    plain: wire.Answer
    encrypted: wire.Answer | None
    handshake: transport.Handshake | None
    no_tls: str
    distrust: str

    @property
    def answer(self) -> wire.Answer:
        """The answer that libpq gets with the target's sslmode."""
        if self.encrypted is None or self.sslmode == "disable":
            return self.plain
        if self.sslmode == "allow" and not self.plain.refuses:
            return self.plain
        fails = self.encrypted.refuses or self.distrust
        if self.sslmode == "prefer" and fails and not self.plain.refuses:
            return self.plain
        return self.encrypted

    def is_encrypted(self, sslmode: str) -> bool:
        """Return whether a connection with this sslmode is encrypted."""
        return replace(self, sslmode=sslmode).answer is self.encrypted


@dataclass(frozen=True)
class Login:
    """The outcome of a login attempt: a connection or an error."""

    conn: Connection | None
    error: ConnectError | None
    binding: str

    @property
    def outcome(self) -> str:
        """The outcome as in `LoginReport.login`."""
        if self.conn:
            return "works"
        return "password needed" if isinstance(self.error, db.PasswordRequired) else "refused"


def check(target: db.Target, *, admin: db.Target | None = None, plugin: str | None = None) -> LoginReport:
    """Return how a client logs in, and which releases of Orthanc's plugin can do so.

    Args:
        target: The login to examine.
        admin: Another login to the same server, which may see more.
        plugin: Judge only this release of the plugin, as in `3.2`.

    Raises:
        ConnectError: The server cannot be reached, or `admin` is refused. A refusal of the target is a result.
        UsageError: `plugin` is not a release.
    """
    releases = verdict.releases(plugin)
    target = replace(target, retries=0)
    answers = probe(target)
    with log_in_as_required(target, answers) as login, admin_session(login, admin) as conn:
        server = server_side.ServerSide()
        if conn:
            server = server_side.inspect(conn, hba_client(login, answers))
        proved = server_side.logged_in_by(login.conn) if login.conn else None
        method = _method(answers, server, proved)
        if server.stored is None and login.conn and login.conn.info.used_password:
            server = replace(server, stored=verdict.stored_by(method))
        tls = _tls(answers, login)
        endpoint = db.endpoint(login.conn) if login.conn else None
    after_tls = answers.encrypted.method if answers.encrypted else None
    if answers.answer is answers.encrypted:
        after_tls = method
    report = LoginReport(
        role=answers.client.role,
        server=f"{answers.client.host}:{answers.client.port}",
        login=login.outcome,
        refusal=login.error.message if login.error and login.outcome == "refused" else "",
        method=method,
        before_tls=method if answers.answer is answers.plain else answers.plain.method,
        after_tls=after_tls,
        tls=tls,
        channel_binding=login.binding,
        sslmodes=() if answers.client.is_local else tuple(_sslmodes(target, answers, login)),
        stored=server.stored,
        password_encryption=server.password_encryption,
        valid_until=server.valid_until,
        hba_line=location(server.rule) if server.rule else None,
        libpq=".".join(map(str, divmod(libpq_version(), 10000))),
        sslmode=answers.sslmode,
        endpoint=endpoint,
    )
    return verdict.judged(report, server, login.error.hint if login.error else None, releases)


def probe(target: db.Target) -> Probe:
    """Return the first answers of the server.

    Raises:
        ConnectError: It cannot be reached.
    """
    parameters = db.effective_parameters(target)
    client = transport.Client.of(parameters)
    encrypted = handshake = None
    no_tls = "through a socket of the machine there is no TLS" if client.is_local else ""
    try:
        plain = wire.first_answer(client, tls=False)
        if not client.is_local:
            try:
                handshake = transport.tls_handshake(client)
                encrypted = _within_tls(client)
            except transport.TlsUnavailable as reason:
                no_tls = str(reason)
    except OSError as error:
        raise ConnectError(
            f"the server {client.host}:{client.port} cannot be reached: {error}",
            "check --host and --port, and that the server runs and listens there (listen_addresses)",
        ) from None
    sslmode = "disable" if client.is_local else parameters.get("sslmode", "prefer")
    distrust = ""
    if encrypted and not encrypted.refuses:
        obstacle = _obstacle(target, "require")
        distrust = obstacle if _TLS_FAILURE.search(obstacle) else ""
    return Probe(client, sslmode, plain, encrypted, handshake, no_tls, distrust)


def _within_tls(client: transport.Client) -> wire.Answer:
    try:
        return wire.first_answer(client, tls=True)
    except transport.TlsUnavailable as reason:
        # TLS works without a client certificate, see `handshake`.
        return wire.Answer("cert", wire.Refusal("", "", str(reason)))


def location(rule: hba.Rule) -> str:
    """Return file, number and text of a line of pg_hba.conf."""
    return f"{rule.file or 'pg_hba.conf'}:{rule.line}: {rule}"


@contextmanager
def log_in_as_required(target: db.Target, answers: Probe) -> Iterator[Login]:
    """Log in by the method that the server has required, and by no other."""
    login = _try_login(target, answers)
    try:
        yield login
    finally:
        if login.conn:
            login.conn.close()


def _try_login(target: db.Target, answers: Probe) -> Login:
    method = answers.answer.method
    offers_binding = method.endswith("-plus")
    required = _requirements(method)
    overridden = required.keys() & db.parse_dsn(target.dsn).keys()
    tries = [{}] if overridden else [required, {}]
    for extra in tries:
        binding = "not offered" if not offers_binding else "used" if "channel_binding" in extra else "offered"
        try:
            conn = db.connect(with_parameters(target, extra), autocommit=True, readonly=True)
            return Login(conn, None, binding)
        except ConnectError as error:
            if extra and _UNMET.search(error.message):
                continue
            return Login(None, error, "offered" if offers_binding else "not offered")
    raise AssertionError


def _requirements(method: str) -> dict[str, str]:
    """Return libpq's parameters that allow this method alone."""
    if libpq_version() < _REQUIRE_AUTH_SINCE:
        return {}
    plain = method.removesuffix("-plus")
    if plain not in ("trust", "password", "md5", "gss", "sspi", "scram-sha-256"):
        return {}
    parameters = {"require_auth": "none" if plain == "trust" else plain}
    if plain != method:
        parameters["channel_binding"] = "require"
    return parameters


def with_parameters(target: db.Target, more: Mapping[str, str]) -> db.Target:
    """Return the target with other parameters of libpq."""
    return replace(target, dsn=make_dsn(**{**db.parse_dsn(target.dsn), **more}))


def hba_client(login: Login, answers: Probe) -> hba.Client:
    """Return the client as the server sees it; without a login, as this machine does."""
    client = hba.Client(
        answers.client.role,
        answers.client.database,
        answers.answer.address,
        encryption="tls" if answers.answer is answers.encrypted else "none",
    )
    return server_side.as_seen(login.conn, client) if login.conn else client


@contextmanager
def admin_session(login: Login, admin: db.Target | None) -> Iterator[Connection | None]:
    """Yield the administrator's session, else the login's own; None: there is neither.

    Raises:
        ConnectError: The administrator's login is refused.
    """
    if admin is None:
        with db.translate_errors(login.conn) if login.conn else contextlib.nullcontext():
            yield login.conn
        return
    try:
        conn = db.connect(replace(admin, retries=0), autocommit=True, readonly=True)
    except ConnectError as error:
        raise ConnectError(f"the administrator's login, --admin: {error.message}", error.hint) from None
    with contextlib.closing(conn), db.translate_errors(conn):
        yield conn


def _method(answers: Probe, server: server_side.ServerSide, proved: str | None) -> str:
    """Return the method of pg_hba.conf."""
    method = answers.answer.method
    by_server = proved or (server.rule.method if server.rule else None)
    if answers.answer.refuses:
        explained = server.rule and server_side.explains(server.rule, method)
        return by_server if by_server and explained else method
    if method != "trust":
        return method
    # The protocol does not distinguish peer, ident and certificates from trust.
    if by_server in ("trust", "peer", "ident", "cert"):
        return by_server
    if answers.client.is_local:
        return "trust or peer"
    return "trust or cert" if answers.client.certificate and answers.answer is answers.encrypted else "trust"


def _tls(answers: Probe, login: Login) -> Tls:
    if answers.handshake is None:
        return Tls(used=False if login.conn else None, offered=False, detail=answers.no_tls)
    protocol, cipher = answers.handshake.protocol, answers.handshake.cipher
    info = login.conn.info if login.conn else None
    if info and info.ssl_in_use:
        protocol = info.ssl_attribute("protocol") or protocol
        cipher = info.ssl_attribute("cipher") or cipher
    used = info.ssl_in_use if info else answers.answer is answers.encrypted
    detail = "" if used else answers.distrust or answers.no_tls
    tls = Tls(used=used, offered=True, protocol=protocol, cipher=cipher, detail=detail)
    certificate = answers.handshake.certificate
    if certificate is None:
        return replace(tls, detail="the server's certificate cannot be read")
    return replace(
        tls,
        subject=certificate.subject,
        issuer=certificate.issuer,
        names=certificate.names,
        not_before=certificate.not_before,
        expires=certificate.not_after,
        days_left=(certificate.not_after - datetime.now(timezone.utc)).days,
        self_signed=certificate.subject == certificate.issuer,
    )


def _sslmodes(target: db.Target, answers: Probe, login: Login) -> Iterator[SslMode]:
    root = transport.root_certificate(db.effective_parameters(target))
    refused = _refused(target, answers, login) if login.outcome == "refused" else {}
    verifies = {"require": "authority" if root != "system" and Path(root).is_file() else "nothing"}
    verifies |= {"verify-ca": "authority", "verify-full": "authority and host name"}
    for sslmode in SSLMODES:
        detail = _obstacle(target, sslmode) or refused.get(answers.is_encrypted(sslmode), "")
        yield SslMode(
            sslmode=sslmode,
            works=not detail,
            encrypted=None if detail else answers.is_encrypted(sslmode),
            verifies=verifies.get(sslmode, "nothing"),
            detail=detail,
        )


def _refused(target: db.Target, probe: Probe, login: Login) -> dict[bool, str]:
    """Return why the password is refused without TLS (False) and with it (True), where the server asks for one.

    An attempt with the same outcome is not repeated: a server may lock a role after some failures.
    """
    answers = {False: probe.plain, True: probe.encrypted}
    used = probe.answer is probe.encrypted
    refused = {used: login.error.message if login.error else ""}
    first, second = answers[used], answers[not used]
    if first and second and not (first.refuses or second.refuses):
        if first.method.removesuffix("-plus") == second.method.removesuffix("-plus"):
            refused[not used] = refused[used]
        else:
            other_sslmode = {"sslmode": "disable" if used else "require"}
            refused[not used] = _login_error(with_parameters(target, other_sslmode))
    return refused


def _login_error(target: db.Target) -> str:
    """Return why a login is refused, empty if it works."""
    try:
        db.connect(target).close()
    except ConnectError as error:
        return error.message
    return ""


def _obstacle(target: db.Target, sslmode: str) -> str:
    """Return why libpq fails before it is asked for a password, empty if it does not."""
    try:
        db.connect(with_parameters(target, {"sslmode": sslmode, **_NO_PASSWORD}), readonly=True).close()
    except db.PasswordRequired:
        return ""
    except ConnectError as error:
        return error.message
    return ""
