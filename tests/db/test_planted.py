"""Nothing that others put into the database runs with our rights (CVE-2018-1058), whoever runs which command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from click.testing import CliRunner, Result
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

import pgorthanc_cli
from pgorthanc_cli import cli, db, upgrade
from pgorthanc_cli.db import planted
from pgorthanc_cli.errors import InUseError, RevisionError
from tests.support import hostile, samples, sqliteindex
from tests.support.real_servers import Server, wait_until
from tests.support.schemas import FILL, init, rows, run

PLACES = [("public", 10), ('Or th"anc', 6)]


@dataclass(frozen=True)
class Attacked:
    """An index that role orthanc owns, and what it looks like to a superuser."""

    root: db.Target
    owner: db.Target
    revision: int

    def invoke(self, *words: object, owner: bool = False) -> Result:
        target = self.owner if owner else self.root
        arguments = [str(word) for word in words]
        return CliRunner().invoke(cli.main, [*arguments, "--uri", target.dsn, "--schema", target.schema])

    @property
    def calls(self) -> int:
        # The server before PostgreSQL 15 counts half a second later.
        with closing(psycopg2.connect(self.root.dsn)) as conn, conn.cursor() as cur:
            cur.execute("SHOW server_version_num")
            if int(cur.fetchall()[0][0]) < 150000:
                cur.execute("SELECT pg_sleep(1)")
        return hostile.calls(self.root.dsn, self.root.schema)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    cluster = Server("local all all trust\nhost all all 127.0.0.1/32 trust\n", "track_functions = all\n")
    try:
        cluster.create().start()
        cluster.sql("CREATE ROLE orthanc LOGIN", "CREATE ROLE eve", "CREATE ROLE mallory LOGIN IN ROLE eve")
        yield cluster
    finally:
        cluster.remove()


def database(server: Server, name: str, schema: str, revision: int) -> Attacked:
    server.sql(f"CREATE DATABASE {name} OWNER orthanc")
    dsn = make_dsn(server.place, dbname=name)
    attacked = Attacked(
        db.Target(dsn, schema=schema), db.Target(make_dsn(dsn, user="orthanc"), schema=schema), revision
    )
    quoted = '"' + schema.replace('"', '""') + '"'
    with closing(psycopg2.connect(dsn)) as conn, conn, conn.cursor() as cur:
        cur.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted}; GRANT ALL ON SCHEMA {quoted} TO orthanc")
    init(attacked.owner)
    run(attacked.owner, *FILL, "SELECT setval('changes_seq_seq', (SELECT max(seq) FROM changes))")
    if revision < 10:
        upgrade.downgrade(attacked.owner, to=revision)
    return attacked


@pytest.fixture(scope="module", params=PLACES, ids=lambda place: str(place[1]))
def attacked(server: Server, request: pytest.FixtureRequest) -> Attacked:
    """Planted everything, and search_path of role and database led there, too."""
    schema, revision = request.param
    attacked = database(server, f"attacked_{revision}", schema, revision)
    hostile.plant(attacked.root.dsn, schema)
    quoted = '"' + schema.replace('"', '""') + '"'
    server.sql(
        f"ALTER DATABASE attacked_{revision} SET search_path = {quoted}, pg_catalog",
        f"ALTER ROLE postgres IN DATABASE attacked_{revision} SET search_path = {quoted}, pg_catalog",
    )
    return attacked


@pytest.fixture
def index(server: Server, request: pytest.FixtureRequest) -> Iterator[Attacked]:
    """An index of its own for a few objects."""
    name = "index_" + re.sub(r"\W", "_", request.node.name.lower())[-40:]
    yield database(server, name, "public", 10)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_the_twins_would_be_called(attacked: Attacked) -> None:
    """Otherwise nothing of this proves anything."""
    before = attacked.calls
    with closing(psycopg2.connect(attacked.root.dsn)) as conn, conn.cursor() as cur:
        cur.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(attacked.root.schema)))
        cur.execute("SELECT pg_relation_size(1259::oid), 'a'::varchar = 'b'::varchar, 1::oid = 1::bigint")
    wait_until(lambda: attacked.calls >= before + 3)


# What it prints, and which exit codes are right beside planted objects: 6 where they are a problem that it reports.
READING = {
    "status": (0,),
    "doctor": (6,),
    "doctor --deep": (6,),
    "verify schema": (6,),
    "verify schema --deep --json": (6,),
    "verify schema --repair": (6,),
    "check-lock": (0,),
    "check-auth": (0, 6),
    "upgrade --plan": (0, 6),
    "downgrade --to 4 --plan": (6,),
    "upgrade --sql": (0,),
    "wait --revision {revision} --timeout 5": (0,),
    "keepalive-test --ages 0.1s": (0, 6),
    "replication plan --allow 10.0.0.2": (0, 6),
    "replication status": (0, 1, 6),
    "support-bundle {tmp}/bundle.tar.gz": (0, 6),
    "import --dry-run --storage-dir {tmp}/area {real}": (0,),
}


@pytest.mark.parametrize("words", READING)
def test_reading_commands_run_nothing_that_is_planted(attacked: Attacked, words: str, tmp_path: Path) -> None:
    before = attacked.calls
    given = words.format(revision=attacked.revision, tmp=tmp_path, real=samples.REAL).split()
    result = attacked.invoke(*given)
    assert "planted code runs" not in result.output
    assert result.exit_code in READING[words], result.output
    assert attacked.calls == before
    if words.startswith("doctor"):
        assert "foreign-code" in result.output
    if words.startswith("verify") and "--repair" not in words:
        assert "may run in place of PostgreSQL's" in result.output
    if words.endswith("--json"):
        names = [finding["name"] for finding in json.loads(result.stdout)["findings"]]
        assert len(names) == len(set(names))


WRITING = (
    "import --storage-dir {tmp}/area {real}",
    "init",
    "upgrade --yes",
    "downgrade --to 4 --yes",
    "verify schema --repair --apply",
    "migrate-sqlite {tmp}/index",
)


@pytest.mark.parametrize("owner", [False, True], ids=["superuser", "owner of the index"])
@pytest.mark.parametrize("words", WRITING)
def test_writing_commands_refuse_and_name_what_is_planted(
    attacked: Attacked, words: str, owner: bool, tmp_path: Path
) -> None:
    sqliteindex.create(tmp_path / "index")
    before = attacked.calls
    result = attacked.invoke(*words.format(tmp=tmp_path, real=samples.REAL).split(), owner=owner)
    assert result.exit_code == 4, result.output
    assert "of role eve" in result.output
    assert "DROP " in result.output
    assert attacked.calls == before
    assert not (tmp_path / "area").exists() or not any((tmp_path / "area").iterdir())


def statements(target: db.Target) -> list[str]:
    with closing(db.connect(target, readonly=True)) as conn:
        return [each.remedy for each in planted.find(conn, target.schema)]


def eve(index: Attacked, *commands: str) -> None:
    with hostile.as_eve(index.root.dsn, "public") as conn, conn.cursor() as cur:
        for command in commands:
            cur.execute(command)


def test_an_index_as_it_is_has_nothing_planted(index: Attacked) -> None:
    """Extensions that it needs (pg_trgm has functions and operators like PostgreSQL's) are none."""
    assert statements(index.root) == statements(index.owner) == []


def test_what_the_hint_says_makes_the_command_work(index: Attacked, tmp_path: Path) -> None:
    run(
        index.owner,
        "CREATE TABLE own (n integer)",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO eve",
    )
    body = "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    eve(
        index,
        f"CREATE FUNCTION lower(varchar) RETURNS text {body}",
        f"CREATE FUNCTION createinstance(text, text, text, varchar) RETURNS text {body}",
        f"CREATE FUNCTION same(varchar, varchar) RETURNS boolean {body}",
        "CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = same)",
        f'CREATE FUNCTION greatest_(bigint, "char") RETURNS bigint {body}',
        'CREATE AGGREGATE max("char") (SFUNC = greatest_, STYPE = bigint)',
        "CREATE PROCEDURE format(oid) LANGUAGE plpgsql AS 'BEGIN END'",
        "CREATE DOMAIN text AS pg_catalog.text",
        f"CREATE FUNCTION noticed() RETURNS trigger {body}",
        "CREATE TRIGGER noticed AFTER INSERT ON resources FOR EACH ROW EXECUTE FUNCTION noticed()",
        "CREATE TRIGGER noticed AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION noticed()",
    )
    words = ("import", "--storage-dir", tmp_path / "area", samples.REAL)
    refused = index.invoke(*words)
    assert refused.exit_code == 4
    assert "7 objects" in refused.output
    hint = " ".join(refused.output.split("hint: run: ")[1].split()).split(" Then run")[0]
    assert hint == " ".join(statements(index.root))
    run(index.root, hint)
    imported = index.invoke(*words)
    assert imported.exit_code == 0, imported.output


