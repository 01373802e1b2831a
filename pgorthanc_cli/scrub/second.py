"""The second look: what was different is a finding only if it still is, and cannot be in flight.

A row without its file is never normal, unless the row has been deleted meanwhile. A file
without a row is, from the moment when Orthanc writes it until its transaction commits,
which may wait for a lock as long as it likes (STORAGE.md D5). So such a file is judged
when it is older than the grace period, and when each transaction that was open then has
ended without bringing its row. Until then not even its content is looked at.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.scrub import model
from pgorthanc_cli.scrub.model import Difference, Finding, Settings
from pgorthanc_cli.scrub.spool import Spool
from pgorthanc_cli.storage import file_path, is_uuid, listing
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.workers import Stopped

if TYPE_CHECKING:
    from pgorthanc_cli.scrub.rows import Place, Rows
    from pgorthanc_cli.scrub.worker import Reader

_SKEW_S = 300.0  # by which the clock of a file server may differ from ours
_DAY_S = 86_400.0  # no upload waits for a lock that long
_POLL_S = 0.5
_CONTENT = (
    model.MISSING, model.TRUNCATED, model.TOO_LONG, model.ALTERED, model.WRONG_INSTANCE, model.WRONG_SIZE,
    model.WRONG_HASH, model.WRONG_COMPRESSION, model.SYMLINK, model.UNREADABLE,
)  # fmt: skip
_IN_FLIGHT = (model.ORPHAN_OTHER, model.IMPORT_LEFTOVER)
_WITH_ROW = (model.SYMLINK, model.FOREIGN_FILE, model.UNREADABLE, model.ORPHAN_OTHER)


@dataclass
class Outcome:
    """The findings of a second look.

    Attributes:
        findings: At most `model.MAX_FINDINGS` of each kind.
        counts: All of them, by kind.
        damaged: Those of rows.
        studies: Public ids of the studies with a damaged attachment.
        skipped_recent: Files without a row that cannot be judged yet.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    studies: set[str] = field(default_factory=set)
    skipped_recent: int = 0

    def add(self, finding: Finding) -> None:
        """Add a finding."""
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= model.MAX_FINDINGS:
            self.findings.append(finding)

    def add_damage(self, finding: Finding, study: str | None) -> None:
        """Add a finding of an attachment, which belongs to a study, or to a patient."""
        self.add(finding)
        self.damaged += 1
        if study:
            self.studies.add(study)


def look(
    rows: Rows,
    reader: Reader,
    settings: Settings,
    differences: Spool,
    stop: threading.Event,
    report: Report,
) -> Outcome:
    """Return what is still different; memory does not grow with the number of differences.

    Raises:
        Stopped: `stop` was set.
    """
    outcome, in_flight = Outcome(), Spool()
    for group in differences.groups():
        in_flight.extend(_of_group(rows, reader, settings, group, outcome, stop))
    if in_flight:
        still = _wait(rows, reader, settings, in_flight, stop, report)
        importing = listing.recorded_uuids(reader.area) if reader.area else {}
        deletions = rows.pending_deletions()
        for group in in_flight.groups():
            settled = _settled(rows, reader, settings, group, outcome, still=still, importing=importing)
            for each in _described(rows, reader, settings, settled, deletions):
                outcome.add(_finding(each, settings))
            if stop.is_set():
                raise Stopped
    return outcome


def _of_group(
    rows: Rows,
    reader: Reader,
    settings: Settings,
    differences: Sequence[Difference],
    outcome: Outcome,
    stop: threading.Event,
) -> list[Difference]:
    """Add the findings of rows, and of what else is certain; return files that may be in flight."""
    with_row = [each for each in differences if each.row and each.row.resource]
    without = [each for each in differences if not (each.row and each.row.resource)]
    damaged = _of_rows(rows, reader, settings, with_row, stop)
    # What lies in the place of a file, or beside it, belongs to the finding of its row.
    beside = {each.uuid: each.path for each in without if each.uuid}
    hidden = {each.row.uuid for each, _ in damaged if each.row}
    elsewhere: set[str] = set()
    missing = [each.row.uuid for each, _ in damaged if each.row and each.kind == model.MISSING]
    if settings.storage_dir and missing:
        elsewhere = rows.objects(missing)
    for each, place in damaged:
        uuid = each.row.uuid if each.row else ""
        detail = each.detail
        if each.kind == model.MISSING and uuid in elsewhere:
            detail = "it is among the large objects of the database"
        elif each.kind == model.MISSING and not detail and uuid in beside:
            detail = f"a file of this name is at {printable(beside[uuid])}"
        outcome.add_damage(_finding(each._replace(detail=detail), settings, place), place.study)
    folders = {each.row.uuid[:length] for each, _ in damaged if each.row and each.kind == model.UNREADABLE
               for length in (2, 4)}  # fmt: skip
    rest = [
        each
        for each in without
        if not (each.kind in _WITH_ROW and each.uuid in hidden)
        and not (each.kind == model.UNREADABLE and each.path.replace("/", "") in folders)
    ]
    for each in rest:
        if each.kind not in _IN_FLIGHT and _exists(reader, each):
            outcome.add(_finding(each, settings))
    files = [each for each in rest if each.kind in _IN_FLIGHT]
    known = _known(rows, files)
    return [each for each in files if each.uuid not in known]


