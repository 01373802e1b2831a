"""What a server asks of this client: its first answers, a login, every sslmode. Nothing is changed."""

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
from pgorthanc_cli.authentication import server, verdict
from pgorthanc_cli.authentication.model import Report, SslMode, Tls
from pgorthanc_cli.constants import SSLMODES
from pgorthanc_cli.db import wire
from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.server import hba

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# libpq sends no password then, whatever .pgpass and PGPASSWORD hold: no login fails, no counter of failures moves.
_NO_PASSWORD = {"password": "", "passfile": "/dev/null/none"}
_REQUIRE_AUTH_SINCE = 160000
_TLS_FAILURE = re.compile(r"certificate|SSL error")
_UNMET = re.compile(r"authentication method requirement|channel binding")


@dataclass(frozen=True)
class Probe:
    """The first answers of a server, in plain text and within TLS (None: there is none, and why).

    `distrust` says why libpq breaks off with sslmode=require, if it does: with a root certificate at hand it then
    verifies the server. With sslmode=prefer it goes on in plain text.
    """

    client: wire.Client
    sslmode: str
    plain: wire.Answer
    encrypted: wire.Answer | None
    handshake: wire.Handshake | None
    no_tls: str
    distrust: str

    @property
    def answer(self) -> wire.Answer:
        """The one that counts for the sslmode of the target, as libpq goes about it."""
        if self.encrypted is None or self.sslmode == "disable":
            return self.plain
        if self.sslmode == "allow" and not self.plain.refuses:
            return self.plain
        fails = self.encrypted.refuses or self.distrust
        if self.sslmode == "prefer" and fails and not self.plain.refuses:
            return self.plain
        return self.encrypted

    def is_encrypted(self, sslmode: str) -> bool:
        """Whether a connection of that sslmode would be."""
        return replace(self, sslmode=sslmode).answer is self.encrypted


@dataclass(frozen=True)
class Login:
    """A try to log in as the target says."""

    conn: Connection | None
    error: ConnectError | None
    binding: str

    @property
    def outcome(self) -> str:
        """As `Report.login`."""
        if self.conn:
            return "works"
        return "password needed" if isinstance(self.error, db.PasswordRequired) else "refused"


def check(target: db.Target, *, admin: db.Target | None = None, plugin: str | None = None) -> Report:
    """How a client logs in, and what that means for Orthanc.

    Args:
        target: The login that is examined.
        admin: Another login to the same server, which may see more.
        plugin: Only this release of the plugin counts for the verdict, as in `3.2`.

    Raises:
        ConnectError: The server cannot be reached, or `admin` is refused. A refusal of the target is a result.
        UsageError: `plugin` is no release.
    """
    releases = verdict.releases(plugin)
    target = replace(target, retries=0)
    found = probe(target)
    with login_as_asked(target, found) as login, informed(login, admin) as conn:
        seen = server.look(conn, hba_client(login, found)) if conn else server.Seen()
        proved = server.logged_in_by(login.conn) if login.conn else None
        method = _method(found, seen, proved)
        if seen.stored is None and login.conn and login.conn.info.used_password:
            seen = replace(seen, stored=verdict.stored_by(method))
        tls = _tls(found, login)
    inside = found.encrypted
    report = Report(
        role=found.client.role,
        server=f"{found.client.host}:{found.client.port}",
        login=login.outcome,
        refusal=login.error.message if login.error and login.outcome == "refused" else "",
        method=method,
        before_tls=method if found.answer is found.plain else found.plain.method,
        after_tls=None if inside is None else method if found.answer is inside else inside.method,
        tls=tls,
        channel_binding=login.binding,
        sslmodes=() if found.client.is_local else tuple(_sslmodes(target, found, login)),
        stored=seen.stored,
        password_encryption=seen.password_encryption,
        valid_until=seen.valid_until,
        hba_line=place(seen.rule) if seen.rule else None,
        libpq=".".join(map(str, divmod(libpq_version(), 10000))),
    )
    return verdict.judged(report, seen, login.error.hint if login.error else None, releases)


def probe(target: db.Target) -> Probe:
    """The first answers of the server.

    Raises:
        ConnectError: It cannot be reached.
    """
    parameters = db.effective_parameters(target)
    client = wire.client(parameters)
    encrypted = handshake = None
    no_tls = "through a socket of the machine there is no TLS" if client.is_local else ""
    try:
        plain = wire.ask(client, tls=False)
        if not client.is_local:
            try:
                handshake = wire.handshake(client)
                encrypted = _within_tls(client)
            except wire.NoTls as reason:
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


def _within_tls(client: wire.Client) -> wire.Answer:
    """The first answer within TLS, which is possible without a certificate of the client."""
    try:
        return wire.ask(client, tls=True)
    except wire.NoTls as reason:  # the server breaks off because of the client's certificate
        return wire.Answer("cert", wire.Refusal("", "", str(reason)))


def place(rule: hba.Rule) -> str:
    """A line of pg_hba.conf as reports name it."""
    return f"{rule.file or 'pg_hba.conf'}:{rule.line}: {rule}"


@contextmanager
def login_as_asked(target: db.Target, found: Probe) -> Iterator[Login]:
    """Log in by the method that the server has asked for, and by no other."""
    login = _try_login(target, found)
    try:
        yield login
    finally:
        if login.conn:
            login.conn.close()


