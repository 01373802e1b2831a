"""Adopting: the index gets a file where it lies, for an Orthanc with the advanced-storage plugin.

The rows are those of the plugin's own adopt-instance (STORAGE.md A1 to A3, A10). A path is
a key: it is kept as it was handed in, byte for byte, and no link is resolved.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2

from pgorthanc_cli import index, storage
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.index import customdata, key_values
from pgorthanc_cli.ingest.walk import Source
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

    from pgorthanc_cli.config import AdvancedStorage, OrthancConfiguration

# Metadata of an instance that a plugin has stored: remote AET, origin (STORAGE.md A1).
ORIGIN = {3: "", 8: "Plugins"}


@dataclass(frozen=True)
class Adoption:
    """How files are adopted.

    Attributes:
        owned: Orthanc owns the files: it deletes them with their instances.
        roots: StorageDirectory and the folders of all storages, without links.
        indexed: The folders that the plugin's indexer watches, as it spells them.
        parsed, skipped: Extensions of files that the indexer reads, or does not read.
        storage: The id of the storage of other attachments, if there are several.
        prefix: Of their paths in it; None if the plugin does not name files.
    """

    owned: bool
    roots: tuple[str, ...]
    indexed: tuple[str, ...] = ()
    parsed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    storage: str = ""
    prefix: str | None = None

    @classmethod
    def of(cls, orthanc: OrthancConfiguration, section: AdvancedStorage, *, owned: bool) -> Adoption:
        """Return how files are adopted for the Orthanc of a configuration."""
        roots = (orthanc.storage_directory, *section.storages.values())
        return cls(
            owned,
            # Compared without links: a link into the storage must not be adopted either.
            tuple(os.path.realpath(root) for root in roots),
            section.indexed,
            section.parsed,
            section.skipped,
            section.write_storage,
            section.prefix if section.names_files else None,
        )

    # --- may it be adopted? -------------------------------------------------------------

    def problem(self, source: Source) -> str | None:
        """Return why a file cannot be adopted under its path, None if it can."""
        try:
            os.fsencode(source.path).decode("utf-8")
        except UnicodeDecodeError:
            return "its path is not UTF-8, so Orthanc would look for another name: rename it"
        if not os.path.isabs(source.path):
            return "its path is relative, so Orthanc would look for it in its storage: give an absolute path"
        real = _real_path(source.path)
        root = self.root_of(real)
        if root:
            return f"it lies in {_quoted(root)}, which is Orthanc's own storage: leave it there"
        return self._indexer_problem(source.path, real)

    def root_of(self, real: str) -> str | None:
        """Return the storage folder in which a path without links lies."""
        return next((root for root in self.roots if _is_below(real, root)), None)

    def _indexer_problem(self, path: str, real: str) -> str | None:
        """Return why the folder indexer would not recognize the path of a file that it watches.

        It would adopt the file under its own spelling, find it stored already, and never
        notice when it vanishes.
        """
        for folder in self.indexed:
            real_folder = _real_folder(folder)
            if _is_below(path, folder):
                if real != os.path.join(real_folder, path[len(os.path.join(folder, "")) :]):
                    return (
                        "its path leads through a symbolic link, or is not spelled as the folder indexer spells "
                        f"it, which watches {_quoted(folder)}: name the file itself, in that folder"
                    )
                return None
            if _is_below(real, real_folder):
                spelled = os.path.join(folder, real[len(os.path.join(real_folder, "")) :])
                return f"the folder indexer watches it as {_quoted(spelled)}: adopt it under that path"
        return None

    def is_watched(self, path: str) -> bool:
        """Whether the folder indexer keeps the state of a file."""
        extension = os.path.splitext(path)[1]
        read = extension in self.parsed if self.parsed else extension not in self.skipped
        return read and any(_is_below(path, folder) for folder in self.indexed)

    # --- rows ---------------------------------------------------------------------------

    def custom_data(self, source: Source) -> bytes:
        """Return the customdata of an adopted file."""
        return customdata.written(owned=self.owned, path=_key(source))

    def custom_data_of_head(self, uuid: str) -> bytes | None:
        """Return the customdata of an attachment that the plugin stores itself."""
        if self.prefix is None and not self.storage:
            return None
        place = storage.file_path(uuid)
        # With a naming scheme the plugin records the path even where the name is the usual one.
        path = None if self.prefix is None else os.path.join(self.prefix, place)
        return customdata.written(path=path, storage=self.storage)

    def rows(self, source: Source, public_id: str) -> Iterator[key_values.KeyValue]:
        """Yield the key-value rows of an adopted file, with its size and time when it was read."""
        yield key_values.adopted(_key(source), public_id)
        yield from self.seen([source], is_dicom=True)

    def seen(self, sources: Iterable[Source], *, is_dicom: bool) -> Iterator[key_values.KeyValue]:
        """Yield the indexer's rows of files; none of those that it does not watch."""
        for source in sources:
            if self.is_watched(source.path):
                seconds = source.mtime_ns // 1_000_000_000
                yield key_values.indexed(_key(source), source.size, seconds, is_dicom=is_dicom)

    def note_seen(
        self, conn: Connection, capabilities: index.Capabilities, sources: Sequence[Source]
    ) -> None:
        """Record for the folder indexer the files that it need not try to adopt, in a transaction.

        One that was adopted under its path before, by other means, is DICOM to the indexer: it
        deletes the instance when the file vanishes.
        """
        watched = {row.path: row for row in self.seen(sources, is_dicom=False)}
        if not watched:
            return
        # A path that the encoding of the database cannot hold is not to be found there.
        with suppress(psycopg2.DataError), conn, conn.cursor() as cur:
            adopted = key_values.values(cur, capabilities, key_values.ADOPTED, list(watched))
            dicom = (row for row in self.seen(sources, is_dicom=True) if row.path in adopted)
            key_values.put_new(cur, capabilities, (watched | {row.path: row for row in dicom}).values())

    # --- what the index has -------------------------------------------------------------

    def conflicts(
        self, cur: Cursor, capabilities: index.Capabilities, files: Sequence[tuple[Source, str]]
    ) -> dict[Source, str]:
        """Return why some files, given with their public ids, must not be adopted; outside of a transaction.

        Another instance has the path, or Orthanc owns the file of the instance, which may be
        this very file.
        """
        paths = {source: _key(source) for source, _ in files}
        try:
            values = key_values.values(cur, capabilities, key_values.ADOPTED, list(paths.values()))
        except psycopg2.DataError:
            # The encoding of the database cannot hold a path, so no row has it either.
            if len(files) > 1:
                parts = (self.conflicts(cur, capabilities, [each]) for each in files)
                return {source: reason for part in parts for source, reason in part.items()}
            values = {}
        holders = {path: key_values.instance(value) for path, value in values.items()}
        public_ids = {public_id for _, public_id in files} | set(holders.values())
        data = index.stored_custom_data(cur, sorted(public_ids))
        stored = {public_id: customdata.read(content) for public_id, content in data.items()}
        reasons = {}
        for source, public_id in files:
            holder = holders.get(paths[source])
            # A row that an Orthanc without the plugin has left names no instance any more.
            if holder in stored and holder != public_id:
                owned = stored[holder].taken_over
                reasons[source] = _HELD.format(_quoted(holder), _BUT_OWNED if owned else "")
            elif public_id in stored and stored[public_id].taken_over:
                reasons[source] = customdata.OWNED
        return reasons


