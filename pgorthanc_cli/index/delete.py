"""Delete the instances that a batch replaces, and the parents that they leave without children.

The triggers are on meanwhile: they update counters and marks, and foreign keys take along all
rows of a resource. What is deleted is decided before (`batch`), and proved here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.index import customdata
from pgorthanc_cli.index.model import INSTANCE, Conflict, ParentDeleted

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

    from pgorthanc_cli.index.insert import Resource
    from pgorthanc_cli.index.lookup import Capabilities


class Replaced(NamedTuple):
    """A stored resource to delete, in the order in which Orthanc would.

    Attributes:
        resource: Stored.
        adopting: An adopted file replaces what is deleted.
    """

    resource: Resource
    adopting: bool


def lock_and_count(cur: Cursor, instances: Sequence[Resource]) -> None:
    """Lock stored instances and their ancestors, and count the children of the ancestors.

    No other session adds or removes a child until the transaction ends.

    Raises:
        ParentDeleted: One of them was deleted by another session.
    """
    ancestors = {parent.internal_id: parent for node in instances for parent in node.ancestors()}
    ids = [*ancestors, *(node.internal_id for node in instances)]
    # Ordered, so that two writers cannot deadlock.
    cur.execute("SELECT FROM resources WHERE internalid = ANY(%s) ORDER BY internalid FOR UPDATE", (ids,))
    if cur.rowcount != len(set(ids)):
        raise _deleted_meanwhile()
    cur.execute(
        "SELECT parentid, count(*) FROM resources WHERE parentid = ANY(%s) GROUP BY parentid",
        (list(ancestors),),
    )
    for number, children in cur.fetchall():
        ancestors[number].children = children


def hide(cur: Cursor, capabilities: Capabilities, replaced: Sequence[Replaced]) -> None:
    """Rename resources that can be deleted only after those that replace them are inserted.

    Up to revision 5, a trigger deletes every parent without children: it must find the new ones.
    """
    if replaced and capabilities.recycling_table and capabilities.unique_public_ids:
        cur.execute(
            "UPDATE resources SET publicid = 'replaced ' || internalid WHERE internalid = ANY(%s)",
            ([r.resource.internal_id for r in replaced],),
        )


def delete(cur: Cursor, capabilities: Capabilities, replaced: Sequence[Replaced]) -> list[tuple[str, int]]:
    """Delete resources; return the (uuid, file type) of files to remove after the commit.

    Raises:
        Conflict: Only a storage plugin can remove a file, or a trigger is missing.
        ParentDeleted: Another session has deleted some of them.
    """
    if not replaced:
        return []
    _empty_tables_of_triggers(cur, capabilities)
    ids = {r.resource.internal_id: r for r in replaced}
    column = "customdata" if capabilities.custom_data else "NULL"
    cur.execute(
        f"""DELETE FROM attachedfiles WHERE id = ANY(%s)
            RETURNING id, uuid, filetype, {column}""",  # noqa: S608 - a constant
        (list(ids),),
    )
    order = {number: position for position, number in enumerate(ids)}
    files = [
        customdata.Deleted(number, uuid, file_type, data, ids[number].adopting)
        for number, uuid, file_type, data in sorted(cur.fetchall(), key=lambda row: (order[row[0]], row[2]))
    ]
    removed = customdata.release(cur, capabilities, files)
    # Up to revision 5 a trigger deletes the parents.
    levels = [INSTANCE] if capabilities.recycling_table else range(INSTANCE, -1, -1)
    for level in levels:
        _delete_level(cur, [r.resource.internal_id for r in replaced if r.resource.level == level])
    if capabilities.recycling_table:
        _require_deleted(cur, list(ids))
    return removed


def _empty_tables_of_triggers(cur: Cursor, capabilities: Capabilities) -> None:
    """Prepare the tables in which triggers record what was deleted, as `deleteresource` does."""
    if not capabilities.delete_function:
        cur.execute("DELETE FROM deletedfiles; DELETE FROM remainingancestor; DELETE FROM deletedresources")
    elif capabilities.recycling_table:
        # Temporary, and created by this function alone; there is no such resource.
        cur.execute("SELECT FROM deleteresource(-1)")
    else:
        cur.execute("SELECT FROM createdeletedfilestemporarytable()")


def _delete_level(cur: Cursor, ids: Sequence[int]) -> None:
    if ids:
        cur.execute("DELETE FROM resources WHERE internalid = ANY(%s)", (list(ids),))
        if cur.rowcount != len(ids):
            raise _deleted_meanwhile()


def _require_deleted(cur: Cursor, ids: Sequence[int]) -> None:
    cur.execute("SELECT resourcetype FROM resources WHERE internalid = ANY(%s) LIMIT 1", (list(ids),))
    for (level,) in cur.fetchall():
        raise Conflict(
            f"deleting its instance has left a {LEVELS[level]} without children: a trigger of the "
            "index is missing or off; run pgorthanc verify schema"
        )


def _deleted_meanwhile() -> ParentDeleted:
    return ParentDeleted("another session has just deleted an instance of this batch, or its parent")