def _try_login(target: db.Target, found: Probe) -> Login:
    method = found.answer.method
    offers_binding = method.endswith("-plus")
    given = db.parse_dsn(target.dsn)
    asked = _requirements(method)
    tries = [asked, {}] if not asked.keys() & given.keys() else [{}]
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
    """What makes libpq log in by that method only."""
    if libpq_version() < _REQUIRE_AUTH_SINCE:
        return {}
    plain = method.removesuffix("-plus")
    words = {"trust": "none", **{name: name for name in ("password", "md5", "gss", "sspi", "scram-sha-256")}}
    binding = {"channel_binding": "require"} if plain != method else {}
    return {"require_auth": words[plain], **binding} if plain in words else {}


def with_parameters(target: db.Target, more: Mapping[str, str]) -> db.Target:
    """The same target with other parameters of libpq."""
    return replace(target, dsn=make_dsn(**{**db.parse_dsn(target.dsn), **more}))


def hba_client(login: Login, found: Probe) -> hba.Client:
    """The client as the server sees it, or where it cannot be asked, as this machine does."""
    client = hba.Client(
        found.client.role,
        found.client.database,
        found.answer.address,
        encryption="tls" if found.answer is found.encrypted else "none",
    )
    return server.as_seen(login.conn, client) if login.conn else client


@contextmanager
def informed(login: Login, admin: db.Target | None) -> Iterator[Connection | None]:
    """The administrator's session, else the login's own; None: there is neither.

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


def _method(found: Probe, seen: server.Seen, proved: str | None) -> str:
    """The word of pg_hba.conf: the server's answer alone does not tell peer, ident and certificates from trust."""
    asked = found.answer.method
    known = proved or (seen.rule.method if seen.rule else None)
    if found.answer.refuses:
        return known if seen.rule and known and server.explains(seen.rule, asked) else asked
    if asked != "trust":
        return asked
    if known in ("trust", "peer", "ident", "cert"):
        return known
    if found.client.is_local:
        return "trust or peer"
    return "trust or cert" if found.client.certificate and found.answer is found.encrypted else "trust"


def _tls(found: Probe, login: Login) -> Tls:
    if found.handshake is None:
        return Tls(used=False if login.conn else None, offered=False, detail=found.no_tls)
    protocol, cipher = found.handshake.protocol, found.handshake.cipher
    info = login.conn.info if login.conn else None
    if info and info.ssl_in_use:
        protocol = info.ssl_attribute("protocol") or protocol
        cipher = info.ssl_attribute("cipher") or cipher
    used = info.ssl_in_use if info else found.answer is found.encrypted
    detail = "" if used else found.distrust or found.no_tls
    tls = Tls(used=used, offered=True, protocol=protocol, cipher=cipher, detail=detail)
    shown = found.handshake.certificate
    if shown is None:
        return replace(tls, detail="the server's certificate cannot be read")
    return replace(
        tls,
        subject=shown.subject,
        issuer=shown.issuer,
        names=shown.names,
        not_before=shown.not_before,
        expires=shown.not_after,
        days_left=(shown.not_after - datetime.now(timezone.utc)).days,
        self_signed=shown.subject == shown.issuer,
    )


def _sslmodes(target: db.Target, found: Probe, login: Login) -> Iterator[SslMode]:
    root = wire.root_certificate(db.effective_parameters(target))
    refused = _refused(target, found, login) if login.outcome == "refused" else {}
    verifies = {"require": "authority" if root != "system" and Path(root).is_file() else "nothing"}
    verifies |= {"verify-ca": "authority", "verify-full": "authority and host name"}
    for sslmode in SSLMODES:
        detail = _obstacle(target, sslmode) or refused.get(found.is_encrypted(sslmode), "")
        yield SslMode(
            sslmode=sslmode,
            works=not detail,
            encrypted=None if detail else found.is_encrypted(sslmode),
            verifies=verifies.get(sslmode, "nothing"),
            detail=detail,
        )


def _refused(target: db.Target, found: Probe, login: Login) -> dict[bool, str]:
    """Why the password is refused without TLS (False) and with it (True), where the server asks for one.

    What the login has proved is not tried again: each failure counts where failures are counted.
    """
    answers = {False: found.plain, True: found.encrypted}
    used = found.answer is found.encrypted
    refused = {used: login.error.message if login.error else ""}
    mine, other = answers[used], answers[not used]
    if mine and other and not (mine.refuses or other.refuses):
        if mine.method.removesuffix("-plus") == other.method.removesuffix("-plus"):
            refused[not used] = refused[used]
        else:
            again = {"sslmode": "disable" if used else "require"}
            refused[not used] = _try(with_parameters(target, again))
    return refused


def _try(target: db.Target) -> str:
    """Why a login is refused; empty if it works."""
    try:
        db.connect(target).close()
    except ConnectError as error:
        return error.message
    return ""


def _obstacle(target: db.Target, sslmode: str) -> str:
    """Why libpq does not even get to the question for the password; empty if it does."""
    try:
        db.connect(with_parameters(target, {"sslmode": sslmode, **_NO_PASSWORD}), readonly=True).close()
    except db.PasswordRequired:
        return ""
    except ConnectError as error:
        return error.message
    return ""
