"""The pages of `import` in the states that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.ingest import FileProblem, ImportResult
from pgorthanc_cli.ingest.model import RefusedFor
from pgorthanc_cli.views import import_result as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "import"
ALL_IMPORTED = ImportResult(
    imported=12_000, known=0, overwritten=0, refused=0, restored=0, differing=0, uncompared=0,
    dry_run=False, instances_per_s=457.3, mb_per_s=2.7, elapsed_s=26.2, bytes=70_670_240,
    refusals=[], differences=[], reasons=[], interrupted=False,
    endpoint=db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18"),
)  # fmt: skip
NOT_DICOM = "not a DICOM file: it begins neither with a DICOM header nor with DICOM elements"
REFUSED = replace(
    ALL_IMPORTED, known=27, refused=30,
    refusals=[FileProblem(f"/mnt/dicom/{number}", NOT_DICOM) for number in range(30)],
    reasons=[RefusedFor(NOT_DICOM, 12), RefusedFor("the file ends at byte …: it is cut off", 10),
             RefusedFor("SOPInstanceUID empty", 8)],
)  # fmt: skip
NOTHING = replace(ALL_IMPORTED, imported=0, bytes=0, instances_per_s=0.0, mb_per_s=0.0, elapsed_s=0.4)
STATES = {
    "imported": ALL_IMPORTED,
    "some-refused": REFUSED,
    "many-reasons": replace(REFUSED, reasons=[RefusedFor(f"reason {n}", 30 - n) for n in range(12)]),
    "one-refused": replace(REFUSED, known=0, refused=1, refusals=REFUSED.refusals[:1]),
    "nothing-imported": replace(NOTHING, known=27, refused=1, refusals=REFUSED.refusals[:1]),
    "all-known": replace(NOTHING, known=12_000),
    "one-known": replace(NOTHING, known=1),
    "no-files": replace(NOTHING, endpoint=None),
    "differing": replace(
        NOTHING, known=40, differing=2, uncompared=5, restored=3,
        differences=[FileProblem("/mnt/dicom/1.dcm", "the MD5 is 0ab, of the stored instance 1cd")],
    ),
    "overwritten": replace(ALL_IMPORTED, imported=3, overwritten=2),
    "dry-run": replace(REFUSED, dry_run=True),
    "interrupted": replace(ALL_IMPORTED, interrupted=True),
    "interrupted-dry-run": replace(REFUSED, dry_run=True, interrupted=True),
}  # fmt: skip
COMMANDS = views.Commands(
    again="pgorthanc import --config /etc/orthanc /mnt/dicom",
    for_real="pgorthanc import --config /etc/orthanc /mnt/dicom",
    list_refused="pgorthanc import --refused refused.txt --config /etc/orthanc /mnt/dicom",
    overwrite="pgorthanc import --overwrite if-changed --config /etc/orthanc /mnt/dicom",
)


@pytest.mark.parametrize("state", STATES)
def test_pages(state: str) -> None:
    golden.check_view(GOLDEN, state, views.page(STATES[state], ["/mnt/dicom"], COMMANDS))


@pytest.mark.parametrize("failed", [False, True])
def test_an_interruption_of_files_that_were_counted(failed: bool) -> None:
    page = views.page(STATES["interrupted"], ["/mnt/dicom"], COMMANDS, total=412_000, failed=failed)
    golden.check_view(GOLDEN, "interrupted-by-error" if failed else "interrupted-counted", page)


def test_the_end_of_following() -> None:
    stopped = replace(REFUSED, elapsed_s=604.0)
    golden.check_view(GOLDEN, "followed", views.page(stopped, ["/srv/incoming"], COMMANDS, follow=True))


def test_a_list_of_refused_files() -> None:
    page = views.page(REFUSED, ["/mnt/dicom"], views.Commands(), refused_in="refused.txt")
    golden.check_view(GOLDEN, "refused-listed", page)


def test_a_list_from_standard_input_cannot_be_repeated_by_a_command() -> None:
    page = views.page(STATES["interrupted"], [], views.Commands())
    golden.check_view(GOLDEN, "interrupted-list", page)
