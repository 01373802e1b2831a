"""The resources that can be converted: each with a parent of the level above, each public id once.

In a sound index these are all of them, and `tree` is a view of the table. Otherwise `tree` is a table of what can be
kept, in a scratch file beside, made level by level by these rules:

* a resource whose level, public id or parent is unusable is skipped, and all below it;
* of resources of one level that share a public id the one with most below it stays, of these one that has its DICOM
  file, then the oldest; `moved` says where the children and rows of the others go;
* a public id that occurs at two levels stays at the higher one;
* a patient has no parent, whatever the row says;
* what has nothing below it, and is no instance, is skipped.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pgorthanc_cli.migrate.model import Finding
from pgorthanc_cli.migrate.source import Source, connect, readable

_FILE = "tree.sqlite"
_CHILDREN_INDEX = """SELECT 1 FROM pragma_index_list('Resources') list, pragma_index_info(list.name) info
    WHERE info.seqno = 0 AND info.name = 'parentId' AND NOT list.partial"""

# Orthanc writes printable ASCII only; the length in bytes differs where there is a NUL.
_USABLE = """(typeof({0}publicId) = 'text' AND length({0}publicId) BETWEEN 1 AND 64
    AND length({0}publicId) = length(CAST({0}publicId AS BLOB)) AND NOT {0}publicId GLOB '*[^ -~]*')"""
_ODDITIES = (
    f"""SELECT 1 FROM Resources
        WHERE resourceType NOT IN (1, 2, 3, 4) OR resourceType IS NULL OR NOT {_USABLE.format("")}""",
    """SELECT 1 FROM Resources child LEFT JOIN Resources parent ON parent.internalId = child.parentId
        WHERE CASE child.resourceType WHEN 1 THEN child.parentId IS NOT NULL
                   ELSE parent.resourceType IS NOT child.resourceType - 1 END""",
    "SELECT 1 FROM Resources GROUP BY publicId HAVING count(*) > 1",
    """SELECT 1 FROM Resources parent WHERE resourceType < 4
        AND NOT EXISTS (SELECT 1 FROM Resources child WHERE child.parentId = parent.internalId)""",
)

_CREATE = """
    CREATE TABLE tree (internalId INTEGER PRIMARY KEY, resourceType, publicId, parentId);
    CREATE TABLE moved (loser INTEGER PRIMARY KEY, survivor);
    CREATE TABLE below AS SELECT parentId AS id, count(*) AS number FROM Resources GROUP BY parentId;
    CREATE INDEX belowId ON below (id);
