"""What `reindex` reads, what it writes, and what it leaves alone.

That it writes what Orthanc writes is held by the golden sets (`.ci/checks.py`).
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, dicom, index, locks, reindex
from pgorthanc_cli.errors import InUseError, UsageError
from pgorthanc_cli.pacing import Hours, Limits
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.reindex.heads import Heads
from pgorthanc_cli.reindex.model import SERIES, STUDY
from pgorthanc_cli.reindex.plan import Batch, Planner
from pgorthanc_cli.reindex.selection import Selected
from pgorthanc_cli.reindex.worker import Worker
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.workers import Stopped
from tests.reindex.archive import PIXELS, PROFILE, Archive, run
from tests.support import reindexing, samples
from tests.support.importing import dumped
from tests.support.importing import run as import_files
from tests.support.schemas import REVISIONS, rows
from tests.support.schemas import run as execute


def only_batch(conn: db.Session, settings: reindex.Settings) -> Batch:
    """The batch of a small index."""
    selected = Selected(conn, settings.selection)
    planner = Planner(conn, index.Capabilities.read(conn), settings, selected)
    [batch] = planner.batches(selected.patients())
    return batch


def without_revisions(dump: dict[str, Any]) -> dict[str, Any]:
    return dump | {"metadata": [row[:3] for row in dump["metadata"]]}


def ids(target: db.Target, level: int) -> list[str]:
    return [
        i for (i,) in rows(target, f"SELECT publicid FROM resources WHERE resourcetype = {level} ORDER BY 1")
    ]


def values(target: db.Target, tag: int, level: int) -> dict[str, str]:
    return dict(
        rows(
            target,
            f"""SELECT r.publicid, t.value FROM maindicomtags t JOIN resources r ON r.internalid = t.id
                WHERE taggroup = {tag >> 16} AND tagelement = {tag & 0xFFFF} AND resourcetype = {level}""",
        )
    )


# --- the same rows as elsewhere ---------------------------------------------------------------


def test_keep_first_leaves_what_an_import_with_the_new_configuration_would(
    archive: tuple[db.Target, Path], imported: Archive, fresh: db.Target, tmp_path: Path
) -> None:
    target, area = archive
    result = run(target, area, keep_first=True, batch_files=2)
    import_files(fresh, imported.files, tmp_path / "other", profile=PROFILE)
    assert without_revisions(dumped(target)) == without_revisions(dumped(fresh))
    assert (result.studies, result.series, result.instances, result.files_read) == (3, 4, 12, 12)
    assert result.rows_changed == {"patient": 2, "study": 3, "series": 4, "instance": 12}


def test_the_heads_of_the_files_are_enough(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    result = run(target, area)
    assert result.files_read == 12
    assert result.bytes_read < 12 * 4096 < 12 * PIXELS


def test_files_that_are_open_already_are_closed_when_it_is_stopped(archive: tuple[db.Target, Path]) -> None:
    """The disk reads the next files while one is parsed, so they are open before it is their turn."""
    target, area = archive
    settings = reindex.Settings(area, PROFILE)
    with db.session(target, readonly=True) as conn:
        items, heads = only_batch(conn, settings).items, Heads(settings)
        assert len(list(heads.read(items, conn, lambda: None))) == 12
        open_before = os.listdir("/proc/self/fd")
        left = [3, 2, 1, 0]

        def stop_at_last() -> None:
            if not left.pop(0):
                raise Stopped

        with pytest.raises(Stopped):
            list(heads.read(items, conn, stop_at_last))
        assert os.listdir("/proc/self/fd") == open_before


@pytest.mark.parametrize("where", ["compressed", "objects", "compressed objects"])
def test_compressed_attachments_and_large_objects_give_the_same_rows(
    where: str,
    archive: tuple[db.Target, Path],
    imported: Archive,
    fresh: db.Target,
    tmp_path: Path,
) -> None:
    target, area = archive
    other = None if "objects" in where else tmp_path / "other"
    import_files(fresh, imported.files, other, compress="compressed" in where)
    run(target, area)
    result = run(fresh, other)
    tables = ("maindicomtags", "dicomidentifiers")
    expected, got = dumped(target), dumped(fresh)
    assert {table: got[table] for table in tables} == {table: expected[table] for table in tables}
    assert result.files_read == 12
    assert result.unreadable == ()
    if "objects" not in where or "compressed" not in where:
        assert result.bytes_read < 12 * PIXELS


@pytest.mark.parametrize("revision", [REVISIONS[0], REVISIONS[1], REVISIONS[-2]])
def test_all_revisions_and_old_attachments(
    revision: int, empty: db.Target, imported: Archive, tmp_path: Path
) -> None:
    with db.session(empty) as conn:
        initialize.init(conn, schema="public", require_idle=locks.require_idle, revision=revision)
    import_files(empty, imported.files[:6], tmp_path / "area")
    number = "(SELECT max(internalid) FROM resources)"
    execute(
        empty,
        f"""INSERT INTO attachedfiles (id, filetype, uuid, compressedsize, uncompressedsize, compressiontype)
            VALUES ({number}, 2, '0f3d2ff4-6f18-4e4e-8d6e-2f2f0e5f4c11', 7, 7, 1)""",
    )
    old = tmp_path / "area/0f/3d/0f3d2ff4-6f18-4e4e-8d6e-2f2f0e5f4c11"
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_bytes(b"{'a':1}")
    result = run(empty, tmp_path / "area")
    assert result.rows_changed["instance"] == 6
    assert not old.exists()
    assert rows(empty, "SELECT count(*) FROM attachedfiles WHERE filetype = 2") == [(0,)]
    again = run(empty, tmp_path / "area")
    assert again.rows_changed == dict.fromkeys(again.levels, 0)
    assert again.changes == ()


# --- which file decides ---------------------------------------------------------------------


def test_the_greatest_identifier_decides_and_limited_the_smallest(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    of_series = dict[str, list[str]]()
    for instance, series in rows(
        target,
        "SELECT i.publicid, s.publicid FROM resources i JOIN resources s ON s.internalid = i.parentid"
        " WHERE i.resourcetype = 3",
    ):
        of_series.setdefault(series, []).append(instance)
    numbers = values(target, 0x00200013, 3)
    series = ids(target, 2)[0]
    selection = reindex.Selection(resources=((SERIES, (series,)),))
    result = run(target, area, selection=selection, limit_to_level=True)
    assert result.files_read == 1
    assert values(target, 0x0008103E, 2)[series] == f"from {int(numbers[min(of_series[series])]) - 1}"
    assert run(target, area, levels=frozenset({SERIES})).files_read == 4
    described = values(target, 0x0008103E, 2)
    for each, instances in of_series.items():
        assert described[each] == f"from {int(numbers[max(instances)]) - 1}"


def test_an_unchanged_configuration_changes_nothing_with_keep_first(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    before = rows(target, "SELECT xmin::text, * FROM metadata ORDER BY id, type")
    result = run(target, area, keep_first=True, profile=dicom.Profile())
    assert result.rows_changed == dict.fromkeys(result.levels, 0)
    assert result.unchanged == 2 + 3 + 4 + 12
    assert rows(target, "SELECT xmin::text, * FROM metadata ORDER BY id, type") == before


def test_other_levels_and_other_resources_stay_as_they_are(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    before = dumped(target)
    study = ids(target, 1)[0]
    selection = reindex.Selection(resources=((STUDY, (study,)),))
    result = run(target, area, selection=selection, levels=frozenset({STUDY}))
    assert (result.studies, result.files_read) == (1, 1)
    after = dumped(target)
    touched = {row[0] for row in set(after["maindicomtags"]) ^ set(before["maindicomtags"])}
    assert touched == {study}
    assert values(target, 0x00324000, 1) == {study: "another"}


def test_selections(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    seventh = rows(target, "SELECT seq FROM changes WHERE changetype = 2 ORDER BY seq OFFSET 6 LIMIT 1")[0][0]
    for selection, instances in (
        (reindex.Selection(tags=((0x00100020, "P1"),)), 6),
        (reindex.Selection(tags=((0x00080060, "CT"), (0x00200013, "3"))), 1),
        (reindex.Selection(since=seventh), 5),
        (reindex.Selection(tags=((0x00100020, "nobody"),)), 0),
    ):
        settings = reindex.Settings(area, PROFILE, jobs=1, selection=selection, dry_run=True)
        reports: list[str] = []
        result = reindex.reindex(target, settings, report=lambda each, to=reports: to.append(each.what))  # type: ignore[misc]
        assert (result.instances, result.files_read) == (instances, instances)
        assert result.estimate.files == instances
        assert result.partial
        # Of two values, the one with an index finds the patients.
        no_index = [each for each in reports if "has no index" in each]
        assert no_index == (
            ["Modality has no index: searching all main DICOM tags once"] if instances == 1 else []
        )
    with pytest.raises(UsageError, match="the index has no study nothing"):
        run(target, area, selection=reindex.Selection(resources=((STUDY, ("nothing",)),)))


# --- what is not written --------------------------------------------------------------------


def test_a_dry_run_says_the_same_and_writes_nothing(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    before = rows(target, "SELECT xmin::text, * FROM maindicomtags ORDER BY id, taggroup, tagelement")
    rehearsal = run(target, area, dry_run=True)
    assert rows(target, "SELECT xmin::text, * FROM maindicomtags ORDER BY id, taggroup, tagelement") == before
    result = run(target, area)
    assert rehearsal.changes == result.changes
    assert rehearsal.rows_changed == result.rows_changed
    [comments] = [
        each for each in result.changes if (each.level, each.name) == ("patient", "PatientComments")
    ]
    assert replace(comments, key="") == reindex.Change(
        "patient", "maindicomtags", "", "PatientComments", 2, 0, 0
    )


def test_what_an_unreadable_file_decides_keeps_its_rows(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    instances = ids(target, 3)
    uuid = dict(
        rows(
            target,
            "SELECT publicid, uuid FROM attachedfiles a JOIN resources r ON r.internalid = a.id WHERE filetype = 1",
        )
    )

    def path(instance: str) -> Path:
        name = str(uuid[instance])
        return area / name[:2] / name[2:4] / name

    gone, cut, other, link = instances[:4]
    path(gone).unlink()
    os.truncate(path(cut), 5000)
    shutil.copy(path(instances[5]), path(other))
    path(link).unlink()
    path(link).symlink_to(path(instances[6]))
    before = dumped(target)
    result = run(target, area)
    reasons = {each.instance: each.reason for each in result.unreadable}
    assert reasons[gone] == "the file is gone"
    assert reasons[cut].startswith("it has 5,000 bytes, and ")
    assert reasons[other] == f"it holds instance {instances[5]}"
    assert set(reasons) == {gone, cut, other, link}
    after = dumped(target)
    for table in ("maindicomtags", "dicomidentifiers", "metadata"):
        for instance in reasons:
            assert [r for r in after[table] if r[0] == instance] == [
                r for r in before[table] if r[0] == instance
            ]
    # All others were done.
    assert result.rows_changed["instance"] == 8


def test_a_resource_that_is_being_deleted_is_waited_for_and_then_left_out(
    archive: tuple[db.Target, Path],
) -> None:
    target, area = archive
    instance = ids(target, 3)[0]
    deleting = db.connect(target)
    with deleting.cursor() as cur:
        # As Orthanc does it: the instance first; its parents would come next.
        cur.execute("SELECT createdeletedfilestemporarytable()")
        cur.execute("DELETE FROM resources WHERE publicid = %s", (instance,))
    results: list[reindex.Reindexed] = []
    thread = threading.Thread(target=lambda: results.append(run(target, area)))
    thread.start()
    try:
        # Everything else is written while the deletion is still open.
        done = "SELECT count(*) FROM metadata WHERE type = 15 AND value LIKE '%0028,0010%'"
        while rows(target, done) != [(11,)]:
            assert thread.is_alive()
    finally:
        deleting.commit()
        deleting.close()
        thread.join()
    assert results[0].gone == 1
    assert len(ids(target, 3)) == 11


def test_one_run_writes_at_a_time(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    with db.session(target) as other, db.advisory_lock(other, db.LOCK_REINDEX):
        with pytest.raises(InUseError, match=r"pid \d+.* holds the reindex lock") as refused:
            run(target, area)
        assert refused.value.hint == "wait until that command has finished, then run the same command again"
        with pytest.raises(InUseError, match="holds the reindex lock"):
            reindex.repair(target, "identifiers", PROFILE)
        with db.session(target, autocommit=True) as conn:
            [note] = locks.inspect(conn, "public").notes
        assert note.startswith("the command pgorthanc")
        assert "holds our reindex lock" in note
        assert run(target, area, dry_run=True).rows_changed["instance"] == 12
        assert not reindex.repair(target, "identifiers", PROFILE, dry_run=True).changes
    assert run(target, area).rows_changed["instance"] == 12


def test_patients_are_done_again_whose_deciding_file_was_replaced_meanwhile(
    archive: tuple[db.Target, Path],
) -> None:
    target, area = archive
    settings = reindex.Settings(area, PROFILE, levels=frozenset({SERIES}))
    with db.session(target, readonly=True) as conn:
        batch = only_batch(conn, settings)
    worker = Worker(target, settings)
    try:
        assert worker.work(batch.items).again == set()
        replaced = batch.items[0]
        execute(target, f"UPDATE attachedfiles SET uuid = 'another' WHERE uuid = '{replaced.uuid}'")
        assert worker.work(batch.items).again == {replaced.patient}
    finally:
        worker.close()


# --- interruptions, pace, what arrives meanwhile --------------------------------------------


@pytest.mark.once
def test_a_killed_run_leaves_each_resource_old_or_new_and_the_next_one_goes_on(
    archive: tuple[db.Target, Path], tmp_path: Path
) -> None:
    target, area = archive
    counts = reindexing.killed(target, area, (PROFILE, dicom.Profile()), tmp_path, runs=2)
    assert len(counts) == 2  # it raises itself


def test_a_journal_goes_on_where_the_run_ended(archive: tuple[db.Target, Path], tmp_path: Path) -> None:
    target, area = archive
    import_files(target, samples.folder(tmp_path / "more", 12, patients=12, per_series=1), area)
    journal, stop = tmp_path / "journal", threading.Event()
    settings = reindex.Settings(area, PROFILE, jobs=1, journal=journal, batch_files=1)

    def report(progress: Progress) -> None:
        # The first batch of the second patient: the first patient is done.
        if progress.done and progress.done > 6:
            stop.set()

    # A pause after each batch, so that the report of each is seen.
    slow = replace(settings, limits=Limits(max_files_per_s=20))
    first = reindex.reindex(target, slow, stop=stop, report=report)
    assert not first.complete
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="of a run with other tags, levels or resources"):
        reindex.reindex(target, replace(settings, keep_first=True))
    second = reindex.reindex(target, settings)
    assert second.complete
    assert second.done_before >= 1
    assert second.done_before + second.patients == 12
    assert 0 < second.files_read < 24
    assert not journal.exists()
    assert run(target, area).changes == ()


def test_rates_hold(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    limits = Limits(max_files_per_s=8)
    result = run(target, area, limits=limits, batch_files=4)
    # Of two batches of two series each, the second one waits for the first.
    assert result.elapsed_s >= 6 / 8 * 0.95
    size = result.bytes_read
    assert run(target, area, limits=Limits(max_bytes_per_s=size), batch_files=6).elapsed_s >= 0.45


def test_outside_the_hours_nothing_is_read_until_it_is_stopped(archive: tuple[db.Target, Path]) -> None:
    target, area = archive
    stop = threading.Event()
    monday, sunday = datetime(2026, 11, 23, 12), Hours.parse('{"Sunday": ["0-24"]}')
    waiting: list[str] = []

    def report(progress: Progress) -> None:
        waiting.append(progress.what)
        stop.set()

    hours = replace(sunday, clock=lambda: monday)
    settings = reindex.Settings(area, PROFILE, jobs=1, hours=hours)
    result = reindex.reindex(target, settings, stop=stop, report=report)
    assert waiting == ["waiting until Sunday 00:00, as the schedule says"]
    assert (result.complete, result.files_read) == (False, 0)


def test_what_arrives_meanwhile_with_old_tags_is_done_at_the_end(
    archive: tuple[db.Target, Path], tmp_path: Path
) -> None:
    target, area = archive
    late = [tmp_path / f"{number}.dcm" for number in range(2)]
    for number, path in enumerate(late):
        path.write_bytes(samples.instance(f"late {number}", f"1.5.{number}", f"1.5.1.{number}"))
    settings = reindex.Settings(area, PROFILE, jobs=1)
    result = reindex.reindex(target, settings, started=lambda _: _import(target, late, area))
    assert result.instances == 12
    assert result.files_read == 14
    signature = (
        "SELECT DISTINCT value LIKE '%0028,0010%' FROM metadata m JOIN resources r ON r.internalid = m.id"
    )
    assert rows(target, f"{signature} WHERE type = 15 AND resourcetype = 3") == [(True,)]


def _import(target: db.Target, late: list[Path], area: Path) -> None:
    """As an Orthanc does that still has the old configuration."""
    import_files(target, late, area, concurrent=True)