_HELD = (
    "the index has adopted this path already, as the instance {}, and the content of the file has changed since "
    "then: abandon that instance first (POST /plugins/advanced-storage/abandon-instance){}"
)
_BUT_OWNED = ", after copying the file, which Orthanc owns and deletes then"


def absolute(path: str) -> str:
    """Return an absolute path that no link was resolved for; an absolute one stays as it is.

    A shell that has followed a link shows it in PWD, while getcwd(2) has resolved it.
    """
    if os.path.isabs(path):
        return path
    here = os.environ.get("PWD", "")
    if not (os.path.isabs(here) and os.path.isdir(here) and os.path.samefile(here, ".")):
        here = os.getcwd()
    whole = os.path.join(here, path)
    # Without its last link, `link/..` is another folder.
    return whole if ".." in path.split("/") else os.path.normpath(whole)


def require_outside(paths: Iterable[str], adoption: Adoption) -> None:
    """Refuse arguments that lie in Orthanc's storage.

    Raises:
        UsageError: One of them does.
    """
    for path in paths:
        root = adoption.root_of(os.path.realpath(path))
        if root:
            raise UsageError(
                f"{printable(path)} lies in {printable(root)}, which is Orthanc's own storage: what is stored "
                "there cannot be adopted",
                "name the folder of the archive that is to be adopted; or import it without --adopt",
            )


def area_of_heads(orthanc: OrthancConfiguration, section: AdvancedStorage) -> Path:
    """Return the folder in which the plugin stores attachments other than DICOM files."""
    root = section.storages.get(section.write_storage, orthanc.storage_directory)
    return root / section.prefix if section.names_files and section.prefix else root


def _quoted(text: str) -> str:
    # Quoted, as files that are refused for one reason are counted together.
    return f'"{printable(text)}"'


def _key(source: Source) -> str:
    return os.fsencode(source.path).decode("utf-8")


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, "")) or path == folder


def _real_path(path: str) -> str:
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or os.path.islink(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(folder), name)


@lru_cache(maxsize=1000)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
