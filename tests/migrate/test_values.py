"""What PostgreSQL cannot hold, and trees that are none: each repaired or left out by its rule, counted and listed."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from tests.support import indexstate, migrating, sqliteindex, sqlitestate
from tests.support.migrating import SERVER, convert, what
from tests.support.schemas import rows, snapshot

# (statement, what is repaired, what is skipped, query of PostgreSQL and its answer); {id} is an instance, another one
# for each, and the number of its change.
VALUES: list[tuple[str, list[str], list[str], str, object]] = [
    (
        "UPDATE MainDicomTags SET value = CAST(X'4DFC6C' AS TEXT) WHERE id = {id} AND tagGroup = 8 AND tagElement = 18",
        ["MainDicomTags: tag 0008,0012: value is no UTF-8: what is wrong became U+FFFD"], [],
        "SELECT value FROM maindicomtags WHERE id = {id} AND taggroup = 8 AND tagelement = 18", "M\ufffdl",
    ),
    (
        "UPDATE Metadata SET value = CAST(X'414200434400' AS TEXT) WHERE id = {id} AND type = 8",
        ["Metadata: metadata 8: value holds a NUL: cut there"], [],
        "SELECT value FROM metadata WHERE id = {id} AND type = 8", "AB",
    ),
    (
        "UPDATE Metadata SET value = CAST(X'EDA080' AS TEXT) WHERE id = {id} AND type = 8",
        ["Metadata: metadata 8: value is no UTF-8: what is wrong became U+FFFD"], [],
        "SELECT value FROM metadata WHERE id = {id} AND type = 8", "\ufffd\ufffd\ufffd",
    ),
    (
        "UPDATE DicomIdentifiers SET value = NULL WHERE id = {id}",
        ["DicomIdentifiers: identifier 0020,0018: value is NULL: stored as empty text"], [],
        "SELECT value FROM dicomidentifiers WHERE id = {id}", "",
    ),
    (
        "UPDATE AttachedFiles SET uncompressedMD5 = NULL WHERE id = {id}",
        ["AttachedFiles: attachment 1: uncompressedMD5 is NULL: stored as empty text"], [],
        "SELECT uncompressedhash FROM attachedfiles WHERE id = {id}", "",
    ),
    (
        f"UPDATE AttachedFiles SET compressedMD5 = '{'f' * 41}' WHERE id = {{id}}",
        ["AttachedFiles: attachment 1: compressedMD5 has more than 40 characters: emptied"], [],
        "SELECT compressedhash FROM attachedfiles WHERE id = {id}", "",
    ),
    (
        f"UPDATE AttachedFiles SET uuid = '{'u' * 65}' WHERE id = {{id}}",
        [], ["AttachedFiles: attachment 1 skipped: uuid has more than 64 characters"],
        "SELECT count(*) FROM attachedfiles WHERE id = {id}", 0,
    ),
    (
        "UPDATE AttachedFiles SET compressedSize = -1 WHERE id = {id}",
        [], ["AttachedFiles: attachment 1 skipped: compressedSize is no number from 0 to 1125899906842623"],
        "SELECT count(*) FROM attachedfiles WHERE id = {id}", 0,
    ),
    (
        "UPDATE AttachedFiles SET uncompressedSize = 12.5 WHERE id = {id}",
        [], ["AttachedFiles: attachment 1 skipped: uncompressedSize is no number from 0 to 1125899906842623"],
        "SELECT count(*) FROM attachedfiles WHERE id = {id}", 0,
    ),
    (
        "UPDATE Metadata SET type = 99999999999 WHERE id = {id} AND type = 8",
        [], ["Metadata: metadata 99999999999 skipped: type is no number from -2147483648 to 2147483647"],
        "SELECT count(*) FROM metadata WHERE id = {id} AND type = 8", 0,
    ),
    (
        "UPDATE Metadata SET revision = 'many' WHERE id = {id} AND type = 8",
        ["Metadata: metadata 8: revision is no number: stored as 0"], [],
        "SELECT revision FROM metadata WHERE id = {id} AND type = 8", 0,
    ),
    (
        "UPDATE Metadata SET type = 19 WHERE id = {id} AND type = 8",
        [], ["Metadata: metadata 19 skipped: metadata 18 and 19 mean protection and recycling in PostgreSQL, and "
             "nothing in SQLite"],
        "SELECT count(*) FROM metadata WHERE id = {id} AND type IN (8, 19)", 0,
    ),
    (
        "UPDATE MainDicomTags SET tagGroup = 'PatientName' WHERE id = {id} AND tagElement = 18 AND tagGroup = 8",
        [], ["MainDicomTags: tag ?,0012 skipped: tagGroup is no number from 0 to 65535"],
        "SELECT count(*) FROM maindicomtags WHERE id = {id} AND taggroup = 8 AND tagelement = 18", 0,
    ),
    (
        "INSERT INTO Metadata VALUES (987654321, 7, 'of nobody', 0)",
        [], ["Metadata: metadata 7 skipped: its resource does not exist"],
        "SELECT count(*) FROM metadata WHERE value = 'of nobody'", 0,
    ),
    (
        "UPDATE Changes SET internalId = 987654321 WHERE seq = {id}",
        [], ["Changes: change {id} skipped: its resource does not exist"],
        "SELECT count(*) FROM changes WHERE seq = {id}", 0,
    ),
    (
        "UPDATE Changes SET resourceType = 1 WHERE seq = {id}",
        ["Changes: change {id}: resourceType is not that of its resource: corrected"], [],
        "SELECT resourcetype FROM changes WHERE seq = {id}", 3,
    ),
    (
        f"UPDATE ExportedResources SET patientId = '{'p' * 100}' WHERE seq = 2",
        ["ExportedResources: export 2: patientId has more than 64 characters: cut"], [],
        "SELECT patientid FROM exportedresources WHERE seq = 2", "p" * 64,
    ),
    (
        "UPDATE ExportedResources SET resourceType = 9 WHERE seq = 3",
        [], ["ExportedResources: export 3 skipped: resourceType is none of 1 to 4"],
        "SELECT count(*) FROM exportedresources WHERE seq = 3", 0,
    ),
    (
        "INSERT INTO Labels VALUES ({id}, CAST(X'FF' AS TEXT))",
        [], ["Labels: label skipped: label is no UTF-8"],
        "SELECT count(*) FROM labels WHERE id = {id}", 0,
    ),
    (
        "INSERT INTO PatientRecyclingOrder VALUES (66666, {id})",
        [], ["PatientRecyclingOrder: place 66666 skipped: it is of no patient"],
        "SELECT count(*) FROM metadata WHERE type = 19 AND id = {id}", 0,
    ),
    (
        "INSERT INTO PatientRecyclingOrder VALUES (77777, 4)",
        [], ["PatientRecyclingOrder: place 8 skipped: the patient has a later one"],
        "SELECT value FROM metadata WHERE type = 19 AND id = 4", "77777",
    ),
    (
        "INSERT INTO GlobalProperties VALUES (99, 'new')",
        [], ["GlobalProperties: property 99 skipped: no release of Orthanc knows it"],
        "SELECT count(*) FROM globalproperties WHERE property = 99", 0,
    ),
    (
        "CREATE TABLE Novelties AS SELECT 1 UNION SELECT 2",
        [], ["Novelties: 2 rows skipped: no release of Orthanc has this table"],
        "SELECT to_regclass('novelties')", None,
    ),
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return sqliteindex.rich(tmp_path / "index")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with all these values."""
    path = sqliteindex.rich(tmp_path_factory.mktemp("damaged") / "index")
    sqliteindex.change(
        path, *(statement.format(id=number) for number, (statement, *_) in enumerate(VALUES, 5))
    )
    return path


