"""Whether a pooler is in between, against a real PgBouncer in every mode."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
from bouncer import bouncer
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn
from real_servers import Server

from pgorthanc_cli import db, pooler
from pgorthanc_cli.errors import ConnectError


@pytest.fixture(scope="module")
def behind() -> Iterator[str]:
    """The DSN of a server that PgBouncer, an ordinary user, reaches."""
    server = Server("local all all trust\nhost all all 127.0.0.1/32 trust\n", "")
    try:
        server.create().start()
        yield make_dsn(server.tcp, user="postgres")
    finally:
        server.remove()


def test_no_pooler(behind: str, empty: db.Target) -> None:
    assert pooler.detect(db.Target(behind)).mode == "none"
    assert pooler.detect(empty).mode == "none"


@pytest.mark.parametrize(
    ("pool_mode", "settings", "found"),
    [
        ("session", {}, "session"),
        pytest.param("session", {"default_pool_size": 1}, "session", marks=pytest.mark.once),
        ("transaction", {}, "transaction"),
        ("transaction", {"default_pool_size": 1}, "transaction"),
        ("transaction", {"server_round_robin": 1, "min_pool_size": 2}, "transaction"),
        ("transaction", {"server_round_robin": 1, "min_pool_size": 5}, "transaction"),
        ("statement", {}, "transaction"),
    ],
)
def test_pgbouncer(behind: str, pool_mode: str, settings: dict[str, int], found: str) -> None:
    with bouncer(behind, pool_mode, **settings) as dsn:
        _fill_the_pool(dsn, settings.get("min_pool_size", 0))
        assert pooler.detect(db.Target(dsn)).mode == found


def _fill_the_pool(dsn: str, size: int) -> None:
    """Open that many sessions of the server by as many transactions at once."""
    clients = [psycopg2.connect(dsn) for _ in range(size)]
    for client in clients:
        client.cursor().execute("SELECT 1")
    for client in clients:
        client.close()


def test_sessions_of_others_are_left_as_they_are(behind: str) -> None:
    with bouncer(behind, "transaction", default_pool_size=1) as dsn, closing(_client(dsn)) as orthanc:
        before = _settings(orthanc)
        assert pooler.detect(db.Target(dsn, schema="elsewhere")).mode == "transaction"
        assert _settings(orthanc) == before


def _client(dsn: str) -> Connection:
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    return conn


def _settings(client: Connection) -> list[tuple[str, ...]]:
    with client.cursor() as cur:
        cur.execute(
            "SELECT pg_backend_pid()::text, name, setting FROM pg_settings"
            " WHERE source = 'session' AND name <> 'application_name'"
            " UNION ALL SELECT pg_backend_pid()::text, 'search_path', current_setting('search_path')"
            " UNION ALL SELECT pg_backend_pid()::text, 'prepared', count(*)::text FROM pg_prepared_statements"
        )
        return sorted(cur.fetchall())


def test_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = db.Target(f"host=127.0.0.1 port={silent.getsockname()[1]} dbname=x user=x")
        with pytest.raises(ConnectError, match="does not answer"):
            db.connect_async(target, timeout_s=0.2)


def test_a_server_that_cannot_be_reached() -> None:
    with pytest.raises(ConnectError, match="cannot be reached"):
        pooler.detect(db.Target("host=127.0.0.1 port=1 dbname=x user=x"))