def test_the_owner_of_the_objects_gains_nothing_and_a_superuser_refuses(index: Attacked) -> None:
    """Her members may become her, so may superusers; nobody else is trusted."""
    body = "LANGUAGE sql AS 'SELECT 1'"
    run(index.owner, f"CREATE FUNCTION lower(varchar) RETURNS integer {body}")
    run(
        index.root,
        f"CREATE FUNCTION upper(varchar) RETURNS integer {body}",
        "CREATE ROLE member IN ROLE orthanc",
        "CREATE ROLE above",
        "GRANT above TO orthanc",
    )
    for role in ("member", "above"):
        run(
            index.root,
            f"GRANT CREATE ON SCHEMA public TO {role}",
            f"CREATE FUNCTION length({'varchar' if role == 'member' else 'name, name, name'}) RETURNS integer {body}",
            f"ALTER FUNCTION length({'varchar' if role == 'member' else 'name, name, name'}) OWNER TO {role}",
        )
    try:
        assert statements(index.owner) == ["DROP FUNCTION public.length(name, name, name);"]
        assert statements(index.root) == [
            "DROP FUNCTION public.length(character varying);",
            "DROP FUNCTION public.length(name, name, name);",
            "DROP FUNCTION public.lower(character varying);",
        ]
    finally:
        run(index.root, "DROP OWNED BY member, above", "DROP ROLE member, above")


