"""Find the resources that can be converted: each with a parent of the level above, each public id once.

In a sound index these are all of them, and `tree` is a view of the table. Otherwise
`tree` is a table in a scratch file, filled level by level by these rules:

* a resource whose level, public id or parent is unusable is skipped, with all resources
  below it;
* of resources of one level that share a public id, the one with most children is kept, of
  these one that has its DICOM file, then the oldest; `moved` says to which of them the
  children and rows of the others go;
* a public id that occurs at two levels stays at the higher one;
* a patient has no parent, whatever the row says;
* a resource without children that is not an instance is skipped.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.migrate.model import Finding, Outcome

_CHILDREN_INDEX = """SELECT 1 FROM pragma_index_list('Resources') list, pragma_index_info(list.name) info
    WHERE info.seqno = 0 AND info.name = 'parentId' AND NOT list.partial"""
_CHILDLESS = """DELETE FROM tree WHERE resourceType = ?
    AND NOT EXISTS (SELECT 1 FROM tree child WHERE child.parentId = tree.internalId)"""
_MERGED = "SELECT r.publicId FROM moved JOIN Resources r ON r.internalId = loser ORDER BY loser"
_PATIENTS_WITH_PARENT = """SELECT tree.publicId FROM tree JOIN Resources r USING (internalId)
    WHERE tree.resourceType = 1 AND r.parentId IS NOT NULL ORDER BY internalId"""


def survey(conn: sqlite3.Connection, scratch: Path) -> tuple[Path | None, Outcome]:
    """Find out whether all resources can be converted; if not, write down which.

    Returns:
        The scratch file of those that can, None if all can; what is repaired and skipped.
    """
    # Only temporary objects are written: the file itself is open read-only.
    conn.execute("PRAGMA query_only = OFF")
    conn.executescript(db.statement(__package__, "checked_resources.sql"))
    if (
        # Without this index, counting the children of a view takes quadratic time.
        conn.execute(_CHILDREN_INDEX).fetchone()
        and not conn.execute(db.statement(__package__, "problems.sql")).fetchone()
    ):
        return None, Outcome()
    file = scratch / "tree.sqlite"
    file.unlink(missing_ok=True)
    conn.execute("ATTACH ? AS scratch", (f"file:{file}?mode=rwc",))
    _build(conn)
    return file, Outcome(repaired=_repaired(conn), skipped=_skipped(conn))


def attach(conn: sqlite3.Connection, file: Path | None) -> None:
    """Give a connection `tree` and `moved`: the tables of the scratch file, or all resources."""
    if file is None:
        conn.execute("PRAGMA query_only = OFF")
        conn.executescript(db.statement(__package__, "all_resources.sql"))
        conn.execute("PRAGMA query_only = ON")
    else:
        conn.execute("ATTACH ? AS scratch", (f"file:{file}?mode=ro&immutable=1",))


def public_id_text(public_id: object) -> str | None:
    """Return a public id as a report shows it, however damaged it is."""
    if public_id is None:
        return None
    text = public_id.decode("utf-8", "replace") if isinstance(public_id, bytes) else str(public_id)
    return text.replace("\0", "\ufffd")[:64]


def _build(conn: sqlite3.Connection) -> None:
    conn.executescript(db.statement(__package__, "create_tree.sql"))
    for level in (1, 2, 3, 4):
        # A level needs the one above it, which decides whose children count.
        conn.execute(db.statement(__package__, "candidates.sql"), {"level": level})
        conn.execute("CREATE INDEX temp.candidatePublicId ON candidate (publicId)")
        conn.execute(
            "INSERT INTO tree SELECT internalId, ?, publicId, parentId FROM candidate WHERE rank = 1",
            (level,),
        )
        conn.execute(
            """INSERT INTO moved SELECT loser.internalId, survivor.internalId FROM candidate loser
               JOIN candidate survivor ON survivor.publicId = loser.publicId AND survivor.rank = 1
               WHERE loser.rank > 1"""
        )
        conn.execute("DROP TABLE temp.candidate")
    conn.execute("CREATE INDEX scratch.treeParent ON tree (parentId)")
    conn.execute("CREATE INDEX scratch.movedSurvivor ON moved (survivor)")
    # From below: a resource may lose its last child.
    for level in (3, 2, 1):
        conn.execute(_CHILDLESS, (level,))
    conn.execute("DELETE FROM moved WHERE survivor NOT IN (SELECT internalId FROM tree)")


def _repaired(conn: sqlite3.Connection) -> list[Finding]:
    merged = "several have this public id: they were merged"
    rooted = "a patient below something: it has no parent now"
    return [
        Finding("Resources", public_id_text(public_id), what)
        for query, what in ((_MERGED, merged), (_PATIENTS_WITH_PARENT, rooted))
        for (public_id,) in conn.execute(query)
    ]


def _skipped(conn: sqlite3.Connection) -> list[Finding]:
    return [
        Finding("Resources", public_id_text(public_id), f"skipped: {why.decode()}")
        for public_id, why in conn.execute(db.statement(__package__, "skipped.sql"))
    ]
