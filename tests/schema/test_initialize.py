"""Making an index, mending it, and refusing everything else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgorthanc_cli import catalogs, db, locks
from pgorthanc_cli.errors import ConnectError, InUseError, RevisionError
from pgorthanc_cli.schema import catalog, initialize
from tests.support.schemas import CURRENT, FILL, ODD_SCHEMA, init, look, rows, run, snapshot


def test_init_makes_the_newest_revision(target: db.Target, trigram: str) -> None:
    made = init(target)

    assert made == initialize.Initialised(
        revision=CURRENT,
        schema_version=6,
        created=True,
        storage=True,
        trigram=trigram,
        schema=target.schema,
        repaired=(),
        dry_run=False,
        endpoint=made.endpoint,
    )
    with db.session(target, readonly=True) as conn:
        assert catalog.snapshot(conn, target.schema)["property 4"] == str(CURRENT)
        found = catalog.read_layout(conn, target.schema)
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
        found = dict(sorted({**found, key: catalog.expected(CURRENT, with_storage=False)[key]}.items()))
    of_storage = catalog.storage().keys()
    kept = {k: v for k, v in found.items() if (k in of_storage) is (name == "storagearea.json")}
    (tmp_path / name).write_text(catalog.dump(kept), encoding="utf-8")
    shipped = Path(str(catalogs.__file__)).parent / name

    assert shipped.read_text(encoding="utf-8") == catalog.dump(kept), f"run: cp {tmp_path / name} {shipped}"


def test_two_at_once_make_one_index(empty: db.Target) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(init, [empty, empty]))
    assert sorted(one.created for one in made) == [False, True]


def test_init_without_storage_area(target: db.Target) -> None:
    assert init(target, with_storage=False).storage is False
    assert rows(target, "SELECT to_regclass('storagearea')") == [(None,)]

    added = init(target, with_storage=True)

    assert (added.created, added.storage) == (False, True)
    assert "table storagearea" in added.repaired
    assert init(target, with_storage=False).storage is True


def test_the_storage_area_removes_the_large_object_with_its_row(fresh: db.Target) -> None:
    run(fresh, "INSERT INTO storagearea VALUES ('uuid', lo_from_bytea(0, 'content'), 1)")
    run(fresh, "DELETE FROM storagearea WHERE uuid = 'uuid' AND type = 1")
    assert rows(fresh, "SELECT count(*) FROM pg_largeobject_metadata") == [(0,)]


def test_a_dry_run_leaves_nothing(target: db.Target) -> None:
    assert init(target, dry_run=True).created is True
    assert snapshot(target) == {}


@pytest.mark.parametrize("number", [0, 7, 99])
def test_a_revision_that_cannot_be_made(empty: db.Target, number: int) -> None:
    with pytest.raises(RevisionError) as refusal:
        init(empty, revision=number)
    assert str(number) in refusal.value.message
    assert str(CURRENT) in (refusal.value.hint or "")


def test_init_beside_other_tables(target: db.Target) -> None:
    run(target, "CREATE TABLE visits (id serial PRIMARY KEY)", "CREATE VIEW recent AS SELECT * FROM visits")
    assert init(target).created is True
    assert init(target).created is False


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
        initialize.init(conn, schema=ODD_SCHEMA, require_idle=locks.require_idle)
    assert 'CREATE SCHEMA "Or th""an' in (refusal.value.hint or "")


@pytest.mark.parametrize(
    ("statements", "words", "command"),
    [
        (["UPDATE globalproperties SET value = '99' WHERE property = 4"], "recorded as 99", "upgrade"),
        (["UPDATE globalproperties SET value = '6' WHERE property = 4"], "recorded as 6", "upgrade"),
        (["DELETE FROM globalproperties"], "recorded as none", "upgrade"),
        (
            ["ALTER TABLE globalintegerschanges DROP pk", "ALTER TABLE invalidchildcounts DROP pk"],
            f"(revision 6, recorded as {CURRENT})",
            "upgrade",
        ),
    ],
)
def test_an_index_of_another_revision(
    fresh: db.Target, statements: list[str], words: str, command: str
) -> None:
    run(fresh, *statements)
    before = snapshot(fresh)

    with pytest.raises(RevisionError) as refusal:
        init(fresh)

    assert words in refusal.value.message
    assert command in (refusal.value.hint or "")
    assert snapshot(fresh) == before


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
def test_damage_that_init_cannot_mend(fresh: db.Target, statement: str) -> None:
    run(fresh, statement, "DROP INDEX publicindex")
    before = snapshot(fresh)

    with pytest.raises(RevisionError) as refusal:
        init(fresh)

    assert refusal.value.hint
    assert snapshot(fresh) == before


@pytest.mark.parametrize("lock", [db.LOCK_INDEX, db.LOCK_STORAGE])
def test_nothing_is_made_while_an_orthanc_works(empty: db.Target, lock: int) -> None:
    with db.session(empty) as orthanc, db.advisory_lock(orthanc, lock), pytest.raises(InUseError) as refusal:
        init(empty)
    assert f"holds the {db.LOCK_NAMES[lock]} lock, connected since" in refusal.value.message
    assert snapshot(empty) == {}


def test_a_healthy_index_is_looked_at_while_an_orthanc_works(fresh: db.Target) -> None:
    with db.session(fresh) as orthanc, db.advisory_lock(orthanc, db.LOCK_INDEX):
        assert init(fresh).created is False


def test_a_table_that_another_session_uses(fresh: db.Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialize, "LOCK_TIMEOUT", "50ms")
    run(fresh, "DROP INDEX publicindex")
    with db.session(fresh) as other, other.cursor() as cur:
        cur.execute("LOCK TABLE resources IN ROW EXCLUSIVE MODE")
        with pytest.raises(InUseError):
            init(fresh)


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
def test_what_is_missing_comes_back(fresh: db.Target, statement: str, repaired: str) -> None:
    run(fresh, statement)

    made = init(fresh)

    assert made.created is False
    assert repaired in made.repaired
    assert catalog.differences(snapshot(fresh), catalog.expected(CURRENT, with_storage=True)) == []


def test_a_missing_counter_is_counted_without_its_deltas(fresh: db.Target) -> None:
    run(fresh, *FILL, "SELECT updatestatistics()", "SELECT createinstance('p', 's', 'e', 'k')")
    run(
        fresh,
        "DELETE FROM globalintegers WHERE key <> 2",
        "UPDATE globalintegers SET value = NULL WHERE key = 2",
    )

    init(fresh)

    found = look(fresh)
    assert (found.patients, found.studies, found.series, found.instances) == (1, 1, 1, 3)
    assert (found.compressed_size_bytes, found.uncompressed_size_bytes) == (50, 100)
    assert rows(fresh, "SELECT value FROM globalintegers WHERE key IN (5, 6) ORDER BY key") == [(2,), (45,)]


def test_a_counter_that_is_there_is_never_counted_again(fresh: db.Target) -> None:
    run(fresh, *FILL, "UPDATE globalintegers SET value = 1000", "DROP INDEX publicindex")
    init(fresh)
    assert rows(fresh, "SELECT DISTINCT value FROM globalintegers") == [(1000,)]


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
def test_what_the_plugin_works_with_is_healthy(fresh: db.Target, statement: str) -> None:
    run(fresh, statement)
    made = init(fresh)
    assert (made.created, made.repaired) == (False, ())