def test_what_an_index_needs_is_not_dropped_but_gets_its_owner(index: Attacked) -> None:
    run(
        index.root,
        "CREATE ROLE former",
        "ALTER TABLE labels OWNER TO former",
        "ALTER TABLE changes OWNER TO former",
        "ALTER FUNCTION deleteresource(bigint) OWNER TO former",
    )
    try:
        remedies = statements(index.owner)
        assert remedies[0].startswith("ALTER FUNCTION public.deleteresource(id bigint")
        assert remedies[1:] == [
            "ALTER TABLE public.changes OWNER TO orthanc;",
            "ALTER TABLE public.labels OWNER TO orthanc;",
        ]
        run(index.root, *remedies)
        assert statements(index.owner) == []
    finally:
        run(index.root, "DROP OWNED BY former", "DROP ROLE former")


def test_a_cast_by_a_function_of_another_role(index: Attacked) -> None:
    eve(index, "CREATE FUNCTION cast_(point) RETURNS oid LANGUAGE sql AS 'SELECT 1::oid'")
    run(index.root, "CREATE CAST (point AS oid) WITH FUNCTION public.cast_(point) AS ASSIGNMENT")
    assert statements(index.root) == ["DROP CAST (point AS oid);"]
    run(index.root, "DROP CAST (point AS oid)")


LATER = "CREATE FUNCTION lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT 1::text'"


def test_what_comes_after_the_first_look_is_seen_before_anything_is_written(index: Attacked) -> None:
    for target in (index.owner, index.root):
        with db.session(target) as conn:
            eve(index, LATER)
            with pytest.raises(RevisionError, match=r"function lower\(character varying\) of role eve"):
                planted.refuse_until_commit(conn)
        eve(index, "DROP FUNCTION lower(varchar)")


def test_while_a_superuser_writes_nobody_creates_functions(index: Attacked) -> None:
    with db.session(index.root) as conn:
        planted.refuse_until_commit(conn)
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            eve(index, "SET lock_timeout = '100ms'", LATER)
        conn.commit()
        eve(index, LATER, "DROP FUNCTION lower(varchar)")


