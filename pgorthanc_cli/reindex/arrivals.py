"""Resources that arrived during a run, with the tags of another configuration.

An Orthanc that has not been restarted after the change of the configuration goes on to
write the old tags: after the run, the patients concerned are done once more.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgorthanc_cli import db, dicom
from pgorthanc_cli.reindex.model import SIGNATURE, Settings

_OUTDATED = """
    WITH RECURSIVE ancestors AS (
        SELECT r.internalid, r.parentid FROM index.resources r
        WHERE r.internalid > %s AND r.resourcetype = ANY (%s) AND NOT EXISTS (
            SELECT FROM index.metadata m
            WHERE m.id = r.internalid AND m.type = %s AND m.value = (%s::text[])[r.resourcetype + 1])
        UNION SELECT r.internalid, r.parentid FROM index.resources r
            JOIN ancestors a ON r.internalid = a.parentid)
    SELECT internalid FROM ancestors WHERE parentid IS NULL ORDER BY internalid"""


def newest(conn: db.Session) -> int:
    """Return the highest internal id."""
    number: int = db.value(conn, "SELECT COALESCE(max(internalid), 0) FROM index.resources")
    conn.rollback()
    return number


def outdated(conn: db.Session, newer_than: int, settings: Settings) -> Sequence[int]:
    """Return the patients of newer resources with another signature than that of the settings."""
    signatures = [level.signature for level in dicom.indexed_tags(settings.profile).levels]
    if None in signatures:  # an Orthanc before 1.11 records none
        return []
    rows = db.rows(conn, _OUTDATED, newer_than, sorted(settings.levels), SIGNATURE, signatures)
    conn.rollback()
    return [number for (number,) in rows]
