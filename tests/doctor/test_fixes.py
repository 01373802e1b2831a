"""What `doctor` prints as the fix of a problem is executed as it is printed; then the check passes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress

import psycopg2
import pytest
from click.testing import CliRunner
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db, doctor
from pgorthanc_cli.doctor import tables
from pgorthanc_cli.doctor.model import Subject
from pgorthanc_cli.doctor.server import transactions
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.schema import catalog
from tests.support import schemas
from tests.support.real_servers import Server, wait_until


def examined(target: db.Target, name: str, *, deep: bool = False) -> doctor.Check:
    (check,) = doctor.examine(target, [name], deep=deep).checks
    return check


def paste(target: db.Target, statements: str) -> None:
    """Run statements one after the other in one session, as psql does with lines that are pasted."""
    with closing(psycopg2.connect(target.dsn)) as conn:
        conn.autocommit = True
        with conn.cursor() as cur:
            for line in statements.splitlines():
                cur.execute(line)


def call(words: Sequence[str]) -> str:
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code in (0, 6), done.output
    return done.stdout


def follow(target: db.Target, *words: str) -> None:
    """Run the commands that doctor's screen shows, and what these print: a script, or the next command."""
    shown = call(["doctor", *words, "--uri", target.dsn])
    [line] = re.findall(r"^ {4,}pgorthanc (.*)", shown, re.MULTILINE)
    printed = call(shlex.split(line))
    if "--print-sql" in line:
        with closing(psycopg2.connect(target.dsn)) as conn, conn.cursor() as cur:
            cur.execute(printed)
            conn.commit()
    elif "--plan" in line:
        [following] = re.findall(r"^ {4,}pgorthanc (.*)", printed, re.MULTILINE)
        call(shlex.split(following))


