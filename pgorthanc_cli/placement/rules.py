"""Where the file of an attachment is, where it shall be, and what its row must say then (STORAGE.md A2, A12, H1)."""

from __future__ import annotations

import os
from pathlib import Path

from pgorthanc_cli import storage
from pgorthanc_cli.index import customdata
from pgorthanc_cli.placement.model import ADVANCED, Attachment, MoveSettings, Row


class Rules:
    """The places of one move."""

    def __init__(self, settings: MoveSettings) -> None:
        """Take what to move."""
        self.settings = settings
        self._roots = {name: Path(root) for name, root in settings.storages}

    def source(self, attachment: Attachment) -> Row:
        """Return the attachment in its source, or where it is already if it was switched or adopted.

        Raises:
            NotLocated: Another plugin keeps it, or its storage is unknown.
        """
        row = Row(*attachment[:5])
        folder, data = self.settings.source.folder, attachment.customdata
        if not data:
            return row if folder is None else self._below(row, str(folder), "")
        if self.settings.source.kind != ADVANCED and self.settings.target.kind != ADVANCED:
            reason = "a storage plugin keeps it, which the configuration does not enable"
            raise customdata.NotLocated("plugin", reason)
        root, path = customdata.place(attachment.uuid, data, folder, self._roots)
        if self.settings.source.kind != ADVANCED and root not in (None, self.settings.target.folder):
            raise customdata.NotLocated("plugin", "it is in another storage of the plugin")
        return self._below(row, str(root or folder or self.settings.target.folder), path)

    def _below(self, row: Row, root: str, path: str) -> Row:
        return row._replace(root=root, name=path or storage.file_path(row.uuid))

    def target(self, attachment: Attachment, size: int, md5: str) -> Row:
        """Return the attachment in its target, with what is stored there."""
        row = Row(attachment.resource, attachment.file_type, attachment.uuid, size, md5)
        folder = self.settings.target.folder
        return row if folder is None else self._below(row, str(folder), self._path(attachment))

    def _path(self, attachment: Attachment) -> str:
        """Return the path that the row of the target records; empty: the usual one."""
        settings = self.settings
        # Under default naming the plugin's own move loses a path, and with it the file (A12).
        if settings.target.kind != ADVANCED or not settings.names_files or not attachment.customdata:
            return ""
        return customdata.read(attachment.customdata).path or ""

    def customdata(self, attachment: Attachment) -> bytes | None:
        """Return the customdata of the attachment in its target, as the plugin's move-storage writes it."""
        identifier = self.settings.target.storage
        if identifier is None:
            return None
        path = self._path(attachment) if self.settings.names_files else None
        return customdata.written(path=path, storage=identifier)

    def compression(self, attachment: Attachment) -> int:
        """Return the number of the compression in the target."""
        return self.settings.compression or attachment.compression

    def stays(self, attachment: Attachment, source: Row) -> bool:
        """Return whether the attachment is where it shall be, or was adopted and stays so."""
        if is_adopted(source):
            return self.settings.target.kind == ADVANCED
        target = self.target(attachment, 0, "")
        # Upstream's own move deletes what is at its target already (A12).
        return bool(source.root) and source.name == target.name and _is_same(source.root, target.root)


def is_adopted(row: Row) -> bool:
    """Return whether a row in the source is that of an adopted file, which is never removed."""
    return os.path.isabs(row.name)


def _is_same(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