def listed(place: int) -> list[str]:
    return sorted(
        said.format(id=number) for number, case in enumerate(VALUES, 5) for said in case[1:3][place]
    )


def public_id(path: Path, internal_id: int) -> str:
    with closing(sqlite3.connect(path)) as conn:
        query = "SELECT publicId FROM Resources WHERE internalId = ?"
        return str(conn.execute(query, (internal_id,)).fetchone()[0])


def test_each_value_by_its_rule(empty: db.Target, damaged: Path) -> None:
    converted = convert(empty, damaged)
    assert what(converted.repaired) == listed(0)
    assert what(converted.skipped) == listed(1)
    for number, (statement, _, _, query, wanted) in enumerate(VALUES, 5):
        assert rows(empty, query.format(id=number)) == [(wanted,)], statement
    assert converted.verified
    named = {finding.public_id for finding in converted.repaired if finding.table != "ExportedResources"}
    assert named == {
        public_id(damaged, n) for n, case in enumerate(VALUES, 5) if case[1] and "export" not in case[1][0]
    }
    migrating.require_index(empty)


def test_the_check_says_the_same_and_needs_no_database(damaged: Path) -> None:
    checked = migrating.check(damaged)
    assert (what(checked.repaired), what(checked.skipped)) == (listed(0), listed(1))
    assert (checked.revision, checked.verified, checked.compared) == (None, False, ())
    assert checked.rows["resources"] == 264


