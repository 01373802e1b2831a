"""Making an index, mending it, refusing everything else, and looking at it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import catalog, cli, db, provision, revision, status, steps
from pgorthanc_cli.errors import ConnectError, InUseError, PgOrthancError, RevisionError, UsageError

CURRENT = 10
ODD_SCHEMA = 'Or th"anc'


def run(target: db.Target, *statements: str) -> None:
    """Statements as an administrator would send them, one transaction each."""
    with db.session(target, autocommit=True, need_schema=False) as conn, conn.cursor() as cur:
        for statement in statements:
            cur.execute(statement)


def rows(target: db.Target, query: str) -> list[tuple[Any, ...]]:
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        cur.execute(query)
        return cur.fetchall()


def init(target: db.Target, **options: Any) -> revision.Initialised:
    with db.session(target) as conn:
        return revision.init(conn, schema=target.schema, **options)


def look(target: db.Target) -> status.Status:
    with db.session(target, readonly=True) as conn:
        return status.status(conn, target.schema)


def snapshot(target: db.Target) -> catalog.Catalog:
    with db.session(target, readonly=True) as conn:
        return catalog.snapshot(conn, target.schema)


def as_role(target: db.Target, role: str) -> db.Target:
    return db.Target(make_dsn(target.dsn, options=f"-c role={role}"), schema=target.schema)


@pytest.fixture(params=["public", ODD_SCHEMA])
def target(request: pytest.FixtureRequest, empty: db.Target) -> db.Target:
    """An empty schema."""
    found = db.Target(empty.dsn, schema=request.param)
    with db.session(found, autocommit=True, need_schema=False) as conn, conn.cursor() as cur:
        cur.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(request.param)))
    return found


@pytest.fixture(scope="module")
def template(admin: Connection, server_dsn: str) -> Iterator[str]:
    """The name of a database with an index in public."""
    name = f"pgorthanc_template_{os.getpid()}_revision"
    with admin.cursor() as cur:
        cur.execute(f"CREATE DATABASE {name}")
    init(db.Target(make_dsn(server_dsn, dbname=name)))
    yield name
    with admin.cursor() as cur:
        cur.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def index(template: str, new_database: Callable[[str], db.Target]) -> db.Target:
    """An index in public."""
    return new_database(template)


@pytest.fixture(scope="module")
def trigram(admin: Connection) -> str:
    """The state of the trigram index in a new index on this server."""
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'")
        return "valid" if cur.fetchone() == (1,) else "unavailable"


@pytest.fixture
def role(admin: Connection) -> Iterator[str]:
    """A role that may do nothing but log in."""
    name = f"pgorthanc_role_{os.getpid()}"
    with admin.cursor() as cur:
        cur.execute(f"CREATE ROLE {name}")
    yield name
    drop_role(admin, name)


def drop_role(admin: Connection, name: str) -> None:
    """Drop a role and all databases that it owns or has rights in."""
    identifier = sql.Identifier(name)
    with admin.cursor() as cur:
        cur.execute(
            """SELECT DISTINCT d.datname FROM pg_database d LEFT JOIN pg_shdepend s ON d.oid IN (s.dbid, s.objid)
               WHERE s.refobjid = (SELECT oid FROM pg_roles WHERE rolname = %s)""",
            (name,),
        )
        for (database,) in cur.fetchall():
            cur.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
        cur.execute(sql.SQL("DROP ROLE {}").format(identifier))


# --- making an index -----------------------------------------------------------------------------------------


def test_init_makes_the_newest_revision(target: db.Target, trigram: str) -> None:
    made = init(target)

    assert made == revision.Initialised(
        revision=CURRENT,
        schema_version=6,
        created=True,
        storage=True,
        trigram=trigram,
        schema=target.schema,
        repaired=(),
    )
    assert bool(made.warnings) is (trigram != "valid")
    with db.session(target, readonly=True) as conn:
        assert revision.recorded(conn, target.schema) == str(CURRENT)
        found = revision.layout(conn, target.schema)
        assert found is not None
        assert found.revision == CURRENT


def test_init_again_changes_nothing(target: db.Target) -> None:
    init(target)
    before = rows(target, "SELECT xmin::text, property FROM globalproperties ORDER BY 2")

    again = init(target)

    assert (again.created, again.repaired) == (False, ())
    assert rows(target, "SELECT xmin::text, property FROM globalproperties ORDER BY 2") == before


@pytest.mark.parametrize("name", [f"rev{CURRENT}.json", "storagearea.json"])
def test_the_catalogs_are_those_of_the_scripts(
    target: db.Target, tmp_path: Path, name: str, trigram: str
) -> None:
    """Whoever changes a script copies the new catalog over the old one, and thereby shows what changed."""
    init(target)
    found = snapshot(target)
    if trigram != "valid":
        key = f"index {catalog.TRIGRAM_INDEX}"
        found = dict(sorted({**found, key: catalog.wanted(CURRENT, with_storage=False)[key]}.items()))
    of_storage = catalog.storage().keys()
    kept = {k: v for k, v in found.items() if (k in of_storage) is (name == "storagearea.json")}
    (tmp_path / name).write_text(catalog.dump(kept), encoding="utf-8")
    shipped = Path(catalog.__file__).parent / "catalogs" / name

    assert shipped.read_text(encoding="utf-8") == catalog.dump(kept), f"run: cp {tmp_path / name} {shipped}"


def test_init_without_storage_area(target: db.Target) -> None:
    assert init(target, with_storage=False).storage is False
    assert rows(target, "SELECT to_regclass('storagearea')") == [(None,)]

    added = init(target, with_storage=True)

    assert (added.created, added.storage) == (False, True)
    assert "table storagearea" in added.repaired
    assert init(target, with_storage=False).storage is True


def test_the_storage_area_removes_the_large_object_with_its_row(index: db.Target) -> None:
    run(index, "INSERT INTO storagearea VALUES ('uuid', lo_from_bytea(0, 'content'), 1)")
    run(index, "DELETE FROM storagearea WHERE uuid = 'uuid' AND type = 1")
    assert rows(index, "SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]


def test_a_dry_run_leaves_nothing(target: db.Target) -> None:
    assert init(target, dry_run=True).created is True
    assert snapshot(target) == {}


@pytest.mark.parametrize("number", [0, 7, 11])
def test_a_revision_that_cannot_be_made(empty: db.Target, number: int) -> None:
    with pytest.raises(RevisionError) as refusal:
        init(empty, revision=number)
    assert str(number) in refusal.value.message
    assert str(CURRENT) in (refusal.value.hint or "")


def test_init_beside_other_tables(target: db.Target) -> None:
    run(target, "CREATE TABLE visits (id serial PRIMARY KEY)", "CREATE VIEW recent AS SELECT * FROM visits")
    assert init(target).created is True
    assert init(target).created is False


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("CREATE TABLE resources (id integer)", "table resources"),
        ("CREATE TABLE globalproperties (name text)", "table globalproperties"),
        ("CREATE TABLE labels (id integer)", "table labels"),
        ("CREATE VIEW labels AS SELECT 1", "labels"),
        ("CREATE SEQUENCE patientrecyclingordersequence", "sequence patientrecyclingordersequence"),
        ("CREATE TABLE storagearea (id integer)", "storagearea"),
        (
            "CREATE FUNCTION protectpatient(text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function protectpatient(text)",
        ),
        (
            "CREATE FUNCTION updatechildcount() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "function updatechildcount()",
        ),
    ],
)
def test_a_schema_that_holds_something_else(target: db.Target, statement: str, words: str) -> None:
    run(target, statement)
    before = snapshot(target)

    with pytest.raises(RevisionError) as refusal:
        init(target)

    assert words in refusal.value.message
    assert refusal.value.hint
    assert snapshot(target) == before


def test_a_schema_that_does_not_exist(empty: db.Target) -> None:
    with pytest.raises(ConnectError) as refusal, db.session(empty) as conn:
        revision.init(conn, schema=ODD_SCHEMA)
    assert 'CREATE SCHEMA "Or th""anc"' in (refusal.value.hint or "")


@pytest.mark.parametrize(
    ("statements", "words", "command"),
    [
        (["UPDATE globalproperties SET value = '11' WHERE property = 4"], "recorded as 11", "upgrade"),
        (["UPDATE globalproperties SET value = '6' WHERE property = 4"], "recorded as 6", "upgrade"),
        (["DELETE FROM globalproperties"], "recorded as none", "upgrade"),
        (
            ["ALTER TABLE globalintegerschanges DROP pk", "ALTER TABLE invalidchildcounts DROP pk"],
            "(revision 6, recorded as 10)",
            "upgrade",
        ),
    ],
)
def test_an_index_of_another_revision(
    index: db.Target, statements: list[str], words: str, command: str
) -> None:
    run(index, *statements)
    before = snapshot(index)

    with pytest.raises(RevisionError) as refusal:
        init(index)

    assert words in refusal.value.message
    assert command in (refusal.value.hint or "")
    assert snapshot(index) == before


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE resources ADD note text",
        "ALTER TABLE metadata ALTER value TYPE varchar(10)",
        "ALTER TABLE resources DROP CONSTRAINT uniquepublicid",
        "ALTER TABLE attachedfiles DISABLE TRIGGER attachedfiledeleted",
        "CREATE UNIQUE INDEX one ON attachedfiles (uuid)",
        "CREATE FUNCTION patientaddedorupdated(bigint, bigint) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE RULE keep AS ON DELETE TO labels DO INSTEAD NOTHING",
    ],
)
def test_damage_that_init_cannot_mend(index: db.Target, statement: str) -> None:
    run(index, statement, "DROP INDEX publicindex")
    before = snapshot(index)

    with pytest.raises(RevisionError) as refusal:
        init(index)

    assert refusal.value.hint
    assert snapshot(index) == before


@pytest.mark.parametrize("lock", [db.LOCK_INDEX, db.LOCK_STORAGE])
def test_nothing_is_made_while_an_orthanc_works(empty: db.Target, lock: int) -> None:
    with db.session(empty) as orthanc, db.advisory_lock(orthanc, lock):
        with pytest.raises(InUseError, match=f"pid {orthanc.info.backend_pid}"):
            init(empty)
    assert snapshot(empty) == {}


def test_a_healthy_index_is_looked_at_while_an_orthanc_works(index: db.Target) -> None:
    with db.session(index) as orthanc, db.advisory_lock(orthanc, db.LOCK_INDEX):
        assert init(index).created is False


def test_a_table_that_another_session_uses(index: db.Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "_LOCK_TIMEOUT", "50ms")
    run(index, "DROP INDEX publicindex")
    with db.session(index) as other, other.cursor() as cur:
        cur.execute("LOCK TABLE resources IN ROW EXCLUSIVE MODE")
        with pytest.raises(InUseError):
            init(index)


# --- rights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grants", "missing"),
    [
        (["GRANT USAGE ON SCHEMA orthanc TO {}"], "GRANT USAGE, CREATE ON SCHEMA orthanc TO {};"),
        (
            ["GRANT ALL ON SCHEMA orthanc TO {}", "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"],
            "GRANT TEMPORARY ON DATABASE {database} TO {};",
        ),
    ],
)
def test_missing_rights_are_named(empty: db.Target, role: str, grants: list[str], missing: str) -> None:
    database = db.parse(empty.dsn)["dbname"]
    target = db.Target(empty.dsn, schema="orthanc")
    run(target, "CREATE SCHEMA orthanc", *(grant.format(role, database=database) for grant in grants))

    with pytest.raises(RevisionError) as refusal:
        init(as_role(target, role))

    assert missing.format(role, database=database) in (refusal.value.hint or "")
    assert f"ALTER DATABASE {database} OWNER TO {role};" in (refusal.value.hint or "")
    assert snapshot(target) == {}


def test_tables_of_another_role_are_named(index: db.Target, role: str) -> None:
    run(index, f"GRANT ALL ON SCHEMA public TO {role}", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    run(index, "DROP INDEX labelsindex1", "DROP SEQUENCE patientrecyclingordersequence")

    with pytest.raises(RevisionError) as refusal:
        init(as_role(index, role))

    assert f"ALTER TABLE public.labels OWNER TO {role};" in (refusal.value.hint or "")


def test_the_owner_of_the_database_needs_no_other_right(empty: db.Target, role: str, trigram: str) -> None:
    database = db.parse(empty.dsn)["dbname"]
    run(empty, f"ALTER DATABASE {database} OWNER TO {role}", f"ALTER SCHEMA public OWNER TO {role}")

    made = init(as_role(empty, role))

    assert (made.created, made.trigram) == (True, trigram)
    owner = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
    assert rows(empty, owner) == [(role,)]


def test_a_role_that_may_not_create_extensions(empty: db.Target, role: str, trigram: str) -> None:
    target = db.Target(empty.dsn, schema="orthanc")
    run(target, f"CREATE SCHEMA orthanc AUTHORIZATION {role}")

    made = init(as_role(target, role))

    assert made.created is True
    assert made.trigram == ("missing" if trigram == "valid" else trigram)
    assert made.warnings
    assert rows(target, "SELECT value FROM globalproperties WHERE property = 10") == [("1",)]
    assert init(as_role(target, role)).created is False


@pytest.mark.parametrize("may_use", [True, False])
def test_pg_trgm_in_another_schema(target: db.Target, role: str, trigram: str, may_use: bool) -> None:
    if trigram == "unavailable":
        assert init(target).trigram == "unavailable"
        return
    run(target, 'CREATE SCHEMA "Ex t"', 'CREATE EXTENSION pg_trgm SCHEMA "Ex t"')
    name = sql.Identifier(target.schema)
    with db.session(target, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute(sql.SQL("GRANT ALL ON SCHEMA {} TO {}").format(name, sql.Identifier(role)))
    if may_use:
        run(target, f'GRANT USAGE ON SCHEMA "Ex t" TO {role}')

    made = init(as_role(target, role))

    assert made.trigram == ("valid" if may_use else "missing")


def test_an_invalid_trigram_index_is_reported(index: db.Target, trigram: str) -> None:
    run(
        index,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass('{catalog.TRIGRAM_INDEX}')",
    )
    expected = "invalid" if trigram == "valid" else trigram
    assert init(index).trigram == expected
    assert look(index).trigram == expected


# --- mending -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "repaired"),
    [
        ("DROP INDEX childrenindex2", "index childrenindex2"),
        ("DROP TABLE auditlogs", "table auditlogs"),
        ("DROP SEQUENCE patientrecyclingordersequence", "sequence patientrecyclingordersequence"),
        ("DROP FUNCTION protectpatient", "function protectpatient(patient_id bigint)"),
        ("DROP TRIGGER decrementchildcount ON resources", "trigger resources.decrementchildcount"),
        ("DELETE FROM globalproperties WHERE property = 13", "property 13"),
        ("UPDATE globalproperties SET value = '0' WHERE property = 10", "property 10"),
        ("DELETE FROM globalintegers WHERE key = 5", "counter 5"),
        ("UPDATE globalintegers SET value = NULL WHERE key = 0", "counter 0"),
        ("DROP RULE storageareadelete ON storagearea", "rule storagearea.storageareadelete"),
        ("DROP TABLE storagearea", "table storagearea"),
    ],
)
def test_what_is_missing_comes_back(index: db.Target, statement: str, repaired: str) -> None:
    run(index, statement)

    made = init(index)

    assert made.created is False
    assert repaired in made.repaired
    assert catalog.differences(snapshot(index), catalog.wanted(CURRENT, with_storage=True)) == []


FILL = (
    "SELECT createdeletedfilestemporarytable(), createinstance('p', 's', 'e', 'i'), createinstance('p', 's', 'e', 'j')",
    "INSERT INTO attachedfiles SELECT internalid, 1, publicid, 10, 20, 1, '', '', 0, NULL FROM resources",
    "INSERT INTO changes SELECT 40 + internalid, 2, internalid, resourcetype, 'now' FROM resources",
)


def test_a_missing_counter_is_counted_without_its_deltas(index: db.Target) -> None:
    run(index, *FILL, "SELECT updatestatistics()", "SELECT createinstance('p', 's', 'e', 'k')")
    run(
        index,
        "DELETE FROM globalintegers WHERE key <> 2",
        "UPDATE globalintegers SET value = NULL WHERE key = 2",
    )

    init(index)

    found = look(index)
    assert (found.patients, found.studies, found.series, found.instances) == (1, 1, 1, 3)
    assert (found.compressed_size_bytes, found.uncompressed_size_bytes) == (50, 100)
    assert rows(index, "SELECT value FROM globalintegers WHERE key IN (5, 6) ORDER BY key") == [(2,), (45,)]


def test_a_counter_that_is_there_is_never_counted_again(index: db.Target) -> None:
    run(index, *FILL, "UPDATE globalintegers SET value = 1000", "DROP INDEX publicindex")
    init(index)
    assert rows(index, "SELECT DISTINCT value FROM globalintegers") == [(1000,)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX mine ON metadata (type)",
        "CREATE INDEX childrenindex ON resources (parentid)",
        "DROP INDEX childrenindex2; CREATE INDEX childrenindex2 ON resources (parentid, publicid, internalid)",
        "DROP INDEX IF EXISTS dicomidentifiersindexvalues2",
        "ALTER TABLE invalidchildcounts DROP pk; ALTER TABLE invalidchildcounts ADD pk bigserial PRIMARY KEY",
        "CREATE TABLE pgorthanc_kept (id integer); CREATE INDEX pgorthanc_kept_id ON pgorthanc_kept (id)",
        "CREATE FUNCTION countresourcestrackerfunc() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "INSERT INTO globalproperties VALUES (5, '{}'), (1024, 'plugin'); INSERT INTO globalintegers VALUES (7, 3)",
    ],
)
def test_what_the_plugin_works_with_is_healthy(index: db.Target, statement: str) -> None:
    run(index, statement)
    made = init(index)
    assert (made.created, made.repaired) == (False, ())


# --- printing ------------------------------------------------------------------------------------------------


def load_as_one_text(target: db.Target, script: Path) -> None:
    run(target, script.read_text(encoding="utf-8"))


def load_with_psql(*options: str) -> Callable[[db.Target, Path], None]:
    def load(target: db.Target, script: Path) -> None:
        command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *options, "-d", target.dsn, "-f", str(script)]
        subprocess.run(command, check=True, capture_output=True)

    return load


LOADERS = [load_as_one_text, *([load_with_psql(), load_with_psql("-1")] if shutil.which("psql") else [])]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("schema", ["public", ODD_SCHEMA])
def test_the_printed_script(
    empty: db.Target, tmp_path: Path, schema: str, load: Callable[[db.Target, Path], None]
) -> None:
    script = tmp_path / "index.sql"
    script.write_text(revision.print_sql(schema=schema), encoding="utf-8")

    load(empty, script)
    load(empty, script)

    made = init(db.Target(empty.dsn, schema=schema))
    assert (made.created, made.storage, made.repaired) == (False, True, ())


def test_the_printed_script_is_all_or_nothing(empty: db.Target) -> None:
    run(empty, "CREATE TABLE storagearea (id integer)")
    before = snapshot(empty)
    with pytest.raises(PgOrthancError):
        run(empty, revision.print_sql(schema="public"))
    assert snapshot(empty) == before


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["CREATE TABLE labels (id integer)"], "holds labels, but no Orthanc index"),
        (["SET search_path TO nowhere"], "names no schema that exists"),
    ],
)
def test_the_script_alone_refuses_as_well(empty: db.Target, statements: list[str], message: str) -> None:
    with pytest.raises(PgOrthancError, match=message):
        run(empty, *statements, steps.text(steps.PREPARE_INDEX))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE globalproperties SET value = '9' WHERE property = 4",
        "UPDATE globalproperties SET value = '5' WHERE property = 1",
        "ALTER TABLE queues DROP reserveduntil",
        "CREATE TABLE patientrecyclingorder (seq bigint)",
    ],
)
def test_the_script_alone_refuses_another_revision(index: db.Target, statement: str) -> None:
    run(index, statement)
    with pytest.raises(PgOrthancError, match="revision"):
        run(index, steps.text(steps.PREPARE_INDEX))


def test_the_script_makes_everything_in_the_first_schema_of_the_path(index: db.Target) -> None:
    run(
        index,
        "CREATE SCHEMA second",
        "SET search_path TO second, public",
        steps.text(steps.PREPARE_INDEX),
        steps.text(steps.STORAGE_AREA),
    )
    found = snapshot(db.Target(index.dsn, schema="second"))
    assert catalog.differences(found, catalog.wanted(CURRENT, with_storage=True)) == []
    assert f"index {catalog.TRIGRAM_INDEX}" in found or f"index {catalog.TRIGRAM_INDEX}" not in snapshot(
        index
    )


# --- steps ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the scripts of the next issue; they are found by their names."""
    for name in (
        "UnknownToRev1",
        "Rev1ToRev2",
        "Rev2ToRev6",
        "Rev6ToRev10",
        "Rev10ToRev6",
        "Rev6ToRev2",
        "PrepareIndex",
    ):
        (tmp_path / f"{name}.sql").touch()
    monkeypatch.setattr(steps, "folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(
    ("start", "end", "names"),
    [
        (0, 10, ["UnknownToRev1.sql", "Rev1ToRev2.sql", "Rev2ToRev6.sql", "Rev6ToRev10.sql"]),
        (10, 2, ["Rev10ToRev6.sql", "Rev6ToRev2.sql"]),
        (2, 6, ["Rev2ToRev6.sql"]),
        (6, 6, []),
    ],
)
def test_the_way_between_two_revisions(start: int, end: int, names: list[str]) -> None:
    assert [step.script for step in steps.path(start, end)] == names


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(("start", "end"), [(10, 1), (10, 7), (2, 11), (3, 10)])
def test_there_is_no_way(start: int, end: int) -> None:
    with pytest.raises(RevisionError, match=f"from revision {start} to {end}"):
        steps.path(start, end)


