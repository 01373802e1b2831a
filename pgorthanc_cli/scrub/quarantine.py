"""Files that no row of the index names, moved aside and back; nothing is ever deleted.

The folder is a storage area of its own, with the same two levels of folders, so that both
sides are read and written by the same code, and with the rights of their owners. A
manifest is on disk before the first file moves.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pgorthanc_cli import db, files, index
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.scrub.journal import record_resolved
from pgorthanc_cli.scrub.model import (
    ORPHAN_DICOM,
    ORPHAN_OTHER,
    Finding,
    Left,
    Moved,
    Settings,
    StorageReport,
)
from pgorthanc_cli.scrub.rows import Rows, require_alone
from pgorthanc_cli.storage import CHUNK_BYTES, FilesystemArea, file_path
from pgorthanc_cli.text import printable

KINDS = (ORPHAN_DICOM, ORPHAN_OTHER)
_MANIFEST = "quarantine-*.json"
# Another file system, or one that has no hard links, or not these.
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


def require_usable(settings: Settings, folder: Path) -> Path:
    """Return the storage area that files are moved out of, or back into.

    Raises:
        UsageError: It is not a folder, only a part of the index is checked, or the
            quarantine is within the area.
    """
    area = settings.storage_dir
    if area is None:
        raise UsageError("--quarantine moves files, and this storage area is in the database")
    if settings.is_partial:
        raise UsageError(
            "--study and --since look for no orphans, which --quarantine would move", "leave one of them out"
        )
    if folder.resolve().is_relative_to(area.resolve()):
        raise UsageError(f"{printable(str(folder))} is within the storage area", "name a folder beside it")
    return area


def candidates(report: StorageReport, area: Path) -> list[Finding]:
    """Return the orphans that can be moved: those in the place of an attachment."""
    return [
        finding
        for finding in report.findings
        if finding.kind in KINDS and finding.uuid and finding.path == str(area / file_path(finding.uuid))
    ]


def planned_moves(settings: Settings, report: StorageReport, folder: Path) -> Moved:
    """Return what `set_aside` would do.

    Raises:
        UsageError: As `require_usable`.
    """
    area = require_usable(settings, folder)
    source, sizes = FilesystemArea(area), []
    for finding in candidates(report, area):
        with suppress(FileNotFoundError):  # deleted meanwhile
            sizes.append(source.stat(file_path(finding.uuid or "")).st_size)
    return Moved(str(folder), str(area), False, len(sizes), sum(sizes), (), dry_run=True)


def set_aside(target: db.Target, settings: Settings, report: StorageReport, folder: Path) -> Moved:
    """Move the orphans of a report to another folder, but for those that the index has got meanwhile.

    Raises:
        UsageError: As `require_usable`.
        PgOrthancError: The folder cannot be written to, or the index cannot be read.
        InUseError: Another run moves or repairs files.
    """
    area = require_usable(settings, folder)
    orphans = candidates(report, area)
    source, aside = FilesystemArea(area), FilesystemArea(folder)
    if not orphans:
        return Moved(str(folder), str(area), False, 0, 0, ())
    aside.prepare()
    manifest = {"area": str(area.resolve()), "files": [_entry(finding) for finding in orphans]}
    name = f"quarantine-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.json"
    # Before the first file: whatever is interrupted then, --restore knows what to look for. Whole or not at
    # all, as half a manifest would block every later --restore.
    files.replace(folder / name, json.dumps(manifest, indent=2))
    # Asked last: an Orthanc may have committed their rows since they were found.
    uuids = [finding.uuid or "" for finding in orphans]
    with db.session(target, readonly=True) as conn:
        require_alone(conn)
        rows = Rows(conn, index.Capabilities.read(conn), settings)
        known = rows.known(uuids)
        left = [Left(uuid, "the index has it now") for uuid in uuids if uuid in known]
        moved = _move_all(source, aside, [uuid for uuid in uuids if uuid not in known], left)
        staying = {each.uuid for each in left}
        kinds = Counter(finding.kind for finding in orphans if finding.uuid not in staying)
        record_resolved(settings, rows.identity(), kinds.elements())
    return Moved(str(folder), str(area), False, *moved, tuple(left), dict(kinds))


def restore(target: db.Target, settings: Settings, folder: Path) -> Moved:
    """Move everything back that was moved aside.

    Raises:
        UsageError: As `require_usable`; or the folder is no quarantine, or that of another area.
        InUseError: Another run moves or repairs files.
    """
    area = require_usable(settings, folder)
    source, aside = FilesystemArea(area), FilesystemArea(folder)
    left: list[Left] = []
    uuids = list(_recorded(folder, area))
    with db.session(target, readonly=True) as conn:
        require_alone(conn)
        moved = _move_all(aside, source, uuids, left)
    return Moved(str(folder), str(area), True, *moved, tuple(left))


def _entry(finding: Finding) -> dict[str, str | None]:
    return {"uuid": finding.uuid, "kind": finding.kind, "instance": finding.public_id}


def _recorded(folder: Path, area: Path) -> Iterator[str]:
    """Yield the UUIDs in the manifests of a quarantine."""
    manifests = sorted(folder.glob(_MANIFEST))
    if not manifests:
        raise UsageError(
            f"{printable(str(folder))} is no quarantine: it has no manifest ({_MANIFEST})",
            "name the folder that --quarantine has filled",
        )
    for path in manifests:
        try:
            manifest = json.loads(files.read(path))
            origin, uuids = str(manifest["area"]), [str(each["uuid"]) for each in manifest["files"]]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{printable(str(path))} is no manifest of a quarantine") from None
        # Two archives have different files, and a restore must not mix them.
        if origin != str(area.resolve()):
            raise UsageError(
                f"the files in {printable(str(folder))} come from {printable(origin)}, "
                f"not from {printable(str(area))}",
                "name that folder with --storage-dir",
            )
        yield from uuids


def _move_all(
    source: FilesystemArea, goal: FilesystemArea, uuids: list[str], left: list[Left]
) -> tuple[int, int]:
    """Move files; return how many, and their size. What cannot be moved is added to `left`."""
    moved = size = 0
    for uuid in dict.fromkeys(uuids):
        try:
            with source.open(uuid) as stream:
                size += _move(stream, goal, uuid)
            source.delete(uuid)
            moved += 1
        except FileNotFoundError:
            continue  # moved before, or deleted meanwhile
        except OSError as error:
            left.append(Left(uuid, error.strerror or str(error)))
    return moved, size


def _move(stream: BinaryIO, goal: FilesystemArea, uuid: str) -> int:
    """Put an open file into another area as well, and return its size; then its first name may go.

    Raises:
        FileExistsError: The other area has another file of this name.
        OSError: It cannot be put there.
    """
    if not _has(goal, uuid, stream):
        try:
            # A second name is at once complete; a copy would need its own proof.
            goal.link(uuid, stream.fileno())
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            goal.discard_temporary(uuid)  # of a run that was killed while it copied
            goal.create(uuid, lambda descriptor: _copy(stream, descriptor))
    return os.fstat(stream.fileno()).st_size


def _has(area: FilesystemArea, uuid: str, stream: BinaryIO) -> bool:
    """Return whether an area has an open file already: a run was killed before it removed the first name.

    Raises:
        FileExistsError: It has another one of this name.
    """
    try:
        with area.open(uuid) as other:
            ours, theirs = os.fstat(stream.fileno()), os.fstat(other.fileno())
            same = os.path.samestat(ours, theirs)
            if same or (ours.st_size == theirs.st_size and _equal(stream, other)):
                # A killed run may not have synced its copy.
                area.sync_file(uuid)
                return True
    except FileNotFoundError:
        return False
    raise FileExistsError(errno.EEXIST, "a file of this name is there already")


def _equal(one: BinaryIO, other: BinaryIO) -> bool:
    while (chunk := one.read(CHUNK_BYTES)) == other.read(CHUNK_BYTES):
        if not chunk:
            return True
    return False


def _copy(stream: BinaryIO, descriptor: int) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as copy:
        shutil.copyfileobj(stream, copy)