@contextmanager
def created_but_not_committed(index: Attacked) -> Iterator[Connection]:
    with hostile.as_eve(index.root.dsn, "public"):  # she gets the right
        pass
    with closing(psycopg2.connect(make_dsn(index.root.dsn, user="mallory"))) as other:
        with other.cursor() as cur:
            cur.execute(f"SET search_path TO public; SET ROLE eve; {LATER}")
        yield other


def test_a_function_that_is_being_created_is_named_as_the_reason(index: Attacked) -> None:
    with created_but_not_committed(index), db.session(index.root) as conn:
        with pytest.raises(InUseError, match=r"is still open: pid \d+, role mallory"):
            planted.refuse_until_commit(conn, wait_s=0.1)


def test_a_function_that_is_committed_behind_our_lock_is_seen(index: Attacked) -> None:
    waits = "SELECT count(*) FROM pg_locks WHERE relation = 'pg_proc'::regclass AND mode = 'ShareLock' AND granted"
    with (
        created_but_not_committed(index) as other,
        db.session(index.root) as conn,
        ThreadPoolExecutor(1) as pool,
    ):
        held = pool.submit(planted.refuse_until_commit, conn)
        wait_until(lambda: rows(index.root, waits) == [(1,)])
        other.commit()
        with pytest.raises(RevisionError, match=r"lower\(character varying\) of role eve"):
            held.result()


def test_a_view_in_place_of_a_table_is_not_read(index: Attacked) -> None:
    """As soon as the server can be told so: since the minor releases of August 2024."""
    eve(index, "CREATE VIEW seen AS SELECT 1 AS n")
    with db.session(index.root, readonly=True) as conn:
        known = "restrict_nonsystem_relation_kind" in conn.preamble
        minor = {12: 20, 13: 16, 14: 13, 15: 8, 16: 4}.get(conn.server_version // 10000, 0)
        assert known == (conn.server_version % 10000 >= minor)
        if known:
            with pytest.raises(psycopg2.Error, match="restricted"):
                db.rows(conn, "SELECT * FROM index.seen")
        else:
            assert db.rows(conn, "SELECT * FROM index.seen") == [(1,)]


def test_temporary_tables_do_not_stand_in_for_those_of_the_index(index: Attacked) -> None:
    with db.session(index.root) as conn, conn.cursor() as cur:
        cur.execute("CREATE TEMPORARY TABLE globalproperties (property integer, value text)")
        assert db.value(conn, "SELECT value FROM index.globalproperties WHERE property = 4") == "10"
        assert db.trusted_rows(conn, "SELECT count(*) FROM pg_class WHERE relname = 'globalproperties'") == [
            (2,)
        ]


def test_reading_sessions_see_postgresql_alone(index: Attacked) -> None:
    with db.session(index.root, readonly=True) as conn:
        assert db.value(conn, "SELECT current_setting('search_path')") == "pg_catalog, pg_temp"
        conn.rollback()
        assert db.described_rows(conn, "public", "SELECT current_setting('search_path')") == [
            ("public, pg_temp",)
        ]
        assert db.value(conn, "SELECT current_setting('search_path')") == "pg_catalog, pg_temp"
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            db.rows(conn, "CREATE TABLE public.x (n integer)")


TABLE = re.compile(
    r"\b(?:FROM|JOIN) (?:attachedfiles|changes|dicomidentifiers|globalintegers|globalintegerschanges|globalproperties"
    r"|invalidchildcounts|keyvaluestores|labels|maindicomtags|metadata|queues|resources|storagearea)\b"
)
ROOMS = (
    "schema/catalog.py", "schema/status.py", "doctor", "index/lookup.py", "upgrade/kept.py", "upgrade/survey.py",
)  # fmt: skip


def test_what_reads_addresses_the_tables_of_the_index() -> None:
    """An unqualified name is found in a session that writes alone; current_schema() is pg_catalog in the others."""
    package = Path(pgorthanc_cli.__file__).parent
    for path in sorted((*package.rglob("*.py"), *package.rglob("*.sql"))):
        text = path.read_text("utf-8")
        name = str(path.relative_to(package))
        assert "current_schema" not in text or name in ("schema/verify/apply.py",), name
        if name.startswith(ROOMS):
            assert TABLE.findall(text) == [], name
