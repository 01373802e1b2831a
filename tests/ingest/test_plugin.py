"""The plugin at work on an index that was imported: it finds, reads, counts, deletes and adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import db, storage
from tests.support import samples
from tests.support.areas import stored_bytes
from tests.support.importing import run
from tests.support.plugin import Session

PATIENT_ID, STUDY_UID = (0x0010, 0x0020), (0x0020, 0x000D)
FIND = "SELECT id FROM dicomidentifiers WHERE taggroup = %s AND tagelement = %s AND value = %s ORDER BY 1"


@pytest.fixture(params=["filesystem", "large objects"])
def area(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """The folder of the storage area, or None."""
    return tmp_path / "area" if request.param == "filesystem" else None


@pytest.fixture
def imported(fresh: db.Target, tmp_path: Path, area: Path | None) -> Iterator[Session]:
    """Two patients with a study of two series of five instances each."""
    run(fresh, samples.folder(tmp_path / "in", 20, patients=2), area)
    session = Session(fresh)
    yield session
    session.conn.close()


def test_it_finds_by_identifier_and_reads_down_to_the_files(
    imported: Session, fresh: db.Target, tmp_path: Path, area: Path | None
) -> None:
    ((patient,),) = imported.rows(FIND, *PATIENT_ID, "P2")[:1]
    ((study,),) = imported.rows(FIND, *STUDY_UID, "1.2.2")
    assert imported.value("SELECT parentid FROM resources WHERE internalid = %s", study) == patient
    instances = imported.rows(
        """SELECT i.internalid, f.uuid FROM resources e JOIN resources i ON i.parentid = e.internalid
           JOIN attachedfiles f ON f.id = i.internalid AND f.filetype = 1 WHERE e.parentid = %s ORDER BY 1""",
        study,
    )
    whole = {path.read_bytes() for path in (tmp_path / "in").iterdir()}
    assert len(instances) == 10
    with db.session(fresh, readonly=True) as conn:
        stored: storage.Area = storage.FilesystemArea(area) if area else storage.LargeObjectArea(conn)
        assert {stored_bytes(stored, uuid) for _, uuid in instances} < whole
    for instance, _ in instances:
        assert imported.metadata(instance, 9) == "1.2.840.10008.1.2.1"  # transfer syntax
        assert imported.metadata(instance, 1) in {"1", "2", "3", "4", "5"}  # IndexInSeries


def test_its_statistics_and_child_counts(imported: Session) -> None:
    size = imported.value("SELECT sum(compressedsize) FROM attachedfiles")
    assert imported.statistics_read_only() == (2, 2, 4, 20, size, size)
    assert imported.statistics() == (2, 2, 4, 20, size, size)
    imported.rows("SELECT * FROM updateinvalidchildcounts()")
    assert sorted(count or 0 for count in imported.child_counts().values()) == [1, 1, 2, 2, 5, 5, 5, 5]


def test_it_deletes_instances_and_what_becomes_empty(imported: Session) -> None:
    before = imported.public_ids()
    ((series,),) = imported.rows(
        "SELECT publicid FROM resources WHERE resourcetype = 2 ORDER BY internalid LIMIT 1"
    )
    level, _ = imported.delete(series)
    assert level == 1  # its study remains
    assert len(imported.deleted()) == 6
    assert len(imported.rows("SELECT uuid FROM deletedfiles")) == 5
    for (instance,) in imported.rows("SELECT publicid FROM resources WHERE resourcetype = 3"):
        imported.delete(instance)
    assert imported.public_ids() == []
    assert imported.statistics() == (0, 0, 0, 0, 0, 0)
    assert len(before) == 28


def test_it_adds_to_what_was_imported(imported: Session) -> None:
    lineage = [
        row[0]
        for row in imported.rows("SELECT publicid FROM resources WHERE internalid <= 3 ORDER BY resourcetype")
    ]
    created = imported.create(*lineage, "new-instance")
    assert [value for name, value in created.items() if name.startswith("is_new")] == [0, 0, 0, 1]
    first, last = imported.rows("SELECT id FROM metadata WHERE type = 19 ORDER BY value::bigint")
    assert last == (imported.id(lineage[0]),)
    assert first != last


def test_protection_and_the_next_victim(imported: Session) -> None:
    victims = [
        row[0] for row in imported.rows("SELECT id FROM metadata WHERE type = 19 ORDER BY value::bigint")
    ]
    imported.rows("SELECT protectpatient(%s)", victims[0])
    assert imported.metadata(victims[0], 18) == "true"
    imported.rows("SELECT unprotectpatient(%s)", victims[0])
    assert imported.metadata(victims[0], 18) is None