def skipped_rows() -> int:
    """How many rows the messages are about: each about one, but that of a table which no release has."""
    return sum(2 if "2 rows skipped" in message else 1 for message in listed(1))


def test_strict_refuses_before_anything_is_written(empty: db.Target, damaged: Path) -> None:
    number = len(listed(0)) + skipped_rows()
    with pytest.raises(
        PgOrthancError, match=f"^{number} rows cannot be stored as they are, such as "
    ) as error:
        convert(empty, damaged, strict=True)
    assert "--dry-run --html" in (error.value.hint or "")
    assert snapshot(empty) == {}


def test_a_stretch_of_which_nothing_is_kept_does_not_end_the_table(empty: db.Target, path: Path) -> None:
    sqliteindex.change(path, "UPDATE Changes SET internalId = 999999 WHERE seq BETWEEN 100 AND 110")
    converted = convert(empty, path)
    assert converted.skipped_rows == 11
    assert rows(empty, "SELECT count(*), max(seq) FROM changes") == [(265 - 11, last_change(path))]


def test_strict_converts_what_is_sound(empty: db.Target, path: Path) -> None:
    assert convert(empty, path, strict=True).verified


@pytest.mark.parametrize("kind", ["json", "html"])
def test_the_report_lists_everything_and_no_value(
    empty: db.Target, damaged: Path, tmp_path: Path, kind: str
) -> None:
    report = tmp_path / f"report.{kind}"
    words = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        "migrate-sqlite",
        str(damaged),
        "--check",
        "--report",
        str(report),
    ]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 6
    assert f"{skipped_rows()} rows were skipped" in ended.stdout
    text = report.read_text("utf-8")
    if kind == "json":
        found = json.loads(text)["findings"]
        assert sorted(f"{one['table']}: {one['what']}" for one in found) == sorted(listed(0) + listed(1))
    else:
        assert text.count("<tr><td>") == len(listed(0) + listed(1))
    assert "of nobody" not in text + ended.stdout


# --- the tree ------------------------------------------------------------------------------------------------

