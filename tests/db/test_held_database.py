"""Settings, names, open umasks and crashes that must make no difference to an index."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner
from psycopg2 import sql
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db
from pgorthanc_cli.replication import password
from pgorthanc_cli.server import embedded
from tests.support import indexdump, indexstate, samples, sqliteindex
from tests.support.importing import check_area
from tests.support.real_servers import Server, wait_until
from tests.support.schemas import rows

_numbers = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server where each role may log in."""
    cluster = Server("local all all trust\nhost all all 127.0.0.1/32 trust\n", "")
    try:
        yield cluster.create().start()
    finally:
        cluster.remove()


def create(
    server: Server, database: str, role: str, schema: str = "public", kind: str = "", **settings: str
) -> db.Target:
    """A new database of a new role of that kind, whose sessions get these settings."""
    owner, name = sql.Identifier(role), sql.Identifier(database)
    with closing(psycopg2.connect(server.place)) as root, root.cursor() as cur:
        root.autocommit = True
        cur.execute(sql.SQL(f"CREATE ROLE {{}} LOGIN {kind}").format(owner))
        cur.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))
        for setting, value in settings.items():
            change = sql.SQL("ALTER ROLE {} SET {} = {}")
            cur.execute(change.format(owner, sql.Identifier(setting), sql.Literal(value)))
    with (
        closing(psycopg2.connect(make_dsn(server.place, dbname=database))) as root,
        root,
        root.cursor() as cur,
    ):
        cur.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(owner))
        if schema != "public":
            create_schema = sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}")
            cur.execute(create_schema.format(sql.Identifier(schema), owner))
    return db.Target(make_dsn(server.place, dbname=database, user=role), schema=schema)


def named(kind: str) -> str:
    return f"{kind}_{next(_numbers)}"


def ended(*words: object, code: int = 0) -> dict[str, Any]:
    """The document that a command prints."""
    result = CliRunner().invoke(cli.main, [*map(str, words), "--json"])
    assert result.exit_code == code, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


# --- settings ------------------------------------------------------------------------------------

SETTINGS = {
    "default_transaction_isolation": "serializable",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "statement_timeout": "300ms",
    "DateStyle": "German, DMY",
    "TimeZone": "Asia/Kolkata",
    "session_replication_role": "replica",
    "row_security": "off",
}
# The time of one statement depends on the machine, so its limit is tried alone.
ALL = {name: value for name, value in SETTINGS.items() if name != "statement_timeout"}
NO_SETTINGS: dict[str, str] = {}
ODD_TEXT = "back\\slash, 'quote' and \"quote\", \\x41, \\101, é"


# Rows that `import` does not write; %(odd)s is text, %(bytes)s the same as bytes.
OTHERS = """
    INSERT INTO keyvaluestores VALUES ('odd', %(odd)s, %(bytes)s);
    INSERT INTO queues (queueid, value) VALUES ('odd', %(bytes)s);
    INSERT INTO labels SELECT internalid, %(odd)s FROM resources WHERE resourcetype = 1;
    INSERT INTO metadata (id, type, value) SELECT internalid, 1024, %(odd)s FROM resources WHERE resourcetype = 1;
    INSERT INTO auditlogs (ts, sourceplugin, userid, resourcetype, resourceid, action, logdata)
        VALUES ('2026-02-03 04:05:06', 'plugin', %(odd)s, 0, 'p', 'read', %(bytes)s);
"""


