"""What must be right before the first file is read: the folder is mounted, and the tag lists are known."""

from __future__ import annotations

from pgorthanc_cli import db, dicom
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.reindex.model import SIGNATURE, Settings
from pgorthanc_cli.storage import FilesystemArea
from pgorthanc_cli.storage.listing import is_empty
from pgorthanc_cli.text import plural, printable

# The newest resources of all levels: what Orthanc, as it is configured now, writes.
_NEWEST = """
    SELECT DISTINCT r.resourcetype, m.value
        FROM (SELECT internalid, resourcetype FROM index.resources ORDER BY internalid DESC LIMIT 1000) r
        JOIN index.metadata m ON m.id = r.internalid AND m.type = %s WHERE m.value IS NOT NULL
"""


def require_stored_files(settings: Settings, patients: int) -> None:
    """Refuse a folder that is not mounted, in which every file would be unreadable.

    Args:
        settings: With the advanced-storage plugin StorageDirectory may be empty.
        patients: How many the run is about.

    Raises:
        PgOrthancError: The folder cannot be read.
        UsageError: It is empty.
    """
    if settings.storage_dir is None or settings.storages is not None or not patients:
        return
    folder = printable(str(settings.storage_dir))
    try:
        empty = is_empty(FilesystemArea(settings.storage_dir))
    except OSError as error:
        raise PgOrthancError(
            f"the storage folder {folder} cannot be read: {error.strerror}",
            "check that it is mounted, or name the right folder with --storage-dir",
        ) from None
    if empty:
        raise UsageError(
            f"{folder} is empty, but files of {plural(patients, 'patient')} are to be read from it",
            "check that it is mounted, or name the right folder with --storage-dir",
        )


def require_configured_tags(conn: db.Session, profile: dicom.Profile) -> None:
    """Refuse to work without Orthanc's configuration if the index has tags that only it can name.

    Raises:
        UsageError: The default lists lack a tag of the index, which would be removed.
    """
    rows = db.rows(conn, _NEWEST, SIGNATURE)
    conn.rollback()
    levels = dicom.indexed_tags(profile).levels
    for level, signature in sorted(rows):
        known = levels[level].signature
        extra = sorted(set(signature.split(";")) - set(known.split(";"))) if known else []
        if extra and extra[0]:
            name = dicom.name_of(int(extra[0].replace(",", ""), 16))
            raise UsageError(
                f"the index has tags that are not among Orthanc's default ones, such as {name}: "
                "only Orthanc's configuration names them",
                "give it with --config; without it, reindex would remove these tags",
            )