# --- looking -------------------------------------------------------------------------------------------------


def test_status_of_an_index_in_use(index: db.Target, trigram: str) -> None:
    run(index, *FILL)
    with db.session(index) as orthanc, db.advisory_lock(orthanc, db.LOCK_INDEX):
        found = look(index)

    assert (found.revision, found.recorded_revision, found.schema_version) == (CURRENT, CURRENT, 6)
    assert (found.patients, found.studies, found.series, found.instances) == (1, 1, 1, 2)
    assert (found.compressed_size_bytes, found.uncompressed_size_bytes) == (50, 100)
    assert found.plugins == "10.0 to 10.3"
    assert found.trigram == trigram
    assert [(holder.lock, holder.pid) for holder in found.locks] == [
        (db.LOCK_INDEX, orthanc.info.backend_pid)
    ]
    assert found.pending == {"statistics_deltas": 15, "child_counts": 4}
    run(index, "SELECT updatestatistics(), updateinvalidchildcounts()")
    done = look(index)
    assert done.pending == {"statistics_deltas": 0, "child_counts": 0}
    assert done.instances == 2


@pytest.mark.parametrize(
    ("statements", "kind"),
    [
        ([], "postgresql"),
        (["DROP TABLE storagearea"], "filesystem"),
        (FILL, "filesystem"),
        ([*FILL, "INSERT INTO storagearea VALUES ('uuid', lo_from_bytea(0, ''), 1)"], "postgresql"),
    ],
)
def test_status_tells_where_the_files_are(index: db.Target, statements: list[str], kind: str) -> None:
    run(index, *statements)
    assert look(index).storage_area == kind