def certain(rows: Rows, settings: Settings, differences: Spool) -> Outcome:
    """Return the damages that no second look could refute: those of content, of rows that still exist."""
    outcome = Outcome()
    for group in differences.groups():
        damages = [
            each
            for each in group
            if each.row and each.row.resource and each.kind not in (model.MISSING, model.UNREADABLE)
        ]
        current = rows.current([each.row for each in damages if each.row])
        for each in damages:
            assert each.row  # noqa: S101 - selected above
            present = current.get((each.row.resource, each.row.file_type, each.row.uuid))
            if present:
                outcome.add_damage(_finding(each, settings, present[1]), present[1].study)
    return outcome


def _finding(difference: Difference, settings: Settings, place: Place | None = None) -> Finding:
    row = difference.row
    path = difference.path
    if row and settings.storage_dir:
        path = row.path or file_path(row.uuid)
    if path and settings.storage_dir:
        path = os.path.join(settings.storage_dir, path)
    uuid = row.uuid if row else difference.uuid
    level, public_id = (place.level, place.public_id) if place else (None, None)
    if not place and difference.instance:
        level, public_id = "instance", difference.instance
    return Finding(
        kind=difference.kind,
        uuid=uuid or None,
        file_type=row.file_type if row else None,
        path=path or None,
        level=level or None,
        public_id=public_id,
        detail=difference.detail or model.KINDS[difference.kind],
    )


# --- rows -------------------------------------------------------------------------------


def _of_rows(
    rows: Rows,
    reader: Reader,
    settings: Settings,
    differences: Sequence[Difference],
    stop: threading.Event,
) -> list[tuple[Difference, Place]]:
    """Return the differences of rows that still exist, checked again.

    Of a file that two rows name, one of them must be wrong: that is one finding.
    """
    shared = {each.row.uuid for each in differences if each.row and each.kind == model.DUPLICATE_UUID}
    current = rows.current([each.row for each in differences if each.row])
    remaining = []
    for each in differences:
        if stop.is_set():
            raise Stopped
        row = each.row
        assert row  # noqa: S101 - selected by the caller
        present = current.get((row.resource, row.file_type, row.uuid))
        if present is None or (row.uuid in shared and each.kind != model.DUPLICATE_UUID):
            continue  # deleted meanwhile, and so its file
        now, place = present
        row = now._replace(oid=row.oid, actual_size=row.actual_size, path=row.path)
        again: Difference | None = each._replace(row=row)
        # Large objects and their rows come from one snapshot, and content never changes.
        is_readable = settings.storage_dir or (row.oid and settings.depth in (model.HASH, model.IDENTITY))
        if each.kind in _CONTENT and is_readable and (row.customdata is None or row.path):
            again = next(iter(reader.check([row])), None)
        if again:
            remaining.append((again, place))
    return remaining


# --- files ------------------------------------------------------------------------------


def _known(rows: Rows, differences: Iterable[Difference]) -> set[str]:
    """Return the UUIDs of these files that the index knows now, except of files in another folder."""
    uuids = [each.uuid for each in differences if each.uuid and not _misplaced(each)]
    return rows.known(uuids) if uuids else set()


def _misplaced(difference: Difference) -> bool:
    return bool(difference.path) and difference.path != file_path(difference.uuid)


def _exists(reader: Reader, difference: Difference) -> bool:
    return not difference.path or reader.changed(difference.path) is not None