def imported(target: db.Target, folder: Path) -> None:
    """Import the files of `folder/in` by the program itself: its sessions end with it."""
    words = ["--uri", target.dsn, "--schema", target.schema, "--storage-dir", folder / "area", "--jobs", 1]
    command = [sys.executable, "-m", "pgorthanc_cli", "import", *map(str, words), str(folder / "in")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def archive_of(target: db.Target, folder: Path) -> dict[str, Any]:
    """The rows of an index that came to be, was filled, and went down and up again."""
    there = ("--uri", target.dsn)
    ended("init", *there)
    samples.folder(folder / "in", 12)
    (folder / "in" / "odd.dcm").write_bytes(
        samples.instance("P9", "1.9", "1.9.1", PatientName="O'Neil^\\x41")
    )
    imported(target, folder)
    check_area(target, folder / "area")
    with db.session(target) as conn:
        with conn, conn.cursor() as cur:
            cur.execute(OTHERS, {"odd": ODD_TEXT, "bytes": ODD_TEXT.encode()})
        before = indexstate.state(conn)
    ended("verify", "schema", "--deep", *there)
    ended("downgrade", "--to", 1, "--yes", *there)
    ended("verify", "schema", *there)
    ended("upgrade", "--yes", *there)
    ended("verify", "schema", "--deep", *there)
    with db.session(target) as conn:
        after = indexstate.state(conn)
        assert indexstate.differing(before, after) == []
        assert indexstate.problems(conn) == []
        others = {name: after[name] for name in ("key-value stores", "queues", "audit logs")}
        return {**indexdump.dump(conn), "labels": after["labels"], **others}


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows without any settings."""
    target = create(server, named("database"), named("role"))
    return archive_of(target, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(ALL, id="all"),
        *(pytest.param({name: SETTINGS[name]}, id=name, marks=pytest.mark.once) for name in SETTINGS),
    ],
)
def test_settings_of_a_role_change_no_row(
    server: Server, undisturbed: dict[str, Any], tmp_path: Path, settings: dict[str, str]
) -> None:
    target = create(server, named("database"), named("role"), kind="SUPERUSER", **settings)
    with closing(psycopg2.connect(target.dsn)) as conn, conn.cursor() as cur:
        cur.execute("SELECT name FROM pg_settings WHERE source = 'user'")
        # The driver chooses DateStyle when it connects.
        assert {name for (name,) in cur.fetchall()} == set(settings) - {"DateStyle"}
    assert archive_of(target, tmp_path) == undisturbed
    assert ("odd", ODD_TEXT, ODD_TEXT) in undisturbed["key-value stores"]


WRITING = [
    "init", "import --storage-dir {folder}/area {folder}/in", "upgrade --yes", "downgrade --to 6 --yes",
    "verify schema --repair --apply", "migrate-sqlite {folder}/index",
]  # fmt: skip


@pytest.mark.parametrize("line", WRITING, ids=lambda line: line.split()[0])
def test_a_role_without_triggers_that_may_not_change_it_writes_nothing(
    server: Server, tmp_path: Path, line: str
) -> None:
    role = named("role")
    target = create(server, named("database"), role)
    samples.folder(tmp_path / "in", 2)
    sqliteindex.rich(tmp_path / "index")
    if not line.startswith(("init", "migrate")):
        ended("init", "--uri", target.dsn)
    server.sql(f"ALTER ROLE {role} SET session_replication_role = replica")
    words = line.format(folder=tmp_path).split()
    result = CliRunner().invoke(cli.main, [*words, "--uri", target.dsn])
    assert result.exit_code == 3, result.output
    assert f"the sessions of role {role} have session_replication_role = replica" in result.stderr
    assert f'ALTER ROLE "{role}" RESET session_replication_role' in result.stderr
    server.sql(f"ALTER ROLE {role} RESET session_replication_role")
    assert CliRunner().invoke(cli.main, ["init", "--uri", target.dsn]).exit_code == 0


# --- names ---------------------------------------------------------------------------------------

# One name for each oddity, and one that has them all.
NAMES = {
    "upper case": "Archive",
    "quotes": """a"b'c""",
    "backslash": "a\\b\\x41",
    "percent": "100%s %(a)s %",
    "unicode": "Архив 山田 é",
    "63 bytes": "x" * 63,
    "$user": "$user",
    "comma": "a,b, public",
    "option": "--x",
    "all": """--X"b'c\\n%s %(a)s é,$user""",
}
READING = ["status", "verify schema", "verify schema --deep", "upgrade --plan"]


def verdicts(*there: str) -> dict[str, str]:
    """What `doctor` says about each check."""
    result = CliRunner().invoke(cli.main, ["doctor", "--deep", *there, "--json"])
    return {check["name"]: check["status"] for check in json.loads(result.stdout)["checks"]}