# The first patient has the study 3 with the series 2, 35, ...; resources 1 and 5 to 33 are the instances of series 2.
TREES = {
    "a level that is none": ("UPDATE Resources SET resourceType = 7 WHERE internalId = 7", {7}, "its level is none"),
    "no level": ("UPDATE Resources SET resourceType = NULL WHERE internalId = 7", {7}, "its level is none"),
    "no public id": ("UPDATE Resources SET publicId = NULL WHERE internalId = 7", {7}, "its public id is unusable"),
    "a long public id": (
        f"UPDATE Resources SET publicId = '{'a' * 65}' WHERE internalId = 7", {7}, "its public id is unusable"),
    "a public id that is no text": (
        "UPDATE Resources SET publicId = CAST(X'61FF' AS TEXT) WHERE internalId = 7", {7}, "its public id is unusable"),
    "a public id with a NUL": (
        "UPDATE Resources SET publicId = CAST(X'610062' AS TEXT) WHERE internalId = 7", {7},
        "its public id is unusable"),
    "an orphan": ("UPDATE Resources SET parentId = 999999 WHERE internalId = 7", {7}, "its parent does not exist"),
    "no parent": ("UPDATE Resources SET parentId = NULL WHERE internalId = 7", {7}, "its parent does not exist"),
    "a wrong level of the parent": (
        "UPDATE Resources SET parentId = 3 WHERE internalId = 7", {7}, "its parent is not of the level above"),
    "its own parent": (
        "UPDATE Resources SET parentId = 7 WHERE internalId = 7", {7}, "its parent is not of the level above"),
    "a public id of two levels": (
        "UPDATE Resources SET publicId = (SELECT publicId FROM Resources WHERE internalId = 3) WHERE internalId = 7",
        {7}, "another level has its public id"),
    "a circle": (
        "UPDATE Resources SET parentId = 5 WHERE internalId = 2", {1, 2, *range(5, 34)},
        "what it belongs to is skipped"),
    "nothing below": (
        "INSERT INTO Resources VALUES (99999, 3, 'childless', 3)", {99999}, "nothing is below it"),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_what_has_no_place_in_the_tree_is_skipped_with_all_that_belongs_to_it(path: Path, name: str) -> None:
    statement, gone, why = TREES[name]
    with closing(sqlite3.connect(path)) as conn:
        count = "SELECT count(*) FROM Resources"
        before = conn.execute(count).fetchone()[0]
        conn.execute(statement)
        conn.commit()
        left = conn.execute(count).fetchone()[0] - len(gone)
        assert left <= before
        marks = ",".join(map(str, gone))
        metadata = conn.execute(f"SELECT count(*) FROM Metadata WHERE id IN ({marks})").fetchone()[0]
    checked = migrating.check(path, jobs=1)
    assert sum(checked.resources.values()) == checked.rows["resources"] == left
    assert f"Resources: skipped: {why}" in what(checked.skipped)
    assert [f.table for f in checked.skipped].count("Resources") == len(gone)
    assert [f.table for f in checked.skipped].count("Metadata") == metadata


def test_a_patient_below_something_becomes_a_patient_again(empty: db.Target, path: Path) -> None:
    sqliteindex.change(path, "UPDATE Resources SET parentId = 7 WHERE internalId = 4")
    converted = convert(empty, path)
    assert what(converted.repaired) == ["Resources: a patient below something: it has no parent now"]
    assert converted.skipped == ()
    migrating.require_index(empty)


def test_doubles_become_one_that_has_what_any_of_them_had(empty: db.Target, tmp_path: Path) -> None:
    """A patient, a study and an instance occur twice; the doubles have children, labels and metadata of their own."""
    path = sqliteindex.rich(tmp_path / "index")
    with closing(sqlite3.connect(path)) as conn:
        ids = dict(conn.execute("SELECT internalId, publicId FROM Resources"))
        conn.execute("UPDATE sqlite_sequence SET seq = 5000 WHERE name = 'Resources'")
        conn.executemany(
            "INSERT INTO Resources VALUES (?, ?, ?, ?)",
            [(9001, 1, ids[4], None), (9002, 2, ids[3], 9001), (9003, 3, "own-series", 9002),
             (9004, 4, "own-instance", 9003), (9005, 4, ids[7], 2)],
        )  # fmt: skip
        conn.executemany(
            "INSERT INTO Metadata VALUES (?, ?, ?, 0)",
            [(9002, 1024, "differs"), (9002, 2000, "only here"), (9005, 14, "99"), (9005, 2001, "moves")],
        )
        conn.execute("INSERT INTO Labels VALUES (9002, 'of-the-double'), (9002, 'seen')")
        conn.execute("INSERT INTO AttachedFiles VALUES (9005, 1, 'surplus', 1, 1, 1, '', '', 0, NULL)")
        conn.execute("INSERT INTO Changes VALUES (NULL, 2, 9005, 4, '20260101T000000')")
        conn.execute("INSERT INTO PatientRecyclingOrder VALUES (70000, 9001)")
        conn.commit()
    converted = convert(empty, path)
    migrating.require_index(empty)
    assert what(converted.repaired) == sorted(
        [
            *["Resources: several have this public id: they were merged"] * 3,
            "Metadata: metadata 2000: moved to the resource of the same public id",
            "Metadata: metadata 2001: moved to the resource of the same public id",
            "Labels: label: moved to the resource of the same public id",
            f"Changes: change {last_change(path)}: moved to the resource of the same public id",
        ]
    )
    taken = "skipped: the resource that its own was merged with has one already"
    assert what(converted.skipped) == sorted(
        [
            f"Metadata: metadata 1024 {taken}", f"Metadata: metadata 14 {taken}", f"Labels: label {taken}",
            f"AttachedFiles: attachment 1 {taken}",
            "PatientRecyclingOrder: place 8 skipped: the patient has a later one",
        ]
    )  # fmt: skip
    assert rows(empty, "SELECT parentid FROM resources WHERE internalid = 9003") == [(3,)]
    assert rows(empty, "SELECT value FROM metadata WHERE id = 3 AND type = 1024") == [
        (sqliteindex.ODD_VALUES[0],)
    ]
    assert rows(empty, "SELECT value FROM metadata WHERE id = 4 AND type = 19") == [("70000",)]
    assert rows(empty, "SELECT array_agg(label ORDER BY label) FROM labels WHERE id = 3") == [
        (["of-the-double", "seen", "to-do"],)
    ]


def last_change(path: Path) -> int:
    with closing(sqlite3.connect(path)) as conn:
        return int(conn.execute("SELECT max(seq) FROM Changes").fetchone()[0])


def test_an_index_without_its_own_indexes_is_converted_all_the_same(empty: db.Target, path: Path) -> None:
    wanted = sqlitestate.expected(path, SERVER)
    with closing(sqlite3.connect(path)) as conn:
        for (name,) in conn.execute(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND sql <> ''"
        ).fetchall():
            conn.execute(f"DROP INDEX {name}")
    convert(empty, path)
    assert indexstate.differing(wanted, migrating.state(empty)) == []
