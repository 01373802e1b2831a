"""Connections to real servers: every way to be refused, what is tried again, and the defaults."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError
from tests.support import localized
from tests.support.real_servers import LOCALHOST, Pair, Server, certificate, free_port

PASSWORD = "p@ss w/'\\\"ö%"
HBA = """
local all peer_role peer
local all,replication all trust
host all scram_role,nologin_role 127.0.0.1/32 scram-sha-256
host all md5_role 127.0.0.1/32 md5
host all rejected_role 127.0.0.1/32 reject
host all trusted_role,postgres,missing_role,few_role 127.0.0.1/32 trust
"""
TLS_HBA = """
hostssl all tls_role 127.0.0.1/32 trust
hostssl all cert_role 127.0.0.1/32 cert
"""


@pytest.fixture(autouse=True)
def no_libpq_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own settings; .pgpass and the default certificates are looked for in an empty home."""
    for name in list(os.environ):
        if name.startswith("PG") and not name.startswith("PGORTHANC_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))


@pytest.fixture(scope="module")
def authority() -> Pair:
    return certificate("authority")


@pytest.fixture(scope="module", params=localized.PARAMETERS)
def server(authority: Pair, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Every test runs against a server of each language: nothing may depend on its words."""
    cluster = localized.Localized(request.param, HBA, "max_connections = 20\nmax_wal_senders = 6\n")
    try:
        cluster.create()
        if cluster.has_tls:
            _give_certificates(cluster, authority)
        cluster.start()
        cluster.sql(
            "CREATE DATABASE closed ALLOW_CONNECTIONS false",
            "CREATE DATABASE private",
            "REVOKE CONNECT ON DATABASE private FROM PUBLIC",
            "CREATE ROLE nologin_role PASSWORD 'x'",
            "CREATE ROLE few_role LOGIN CONNECTION LIMIT 0",
            *(f"CREATE ROLE {name}_role LOGIN" for name in ("tls", "cert", "rejected", "trusted", "peer")),
            "SET password_encryption = 'scram-sha-256'",
            make_role("scram_role"),
            "SET password_encryption = 'md5'",
            make_role("md5_role"),
        )
        yield cluster
    finally:
        cluster.remove()


def make_role(name: str) -> str:
    return f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'"


def _give_certificates(server: Server, authority: Pair) -> None:
    for name, pair in {
        "good": certificate("localhost", authority, LOCALHOST),
        "expired": certificate("localhost", authority, LOCALHOST, days=-1),
        "early": certificate("localhost", authority, LOCALHOST, days=9, since_days=-1),
        "elsewhere": certificate("elsewhere.example", authority),
        "stranger": certificate("localhost", certificate("stranger"), LOCALHOST),
    }.items():
        server.write(f"{name}.pem", pair.certificate_pem + pair.key_pem)
    server.write("pg_hba.conf", HBA + TLS_HBA)
    server.write("authority.pem", authority.certificate_pem)
    server.write(
        "postgresql.auto.conf",
        "ssl = on\nssl_ca_file = 'authority.pem'\nssl_cert_file = 'good.pem'\nssl_key_file = 'good.pem'\n",
    )


def refused(dsn: str, **more: str) -> ConnectError:
    """The error of a connection; whatever it is, no password is in it."""
    with pytest.raises(ConnectError) as caught:
        db.connect(db.Target(make_dsn(dsn, **more))).close()
    error = caught.value
    assert error.exit_code == 3
    assert error.hint
    assert error.__suppress_context__ or error.__context__ is None
    for secret in (PASSWORD, "wr0ng"):
        assert secret not in f"{error} {error!r} {error.hint}"
    return error


# Logging in


@pytest.mark.parametrize("role", ["scram_role", "md5_role"])
def test_login(server: Server, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_dsn(server.tcp, user=role)
    missing = refused(place)
    assert isinstance(missing, db.PasswordRequired)
    assert "the server asks for a password, and none was given" in missing.message
    wrong = refused(place, password="wr0ng")
    assert type(wrong) is ConnectError
    assert wrong.message.startswith("cannot log in to ")
    assert f'password of role "{role}"' in (wrong.hint or "")
    db.connect(db.Target(place).with_password(PASSWORD)).close()
    pgpass = tmp_path / "pgpass"
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    pgpass.write_text(f"127.0.0.1:{server.port}:*:{role}:{escaped}\n")
    pgpass.chmod(0o600)
    db.connect(db.Target(place)).close()
    monkeypatch.setenv("PGPASSWORD", "wr0ng")
    assert "cannot log in to " in refused(place).message


@pytest.mark.parametrize(
    ("more", "message", "hint"),
    [
        ({"user": "missing_role"}, 'cannot log in to .*missing_role', "CREATE ROLE"),
        ({"user": "nologin_role", "password": "x"}, "cannot log in to .*nologin_role", "CREATE ROLE"),
        ({"user": "rejected_role"}, "the server refuses this client: .*pg_hba.conf", "pg_hba.conf"),
        ({"user": "nobody_at_all"}, "the server refuses this client: .*pg_hba.conf", "pg_hba.conf"),
        ({"user": "postgres", "dbname": "nope"}, 'no such database: .*nope', "init --create-database"),
        ({"user": "postgres", "dbname": "closed"}, "the database is closed: ", "ALLOW_CONNECTIONS"),
        ({"user": "trusted_role", "dbname": "private"}, "cannot log in to .*private", "GRANT CONNECT"),
        ({"user": "few_role"}, "too many connections: ", "IndexConnectionsCount"),
        ({"user": "scram_role", "password": "wr0ng", "require_auth": "md5"}, "no way to log in", "password_encryption"),
        ({"user": "trusted_role", "channel_binding": "require"}, "no way to log in", "channel_binding"),
        ({"user": "postgres", "target_session_attrs": "standby"}, "the server is the primary", "standby"),
        ({"user": "postgres", "host": "no-such-host.invalid"}, "unknown host: ", "--host"),
        ({"user": "postgres", "port": "1"}, "cannot reach 127.0.0.1:1: Connection refused", "--port"),
        ({"user": "postgres", "host": "/nowhere"}, "cannot reach /nowhere:.*: No such file or directory", "--host"),
        ({"user": "postgres", "port": "1,2,3"}, "wrong connection parameters: ", "-v"),
        ({"user": "postgres", "port": "p"}, "wrong connection parameters: ", "-v"),
        ({"service": "nope"}, "the service file does not help: .*nope", "PGSERVICE"),
    ],
)  # fmt: skip
def test_refusals(server: Server, more: dict[str, str], message: str, hint: str) -> None:
    error = refused(server.tcp, **more)
    assert re.search(message, error.message), error.message
    assert hint in (error.hint or "")
    assert isinstance(error, db.MissingDatabase) == (more.get("dbname") == "nope")


def test_peer_refuses(server: Server) -> None:
    error = refused(server.place, user="peer_role")
    assert error.message.startswith("cannot log in to ")
    assert "peer_role" in error.message
    assert "--host localhost" in (error.hint or "")


@pytest.mark.parametrize("given", ["connect_timeout=2", ""])
def test_silent_server(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit in the DSN there is one of ours."""
    ours = {"connect_timeout": "2" if not given else "299"}
    monkeypatch.setattr("pgorthanc_cli.db.connection.CONNECT_TIMEOUT", ours)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = refused(f"host=127.0.0.1 port={silent.getsockname()[1]} user=x {given}")
    assert "the server does not answer: " in error.message


# TLS


@pytest.fixture
def tls(server: Server, authority: Pair, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Makes the server show a certificate; the DSN for it, which trusts the authority and wants the host's name."""
    if not server.has_tls:
        pytest.skip(f"{server.programs} was built without OpenSSL: no TLS server to test against")
    trusted = tmp_path / "root.pem"
    trusted.write_bytes(authority.certificate_pem)

    def show(name: str) -> str:
        server.sql(f"ALTER SYSTEM SET ssl_key_file = '{name}.pem'")
        server.set("ssl_cert_file", f"{name}.pem")
        return make_dsn(server.tcp, user="tls_role", sslmode="verify-full", sslrootcert=str(trusted))

    yield show
    show("good")


def test_verify_full(tls: Callable[[str], str]) -> None:
    conn = db.connect(db.Target(tls("good")))
    assert conn.info.ssl_in_use
    conn.close()


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ("expired", "the server's certificate has expired: "),
        ("early", "the server's certificate is not valid yet: "),
        ("elsewhere", "the server's certificate is for another host: .*elsewhere.example"),
        (
            "stranger",
            r"the server's certificate cannot be verified \(unable to get local issuer certificate\): ",
        ),
    ],
)
def test_bad_certificate(tls: Callable[[str], str], shown: str, message: str) -> None:
    dsn = tls(shown)
    with pytest.raises(ConnectError, match=message):
        db.connect(db.Target(dsn))
    db.connect(db.Target(dsn.replace("verify-full", "require").replace("sslrootcert", "krbsrvname"))).close()


def test_tls_is_required_by_the_server(tls: Callable[[str], str]) -> None:
    error = refused(tls("good"), sslmode="disable")
    assert error.message.startswith("the server refuses connections without TLS")
    assert "--sslmode verify-full" in (error.hint or "")


def test_tls_is_refused_by_the_server(server_dsn: str, server: Server) -> None:
    plain = Server(HBA, "").create().start() if server.has_tls else server
    try:
        assert refused(plain.tcp, user="postgres", sslmode="require").message.startswith(
            "TLS refused by the server: "
        )
    finally:
        if plain is not server:
            plain.remove()


def test_root_certificate_is_missing(tls: Callable[[str], str]) -> None:
    assert refused(tls("good"), sslrootcert="/nowhere.pem").message.startswith("TLS failed: ")


def test_client_certificate(tls: Callable[[str], str], authority: Pair, tmp_path: Path) -> None:
    def with_client(pair: Pair) -> dict[str, str]:
        path = tmp_path / "client.pem"
        path.write_bytes(pair.certificate_pem + pair.key_pem)
        path.chmod(0o600)
        return {"user": "cert_role", "sslcert": str(path), "sslkey": str(path)}

    dsn = tls("good")
    wanted = "the server wants another client certificate: "
    assert refused(dsn, user="cert_role").message.startswith(wanted)
    assert refused(dsn, **with_client(certificate("cert_role", certificate("x")))).message.startswith(wanted)
    db.connect(db.Target(make_dsn(dsn, **with_client(certificate("cert_role", authority))))).close()


# Standbys, servers that start, and trying again


@pytest.fixture(scope="module")
def standby(server: Server) -> Iterator[Server]:
    assert isinstance(server, localized.Localized)
    cluster = localized.Localized(server.language, HBA, "")
    try:
        yield cluster.copy_of(server).start()
    finally:
        cluster.remove()


def test_standby_takes_no_writes(standby: Server) -> None:
    target = db.Target(standby.place)
    with pytest.raises(
        ConnectError, match=r"is a standby \(in recovery\), and this command writes"
    ) as caught:
        db.session(target).__enter__()
    assert "target_session_attrs=read-write" in (caught.value.hint or "")
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
    with db.session(target, readonly=True, autocommit=True) as conn:
        assert db.lock_holders(conn) == []


def test_several_hosts(server: Server, standby: Server) -> None:
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{standby.port},127.0.0.1:{server.port}"
    uri = f"postgresql://postgres@{hosts}/postgres?target_session_attrs="
    with db.session(db.Target(uri + "read-write")) as conn:
        assert conn.info.port == server.port
    with db.session(db.Target(uri + "standby"), readonly=True) as conn:
        assert conn.info.port == standby.port
    error = refused(f"{server.tcp} user=postgres", port=str(standby.port), target_session_attrs="read-write")
    assert "standby or read-only" in error.message


def test_read_only_by_default(server: Server) -> None:
    target = db.Target(make_dsn(server.place, options="-c default_transaction_read_only=on"))
    with pytest.raises(ConnectError, match="default_transaction_read_only is on"):
        db.session(target).__enter__()


@pytest.fixture
def starting(server: Server) -> Iterator[Server]:
    """A server that answers `the database system is not accepting connections` until it is promoted."""
    assert isinstance(server, localized.Localized)
    cluster = localized.Localized(server.language, HBA, "hot_standby = off\n")
    try:
        yield cluster.copy_of(server).start()
    finally:
        cluster.remove()


class OnFirstWarning(logging.Handler):
    """Does something once, when `connect` says that it will try again."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__(logging.WARNING)
        self.action: Callable[[], object] | None = action
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        action, self.action = self.action, None
        if action:
            action()


@contextlib.contextmanager
def on_first_retry(action: Callable[[], object]) -> Iterator[list[str]]:
    handler = OnFirstWarning(action)
    logger = logging.getLogger("pgorthanc_cli.db")
    logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)


def test_a_starting_server_is_waited_for(starting: Server) -> None:
    target = db.Target(make_dsn(starting.place, password=PASSWORD), retries=200, retry_interval_s=0.1)
    with pytest.raises(ConnectError, match="the server is not ready: "):
        db.connect(replace(target, retries=0))
    with on_first_retry(lambda: starting.run("pg_ctl", "promote", "-W", "-D", str(starting.data))) as texts:
        db.connect(target).close()
    assert "next try in 0.1 s, 200 left" in texts[0]
    assert PASSWORD not in "".join(texts)


def test_a_refused_connection_is_tried_again(standby: Server) -> None:
    standby.stop()
    with on_first_retry(standby.start) as texts:
        db.connect(db.Target(standby.tcp + " user=postgres", retries=200, retry_interval_s=0.1)).close()
    assert "Connection refused" in texts[0]


@pytest.mark.parametrize(
    "more",
    [
        {"user": "scram_role", "password": "wr0ng"},
        {"user": "scram_role"},
        {"user": "postgres", "dbname": "nope"},
        {"user": "missing_role"},
        {"user": "rejected_role"},
        {"user": "trusted_role", "sslmode": "verify-full", "sslrootcert": "/nowhere"},
        {"user": "scram_role", "password": "wr0ng", "host": "127.0.0.1,127.0.0.1"},
    ],
)
def test_what_cannot_heal_is_not_tried_again(server: Server, more: dict[str, str]) -> None:
    if "," in more.get("host", ""):
        more = {**more, "port": f"{free_port()},{server.port}"}
    with on_first_retry(lambda: pytest.fail("it tried again")), pytest.raises(ConnectError):
        db.connect(db.Target(make_dsn(server.tcp, **more), retries=3, retry_interval_s=600))


def test_retries_end(server: Server) -> None:
    target = db.Target(f"host=127.0.0.1 port={free_port()}", retries=3, retry_interval_s=0.0)
    with on_first_retry(lambda: None) as texts, pytest.raises(ConnectError, match="Connection refused"):
        db.connect(target)
    assert [text.rpartition(", ")[2] for text in texts] == ["3 left", "2 left", "1 left"]


@pytest.mark.parametrize(
    ("sqlstate", "text", "message"),
    [
        ("57P03", "das Datenbanksystem startet", "the server is not ready: .*das Datenbanksystem startet"),
        ("53300", "tut mir leid, schon zu viele Verbindungen", "too many connections: "),
        (
            "28P01",
            "Passwort-Authentifizierung für »x« fehlgeschlagen",
            "cannot log in to .*(?:Passwort|not UTF-8)",
        ),
    ],
)
def test_a_server_that_speaks_another_language(sqlstate: str, text: str, message: str) -> None:
    """The bytes of a server with translated messages, which not every build of PostgreSQL has."""
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0\0".encode("latin-1")
    answer = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # accept: the listener is shut down
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(ConnectionError):
                        client.recv(10_000)
                        client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        error = refused(
            f"host=127.0.0.1 port={listener.getsockname()[1]} user=x sslmode=disable gssencmode=disable"
        )
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert re.search(message, error.message), error.message


# Defaults of a connection


def shown(conn: Connection, name: str) -> str:
    with conn.cursor() as cur:
        cur.execute("SELECT current_setting(%s)", (name,))
        row = cur.fetchone()
    assert row
    return str(row[0])


def test_keep_alive_and_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    target = db.Target(server.tcp + " user=postgres", application="pgorthanc test")
    with db.session(target) as conn, socket.socket(fileno=os.dup(conn.fileno())) as sock:
        assert shown(conn, "application_name") == "pgorthanc test"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    given = replace(target, dsn=target.dsn + " application_name=mine keepalives_idle=99")
    with db.session(given) as conn, socket.socket(fileno=os.dup(conn.fileno())) as sock:
        assert shown(conn, "application_name") == "mine"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 99
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    without = replace(target, dsn=target.dsn + " keepalives=0")
    with db.session(without) as conn, socket.socket(fileno=os.dup(conn.fileno())) as sock:
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    monkeypatch.setenv("PGAPPNAME", "theirs")
    with db.session(target) as conn:
        assert shown(conn, "application_name") == "theirs"


@pytest.mark.parametrize("through", ["service=mine", "PGSERVICE"])
def test_service_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str) -> None:
    file = tmp_path / "services.conf"
    file.write_text(
        f"[mine]\nhost=127.0.0.1\nport={server.port}\nuser=postgres\ndbname=postgres\n"
        "keepalives_idle=77\napplication_name=served\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    if through == "PGSERVICE":
        monkeypatch.setenv("PGSERVICE", "mine")
    with db.session(db.Target("" if through == "PGSERVICE" else through)) as conn:
        assert shown(conn, "application_name") == "served"
        with socket.socket(fileno=os.dup(conn.fileno())) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77


# Rights


def test_schema_without_rights(server: Server) -> None:
    server.sql("CREATE SCHEMA closed_schema")
    target = db.Target(server.tcp + " user=trusted_role", schema="closed_schema")
    with pytest.raises(ConnectError, match="may not use schema") as caught:
        db.session(target).__enter__()
    assert caught.value.hint == 'GRANT USAGE ON SCHEMA "closed_schema" TO "trusted_role";'


def test_missing_right_names_the_grant(server: Server) -> None:
    server.sql("CREATE TABLE public.secret (x int)", "GRANT USAGE ON SCHEMA public TO trusted_role")
    target = db.Target(server.tcp + " user=trusted_role")
    with pytest.raises(
        PgOrthancError, match=r"^the server refused a statement: .*secret.* \(SQLSTATE 42501\)$"
    ) as caught:
        with db.session(target) as conn:
            db.rows(conn, "SELECT * FROM secret")
    assert caught.value.hint == (
        "as the owner of the index: "
        'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "public" TO "trusted_role"; '
        'GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA "public" TO "trusted_role"; '
        'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA "public" TO "trusted_role";'
    )
    with pytest.raises(PgOrthancError) as caught, db.session(target, readonly=True) as conn:
        db.rows(conn, "SELECT * FROM index.secret")
    reader = 'GRANT SELECT ON ALL TABLES IN SCHEMA "public" TO "trusted_role";'
    assert caught.value.hint == f"as the owner of the index: {reader}"