"""
_LEVEL = f"""
    CREATE TEMP TABLE candidate AS
        SELECT r.internalId, r.publicId, parent.internalId AS parentId,
               row_number() OVER (PARTITION BY r.publicId ORDER BY coalesce(below.number, 0) DESC,
                   EXISTS (SELECT 1 FROM AttachedFiles file WHERE file.id = r.internalId AND file.fileType = 1) DESC,
                   r.internalId) AS place
            FROM Resources r
            LEFT JOIN moved ON moved.loser = r.parentId
            LEFT JOIN tree parent ON parent.internalId = coalesce(moved.survivor, r.parentId)
                AND parent.resourceType = :level - 1
            LEFT JOIN below ON below.id = r.internalId
            WHERE r.resourceType = :level AND {_USABLE.format("r.")} AND (:level = 1 OR parent.internalId IS NOT NULL)
                AND NOT EXISTS (SELECT 1 FROM tree taken WHERE taken.publicId = r.publicId)"""
_KEEP = "INSERT INTO tree SELECT internalId, ?, publicId, parentId FROM candidate WHERE place = 1"
_MOVE = """INSERT INTO moved SELECT loser.internalId, survivor.internalId FROM candidate loser
    JOIN candidate survivor ON survivor.publicId = loser.publicId AND survivor.place = 1 WHERE loser.place > 1"""
_CHILDLESS = """DELETE FROM tree WHERE resourceType = ?
    AND NOT EXISTS (SELECT 1 FROM tree child WHERE child.parentId = tree.internalId)"""
_INDEXES = "CREATE INDEX treeParent ON tree (parentId); CREATE INDEX movedSurvivor ON moved (survivor);"
_FORGET = "DELETE FROM moved WHERE survivor NOT IN (SELECT internalId FROM tree)"

_MERGED = """SELECT r.publicId FROM moved JOIN Resources r ON r.internalId = loser ORDER BY loser"""
_ROOTED = """SELECT tree.publicId FROM tree JOIN Resources r USING (internalId)
    WHERE tree.resourceType = 1 AND r.parentId IS NOT NULL ORDER BY internalId"""
_SKIPPED = f"""
    SELECT r.publicId, CASE
            WHEN r.resourceType IS NULL OR r.resourceType NOT IN (1, 2, 3, 4) THEN 'its level is none'
            WHEN NOT {_USABLE.format("r.")} THEN 'its public id is unusable'
            WHEN EXISTS (SELECT 1 FROM tree taken WHERE taken.publicId = r.publicId)
                THEN 'another level has its public id'
            WHEN r.resourceType > 1 AND parent.internalId IS NULL THEN 'its parent does not exist'
            WHEN r.resourceType > 1 AND parent.resourceType IS NOT r.resourceType - 1
                THEN 'its parent is not of the level above'
            WHEN r.resourceType > 1 AND NOT EXISTS (SELECT 1 FROM tree above WHERE above.internalId = r.parentId)
                AND NOT EXISTS (SELECT 1 FROM moved WHERE loser = r.parentId) THEN 'what it belongs to is skipped'
            ELSE 'nothing is below it' END
        FROM Resources r LEFT JOIN Resources parent ON parent.internalId = r.parentId
        WHERE r.internalId NOT IN (SELECT internalId FROM tree) AND r.internalId NOT IN (SELECT loser FROM moved)
        ORDER BY r.resourceType, r.internalId"""

_SOUND_VIEW = (
    """CREATE TEMP VIEW tree AS SELECT internalId, resourceType, publicId, parentId FROM main.Resources"""
)
_NOTHING_MOVED = "CREATE TEMP TABLE moved (loser INTEGER PRIMARY KEY, survivor)"


def survey(source: Source) -> tuple[Path | None, list[Finding], list[Finding]]:
    """Look whether all resources can be kept; if not, write down which.

    Returns:
        The scratch file of what can be kept, None if that is all; what was repaired; what was skipped.

    Raises:
        PgOrthancError: The file is damaged.
    """
    with readable(source.path), closing(connect(source.file)) as conn:
        if conn.execute(_CHILDREN_INDEX).fetchone() and not any(
            conn.execute(f"{query} LIMIT 1").fetchone() for query in _ODDITIES
        ):
            return None, [], []
        file = source.scratch / _FILE
        file.unlink(missing_ok=True)
        conn.execute("PRAGMA query_only = OFF")  # of the index itself: it is opened read-only
        conn.execute("ATTACH ? AS scratch", (f"file:{file}?mode=rwc",))
        repaired, skipped = _build(conn)
        return file, repaired, skipped


def attach(conn: sqlite3.Connection, file: Path | None) -> None:
    """Give a connection `tree` and `moved`: the tables of the scratch file, or all resources."""
    if file is None:
        conn.execute("PRAGMA query_only = OFF")
        conn.execute(_SOUND_VIEW)
        conn.execute(_NOTHING_MOVED)
        conn.execute("PRAGMA query_only = ON")
    else:
        conn.execute("ATTACH ? AS scratch", (f"file:{file}?mode=ro&immutable=1",))


def _build(conn: sqlite3.Connection) -> tuple[list[Finding], list[Finding]]:
    conn.execute("PRAGMA scratch.synchronous = OFF")
    for statement in (
        _CREATE.replace("CREATE TABLE ", "CREATE TABLE scratch.")
        .replace("CREATE INDEX ", "CREATE INDEX scratch.")
        .split(";")
    ):
        conn.execute(statement)
    conn.execute("CREATE INDEX scratch.treePublicId ON tree (publicId)")
    for level in range(1, 5):
        conn.execute(_LEVEL, {"level": level})
        conn.execute("CREATE INDEX temp.candidatePublicId ON candidate (publicId)")
        conn.execute(_KEEP, (level,))
        conn.execute(_MOVE)
        conn.execute("DROP TABLE temp.candidate")
    for statement in _INDEXES.replace("CREATE INDEX ", "CREATE INDEX scratch.").split(";"):
        conn.execute(statement)
    for level in (3, 2, 1):
        conn.execute(_CHILDLESS, (level,))
    conn.execute(_FORGET)
    repaired = [
        Finding("Resources", name(public_id), "several have this public id: they were merged")
        for (public_id,) in conn.execute(_MERGED)
    ]
    repaired += [
        Finding("Resources", name(public_id), "a patient below something: it has no parent now")
        for (public_id,) in conn.execute(_ROOTED)
    ]
    return repaired, list(_skipped(conn))


def _skipped(conn: sqlite3.Connection) -> Iterator[Finding]:
    for public_id, why in conn.execute(_SKIPPED):
        yield Finding("Resources", name(public_id), f"skipped: {why.decode()}")


def name(public_id: object) -> str | None:
    """A public id as a report shows it, however damaged it is."""
    if public_id is None:
        return None
    text = public_id.decode("utf-8", "replace") if isinstance(public_id, bytes) else str(public_id)
    return text.replace("\0", "\ufffd")[:64]
