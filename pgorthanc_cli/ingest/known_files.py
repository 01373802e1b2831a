"""The journal of known files: what each file holds, so that a rerun need not read it.

A row says "the file of this path, size and modification time holds that instance, with
that MD5". Whether the index has the instance with that content, the index is asked in
every run, so a row that is lost, outdated, or from another database costs time, and never
a file. The only change it misses is one of content that leaves size and modification time
as they were.

A row also has the UUID under which the content was stored. After the file has changed,
that proves that the stored content is an earlier version of this very file.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pgorthanc_cli import dicom, files
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.files import PRIVATE
from pgorthanc_cli.index import Outcome
from pgorthanc_cli.ingest.model import IndexedFile
from pgorthanc_cli.ingest.walk import Source
from pgorthanc_cli.text import printable

# Looked up in one statement, which has at most 999 parameters before SQLite 3.32.
CHUNK_FILES = 900
# The header of a SQLite file; its bytes 68 to 71 are the application_id.
_HEAD_BYTES = 100
# Checking a larger file takes too long; damage then surfaces later.
_CHECKED_BYTES = 64 << 20
_APPLICATION_ID = 0x50474A4C  # SQLite's application_id of our journals
_TABLES = """
CREATE TABLE folders (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);
CREATE TABLE files (
    folder INTEGER NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, instance BLOB, md5 BLOB, stored BLOB,
    PRIMARY KEY (folder, name)
) WITHOUT ROWID;
CREATE TABLE about (identifiers TEXT NOT NULL);
"""

Version = tuple[str, str | None]
"""Public id and MD5 of an instance; no MD5: from an older journal."""
Lookup = Callable[[list[Version]], set[Version]]
"""Returns which of some instances the index has, with that content."""
# A row of table `files`; the last three are the public id, the MD5, and the stored UUID.
_Row = tuple[int, bytes, int, int, bytes | None, bytes | None, bytes | None]
_Entry = tuple[Source, bytes | None, bytes | None, bytes | None]
_STORED = (Outcome.IMPORTED, Outcome.OVERWRITTEN)


class Journal:
    """The journal of known files, in a SQLite file, or a temporary one."""

    def __init__(self, conn: sqlite3.Connection, delay_s: float, chunk_files: int) -> None:
        """See `open_journal`."""
        self._conn = conn
        self._delay_ns = int(delay_s * 1e9)
        self._chunk_files = chunk_files
        self._folder_ids: dict[str, int] = {}

    def mark_known(self, sources: Iterable[Source], lookup: Lookup) -> Iterator[Source]:
        """Yield the sources; those whose content the index has are marked as `known`."""
        for chunk in self._chunks(sources):
            versions: dict[Source, Version] = {}
            for source, row in self._unchanged(chunk):
                instance, md5 = row[4], row[5]
                if instance:
                    versions[source] = _unpack(instance), md5.hex() if md5 else None
            stored = lookup(list(versions.values())) if versions else set()
            # In their order: later files may repeat the instances of earlier ones.
            for source in chunk:
                if versions.get(source) in stored:
                    yield source._replace(known=True)
                else:
                    yield source

    def unseen(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Yield the sources that are new, or have changed since `seeing` and `add`."""
        for chunk in self._chunks(sources):
            seen = {source for source, _ in self._unchanged(chunk)}
            yield from (source for source in chunk if source not in seen)

    def add(self, items: Iterable[IndexedFile]) -> None:
        """Record what files hold.

        Not of a file that differs from the stored instance, so that it is read again.
        """
        latest_ns = time.time_ns() - self._delay_ns
        self._put(
            _entry(item, settled=item.source.mtime_ns <= latest_ns) for item in items if not item.differs
        )

    def seeing(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Yield the sources with the UUIDs of earlier versions, and record them as seen."""
        for chunk in self._chunks(sources):
            earlier = {source: row[6] for source, row in self._rows(chunk) if row[6]}
            self._put((source, None, None, None) for source in chunk)
            for source in chunk:
                stored = earlier.get(source)
                if stored:
                    source = source._replace(replaces=str(uuid.UUID(bytes=stored)))
                yield source

    def _chunks(self, sources: Iterable[Source]) -> Iterator[list[Source]]:
        sources = iter(sources)
        while chunk := list(itertools.islice(sources, self._chunk_files)):
            yield chunk

    def _put(self, entries: Iterable[_Entry]) -> None:
        """Write rows; without an instance, a row of the same size and time stays."""
        rows = [
            (*self._key(source), source.size, source.mtime_ns, *content)
            for source, *content in entries
            if source.member is None
        ]
        with self._conn:
            self._conn.executemany(
                """INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)
                   ON CONFLICT (folder, name) DO UPDATE
                   SET size = excluded.size, mtime_ns = excluded.mtime_ns,
                       instance = excluded.instance, md5 = excluded.md5,
                       stored = COALESCE(excluded.stored, stored)
                   WHERE excluded.instance IS NOT NULL OR excluded.stored IS NOT NULL
                      OR (size, mtime_ns) <> (excluded.size, excluded.mtime_ns)""",
                rows,
            )

    def _unchanged(self, chunk: Sequence[Source]) -> Iterator[tuple[Source, _Row]]:
        """Yield the sources that have a row with their size and time, and that row."""
        for source, row in self._rows(chunk):
            if row[2:4] == (source.size, source.mtime_ns):
                yield source, row

    def _rows(self, chunk: Sequence[Source]) -> Iterator[tuple[Source, _Row]]:
        """Yield the sources whose path has a row, and that row."""
        plain = [source for source in chunk if source.member is None]
        keys = [self._key(source) for source in plain]
        rows: dict[tuple[int, bytes], _Row] = {}
        # The primary key begins with the folder: one search for each folder of the chunk.
        for folder_id, group in itertools.groupby(sorted(keys), key=lambda key: key[0]):
            names = [name for _, name in group]
            marks = ",".join("?" * len(names))
            cursor: Iterable[_Row] = self._conn.execute(
                f"""SELECT folder, name, size, mtime_ns, instance, md5, stored FROM files
                    WHERE folder = ? AND name IN ({marks})""",  # noqa: S608 - question marks
                (folder_id, *names),
            )
            rows.update((row[:2], row) for row in cursor)
        for source, key in zip(plain, keys, strict=True):
            if row := rows.get(key):
                yield source, row

    def _key(self, source: Source) -> tuple[int, bytes]:
        # Paths are stored absolute, but their folders are looked up as they were given.
        folder, name = os.path.split(source.path)
        folder_id = self._folder_ids.get(folder)
        if folder_id is None:
            if len(self._folder_ids) >= CHUNK_FILES:  # bound the memory
                self._folder_ids.clear()
            folder_id = self._folder_id(os.fsencode(os.path.abspath(folder)))
            self._folder_ids[folder] = folder_id
        return folder_id, os.fsencode(name)

    def _folder_id(self, path: bytes) -> int:
        with self._conn:
            self._conn.execute("INSERT OR IGNORE INTO folders (path) VALUES (?)", (path,))
        query = "SELECT id FROM folders WHERE path = ?"
        ((folder_id,),) = self._conn.execute(query, (path,))
        return int(folder_id)


@contextmanager
def open_journal(
    path: Path | None,
    profile: dicom.Profile,
    *,
    delay_s: float = 2.0,
    chunk_files: int = CHUNK_FILES,
) -> Iterator[tuple[Journal, list[str]]]:
    """Yield the journal in a file, created if missing, and warnings.

    A journal of ours that is damaged is set aside, and a new one is created. The file is
    private: it names files.

    Args:
        path: The file; None for a temporary journal.
        profile: What the public id of a file depends on, besides the file.
        delay_s: A file modified more recently is not recorded, because it could change
            again without a new modification time.
        chunk_files: How many files to look up together.

    Raises:
        PgOrthancError: The file is something else, in use by another import, or cannot be
            written to; or it turned out to be damaged.
    """
    try:
        warnings = _check(path, profile) if path else []
        # Another import keeps the file locked until it ends: there is nothing to wait
        # for.
        with closing(sqlite3.connect(path or "", timeout=0.5, check_same_thread=False)) as conn:
            warnings += _prepare(conn, profile)
            yield Journal(conn, delay_s, chunk_files), warnings
    except sqlite3.Error as error:
        if path and _is_damage(error) and _is_ours(path):
            name = printable(str(path))
            raise PgOrthancError(
                f"the journal {name} is damaged ({error}) and was set aside as {_set_aside(path)}",
                "run it again: it makes a new journal, and reads the files again",
            ) from None
        raise PgOrthancError(
            f"the journal {path} cannot be used: {error}",
            "name another file with --journal; a damaged journal may be deleted: files are read again then",
        ) from None


def _check(path: Path, profile: dicom.Profile) -> list[str]:
    """Make the file private; set a damaged journal aside; return warnings."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, PRIVATE)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise sqlite3.DatabaseError("it is not a regular file")
            # Before anything else: it names files, and earlier versions left it readable.
            if _is_ours(path):
                os.fchmod(descriptor, PRIVATE)
        finally:
            os.close(descriptor)
        with closing(sqlite3.connect(path, timeout=0.5)) as conn:
            warnings = _prepare(conn, profile)
            if path.stat().st_size <= _CHECKED_BYTES:
                ((result,),) = conn.execute("PRAGMA quick_check(1)")
                if result != "ok":
                    raise sqlite3.DatabaseError(f"database disk image is malformed: {result}")
            return warnings
    except OSError as error:
        raise sqlite3.OperationalError(error.strerror or str(error)) from None
    except sqlite3.DatabaseError as error:
        if not (_is_damage(error) and _is_ours(path)):
            raise
        name = printable(str(path))
        return [
            f"the journal {name} is damaged ({error}) and was set aside as "
            f"{_set_aside(path)}; a new one was made"
        ]
    return []


