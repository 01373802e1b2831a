"""`attachedfiles.customdata`: where a storage plugin keeps a file.

NULL or empty: the file is where Orthanc's own storage, or a storage plugin without such
data, puts it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pgorthanc_cli.constants import file_path
from pgorthanc_cli.index import key_values
from pgorthanc_cli.index.model import Conflict

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

    from pgorthanc_cli.index.lookup import Capabilities

ADVANCED_STORAGE = "AdvancedStorage"
_S3_ZIP_KEYS = {"storage", "local", "s3zip", "series-id", "size"}
_SAMPLE_KEYS = {"IsAdopted", "AdoptedPath"}
_VERSION = 1  # of AdvancedStorage's format
# The plugin removes the file of the replaced instance, which may be the very one (STORAGE.md A6).
OWNED = (
    "Orthanc owns the file of the stored instance, and deletes it with the instance: to replace the instance, copy "
    "this file to another folder, delete the instance in Orthanc, and adopt the copy"
)

# The newest resources show which plugin stores now, the oldest which one did. All rows
# would mean a scan of the whole table, and so would "IN (SELECT ...)", even of some 100,000 rows.
_SAMPLE = """
    SELECT DISTINCT customdata FROM index.attachedfiles
        WHERE id = ANY (ARRAY(SELECT internalid FROM index.resources ORDER BY internalid DESC LIMIT 1000)
                || ARRAY(SELECT internalid FROM index.resources ORDER BY internalid LIMIT 1000))
            AND customdata IS NOT NULL AND customdata <> ''
