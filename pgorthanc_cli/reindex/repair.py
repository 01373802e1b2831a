"""Repairs from the index alone; no file is read.

`identifiers`: rows of DicomIdentifiers that do not match the tags, so that searches miss a
resource. `patients`: studies whose copies of the patient's tags differ from the patient's
own, as reconstructing single studies leaves them (STORAGE.md B2).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgorthanc_cli import db, dicom
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.reindex import arrivals
from pgorthanc_cli.reindex.model import PATIENT, Change, Done, Settings
from pgorthanc_cli.reindex.run import changes
from pgorthanc_cli.reindex.write import Writer, writing_alone

REPAIRS = ("patients", "identifiers")
_RANGE = 5000  # internal ids in one transaction


@dataclass(frozen=True)
class Repaired:
    """The result of a repair.

    Attributes:
        repair: One of `REPAIRS`.
        rows_changed: Resources with a changed row, by level.
        changes: Rows, by level and tag.
        dry_run: Whether nothing was written.
        complete: Whether all resources were looked at.
        elapsed_s: Seconds.
        endpoint: Where we worked.
    """

    repair: str
    rows_changed: dict[str, int]
    changes: tuple[Change, ...]
    dry_run: bool
    complete: bool
    elapsed_s: float
    endpoint: db.Endpoint


def repair(
    target: db.Target,
    which: str,
    profile: dicom.Profile,
    *,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    report: Report = silent,
) -> Repaired:
    """Repair all resources, in short transactions.

    Args:
        target: The index; an Orthanc may use it.
        which: One of `REPAIRS`.
        profile: Decides which tags a patient has, and which are identifiers.
        dry_run: Count, write nothing.
        stop: Ends it when set; what was counted is committed.
        report: Called with the number of resources looked at.

    Raises:
        InUseError: Another run is writing.
    """
    stop, started, done = stop or threading.Event(), time.monotonic(), Done()
    # The filesystem area is not looked at: nothing is deleted.
    settings = Settings(Path("/nonexistent"), profile, limit_to_level=True, dry_run=dry_run)
    lists = dicom.indexed_tags(profile).levels
    parameters: dict[str, Any] = {"tags": list(lists[PATIENT].main)}
    if which == "identifiers":
        pairs = [(level, tag) for level, tags in enumerate(lists) for tag in tags.identifiers]
        parameters = {"levels": [level for level, _ in pairs], "tags": [tag for _, tag in pairs]}
    query = db.statement(__package__, "identifiers.sql" if which == "identifiers" else "copies.sql")
    with db.session(target) as conn, writing_alone(conn, settings):
        writer, last, newest = Writer(conn, settings), 0, arrivals.newest(conn)
        while last < newest and not stop.is_set():
            first, last = last, min(last + _RANGE, newest)
            done.add(writer.repair(query, {**parameters, "first": first, "last": last}))
            report(Progress("", f"repairing {which}", last, newest))
        return Repaired(
            repair=which,
            rows_changed={name: done.changed[level] for level, name in enumerate(LEVELS)},
            changes=changes(done.kinds),
            dry_run=dry_run,
            complete=last >= newest,
            elapsed_s=round(time.monotonic() - started, 3),
            endpoint=db.endpoint(conn),
        )
