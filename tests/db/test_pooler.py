"""Whether a pooler is in between, against a real PgBouncer in every mode."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest
from click.testing import CliRunner, Result
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db
from pgorthanc_cli.db import pooler
from pgorthanc_cli.errors import ConnectError
from tests.support import samples, schemas, sqliteindex
from tests.support.bouncer import bouncer
from tests.support.real_servers import Server, wait_until


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
    ("pool_mode", "settings", "mode"),
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
def test_pgbouncer(behind: str, pool_mode: str, settings: dict[str, int], mode: str) -> None:
    with bouncer(behind, pool_mode, **settings) as dsn:
        _fill_the_pool(dsn, settings.get("min_pool_size", 0))
        assert pooler.detect(db.Target(dsn)).mode == mode


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
    with pytest.raises(ConnectError, match="cannot reach "):
        pooler.detect(db.Target("host=127.0.0.1 port=1 dbname=x user=x"))


# What is left behind in sessions that others use next


POOLS: dict[str, tuple[str, dict[str, str | int]]] = {
    "transaction": ("transaction", {"default_pool_size": 2}),
    "statement": ("statement", {"default_pool_size": 2}),
    "session": ("session", {"default_pool_size": 4, "server_reset_query": ""}),
}
READING = (
    "status",
    "doctor",
    "verify schema --deep",
    "check-lock",
    "check-auth",
    "upgrade --plan",
    "downgrade --to 4 --plan",
    "support-bundle {tmp}/bundle.tar.gz",
    "wait --revision 10 --timeout 9",
    "wait --unlocked --timeout 9",
    "keepalive-test --ages 0.1s",
    "replication status",
    "replication plan --allow 10.0.0.2",
    "import --dry-run --storage-dir {tmp}/area {real}",
)
WRITING = (
    "import --storage-dir {tmp}/area {real}",
    "init",
    "upgrade --yes",
    "downgrade --to 6 --yes",
    "verify schema --repair --apply",
    "migrate-sqlite {tmp}/index",
    "replication primary --allow 10.0.0.2 --passfile {tmp}/passfile",
)


@pytest.fixture(scope="module")
def archive(behind: str) -> str:
    """A database with an index on that server."""
    return _with_index(behind, "archive")


def _with_index(behind: str, name: str) -> str:
    with closing(psycopg2.connect(behind)) as conn:
        conn.autocommit = True
        conn.cursor().execute(f"CREATE DATABASE {name}")
    dsn = make_dsn(behind, dbname=name)
    schemas.init(db.Target(dsn))
    return dsn


@pytest.fixture(scope="module", params=POOLS)
def pool(archive: str, request: pytest.FixtureRequest) -> Iterator[str]:
    mode, settings = POOLS[request.param]
    with bouncer(archive, mode, **settings) as dsn:
        yield dsn


def invoke(dsn: str, tmp_path: Path, words: str) -> Result:
    given = words.format(tmp=tmp_path, real=samples.REAL).split()
    return CliRunner().invoke(cli.main, [*given, "--uri", dsn])


def left_behind(dsn: str, number: int) -> list[list[tuple[str, ...]]]:
    """What differs from a new session in each session of the pool; the clients come at once, so they get all."""
    clients = [_client(dsn) for _ in range(number)]
    try:
        return sorted(_session_state(client) for client in clients)
    finally:
        for client in clients:
            client.close()


def _session_state(client: Connection) -> list[tuple[str, ...]]:
    with client.cursor() as cur:
        cur.execute(
            """SELECT name, setting FROM pg_settings WHERE name IN ('search_path', 'default_transaction_read_only',
                   'transaction_read_only', 'row_security', 'client_encoding', 'statement_timeout', 'lock_timeout',
                   'session_replication_role', 'enable_seqscan', 'role', 'DateStyle', 'TimeZone')
               UNION ALL SELECT 'locks', count(*)::text FROM pg_locks WHERE locktype = 'advisory'
               UNION ALL SELECT 'prepared', count(*)::text FROM pg_prepared_statements
               UNION ALL SELECT 'cursors', count(*)::text FROM pg_cursors WHERE name <> ''
               UNION ALL SELECT 'temporary tables', count(*)::text FROM pg_class
                   WHERE relpersistence = 't' AND relnamespace = pg_my_temp_schema() ORDER BY 1"""
        )
        return cur.fetchall()


@pytest.mark.parametrize("words", READING)
def test_a_check_leaves_nothing_behind(pool: str, words: str, tmp_path: Path) -> None:
    before = left_behind(pool, 2)
    result = invoke(pool, tmp_path, words)
    assert result.exit_code in (0, 1, 6), result.output
    assert result.exit_code == 0 or words.startswith(
        ("doctor", "check-", "replication", "keepalive", "downgrade")
    ), result.output
    assert left_behind(pool, 2) == before


@pytest.mark.parametrize("change", ["upgrade", "downgrade --to 4"])
@pytest.mark.parametrize(("mode", "is_obstacle"), [("transaction", True), ("session", False)])
def test_a_plan_says_what_the_change_refuses(
    archive: str, mode: str, is_obstacle: bool, change: str, tmp_path: Path
) -> None:
    with bouncer(archive, mode, default_pool_size=4) as dsn:
        plan = invoke(dsn, tmp_path, f"{change} --plan --json")
        assert ("a connection pooler such as PgBouncer answers" in plan.stdout) == is_obstacle


def test_uploads_of_a_live_client_go_on_beside_checks(archive: str, tmp_path: Path) -> None:
    """Its session became read-only."""
    with bouncer(archive, "transaction", default_pool_size=1) as dsn, closing(_client(dsn)) as orthanc:
        for number, words in enumerate(("status", "doctor", "check-lock", "verify schema")):
            invoke(dsn, tmp_path, words)
            orthanc.cursor().execute(f"INSERT INTO globalproperties VALUES ({2000 + number}, '')")


@pytest.mark.parametrize("words", WRITING)
@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_what_writes_refuses_a_shared_session(archive: str, mode: str, words: str, tmp_path: Path) -> None:
    sqliteindex.create(tmp_path / "index")
    with bouncer(archive, mode, default_pool_size=2) as dsn:
        before = left_behind(dsn, 2)
        result = invoke(dsn, tmp_path, words)
        assert result.exit_code == 3, result.output
        said = " ".join(result.output.split())
        assert f"PgBouncer answers at 127.0.0.1:{psycopg2.extensions.parse_dsn(dsn)['port']}" in said
        assert f"127.0.0.1:{psycopg2.extensions.parse_dsn(archive)['port']} as the pooler sees it" in said
        assert left_behind(dsn, 2) == before


def test_a_pooler_in_session_mode_gets_its_sessions_back_as_they_were(archive: str, tmp_path: Path) -> None:
    with bouncer(archive, "session", default_pool_size=4, server_reset_query="") as dsn:
        with closing(_client(dsn)) as other:
            other.cursor().execute("SET search_path TO information_schema")
        before = left_behind(dsn, 4)
        assert ("search_path", "information_schema") in [pair for state in before for pair in state]
        for words in ("import --storage-dir {tmp}/area {real}", "init", "verify schema --repair --apply"):
            result = invoke(dsn, tmp_path, words)
            assert result.exit_code == 0, result.output
            assert left_behind(dsn, 4) == before


def test_idle_sessions_of_a_pooler_are_no_clients(behind: str, tmp_path: Path) -> None:
    """PgBouncer keeps them after DISCARD ALL; the switch waited for them."""
    archive = _with_index(behind, "switched")
    with bouncer(archive, "session") as dsn:
        left_behind(dsn, 3)
        for place, words in (
            (dsn, "downgrade --to 6 --yes"),
            (dsn, "upgrade --yes"),
            (archive, "downgrade --to 6 --yes"),
        ):
            result = invoke(place, tmp_path, words)
            assert result.exit_code == 0, result.output
        with closing(_client(dsn)) as orthanc:
            orthanc.cursor().execute("SELECT 1")
            refused = invoke(dsn, tmp_path, "upgrade --yes")
            assert refused.exit_code == 5
            assert "pid" in refused.output


def test_idle_sessions_that_may_be_a_pooler_s_are_named(behind: str, tmp_path: Path) -> None:
    archive = _with_index(behind, "reconnected")
    with bouncer(archive, "session", server_reset_query="", default_pool_size=9) as dsn:
        left_behind(dsn, 9)
        refused = invoke(dsn, tmp_path, "downgrade --to 6 --yes")
        assert refused.exit_code == 5
        said = " ".join(refused.output.split())
        assert "goes through a pooler, which may keep pid" in said
        assert "RECONNECT" in said
        with closing(_client(make_dsn(dsn, dbname="pgbouncer"))) as console:
            console.cursor().execute("RECONNECT reconnected")
        wait_until(lambda: len(schemas.rows(db.Target(archive), IDLE)) == 0)
        result = invoke(dsn, tmp_path, "downgrade --to 6 --yes")
        assert result.exit_code == 0, result.output


IDLE = "SELECT pid FROM pg_stat_activity WHERE datname = 'reconnected' AND pid <> pg_backend_pid()"