"""


class CustomData(NamedTuple):
    """Where a storage plugin keeps a file.

    Attributes:
        plugin: Its section in Orthanc's configuration, empty if the format is unknown.
        path: The path that AdvancedStorage records, if any.
        adopted: Orthanc does not own the file: it reads it, and never deletes it.
        storage: The id of AdvancedStorage's storage, empty for StorageDirectory.
    """

    plugin: str
    path: str | None = None
    adopted: bool = False
    storage: str = ""

    @property
    def taken_over(self) -> bool:
        """Whether Orthanc owns a file that was adopted."""
        return not self.adopted and os.path.isabs(self.path or "")


def read(data: bytes) -> CustomData:
    """Recognize the plugin that wrote customdata that is not empty."""
    try:
        content = json.loads(data)
    except ValueError:  # also what is not UTF-8
        return CustomData("")
    if not isinstance(content, dict):
        return CustomData("")
    if _is_advanced(content):
        adopted = not content.get("o", False)
        return CustomData(ADVANCED_STORAGE, content.get("p"), adopted, content.get("s", ""))
    if content.keys() >= _S3_ZIP_KEYS:
        return CustomData("S3Zip")
    if content.keys() >= _SAMPLE_KEYS:
        return CustomData("the sample plugin AdoptDicomInstance")
    return CustomData("")


def _is_advanced(content: dict[str, Any]) -> bool:
    """Return whether AdvancedStorage 0.3 writes and reads this form."""
    owned, path = content.get("o", False), content.get("p")
    return (
        # A further key means a newer format, whose meaning must not be guessed.
        content.keys() <= {"o", "p", "s", "v"}
        and type(content.get("v")) is int
        and content["v"] == _VERSION
        and isinstance(owned, bool)
        and isinstance(content.get("s", ""), str)
        and (isinstance(path, str) if "p" in content else owned)
    )


class NotLocated(Exception):
    """Nothing says where a file is; `kind` is what is unknown: its plugin, storage or folder."""

    def __init__(self, kind: Literal["plugin", "storage", "folder"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def locate(uuid: str, data: bytes, folder: Path | None, storages: Mapping[str, Path] | None) -> str:
    """Return the path of a file whose row has customdata; arguments and errors are those of `place`."""
    root, path = place(uuid, data, folder, storages)
    return os.path.join(root, path) if root else path


def place(
    uuid: str, data: bytes, folder: Path | None, storages: Mapping[str, Path] | None
) -> tuple[Path | None, str]:
    """Return where a file is whose row has customdata (STORAGE.md A2, A7, H1).

    Args:
        uuid: Of the attachment.
        data: Its customdata, not empty.
        folder: StorageDirectory, if it is known.
        storages: The folders of AdvancedStorage.MultipleStorages, None if no
            configuration is known.

    Returns:
        The folder of its storage and the path in it; None and an absolute path for a file
        that was adopted.

    Raises:
        NotLocated: With the reason.
    """
    custom = read(data)
    if custom.plugin != ADVANCED_STORAGE:
        raise NotLocated(
            "plugin", f"customdata of {custom.plugin or 'a storage plugin that is not known here'}"
        )
    path = custom.path or file_path(uuid)
    if custom.storage and storages is not None:
        if custom.storage not in storages:
            raise NotLocated("storage", "its storage is not among MultipleStorages")
        folder = storages[custom.storage]
    if os.path.isabs(path):
        return None, path
    if custom.storage and storages is None:
        raise NotLocated("folder", "its storage is named in Orthanc's configuration only")
    if folder is None:
        raise NotLocated("folder", "it is a file; name the folder with --storage-dir")
    return folder, path


def unsupported_plugin(cur: Cursor, capabilities: Capabilities) -> str | None:
    """Return a plugin whose files pgorthanc cannot write, None without a sign of one.

    Samples the newest and the oldest thousand resources.
    """
    if not capabilities.custom_data:
        return None
    cur.execute(_SAMPLE)
    for (data,) in cur.fetchall():
        plugin = read(bytes(data)).plugin
        if plugin != ADVANCED_STORAGE:
            return plugin or "a storage plugin that is not known here"
    return None


def written(*, owned: bool = True, path: str | None = None, storage: str = "") -> bytes:
    """Return what AdvancedStorage 0.3 writes for a file, to the byte (STORAGE.md A2, H1).

    Args:
        owned: Whether Orthanc deletes the file with its attachment.
        path: Of an adopted file, absolute; or relative to the folder of the storage. Empty:
            the usual path, which the plugin writes so if it names files (A2).
        storage: The id of the storage, if there are several.
    """
    # jsoncpp leaves the byte 7F as it is; json.dumps would escape it.
    text = "\x7f".join(json.dumps(part)[1:-1] for part in (path or "").split("\x7f"))
    members = [f'"o":{json.dumps(owned)}']
    members += [f'"p":"{text}"'] if path is not None else []
    members += [f'"s":{json.dumps(storage)}'] if storage else []
    return ("{" + ",".join([*members, f'"v":{_VERSION}']) + "}").encode()


class Deleted(NamedTuple):
    """An attachment that was just deleted.

    Attributes:
        resource: Internal id.
        uuid: Its name in the storage area.
        file_type: As in `attachedfiles`.
        custom_data: Of a storage plugin; None or empty: there are none.
        adopting: An adopted file replaces it.
    """

    resource: int
    uuid: str
    file_type: int
    custom_data: bytes | None
    adopting: bool


def release(cur: Cursor, capabilities: Capabilities, files: Sequence[Deleted]) -> list[tuple[str, int]]:
    """Do what a storage plugin would do for attachments that were just deleted.

    AdvancedStorage keeps an adopted file but forgets its path: otherwise its folder
    indexer would later delete the instance that has replaced the deleted one.

    Args:
        cur: In the transaction of the deletion.
        capabilities: Of the index.
        files: The attachments, in the order of their deletion.

    Returns:
        (uuid, file type) of the files that the caller must remove.

    Raises:
        Conflict: Only the plugin can remove a file.
    """
    if capabilities.preserved_custom_data:
        cur.execute(
            "SELECT FROM pgorthanc_kept_customdata WHERE id = ANY(%s) AND uuid = ANY(%s) LIMIT 1",
            ([file.resource for file in files], [file.uuid for file in files]),
        )
        if cur.rowcount:
            raise Conflict(
                "a storage plugin keeps the stored file, and its data were put aside by a downgrade: "
                "run pgorthanc upgrade, then import this file again"
            )
    ours = []
    for file in files:
        if file.custom_data is None or not bytes(file.custom_data):
            ours.append((file.uuid, file.file_type))
            continue
        custom = read(bytes(file.custom_data))
        if file.adopting and custom.taken_over:
            raise Conflict(OWNED)
        _forget_adopted_path(cur, capabilities, custom)
    return ours


def _forget_adopted_path(cur: Cursor, capabilities: Capabilities, custom: CustomData) -> None:
    if not (custom.plugin == ADVANCED_STORAGE and custom.adopted and custom.path):
        raise Conflict(
            f"{custom.plugin or 'a storage plugin that is not known here'} keeps the stored file, and only Orthanc "
            "with that plugin can remove it: delete the instance in Orthanc, then import this file again"
        )
    forget_path(cur, capabilities, custom.path)


def forget_path(cur: Cursor, capabilities: Capabilities, path: str) -> None:
    """Do what the plugin does with the key-value rows of an adopted file that no row names any more.

    Raises:
        Conflict: The indexer's row has a format that is not known here.
    """
    key_values.delete(cur, capabilities, key_values.ADOPTED, path)
    states = key_values.values(cur, capabilities, key_values.INDEXED, [path], lock=True)
    for state in states.values():
        marked = key_values.KeyValue(key_values.INDEXED, path, _marked_as_deleted(state))
        key_values.put(cur, capabilities, [marked])


def _marked_as_deleted(value: bytes) -> str:
    """Return a path's state in the folder indexer, marked as deleted by Orthanc."""
    try:
        state = json.loads(value)
    except ValueError:
        state = None
    if not isinstance(state, dict) or state.get("v") != _VERSION:
        raise Conflict(
            "the folder indexer of AdvancedStorage watches the stored file, in a format that is not known here: "
            "delete the instance in Orthanc, then import this file again"
        )
    # As AdvancedStorage itself writes it, to the byte.
    return json.dumps({**state, "r": True}, sort_keys=True, separators=(",", ":"))