DATABASE = "ALTER DATABASE {database} SET "
DAMAGES = {
    "no autovacuum": ("vacuum", ["ALTER TABLE metadata SET (autovacuum_enabled = false)"]),
    "commits not on the disk": ("settings", [DATABASE + "synchronous_commit = off"]),
    "a limit of time": ("settings", [DATABASE + "statement_timeout = 90000"]),
    "pending counters": (
        "counters",
        ["INSERT INTO globalintegerschanges (key, value) SELECT 5, 0 FROM generate_series(1, 100000)"],
    ),
    "a missing trigram index": ("trigram", [f"DROP INDEX IF EXISTS {catalog.TRIGRAM_INDEX}"]),
    "an invalid trigram index": (
        "trigram",
        ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{trigram}'::regclass"],
    ),
    "an invalid index": (
        "indexes",
        ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'publicindex'::regclass"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_statements(fresh: db.Target, trigram: str, damage: str) -> None:
    name, statements = DAMAGES[damage]
    if name == "trigram" and trigram != "valid":
        pytest.skip("the server has no pg_trgm")
    names = {
        "database": db.quote_ident(db.parse_dsn(fresh.dsn)["dbname"]),
        "trigram": catalog.TRIGRAM_INDEX,
    }
    schemas.run(fresh, *schemas.FILL, *(statement.format(**names) for statement in statements))
    check = examined(fresh, name)
    assert check.status != "OK"
    paste(fresh, check.statements)
    assert examined(fresh, name).status == "OK"


def test_an_invalid_index_that_cannot_be_rebuilt(fresh: db.Target) -> None:
    """Its duplicates stay, so only dropping it helps."""
    schemas.run(fresh, *schemas.FILL)
    with suppress(PgOrthancError):
        schemas.run(fresh, "CREATE UNIQUE INDEX CONCURRENTLY spoilt ON attachedfiles (filetype)")
    paste(fresh, examined(fresh, "indexes").statements)
    assert examined(fresh, "indexes").status == "OK"


def test_a_slot_that_no_standby_uses(fresh: db.Target, admin: Connection) -> None:
    name = f"pgorthanc_fix_{os.getpid()}"
    with admin.cursor() as cur:
        cur.execute("SELECT pg_create_physical_replication_slot(%s, true)", (name,))
    [drop] = [line for line in examined(fresh, "replication").statements.splitlines() if name in line]
    paste(fresh, drop)
    assert name not in examined(fresh, "replication").message


def test_a_transaction_that_stays_open(fresh: db.Target) -> None:
    with (
        db.session(fresh, readonly=True, autocommit=True) as ours,
        closing(psycopg2.connect(fresh.dsn)) as forgotten,
        forgotten.cursor() as cur,
    ):
        cur.execute("SELECT 1")
        paste(fresh, transactions(Subject(ours, fresh), long_s=0.0).statements)
        with pytest.raises(psycopg2.Error):
            cur.execute("SELECT 1")
        assert str(forgotten.info.backend_pid) not in transactions(Subject(ours, fresh), long_s=0.0).message


COMMANDS = {
    "a missing index": ("indexes", "DROP INDEX childrenindex2"),
    "a missing trigger": ("schema", "DROP TRIGGER incrementchildcount ON resources"),
    "another revision is recorded": (
        "revision",
        "UPDATE globalproperties SET value = '9' WHERE property = 4",
    ),
    "child counts": ("child-counts", "UPDATE resources SET childcount = NULL"),
}


@pytest.mark.parametrize("damage", COMMANDS)
def test_commands(fresh: db.Target, damage: str) -> None:
    name, statement = COMMANDS[damage]
    schemas.run(fresh, *schemas.FILL, statement)
    assert examined(fresh, name).status != "OK"
    follow(fresh, name)
    assert examined(fresh, name).status == "OK"


def test_no_index(empty: db.Target) -> None:
    follow(empty, "revision")
    assert examined(empty, "revision").status == "OK"


def test_bloat(fresh: db.Target) -> None:
    schemas.run(
        fresh,
        "ALTER TABLE globalproperties SET (autovacuum_enabled = false)",
        "INSERT INTO globalproperties SELECT 1000 + n, 'x' FROM generate_series(1, 110000) AS n",
        "DELETE FROM globalproperties WHERE property > 1000",
    )
    wait_until(lambda: "globalproperties is bloated" in examined(fresh, "vacuum").message)
    paste(fresh, examined(fresh, "vacuum").statements)
    wait_until(lambda: examined(fresh, "vacuum").status == "OK")


def test_an_unused_index(fresh: db.Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only big ones are named: here, that is any."""
    monkeypatch.setattr(tables, "UNUSED_BYTES", 0)
    schemas.run(fresh, *schemas.FILL, "CREATE INDEX ours ON metadata (value, id)")
    assert "ours (" in examined(fresh, "indexes").message
    paste(fresh, examined(fresh, "indexes").statements)
    assert examined(fresh, "indexes").status == "OK"


def test_the_limit_of_a_database(fresh: db.Target) -> None:
    database = db.quote_ident(db.parse_dsn(fresh.dsn)["dbname"])
    schemas.run(fresh, f"ALTER DATABASE {database} CONNECTION LIMIT 1")
    check = examined(fresh, "connections")
    assert check.status == "CRITICAL"
    [statement] = re.findall(r"ALTER DATABASE \.\.\. CONNECTION LIMIT", check.hint or "")
    schemas.run(fresh, f"{statement.replace('...', database)} 100")
    assert "1 of 100 in this database" in examined(fresh, "connections").message


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server whose settings may be changed."""
    server = Server(
        "local all all trust\n", "autovacuum=off\nmax_connections=11\nautovacuum_freeze_max_age=2000000000\n"
    )
    try:
        yield server.create().start()
    finally:
        server.remove()


def test_the_limit_of_a_server(own_server: Server) -> None:
    target = db.Target(own_server.place)
    with ExitStack() as sessions:
        for _ in range(6):
            sessions.enter_context(closing(psycopg2.connect(own_server.place)))
        check = examined(target, "connections")
        assert check.status in ("WARNING", "CRITICAL")
        [setting] = re.findall(r"Raise (\w+)", check.hint or "")
    own_server.sql(f"ALTER SYSTEM SET {setting} = 100")
    own_server.stop()
    own_server.start()
    with ExitStack() as sessions:
        for _ in range(6):
            sessions.enter_context(closing(psycopg2.connect(own_server.place)))
        assert examined(target, "connections").status == "OK"


def test_transaction_ids_that_run_out(own_server: Server) -> None:
    """As after 1.2 thousand million transactions; autovacuum does the rest in template0."""
    if not (own_server.programs.bin / "pg_resetwal").exists():
        pytest.skip("this PostgreSQL comes without pg_resetwal")
    target = db.Target(own_server.place)
    own_server.sql("CHECKPOINT")
    own_server.run("pg_ctl", "stop", "-m", "fast", "-w", "-D", str(own_server.data))
    own_server.run("pg_resetwal", "-x", str(NEXT_ID), "-D", str(own_server.data))
    # A page of the commit log holds 2 bits for each of 32768 ids, a file 32 pages.
    own_server.write(f"pg_xact/{NEXT_ID // (32 * 32768):04X}", bytes(32 * 8192))
    own_server.start()
    check = examined(target, "wraparound")
    assert check.status == "WARNING"
    for (name,) in [("postgres",), ("template1",)]:
        paste(db.Target(make_dsn(own_server.place, dbname=name)), check.statements)
    oldest = "SELECT string_agg(datname, ' ') FROM pg_database WHERE age(datfrozenxid) > 1000000000"
    assert own_server.sql(oldest) == "template0"
    own_server.sql("ALTER SYSTEM SET autovacuum_freeze_max_age = 200000000")
    own_server.run("pg_ctl", "stop", "-m", "fast", "-w", "-D", str(own_server.data))
    own_server.start()
    wait_until(lambda: examined(target, "wraparound").status == "OK", timeout_s=60)


NEXT_ID = 1_200_000_000
