"""The space that an area takes, and giving it back."""

from __future__ import annotations

from pgorthanc_cli import db
from pgorthanc_cli.placement.model import Place
from pgorthanc_cli.schema import steps
from pgorthanc_cli.storage import FilesystemArea, LargeObjectArea
from pgorthanc_cli.storage.listing import list_part

# The owner of a database may vacuum its catalogs; from PostgreSQL 17 on also a role with MAINTAIN.
_MAY_VACUUM = """
    SELECT pg_has_role(current_user, datdba, 'MEMBER') FROM pg_database WHERE datname = current_database()
"""


def used(conn: db.Session, place: Place) -> int:
    """Return the bytes of the tables of large objects; 0 for a folder."""
    if place.folder:
        return 0
    query = (
        "SELECT pg_total_relation_size('pg_largeobject') + pg_total_relation_size('pg_largeobject_metadata')"
    )
    size: int = db.value(conn, query)
    conn.rollback()
    return size


def left(conn: db.Session, place: Place) -> int:
    """Return how many attachments are in an area."""
    if place.folder:
        area = FilesystemArea(place.folder)
        return sum(len(list_part(area, f"{number:02x}", sizes=False).sizes) for number in range(256))
    count: int = db.value(conn, "SELECT count(*) FROM index.storagearea")
    conn.rollback()
    return count


def remove_orphans(conn: db.Session, most: int) -> None:
    """Remove the large objects of the storage area that no row of the index names, `most` in a transaction."""
    query = """SELECT s.uuid, s.type FROM index.storagearea s WHERE NOT EXISTS (
        SELECT FROM index.attachedfiles a WHERE a.uuid = s.uuid AND s.type =
            CASE WHEN a.filetype BETWEEN 1 AND 3 THEN a.filetype ELSE 0 END)"""
    orphans = db.rows(conn, query)
    conn.rollback()
    area = LargeObjectArea(conn)
    for start in range(0, len(orphans), most):
        with conn:
            area.delete_many(orphans[start : start + most])


def create_storage_area(conn: db.Session) -> None:
    """Create the table `storagearea`, as the plugin does when it starts with EnableStorage.

    Its owner becomes that of the index: the rule that deletes large objects runs with the rights of the table's owner.
    An Orthanc that stores files is not disturbed.
    """
    owner, is_other = db.row(
        conn,
        """SELECT pg_get_userbyid(relowner), pg_get_userbyid(relowner) <> current_user FROM pg_class
           WHERE oid = (quote_ident(index_schema()) || '.resources')::regclass""",
    ) or ("", False)
    with db.advisory_lock(conn, db.LOCK_DATABASE_SETUP), conn, conn.cursor() as cur:
        cur.execute(steps.text(steps.STORAGE_AREA))
        if is_other:
            cur.execute(f"ALTER TABLE storagearea OWNER TO {db.quote_ident(owner)}")


def vacuum(conn: db.Session) -> bool:
    """Vacuum the tables of large objects, which gives empty pages at their end back; return whether this role may.

    Never VACUUM FULL, which would block every reader for hours.
    """
    may: bool = db.value(conn, _MAY_VACUUM)
    conn.rollback()
    if may:
        conn.autocommit = True
        try:
            with conn.cursor() as cur:
                cur.execute("VACUUM pg_catalog.pg_largeobject, pg_catalog.pg_largeobject_metadata")
        finally:
            conn.autocommit = False
    return may
