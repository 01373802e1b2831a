"""The page of `verify storage` in the states that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.scrub import Copies, Finding, Indexed, Orphans, Repaired, StorageReport
from pgorthanc_cli.scrub.model import Left, Moved, Row
from pgorthanc_cli.scrub.orphans import Orphan
from pgorthanc_cli.views import scrub as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "scrub"
COMMANDS = views.Commands(
    again="pgorthanc verify storage --config /etc/orthanc",
    studies="pgorthanc verify storage --list studies --config /etc/orthanc",
    repair="pgorthanc verify storage --repair-from /mnt/mirror --config /etc/orthanc",
    restore="pgorthanc verify storage --restore --quarantine /srv/aside --config /etc/orthanc",
)
AREA = "/var/lib/orthanc/db"
INSTANCE = "56f42575-3c126078-d57c0519-14038243-5afe1b40"
STUDY = "b166f8dd-656adb90-e1a34996-0072f679-2990e426"


def finding(kind: str, number: int, detail: str, file_type: int | None = 1) -> Finding:
    uuid = f"{number:08x}-9b38-4f60-be1b-18a25d1707c0"
    level, public_id = ("instance", INSTANCE) if file_type else (None, None)
    path = f"{AREA}/{uuid[:2]}/{uuid[2:4]}/{uuid}"
    return Finding(kind, uuid, file_type, path, level, public_id, detail)


def report(*findings: Finding, **changed: object) -> StorageReport:
    counts: dict[str, int] = {}
    for each in findings:
        counts[each.kind] = counts.get(each.kind, 0) + 1
    healthy = StorageReport(
        area=AREA, depth="hash", attachments=36_120_411, bytes=18_000_000_000_000, checked=36_120_411,
        skipped_recent=0, without_md5=0, findings=findings, counts=counts,
        damaged=sum(each.file_type is not None for each in findings), affected_studies=0, studies=None,
        complete=True, oldest_unverified=None, rate_mb_per_s=2289.1, elapsed_s=7863.2,
        undecided=0, budget_used=False,
        endpoint=db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18"),
    )  # fmt: skip
    return replace(healthy, **changed)  # type: ignore[arg-type]


DAMAGES = (
    finding("missing", 1, "the index has a row, but the file is gone"),
    finding("missing", 2, "it is among the large objects of the database"),
    finding("truncated", 3, "262,144 of 524,902 bytes"),
    finding("altered", 4, "MD5 b0baa606644aa47ae7efa57ae0c8f24d instead of 219b5872beeb18dd18dd9c9c38000000"),
)
ORPHANS = (
    finding("orphan-dicom", 5, "a DICOM file of an instance that is not in the index", None),
    finding("import-leftover", 6, "files of an interrupted import", None),
)


def check(state: str, result: StorageReport, *, verbose: bool = False) -> None:
    golden.check_view(GOLDEN, state, views.page(result, COMMANDS, verbose=verbose))


def test_intact() -> None:
    check("intact", report())
    check("exists", report(depth="exists", rate_mb_per_s=0.0))
    check("one-attachment", report(attachments=1, checked=1, depth="size", rate_mb_per_s=0.0))
    check("no-attachments", report(attachments=0, checked=0, bytes=0, rate_mb_per_s=0.0))
    check("large-objects", report(area="large objects"))


def test_a_part_of_the_index() -> None:
    check("selected", report(partial=True, attachments=2, checked=2))
    check("selected-damages", report(*DAMAGES, partial=True, attachments=7, checked=7, affected_studies=2))
    check("nothing-selected", report(partial=True, attachments=0, checked=0, bytes=0, rate_mb_per_s=0.0))


def test_damages() -> None:
    check("damages", report(*DAMAGES, *ORPHANS, affected_studies=2))
    check("studies", report(*DAMAGES, affected_studies=1, studies=(STUDY,)))
    check("orphans", report(*ORPHANS))
    check("folder", report(Finding("unreadable", None, None, f"{AREA}/00", None, None, "Permission denied")))
    check("pending-deletion", report(finding("pending-deletion", 7, "x", None)))
    many = tuple(finding("missing", n, "the index has a row, but the file is gone") for n in range(25))
    check("many", report(*many, affected_studies=3, counts={"missing": 200_025}, damaged=200_025))
    check("many-verbose", report(*many, affected_studies=3), verbose=True)


def test_not_everything() -> None:
    check("interrupted", report(complete=False, checked=12_400_000))
    check("interrupted-damages", report(*DAMAGES, complete=False, checked=12_400_000, affected_studies=2))
    with_journal = replace(COMMANDS, has_journal=True)
    page = views.page(report(complete=False, checked=12_400_000), with_journal)
    assert [step.text for step in page.next_steps] == ["Next, continue:"]
    check("recent", report(skipped_recent=3, undecided=3))
    check("budget", report(complete=False, budget_used=True, checked=12_400_000))
    check("due", report(checked=1_204_000, skipped_recent=34_916_411))
    check("without-md5", report(without_md5=200, attachments=1000, checked=1000))
    hostile = replace(DAMAGES[0], path="/var/\x1b[31m/x", kind="foreign-file", uuid=None, file_type=None)
    check("hostile", report(hostile))


def test_a_quarantine() -> None:
    left = (Left("00000006-9b38-4f60-be1b-18a25d1707c0", "a file of this name is there already"),)
    moved = Moved("/srv/aside", AREA, False, 1, 524_902, left, {"orphan-dicom": 1})
    check("quarantined", report(*ORPHANS, quarantined=moved))
    check("quarantined-nothing", report(quarantined=replace(moved, files=0, bytes=0, left=())))
    for state, restored in (
        ("restored", replace(moved, restored=True, left=())),
        ("restored-not-all", replace(moved, restored=True)),
        ("restored-nothing", replace(moved, restored=True, files=0, bytes=0, left=())),
    ):
        golden.check_view(GOLDEN, state, views.moved_page(restored))


def test_repairs() -> None:
    left = (Left("00000002-9b38-4f60-be1b-18a25d1707c0", "there is no copy of it"),)
    done = Repaired("/mnt/mirror", AREA, False, 3, 1_524_902, left, restart_orthanc=True, complete=True)
    damages = report(*DAMAGES, affected_studies=2)
    kinds = {"missing": 2, "truncated": 1, "altered": 1}
    for state, repaired in (
        ("repaired", replace(done, left=(), files=4, kinds=kinds)),
        ("repaired-not-all", replace(done, kinds=kinds | {"missing": 1})),
        ("repaired-missing", replace(done, left=(), files=4, restart_orthanc=False, kinds=kinds)),
        ("repaired-nothing", replace(done, files=0, bytes=0)),
        ("repaired-interrupted", replace(done, files=1, left=(), complete=False, kinds={"missing": 1})),
        ("repair-dry-run", replace(done, dry_run=True)),
    ):
        check(state, replace(damages, repaired=repaired))
    rows = [Row(f"{number:08x}-9b38-4f60-be1b-18a25d1707c0", 1, 1, 1, "", 1, "", 1) for number in range(25)]
    copies = Copies(Path("/mnt/mirror"), rows, 1_524_902, list(left), {})
    plan = replace(done, dry_run=True, files=25)
    golden.check_view(GOLDEN, "repair-question", views.copies_page(copies, plan))


def test_imported_orphans() -> None:
    left = (
        Left("00000006-9b38-4f60-be1b-18a25d1707c0", "it has no pixel data: only the first part of a file"),
    )
    done = Indexed(AREA, False, 1, 524_902, left, complete=True)
    for state, indexed in (
        ("indexed", replace(done, left=())),
        ("indexed-not-all", done),
        ("index-dry-run", replace(done, dry_run=True)),
    ):
        check(state, report(*ORPHANS, indexed=indexed))
    orphans = Orphans([Orphan("00000005-9b38-4f60-be1b-18a25d1707c0", INSTANCE, 524_902, "")], list(left))
    page = views.orphans_page(orphans, replace(done, dry_run=True))
    golden.check_view(GOLDEN, "index-question", page)
