"""What storage plugins keep in `attachedfiles.customdata`: where a file is, in the dialect of each plugin.

NULL or empty: the file lies where Orthanc's own storage, or the storage plugin without such data, puts it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgorthanc_cli.index.model import Conflict

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

    from pgorthanc_cli.index.lookup import Capabilities

ADVANCED_STORAGE = "AdvancedStorage"
_S3_ZIP_KEYS = {"storage", "local", "s3zip", "series-id", "size"}
_SAMPLE_KEYS = {"IsAdopted", "AdoptedPath"}
_VERSION = 1  # of AdvancedStorage's format

# The newest and the oldest resources: whichever plugin stores now has written the former. A look at every row would
# read the whole table.
_SAMPLE = """
    SELECT DISTINCT customdata FROM index.attachedfiles
        WHERE (id IN (SELECT internalid FROM index.resources ORDER BY internalid DESC LIMIT 1000)
               OR id IN (SELECT internalid FROM index.resources ORDER BY internalid LIMIT 1000))
            AND customdata IS NOT NULL AND customdata <> ''
"""


@dataclass(frozen=True)
class CustomData:
    """Where a storage plugin keeps a file.

    Attributes:
        plugin: Its name, as its section of Orthanc's configuration is called; empty: not known.
        path: What AdvancedStorage says about the path, if anything.
        adopted: The file belongs to somebody else: Orthanc only reads it, and never deletes it.
    """

    plugin: str
    path: str | None = None
    adopted: bool = False


def read(data: bytes) -> CustomData:
    """Recognise the dialect of customdata that is not empty."""
    try:
        content = json.loads(data)
    except ValueError:  # also what is not UTF-8
        return CustomData("")
    if not isinstance(content, dict):
        return CustomData("")
    if _is_advanced(content):
        return CustomData(ADVANCED_STORAGE, content.get("p"), adopted=not content.get("o", False))
    if content.keys() >= _S3_ZIP_KEYS:
        return CustomData("S3Zip")
    if content.keys() >= _SAMPLE_KEYS:
        return CustomData("the sample plugin AdoptDicomInstance")
    return CustomData("")


def _is_advanced(content: dict[str, Any]) -> bool:
    """Whether this is one of the forms that AdvancedStorage 0.3 writes and reads."""
    owned, path = content.get("o", False), content.get("p")
    return (
        content.keys() <= {"o", "p", "s", "v"}
        and type(content.get("v")) is int
        and content["v"] == _VERSION
        and isinstance(owned, bool)
        and isinstance(content.get("s", ""), str)
        and (isinstance(path, str) if "p" in content else owned)
    )


def unsupported_plugin(cur: Cursor, capabilities: Capabilities) -> str | None:
    """Name the plugin that keeps files of this index in a way not known here; None: there is no sign of one.

    Looks at the newest and at the oldest thousand resources.
    """
    if not capabilities.custom_data:
        return None
    cur.execute(_SAMPLE)
    for (data,) in cur.fetchall():
        plugin = read(bytes(data)).plugin
        if plugin != ADVANCED_STORAGE:
            return plugin or "a storage plugin that is not known here"
    return None


def release(cur: Cursor, capabilities: Capabilities, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Do what a storage plugin would do about the attachments that have just been deleted from the index.

    Of an adopted file, which stays, AdvancedStorage forgets the path: or its folder indexer would later delete the
    instance that has taken the place of the deleted one.

    Args:
        cur: In the transaction of the deletion, whose table `deletedfiles` is read.
        capabilities: Of the index.
        ids: The resources that were deleted, or might have been.

    Returns:
        (uuid, file type) of the files that are the caller's to remove.

    Raises:
        Conflict: A plugin keeps a file where only that plugin can remove it.
    """
    column = "customdata" if capabilities.custom_data else "NULL"
    cur.execute(f"SELECT uuid, filetype, {column} FROM deletedfiles")  # noqa: S608 - a constant
    deleted = cur.fetchall()
    if capabilities.kept_custom_data:
        cur.execute(
            "SELECT uuid, filetype, customdata FROM pgorthanc_kept_customdata WHERE id = ANY(%s) AND uuid = ANY(%s)",
            (list(ids), [uuid for uuid, _, _ in deleted]),
        )
        if cur.fetchall():
            raise Conflict(
                "a storage plugin keeps the stored file, and its data were put aside by a downgrade: "
                "run pgorthanc upgrade, then import this file again"
            )
    ours = []
    for uuid, file_type, data in deleted:
        if data is None or not bytes(data):
            ours.append((uuid, file_type))
        else:
            _forget(cur, read(bytes(data)))
    return ours


def _forget(cur: Cursor, custom: CustomData) -> None:
    if not (custom.plugin == ADVANCED_STORAGE and custom.adopted and custom.path):
        raise Conflict(
            f"{custom.plugin or 'a storage plugin that is not known here'} keeps the stored file, and only Orthanc "
            "with that plugin can remove it: delete the instance in Orthanc, then import this file again"
        )
    cur.execute(
        "DELETE FROM keyvaluestores WHERE storeid = 'advst-adopted-path' AND key = %s", (custom.path,)
    )
    cur.execute(
        "SELECT value FROM keyvaluestores WHERE storeid = 'advst-indexer-path' AND key = %s FOR UPDATE",
        (custom.path,),
    )
    for (value,) in cur.fetchall():
        cur.execute(
            "UPDATE keyvaluestores SET value = %s WHERE storeid = 'advst-indexer-path' AND key = %s",
            (_removed(bytes(value)), custom.path),
        )


def _removed(value: bytes) -> bytes:
    """The state of a path in the folder indexer, with the note that its instance was deleted through Orthanc."""
    try:
        state = json.loads(value)
    except ValueError:
        state = None
    if not isinstance(state, dict) or state.get("v") != _VERSION:
        raise Conflict(
            "the folder indexer of AdvancedStorage watches the stored file, in a format that is not known here: "
            "delete the instance in Orthanc, then import this file again"
        )
    return json.dumps({**state, "r": True}, sort_keys=True, separators=(",", ":")).encode()