def _age_s(reader: Reader, difference: Difference) -> float:
    """Return the age of a file; 0 for a large object, which has no time."""
    now = time.time()
    return now - (reader.changed(difference.path) or now) if difference.path else 0.0


def _wait(
    rows: Rows, reader: Reader, settings: Settings, files: Spool, stop: threading.Event, report: Report
) -> bool:
    """Wait until files without a row can be judged; return whether a transaction is still open."""
    limit_s = settings.grace_s + _SKEW_S
    if any(_age_s(reader, each) < limit_s for group in files.groups() for each in group):
        count = plural(len(files), "file")
        report(Progress("", f"waiting {settings.grace_s:.0f} s: {count} without a row may still get one"))
        if stop.wait(settings.grace_s):
            raise Stopped
    before = rows.open_transactions()
    deadline = time.monotonic() + settings.grace_s
    while (still := before & rows.open_transactions()) and time.monotonic() < deadline:
        if stop.wait(_POLL_S):
            raise Stopped
    return bool(still)


def _settled(
    rows: Rows,
    reader: Reader,
    settings: Settings,
    files: Sequence[Difference],
    outcome: Outcome,
    *,
    still: bool,
    importing: Mapping[str, bool],
) -> list[Difference]:
    """Return the files that will get no row any more; those that can still get one are counted as skipped.

    `still`: a transaction is open that was open before the wait. `importing`: UUIDs that imports
    have recorded, and whether these are alive.
    """
    known = _known(rows, files)
    objects = rows.objects([each.uuid for each in files if each.row]) if not settings.storage_dir else set()
    settled = []
    for each in files:
        uuid = each.uuid or _uuid_of_temporary(each.path)
        gone = each.uuid not in objects if each.row else reader.changed(each.path) is None
        if each.uuid in known or gone:
            continue
        if importing.get(uuid) or (still and _age_s(reader, each) < _DAY_S):
            outcome.skipped_recent += 1
            continue
        settled.append(each._replace(kind=model.IMPORT_LEFTOVER) if uuid in importing else each)
    return settled


def _uuid_of_temporary(path: str) -> str:
    """Return the UUID in the name that a file has while pgorthanc writes it."""
    return path.rpartition("/")[2].removeprefix(".").removesuffix(".pgorthanc")


def _described(
    rows: Rows,
    reader: Reader,
    settings: Settings,
    files: Sequence[Difference],
    deletions: Collection[str],
) -> list[Difference]:
    """Return what these files are: DICOM or not, indexed under another UUID, to be deleted."""
    described = []
    for each in files:
        if (
            settings.storage_dir
            and os.path.join(os.path.abspath(settings.storage_dir), each.path) in deletions
        ):
            described.append(each._replace(kind=model.PENDING_DELETION))
            continue
        if each.kind == model.IMPORT_LEFTOVER:
            described.append(each)
            continue
        try:
            instance = reader.object_instance(each.row.oid) if each.row else reader.instance_in(each.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            described.append(each._replace(kind=model.UNREADABLE, detail=error.strerror or str(error)))
            continue
        kind = model.ORPHAN_DICOM if instance else model.ORPHAN_OTHER
        described.append(each._replace(kind=kind, instance=instance))
    instances = [each.instance for each in described if each.instance]
    indexed = rows.attachments_of(instances) if instances else {}
    return [_with_index(each, indexed.get(each.instance)) for each in described]


def _with_index(difference: Difference, uuid: str | None) -> Difference:
    if not difference.instance:
        return difference
    place = " in another folder" if difference.path and _misplaced(difference) else ""
    if uuid:
        return difference._replace(
            detail=f"a DICOM file{place}; the index has its instance as attachment {uuid}"
        )
    return difference._replace(detail=f"a DICOM file{place} of an instance that is not in the index")


def of_odd(odd: listing.Odd) -> Difference:
    """Return what an unusual entry of the area may become."""
    name = odd.path.rpartition("/")[2]
    kind = {
        "name": model.FOREIGN_FILE,
        "not-a-file": model.FOREIGN_FILE,
        "misplaced": model.ORPHAN_OTHER,
        "temporary": model.IMPORT_LEFTOVER,
        "symlink": model.SYMLINK,
        "unreadable": model.UNREADABLE,
    }[odd.kind]
    return Difference(kind, odd.detail, None, name if is_uuid(name) else "", odd.path)
