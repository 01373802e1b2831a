"""Refuse an area that is empty, or holds the files of another index, before a million are reported as missing."""

from __future__ import annotations

from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.scrub.model import Row, Settings
from pgorthanc_cli.scrub.rows import Rows
from pgorthanc_cli.scrub.worker import Reader, unreadable_area
from pgorthanc_cli.storage import FilesystemArea, is_uuid
from pgorthanc_cli.storage.listing import is_empty, some_files
from pgorthanc_cli.text import printable

_SAMPLED_FILES = 200


def require_the_right_area(rows: Rows, reader: Reader, settings: Settings, attachments: int) -> None:
    """Check that the area seems to be that of this index.

    Args:
        rows: The index.
        reader: The area.
        settings: With `force`, only an area that cannot be read is refused.
        attachments: Rows of the index.

    Raises:
        UsageError: It is empty, or holds the files of another index.
        PgOrthancError: It cannot be read.
    """
    count = f"the index lists {attachments:,} attachments"
    if attachments == 1:
        count = "the index lists 1 attachment"
    if reader.area is None:
        stored = rows.require_readable_objects()
        if attachments and not stored and not settings.force:
            raise UsageError(
                f"the storage area of this database is empty, but {count}",
                "name the folder with --storage-dir, if Orthanc stores files; "
                "if the large objects are really gone, add --force",
            )
        return
    try:
        empty = is_empty(reader.area)
    except OSError as error:
        raise unreadable_area(reader.area.root, error) from None
    if not settings.force:
        _compare_samples(rows, reader, reader.area, count, empty=empty)


def _compare_samples(rows: Rows, reader: Reader, area: FilesystemArea, count: str, *, empty: bool) -> None:
    root = printable(str(area.root))
    sample = [uuid for uuid in rows.sample() if is_uuid(uuid)]
    usual = (Row(uuid, 0, 0, None, None, None, None, None) for uuid in sample)
    if not sample or any(reader.size(row) is not None for row in usual):
        return
    others, is_readable = some_files(area, _SAMPLED_FILES)
    if not others and is_readable:
        raise UsageError(
            f"{root} {'is empty' if empty else 'holds no file of an attachment'}, but {count}",
            "check that it is mounted, or pass the right folder with --storage-dir; "
            "if the files are really gone, add --force",
        )
    if others and not rows.known(others):
        raise UsageError(
            f"{root} holds the files of another Orthanc: none of {len(sample)} attachments of this index "
            f"is in it, and the index knows none of {len(others)} files in it",
            "pass the right folder with --storage-dir, or the right database; "
            "if both belong together, add --force",
        )