def _is_damage(error: sqlite3.Error) -> bool:
    signs = ("malformed", "not a database", "no such table", "no such column")
    return any(sign in str(error) for sign in signs)


def _is_ours(path: Path) -> bool:
    """Whether a file, however damaged, is a journal of ours: no other is ever renamed."""
    try:
        with open(files.open_regular(path), "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    application_id = head[68:72]
    if not head.startswith(b"SQLite format 3\0"):
        return False
    return application_id == _APPLICATION_ID.to_bytes(4, "big")


def _set_aside(path: Path) -> str:
    """Rename a journal with its SQLite side files; return the new name, for messages."""
    number = 1
    while path.with_name(f"{path.name}.damaged-{number}").exists():
        number += 1
    # The database comes last: a new one must not meet the WAL of the old one.
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{path}.damaged-{number}{suffix}")
    return printable(f"{path}.damaged-{number}")


def _prepare(conn: sqlite3.Connection, profile: dicom.Profile) -> list[str]:
    """Create the tables, or check that they are usable; return warnings."""
    (application_id,), (tables,) = conn.execute(
        "SELECT application_id FROM pragma_application_id() UNION ALL SELECT count(*) FROM sqlite_master"
    )
    if tables and application_id != _APPLICATION_ID:
        raise sqlite3.DatabaseError("it is the database of another program")
    # A second import with this journal fails, and WAL needs no shared memory.
    conn.execute("PRAGMA locking_mode = EXCLUSIVE")
    conn.execute("PRAGMA journal_mode = WAL")
    # A power cut may lose the last rows, which costs time only.
    conn.execute("PRAGMA synchronous = NORMAL")
    if tables:
        _add_columns(conn)
    else:
        pragma = f"PRAGMA application_id = {_APPLICATION_ID}"
        conn.executescript(f"BEGIN; {pragma}; {_TABLES} COMMIT;")
    # What the public id of a file depends on, besides the file.
    version = ".".join(map(str, profile.orthanc_version))
    identifiers = f"Orthanc {version}, {profile.default_encoding}"
    before = conn.execute("SELECT identifiers FROM about").fetchone()
    with conn:
        # DefaultEncoding decides how a PatientID is read, and so the public id.
        if before != (identifiers,):
            conn.execute("DELETE FROM files")
        conn.execute("DELETE FROM about")
        conn.execute("INSERT INTO about VALUES (?)", (identifiers,))
    if before in (None, (identifiers,)):
        return []
    return [f"the journal was made for {before[0]}, now it is {identifiers}: all files are read again"]


def _add_columns(conn: sqlite3.Connection) -> None:
    """Upgrade a journal of version 0.8 or before; reading the files fills the columns."""
    query = "SELECT name FROM pragma_table_info('files')"
    columns = {name for (name,) in conn.execute(query)}
    with conn:
        for name in ("md5", "stored"):
            if name not in columns:
                conn.execute(f"ALTER TABLE files ADD COLUMN {name} BLOB")


def _entry(item: IndexedFile, *, settled: bool) -> _Entry:
    """Return the row of a file; without the instance if it has just changed."""
    is_stored = item.outcome in _STORED and item.stored
    stored = uuid.UUID(item.stored).bytes if is_stored else None
    if not settled:
        return item.source, None, None, stored
    instance = bytes.fromhex(item.summary.public_id.replace("-", ""))
    return item.source, instance, bytes.fromhex(item.md5) or None, stored


def _unpack(instance: bytes) -> str:
    """Return the public id of packed bytes: five groups of eight digits."""
    digits = instance.hex()
    return "-".join(digits[n : n + 8] for n in range(0, 40, 8))