LAYOUTS = json.loads(
    (Path(catalog.__file__).parent / "catalogs" / "layouts.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout["plugins"].replace(" ", "_"))
def test_status_of_every_layout(empty: db.Target, layout: dict[str, Any]) -> None:
    columns = {"globalproperties.property", "globalproperties.value", "resources.publicid", *layout["has"]}
    columns |= {f"{c.partition('.')[0]}.value" for c in columns if c.startswith("globalintegers")}
    columns |= (
        {"globalintegers.key", "globalintegers.value"} if "globalintegerschanges.key" in columns else set()
    )
    for column in sorted(
        columns | ({"globalintegerschanges.key"} if "globalintegerschanges.pk" in columns else set())
    ):
        table, _, name = column.partition(".")
        kind = (
            "integer" if name in ("property", "key") else "text" if table == "globalproperties" else "bigint"
        )
        run(empty, f"CREATE TABLE IF NOT EXISTS {table} ()", f"ALTER TABLE {table} ADD {name} {kind}")
    run(empty, "INSERT INTO globalproperties VALUES (1, '6'), (4, '1')")

    found = look(empty)

    assert found.revision == (layout["revision"] or "unknown")
    assert (found.plugins, found.recorded_revision) == (layout["plugins"], 1)
    if layout["revision"] != CURRENT:
        with pytest.raises(RevisionError, match="wanted revision 10"):
            init(empty)


def test_status_of_a_role_that_only_reads(index: db.Target, role: str) -> None:
    run(index, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    assert look(as_role(index, role)).instances == 0


def test_status_without_an_index(empty: db.Target) -> None:
    with pytest.raises(RevisionError) as refusal:
        look(empty)
    assert "pgorthanc init" in (refusal.value.hint or "")


# --- roles and databases -------------------------------------------------------------------------------------


@contextmanager
def provisioned(admin: Connection, server_dsn: str) -> Iterator[tuple[db.Target, str]]:
    """The target of a database that does not exist, and the name of a role that does not; dropped afterwards."""
    role = f'pgorthanc "new" {os.getpid()}'
    database = f"pgorthanc_new_{os.getpid()}"
    try:
        yield db.Target(make_dsn(server_dsn, dbname=database), schema="orthanc"), role
    finally:
        drop_role(admin, role)


def test_a_new_role_with_a_new_database(admin: Connection, server_dsn: str, tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    with provisioned(admin, server_dsn) as (target, role):
        for _ in range(2):
            acting = provision.prepare(target, create_database=True, role=role, password_file=password_file)
        assert init(acting).created is True

        assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
        assert len(password_file.read_text().strip()) >= 32
        with admin.cursor() as cur:
            cur.execute("SELECT * FROM pg_authid WHERE rolname = %s", (role,))
            assert cur.description
            row = dict(zip((column.name for column in cur.description), cur.fetchone() or (), strict=True))
        assert row["rolpassword"].startswith("SCRAM-SHA-256$")
        assert row["rolcanlogin"]
        assert not any(row[right] for right in ("rolsuper", "rolcreatedb", "rolcreaterole", "rolreplication"))
        owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'orthanc'"
        assert rows(target, owners) == [(role,)]


def test_the_password_of_a_role_that_exists_is_not_invented(
    empty: db.Target, role: str, tmp_path: Path
) -> None:
    with pytest.raises(PgOrthancError, match="is there already"):
        provision.prepare(empty, role=role, password_file=tmp_path / "password")
    assert list(tmp_path.iterdir()) == []


def test_a_new_role_needs_a_password(empty: db.Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="password"):
        provision.prepare(empty, role=f"pgorthanc_none_{os.getpid()}")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty"):
        provision.prepare(empty, role=f"pgorthanc_none_{os.getpid()}", password_file=tmp_path / "empty")


def test_an_existing_database_gets_its_owner(empty: db.Target, role: str) -> None:
    provision.prepare(empty, role=role)
    query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    assert rows(empty, query) == [(role,)]


# --- command line --------------------------------------------------------------------------------------------


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli.main, words)


def test_the_commands(empty: db.Target) -> None:
    made = invoke("init", "--uri", empty.dsn, "--no-storage", "--json")
    shown = invoke("status", "--uri", empty.dsn, "--json")

    assert (made.exit_code, shown.exit_code) == (0, 0)
    document = json.loads(made.stdout)
    assert {"revision", "schema_version", "created", "storage", "trigram", "schema"} <= document.keys()
    assert (document["revision"], document["created"], document["storage"]) == (CURRENT, True, False)
    assert {
        "revision", "recorded_revision", "schema_version", "plugins", "patients", "studies", "series", "instances",
        "compressed_size_bytes", "uncompressed_size_bytes", "storage_area", "trigram", "locks", "server_version",
        "pending",
    } <= json.loads(shown.stdout).keys()  # fmt: skip


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["init", "--revision", "7"], 4),
        (["init", "--schema", "nowhere"], 3),
        (["init", "--create-database", "--dry-run"], 2),
        (["status"], 4),
        (["status", "--schema", "nowhere"], 3),
    ],
)
def test_the_exit_codes(empty: db.Target, words: list[str], exit_code: int) -> None:
    assert invoke(words[0], "--uri", empty.dsn, *words[1:]).exit_code == exit_code


def test_printing_needs_no_server() -> None:
    printed = invoke(
        "init", "--host", "nowhere.invalid", "--schema", "orthanc", "--print-sql", "--no-storage"
    )
    assert printed.exit_code == 0
    assert printed.stdout == revision.print_sql(schema="orthanc", with_storage=False)