@pytest.fixture(scope="module")
def plain(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `doctor` says where the names are plain."""
    schema = named("schema")
    target = create(server, named("database"), named("role"), schema=schema)
    there = ("--uri", target.dsn, "--schema", schema)
    folder = tmp_path_factory.mktemp("plain")
    samples.folder(folder / "in", 3)
    ended("init", *there)
    imported(target, folder)
    return verdicts(*there)


@pytest.mark.parametrize(
    "name", [pytest.param(NAMES[k], id=k, marks=[] if k == "all" else pytest.mark.once) for k in NAMES]
)
def test_any_name_of_database_role_and_schema(
    server: Server, tmp_path: Path, plain: dict[str, str], name: str
) -> None:
    target = create(server, name, name, schema=name)
    place = db.parse_dsn(server.place)
    there = [f"--host={place['host']}", f"--port={place['port']}", f"--dbname={name}", f"--username={name}",
             f"--schema={name}"]  # fmt: skip
    assert ended("init", *there)["schema"] == name
    samples.folder(tmp_path / "in", 3)
    report = ended("import", *there, "--storage-dir", tmp_path / "area", "--jobs", 1, tmp_path / "in")
    assert report["imported"] == 3
    with db.session(target) as conn:
        assert indexstate.problems(conn) == []
    for words in READING:
        ended(*words.split(), *there)
    assert verdicts(*there) == plain
    holder = psycopg2.connect(make_dsn(server.place, dbname=name))
    with closing(holder), holder.cursor() as cur:
        cur.execute(
            "SELECT DISTINCT schemaname::text, tableowner::text FROM pg_tables WHERE tablename = 'resources'"
        )
        assert cur.fetchall() == [(name, name)]


def test_a_schema_of_that_name_is_not_the_schema_of_the_role(server: Server) -> None:
    """PostgreSQL takes "$user" in search_path for the schema that is named like the role, quoted or not."""
    role = named("role")
    target = create(server, named("database"), role, schema="$user")
    with db.session(target, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(role)))
    result = CliRunner().invoke(cli.main, ["init", "--uri", target.dsn, "--schema", "$user", "--json"])
    schemas = rows(target, "SELECT schemaname::text FROM pg_tables WHERE tablename = 'resources'")
    assert schemas in ([("$user",)] if result.exit_code == 0 else [],), (result.output, schemas)


# --- passwords -----------------------------------------------------------------------------------


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
def test_files_with_passwords_are_private_under_an_open_umask(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "role.password"
    name = named("created")
    ended("init", "--uri", make_dsn(server.place, dbname=name), "--create-database", "--create-role", name,
          "--role-password-file", file)  # fmt: skip
    assert file.read_text().strip()
    assert permissions(file) == 0o600
    passfile = tmp_path / "pgpass"
    password.write_passfile(passfile, "role", "secret")
    assert permissions(passfile) == 0o600


@pytest.mark.usefixtures("open_umask")
def test_a_private_server_is_private_under_an_open_umask(tmp_path: Path) -> None:
    directory = Path(tempfile.mkdtemp(dir="/tmp")) / "server"  # the path of a socket has 107 bytes at most
    try:
        kept = embedded.start(directory)
        try:
            files = [path for path in directory.glob("pgorthanc.*") if path.is_file()]
            assert Path(str(kept.password_file)) in files
            assert {path.name: permissions(path) for path in files} == {path.name: 0o600 for path in files}
            assert permissions(directory) == 0o700
            assert permissions(directory / "log") == 0o600
        finally:
            embedded.stop(directory)
    finally:
        shutil.rmtree(directory.parent)


# --- crashes -------------------------------------------------------------------------------------


def command(target: db.Target, *words: str) -> list[str]:
    return [sys.executable, "-m", "pgorthanc_cli", *words, "--uri", target.dsn]


def sessions(server: Server, target: db.Target) -> int:
    database = db.parse_dsn(target.dsn)["dbname"]
    return int(server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"))


def test_two_at_once_of_which_one_is_killed_make_one_index(server: Server) -> None:
    """The one that is killed is in the middle of its work, and the other one waits for it."""
    target = create(server, named("database"), named("role"))
    database = db.parse_dsn(target.dsn)["dbname"]
    root = db.Target(make_dsn(server.place, dbname=database))
    sleep(root)
    with subprocess.Popen(command(target, "init")) as first:
        wait_until(lambda: sleeping(server, database) == 1)
        with subprocess.Popen(command(target, "init"), stderr=subprocess.PIPE, text=True) as second:
            wait_until(lambda: sessions(server, target) == 2)
            first.send_signal(signal.SIGKILL)
            awake(server, root)
            _, errors = second.communicate(timeout=60)
    assert second.returncode in (0, 5), errors
    assert "Traceback" not in errors
    wait_until(lambda: sessions(server, target) == 0)
    ended("init", "--uri", target.dsn)
    ended("verify", "schema", "--uri", target.dsn)


SLEEP = """
CREATE SCHEMA apart;
CREATE FUNCTION apart.sleep() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); END $$;
CREATE EVENT TRIGGER sleep ON ddl_command_start WHEN TAG IN ('CREATE SEQUENCE', 'CREATE TABLE')
    EXECUTE FUNCTION apart.sleep();
