"""The page of `reindex` in the states that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.reindex import (
    Change,
    Checked,
    Estimate,
    LevelCheck,
    MissingTag,
    Reindexed,
    Repaired,
    Unreadable,
)
from pgorthanc_cli.views import reindex as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "reindex"
STUDY = "b166f8dd-656adb90-e1a34996-0072f679-2990e426"
COMMANDS = views.Commands(
    for_real="pgorthanc reindex --level study,series --config /etc/orthanc",
    again="pgorthanc reindex --level study,series --config /etc/orthanc",
    verify=f"pgorthanc verify storage --study {STUDY} --config /etc/orthanc",
)
REHEARSED = Reindexed(
    patients=120_000, studies=350_000, series=1_700_000, instances=36_000_000,
    levels=("study", "series"), decided_by="greatest",
    files_read=1_700_000, bytes_read=34_000_000_000,
    rows_changed={"study": 61_200, "series": 212_414}, unchanged=1_776_386,
    changes=(
        Change("study", "maindicomtags", "0008,0080", "InstitutionName", 61_200, 0, 0),
        Change("study", "metadata", "15", "MainDicomTagsSignature", 0, 61_200, 0),
        Change("series", "maindicomtags", "0018,1030", "ProtocolName", 212_400, 14, 2),
        Change("series", "dicomidentifiers", "0020,000e", "SeriesInstanceUID", 0, 1, 0),
        Change("series", "maindicomtags", "0043,1001", "Unknown Tag & Data", 3, 0, 0),
    ),
    unreadable=(), gone=0, done_before=0, instances_per_s=15_789.5, elapsed_s=2280.0, dry_run=True, complete=True,
    housekeeper="",
    area="/var/lib/orthanc/db", endpoint=db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18"),
    estimate=Estimate(1_700_000, 34_000_000_000, 2400.0),
)  # fmt: skip
DONE = replace(REHEARSED, dry_run=False)
NOTHING = {"study": 0, "series": 0}
DAMAGED = (
    Unreadable("00000001-9b38-4f60-be1b-18a25d1707c0", "the file is gone", "i1", STUDY),
    Unreadable("", "the index has no DICOM file of this instance", "i2", STUDY),
)


def check(state: str, result: Reindexed, *, verbose: bool = False) -> None:
    golden.check_view(GOLDEN, state, views.page(result, COMMANDS, verbose=verbose))


def test_a_dry_run() -> None:
    check("dry-run", REHEARSED)


def test_a_dry_run_of_an_index_that_is_up_to_date() -> None:
    check("dry-run-nothing", replace(REHEARSED, rows_changed=NOTHING, changes=(), unchanged=2_050_000))


def test_a_run() -> None:
    check("changed", replace(DONE, housekeeper="updated"), verbose=True)


def test_a_run_that_had_nothing_to_do() -> None:
    check("nothing", replace(DONE, rows_changed=NOTHING, changes=()))


def test_a_selection_that_is_empty() -> None:
    empty = replace(
        DONE, studies=0, files_read=0, bytes_read=0, rows_changed=NOTHING, changes=(), partial=True
    )
    check("nothing-selected", empty)
    for result, headline in (
        (replace(empty, dry_run=True), "Dry run, nothing was changed: no study is selected."),
        (replace(empty, partial=False), "Nothing to do: the index has no studies."),
    ):
        assert views.page(result, COMMANDS).headline == headline


def test_a_run_with_a_journal() -> None:
    check("journal", replace(DONE, done_before=14))


def test_files_that_cannot_be_read() -> None:
    check("unreadable", replace(DONE, unreadable=DAMAGED))
    check("unreadable-many", replace(DONE, unreadable=DAMAGED * 7))


def test_an_interrupted_run() -> None:
    check("interrupted-changed", replace(DONE, complete=False, files_read=600_000))
    check("interrupted", replace(DONE, complete=False, studies=1, rows_changed=NOTHING, changes=()))


CHECKED = Checked(
    (
        LevelCheck("patient", 120_000, 0, 0),
        LevelCheck("study", 350_000, 61_200, 12),
        LevelCheck("series", 1_700_000, 212_400, 30),
        LevelCheck("instance", 36_000_000, 0, 2000),
    ),
    (MissingTag("study", "0008,0080", "InstitutionName", 61_212),),
    DONE.endpoint,
)


def test_a_check() -> None:
    again = "pgorthanc reindex --config /etc/orthanc"
    golden.check_view(GOLDEN, "check", views.check_page(CHECKED, again))
    right = tuple(replace(each, other_signature=0, without_signature=0) for each in CHECKED.levels)
    golden.check_view(
        GOLDEN, "check-right", views.check_page(replace(CHECKED, levels=right, missing=()), again)
    )
    only_series = (*right[:2], CHECKED.levels[2], right[3])
    golden.check_view(GOLDEN, "check-series", views.check_page(replace(CHECKED, levels=only_series), again))


REPAIRED = Repaired(
    "patients", {"patient": 0, "study": 3, "series": 0, "instance": 0},
    (Change("study", "maindicomtags", "0010,0040", "PatientSex", 0, 3, 0),), False, True, 2.5, DONE.endpoint,
)  # fmt: skip


def test_repairs() -> None:
    again = "pgorthanc reindex --repair patients --config /etc/orthanc"
    nothing = replace(REPAIRED, rows_changed=dict.fromkeys(REPAIRED.rows_changed, 0), changes=())
    for state, result in {
        "repaired": REPAIRED,
        "repair-dry-run": replace(REPAIRED, dry_run=True),
        "repair-nothing": replace(nothing, repair="identifiers"),
        "repair-interrupted": replace(nothing, complete=False),
    }.items():
        golden.check_view(GOLDEN, state, views.repaired_page(result, again))


def test_what_a_run_will_read() -> None:
    assert views.expectation(DONE.estimate) == "reads 1,700,000 files (34 GB), about 40 min"
    assert views.expectation(Estimate(1, 0, None)) == "reads 1 file"
