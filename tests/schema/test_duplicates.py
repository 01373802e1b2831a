"""Duplicate public ids below revision 2: what is found, and what becomes of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError, RevisionError
from pgorthanc_cli.schema import duplicates, steps
from tests.support.schemas import drop_database, init, rows, run

# Everything of one patient, and once more with an apostrophe, as two Orthancs would store it at the same time;
# `double` then makes the public ids equal.
FILL = (
    "SELECT createinstance('p', 's', 'e', 'i'), createinstance('p', 's', 'e', 'j')",
    "SELECT createinstance('p''', 's''', 'e''', 'i'''), createinstance('p''', 's''', 'e''', 'k')",
    "SELECT createinstance('p', 's', 'e', 'l'), createinstance('p''', 's''', 'f', 'm')",
    "SELECT createinstance('q', 't', 'g', 'n')",
    """INSERT INTO attachedfiles SELECT internalid, 1, 'file of ' || publicid, 10 + internalid, 20, 1, 'md5', 'md5', 0
           FROM resources WHERE resourcetype = 3""",
    """INSERT INTO metadata SELECT internalid, 7, publicid, 0 FROM resources""",
    "INSERT INTO maindicomtags SELECT internalid, 8, 32, '2024' FROM resources WHERE resourcetype = 1",
    "INSERT INTO dicomidentifiers SELECT internalid, 16, 32, publicid FROM resources WHERE resourcetype = 0",
    "INSERT INTO changes SELECT 10 + internalid, 2, internalid, resourcetype, 'now' FROM resources",
)
DOUBLE = "UPDATE resources SET publicid = translate(publicid, '''', '')"
ID = "(SELECT internalid FROM resources WHERE publicid = '{}')"


@pytest.fixture(scope="module")
def old_template(admin: Connection, server_dsn: str) -> Iterator[str]:
    """A template database with an empty index at revision 1."""
    name = f"pgorthanc_template_{id(admin)}_rev1"
    with admin.cursor() as cur:
        cur.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    init(db.Target(make_dsn(server_dsn, dbname=name)), revision=1, with_storage=False)
    yield name
    drop_database(admin, name)


@pytest.fixture
def old(new_database: Callable[..., db.Target], old_template: str) -> db.Target:
    """An index at revision 1 in which nothing is double yet."""
    target = new_database(old_template)
    run(target, *FILL)
    return target


def find(target: db.Target) -> list[duplicates.Duplicate]:
    with db.session(target, readonly=True) as conn:
        return duplicates.find(conn)


def merge(target: db.Target) -> duplicates.Merged:
    with db.session(target) as conn, conn:
        return duplicates.merge(conn)


def tree(target: db.Target) -> dict[str, str | None]:
    query = """SELECT r.publicid, p.publicid FROM resources r
               LEFT JOIN resources p ON p.internalid = r.parentid ORDER BY r.internalid"""
    return dict(rows(target, query))


def counters(target: db.Target) -> dict[int, int]:
    return dict(rows(target, "SELECT key, value FROM globalintegers WHERE key < 6"))


def counted(target: db.Target) -> dict[int, int]:
    query = """SELECT type + 2, (SELECT count(*) FROM resources WHERE resourcetype = type)
                   FROM generate_series(0, 3) type
               UNION ALL SELECT 0, sum(compressedsize) FROM attachedfiles
               UNION ALL SELECT 1, sum(uncompressedsize) FROM attachedfiles"""
    return {int(key): int(value) for key, value in rows(target, query)}


def order(target: db.Target) -> list[str]:
    query = "SELECT publicid FROM patientrecyclingorder JOIN resources ON internalid = patientid ORDER BY seq"
    return [name for (name,) in rows(target, query)]


def everything(target: db.Target) -> dict[str, Any]:
    tables = ("resources", "metadata", "maindicomtags", "attachedfiles", "changes", "patientrecyclingorder")
    return {table: rows(target, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables}


def test_nothing_is_double(old: db.Target) -> None:
    before = everything(old)
    assert find(old) == []
    assert merge(old) == duplicates.Merged((), {}, {}, (), (), ())
    assert everything(old) == before


def test_what_is_found(old: db.Target) -> None:
    run(old, DOUBLE)
    assert [(one.level, one.public_id, one.rows, one.obstacle) for one in find(old)] == [
        ("patient", "p", 2, None),
        ("study", "s", 2, None),
        ("series", "e", 2, None),
        ("instance", "i", 2, None),
    ]


def test_a_whole_patient_that_is_double(old: db.Target) -> None:
    # the second one has more below it: five instances and series against four
    run(old, "SELECT createinstance('p''', 's''', 'f', 'o')", DOUBLE)
    survivors = rows(
        old, "SELECT max(internalid) FROM resources WHERE publicid IN ('p', 's') GROUP BY publicid"
    )
    gone = rows(old, "SELECT uuid FROM attachedfiles WHERE uuid = 'file of i'''")

    merged = merge(old)

    assert merged.removed == {"patient": 1, "study": 1, "series": 1, "instance": 1}
    assert tree(old) == {
        "p": None, "s": "p", "e": "s", "f": "s", "i": "e", "j": "e", "k": "e", "l": "e", "m": "f", "o": "f",
        "q": None, "t": "q", "g": "t", "n": "g",
    }  # fmt: skip
    assert set(survivors) <= set(rows(old, "SELECT internalid FROM resources"))
    assert counters(old) == counted(old)
    assert [(file.uuid, file.public_id, file.file_type) for file in merged.surplus_files] == [
        (*gone[0], "i", 1)
    ]
    assert [str(one) for one in merged.differing] == [
        "patient p: DICOM identifier 0010,0020, metadata 7",
        "study s: metadata 7",
        "series e: metadata 7",
        "instance i: metadata 7",
    ]
    assert rows(old, "SELECT count(*) FROM changes WHERE seq > 10") == [(17,)]
    assert merged.moved["changes"] == 4


def test_the_next_revision_is_within_reach(old: db.Target) -> None:
    run(old, DOUBLE)
    with pytest.raises(PgOrthancError, match="more than once"):
        run(old, steps.text("Rev1ToRev2.sql"))
    merge(old)
    run(old, steps.text("Rev1ToRev2.sql"))
    assert rows(old, "SELECT value FROM globalproperties WHERE property = 4") == [("2",)]


@pytest.mark.parametrize("times", [3, 5])
def test_more_than_two(old: db.Target, times: int) -> None:
    for number in range(3, times + 1):
        quotes = "''" * (number - 1)
        run(old, f"SELECT createinstance('p{quotes}', 's{quotes}', 'e{quotes}', 'i{quotes}')")
    run(old, DOUBLE)
    merged = merge(old)
    assert {one.rows for one in merged.merged} == {times}
    assert tree(old)["i"] == "e"
    assert counters(old) == counted(old)
    assert find(old) == []


def test_what_only_one_of_them_has_moves(old: db.Target) -> None:
    loser, survivor = ID.format("s"), ID.format("s''")  # by what is below them
    run(
        old,
        f"INSERT INTO labels SELECT {loser}, 'second'",
        f"INSERT INTO labels SELECT {survivor}, 'first'",
        "INSERT INTO labels SELECT internalid, 'both' FROM resources WHERE publicid LIKE 's%'",
        f"INSERT INTO metadata SELECT {loser}, 1024, 'user', 3",
        f"INSERT INTO maindicomtags SELECT {loser}, 8, 48, '1200'",
        f"INSERT INTO attachedfiles SELECT {loser}, 1024, 'report', 5, 5, 1, 'x', 'x', 0",
        DOUBLE,
    )
    merged = merge(old)
    study = ID.format("s")
    assert rows(old, f"SELECT label FROM labels WHERE id = {study} ORDER BY 1") == [
        ("both",), ("first",), ("second",),
    ]  # fmt: skip
    assert rows(old, f"SELECT value, revision FROM metadata WHERE id = {study} AND type = 1024") == [
        ("user", 3)
    ]
    assert rows(old, f"SELECT count(*) FROM maindicomtags WHERE id = {study}") == [(2,)]
    assert rows(old, f"SELECT uuid FROM attachedfiles WHERE id = {study}") == [("report",)]
    assert merged.moved == {
        "resources": 4, "changes": 4, "maindicomtags": 1, "metadata": 1, "attachedfiles": 1, "labels": 1,
    }  # fmt: skip
    assert counters(old) == counted(old)


def test_of_two_user_attachments_the_other_is_reported(old: db.Target) -> None:
    survivor = ID.format("s''")
    run(
        old,
        f"INSERT INTO attachedfiles SELECT {ID.format('s')}, 1024, 'other', 5, 5, 1, 'x', 'x', 0",
        f"INSERT INTO attachedfiles SELECT {survivor}, 1024, 'kept', 5, 5, 1, 'y', 'y', 0",
        DOUBLE,
    )
    merged = merge(old)
    assert ("other", "s", 1024) in [(one.uuid, one.public_id, one.file_type) for one in merged.surplus_files]
    assert "attachment 1024" in next(one for one in merged.differing if one.public_id == "s").what


def test_a_file_that_both_rows_name_is_not_surplus(old: db.Target) -> None:
    run(old, "UPDATE attachedfiles SET uuid = 'same' WHERE uuid LIKE 'file of i%'", DOUBLE)
    assert merge(old).surplus_files == ()
    assert rows(old, "SELECT count(*) FROM attachedfiles WHERE uuid = 'same'") == [(1,)]


def test_of_two_instances_the_one_with_its_file_stays(old: db.Target) -> None:
    older = ID.format("i")
    run(
        old,
        f"DELETE FROM attachedfiles WHERE id = {older}",
        f"INSERT INTO metadata SELECT {older}, 14, '132', 0",
        DOUBLE,
    )
    merged = merge(old)
    assert merged.surplus_files == ()
    assert rows(old, f"SELECT uuid FROM attachedfiles WHERE id = {ID.format('i')}") == [("file of i'",)]
    # the offset belongs to a file that is not there
    assert rows(old, "SELECT count(*) FROM metadata WHERE type = 14") == [(0,)]


def test_the_recycling_order(old: db.Target) -> None:
    assert order(old) == ["p", "p'", "q"]
    run(old, "SELECT createinstance('p''', 's''', 'e''', 'z')", DOUBLE)
    assert merge(old).protected == ()
    assert order(old) == ["q", "p"]
    assert rows(old, "SELECT count(*) FROM patientrecyclingorder") == [(2,)]


@pytest.mark.parametrize(("absent", "reported"), [(["p"], ("p",)), (["p''"], ("p",)), (["p", "p''"], ())])
def test_protection_wins(old: db.Target, absent: list[str], reported: tuple[str, ...]) -> None:
    for patient in absent:
        run(old, f"DELETE FROM patientrecyclingorder WHERE patientid = {ID.format(patient)}")
    run(old, DOUBLE)
    assert merge(old).protected == reported
    assert order(old) == ["q"]


def test_a_study_without_a_patient_finds_it(old: db.Target) -> None:
    run(old, "UPDATE resources SET parentid = NULL WHERE publicid = 's'", DOUBLE)
    merge(old)
    assert tree(old)["s"] == "p"


def test_circumstances_that_are_refused(old: db.Target) -> None:
    run(old, "UPDATE resources SET publicid = 'e' WHERE publicid = 't'")
    run(old, "UPDATE resources SET publicid = 'i' WHERE publicid = 'n'")
    before = everything(old)
    assert {(one.public_id, one.obstacle) for one in find(old)} == {
        ("e", "of different levels"),
        ("i", "below different parents"),
    }
    with pytest.raises(RevisionError, match=r"study e 2 times \(of different levels\)") as refusal:
        merge(old)
    assert "DELETE /patients" in (refusal.value.hint or "")
    assert everything(old) == before


def test_a_newer_revision_is_refused(fresh: db.Target) -> None:
    with pytest.raises(RevisionError, match="below revision 2"):
        merge(fresh)


def test_the_triggers_are_as_they_were(old: db.Target) -> None:
    query = "SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
    run(old, "ALTER TABLE resources DISABLE TRIGGER patientadded", DOUBLE)
    before = rows(old, query)
    merge(old)
    assert rows(old, query) == before
    assert ("patientadded", "D") in before


def test_nothing_is_left_for_orthanc_to_delete(old: db.Target) -> None:
    run(old, DOUBLE)
    merge(old)
    for table in ("deletedfiles", "deletedresources", "remainingancestor"):
        assert rows(old, f"SELECT count(*) FROM {table}") == [(0,)]


def test_what_a_downgrade_kept_aside_goes_with_its_file(old: db.Target) -> None:
    loser = ID.format("s")
    run(
        old,
        f"INSERT INTO attachedfiles SELECT {loser}, 1024, 'report', 5, 5, 1, 'x', 'x', 0",
        "CREATE TABLE pgorthanc_kept_customdata (id bigint, filetype integer, uuid text, customdata bytea)",
        f"INSERT INTO pgorthanc_kept_customdata SELECT {loser}, 1024, 'report', 'place'",
        DOUBLE,
    )
    merge(old)
    assert rows(old, "SELECT id, uuid FROM pgorthanc_kept_customdata") == rows(
        old, f"SELECT {ID.format('s')}, 'report'"
    )


def test_the_oldest_layout(old: db.Target) -> None:
    """Plugin 2.2: no labels, no counters."""
    run(
        old,
        "DROP TABLE labels, globalintegers, serverproperties",
        "DROP FUNCTION createinstance, countresourcestrackerfunc, insertedchangefunc CASCADE",
        "DROP FUNCTION attachedfileincrementsizefunc, attachedfiledecrementsizefunc CASCADE",
        "ALTER TABLE metadata DROP revision",
        "ALTER TABLE attachedfiles DROP revision",
        DOUBLE,
    )
    assert merge(old).removed == {"patient": 1, "study": 1, "series": 1, "instance": 1}
    assert find(old) == []


def test_many_at_once(old: db.Target) -> None:
    many = 2000
    run(
        old,
        f"""INSERT INTO resources (resourcetype, publicid, parentid)
            SELECT 3, 'many ' || n % {many}, {ID.format("e")} FROM generate_series(1, {2 * many}) n""",
        """INSERT INTO attachedfiles SELECT internalid, 1, internalid, 1, 2, 1, 'x', 'x', 0
            FROM resources WHERE publicid LIKE 'many%'""",
    )
    merged = merge(old)
    assert merged.removed == {"instance": many}
    assert len(merged.surplus_files) == many
    assert counters(old) == counted(old)