ALTER EVENT TRIGGER sleep ENABLE ALWAYS;
GRANT USAGE ON SCHEMA apart TO PUBLIC;
"""


def sleep(root: db.Target) -> None:
    """Let the next sequence or table that is created wait for a minute."""
    with closing(psycopg2.connect(root.dsn)) as conn, conn, conn.cursor() as cur:
        cur.execute(SLEEP)


def sleeping(server: Server, database: str) -> int:
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event = 'PgSleep'"
    return int(server.sql(query))


def awake(server: Server, root: db.Target) -> None:
    """End the waiting of those who sleep; the one that comes next does not sleep."""
    database = db.parse_dsn(root.dsn)["dbname"]
    server.sql(
        f"""SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
            WHERE datname = '{database}' AND wait_event = 'PgSleep'"""
    )
    with closing(psycopg2.connect(root.dsn)) as conn, conn, conn.cursor() as cur:
        cur.execute("DROP EVENT TRIGGER sleep; DROP SCHEMA apart CASCADE")


@pytest.mark.parametrize("phase", ["prepare", "switch"])
def test_a_server_that_stops_at_once_in_an_upgrade(tmp_path: Path, server: Server, phase: str) -> None:
    target = create(server, named("database"), named("role"))
    database = db.parse_dsn(target.dsn)["dbname"]
    root = db.Target(make_dsn(server.place, dbname=database))
    ended("init", "--uri", target.dsn, "--revision", 1)
    samples.folder(tmp_path / "in", 6)
    imported(target, tmp_path)
    with db.session(target) as conn:
        before = indexdump.dump(conn)
    if phase == "switch":
        sleep(root)
    else:
        holder = psycopg2.connect(root.dsn)
        with holder.cursor() as cur:
            cur.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM changes")
    with subprocess.Popen(
        command(target, "upgrade", "--yes", "--phase", phase), stderr=subprocess.PIPE, text=True
    ) as program:
        wait_until(lambda: program.poll() is not None or waiting(server, database))
        server.stop()
        _, errors = program.communicate(timeout=60)
    server.start()
    assert program.returncode == 3, errors
    assert "error: " in errors
    assert "Traceback" not in errors
    if phase == "switch":
        awake(server, root)
    assert ended("status", "--uri", target.dsn)["revision"] == 1
    with db.session(target) as conn:
        assert indexdump.dump(conn) == before
    assert ended("upgrade", "--yes", "--uri", target.dsn)["revision"] == 10
    ended("verify", "schema", "--deep", "--uri", target.dsn)
    with db.session(target) as conn:
        assert indexdump.dump(conn) == before


def waiting(server: Server, database: str) -> bool:
    """Whether an upgrade sleeps, or waits for the transaction of another session."""
    query = f"""SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'
        AND application_name = 'pgorthanc upgrade' AND wait_event_type IN ('Lock', 'Timeout')"""
    return server.sql(query) != "0"
