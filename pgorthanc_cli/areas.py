"""In which areas some attachments are: enough for a glance, at any size of the index.

Like `customdata.unsupported_plugin`: the newest resources show where files go now, the
oldest ones where they went. Apart from `placement`, as `status` needs nothing that moves files.
"""

from __future__ import annotations

from typing import NamedTuple

from pgorthanc_cli import db
from pgorthanc_cli.config import OrthancConfiguration
from pgorthanc_cli.errors import UsageError

FILESYSTEM, POSTGRESQL, UNKNOWN = "filesystem", "postgresql", "unknown"
OWNED, ADOPTED = "advanced-storage", "adopted"
KINDS = (FILESYSTEM, POSTGRESQL, OWNED, ADOPTED, UNKNOWN)
_LAYOUT = """
    SELECT to_regclass(prefix || 'storagearea') IS NOT NULL,
           EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(prefix || 'attachedfiles')
               AND attname = 'customdata' AND NOT attisdropped),
           to_regclass(prefix || 'pgorthanc_kept_customdata') IS NOT NULL
        FROM (SELECT quote_ident(index_schema()) || '.') AS schema (prefix)
"""
_SAMPLE = """
    SELECT DISTINCT {customdata}, {is_object} FROM index.attachedfiles a
        -- By its index: for IN (SELECT ...) PostgreSQL reads the whole table.
        WHERE a.id = ANY (ARRAY(SELECT internalid FROM index.resources ORDER BY internalid DESC LIMIT 1000)
            || ARRAY(SELECT internalid FROM index.resources ORDER BY internalid LIMIT 1000))
"""


class Sample(NamedTuple):
    """Where the newest and the oldest attachments are.

    Attributes:
        areas: Their kinds, as in `survey.Area`.
        kept_customdata: Attachments whose customdata a downgrade has put aside.
    """

    areas: tuple[str, ...] = ()
    kept_customdata: int = 0

    def not_found(self, orthanc: OrthancConfiguration) -> tuple[str, ...]:
        """Return the areas of files that an Orthanc with this configuration will not find.

        None where another storage plugin keeps files: only it knows where they are.
        """
        if orthanc.advanced_storage is None:
            try:
                orthanc.require_own_storage()
            except UsageError:
                return ()
            reachable: tuple[str, ...] = (POSTGRESQL if orthanc.enable_storage else FILESYSTEM,)
        else:
            reachable = (FILESYSTEM, OWNED, ADOPTED)
        return tuple(area for area in self.areas if area not in (*reachable, UNKNOWN))


def sample(conn: db.Session) -> Sample:
    """Return where attachments of an index are, at revision 1 or later."""
    [(has_area, has_custom_data, has_kept)] = db.rows(conn, _LAYOUT)
    is_object = "EXISTS (SELECT FROM index.storagearea s WHERE s.uuid = a.uuid)" if has_area else "false"
    column = "NULLIF(a.customdata, ''::bytea)" if has_custom_data else "NULL::bytea"
    rows = db.rows(conn, _SAMPLE.format(customdata=column, is_object=is_object))
    areas = {_area(data, is_object=is_object) for data, is_object in rows}
    kept = 0
    if has_kept:
        kept = db.value(conn, "SELECT count(*) FROM index.pgorthanc_kept_customdata WHERE customdata <> ''")
    return Sample(tuple(kind for kind in KINDS if kind in areas), kept)


def _area(data: memoryview | None, *, is_object: bool) -> str:
    if data is None:
        return POSTGRESQL if is_object else FILESYSTEM
    from pgorthanc_cli.index import customdata  # only where a storage plugin keeps files

    custom = customdata.read(bytes(data))
    if custom.plugin != customdata.ADVANCED_STORAGE:
        return UNKNOWN
    return ADOPTED if custom.adopted else OWNED
