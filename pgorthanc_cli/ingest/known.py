"""Which instance each file holds, remembered from earlier runs, so that a rerun need not read the files again.

A record says "the file of this path, size and time of change holds that instance, with that MD5"; whether the index
has the instance with that content, the index is asked in every run. So a record that is lost, old, or from another
database costs time, and never a file. A file whose content is changed without a trace in size and time is the one
thing that it misses.

It also says under which uuid the content of a file was stored. When the file has changed since, that proves whether
the stored content is still the earlier version of this very file.
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
from pgorthanc_cli.ingest.facts import Item
from pgorthanc_cli.ingest.report import Batch
from pgorthanc_cli.ingest.walk import Source
from pgorthanc_cli.text import printable

CHUNK_FILES = 1000
SETTLED_NS = 2_000_000_000  # a file changed so lately could change again without a new time of change
_HEAD_BYTES = 100
_CHECKED_BYTES = 64 << 20  # a check of more would take too long; what is wrong then comes to light later
_APPLICATION = 0x50474A4C  # what SQLite's application_id says of a file of ours
_TABLES = """
CREATE TABLE folders (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);
CREATE TABLE files (
    folder INTEGER NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, instance BLOB,
    md5 BLOB, stored BLOB,
    PRIMARY KEY (folder, name)
) WITHOUT ROWID;
CREATE TABLE about (identifiers TEXT NOT NULL);
"""

# Tells which of some instances the index has with that content: public id and MD5; no MD5: from an older journal.
Content = tuple[str, str | None]
Ask = Callable[[list[Content]], set[Content]]
# As in table `files`: the last three are the public id, the MD5, and the uuid of what was stored.
_Row = tuple[int, bytes, int, int, bytes | None, bytes | None, bytes | None]
_Entry = tuple[Source, bytes | None, bytes | None, bytes | None]
_STORED = (Outcome.IMPORTED, Outcome.OVERWRITTEN)


class Record:
    """The record of one run, in a file of SQLite, or a temporary one that goes with the run."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        """See `opened`."""
        self._conn = conn
        self._folders: dict[str, int] = {}

    def unknown(self, sources: Iterable[Source | Batch], ask: Ask) -> Iterator[Source | Batch]:
        """The sources without those that the index has already, which come as batches of known files.

        Args:
            sources: In any order; up to `CHUNK_FILES` of them are held.
            ask: Tells which of some instances the index has, with that content.
        """
        sources = iter(sources)
        while chunk := list(itertools.islice(sources, CHUNK_FILES)):
            held = {
                source: (_public_id(row[4]), row[5].hex() if row[5] else None)
                for source, row in self._unchanged(chunk)
                if row[4]
            }
            there = ask(list(held.values())) if held else set()
            known = [s for s in chunk if isinstance(s, Source) and held.get(s) in there]
            if known:
                yield Batch(known=len(known), bytes=sum(source.size for source in known))
            gone = set(known)
            yield from (each for each in chunk if each not in gone)

    def unseen(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The sources that are new, or have changed since `seeing` and `add`."""
        sources = iter(sources)
        while chunk := list(itertools.islice(sources, CHUNK_FILES)):
            seen = {source for source, _ in self._unchanged(chunk)}
            yield from (source for source in chunk if source not in seen)

    def add(self, items: Iterable[Item]) -> None:
        """Remember what files hold; not of one that is stored with another content, so that it is read again."""
        late = time.time_ns() - SETTLED_NS
        self._put(_entry(item, settled=item.source.mtime_ns <= late) for item in items if not item.differs)

    def seeing(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The same sources, with what their earlier versions were stored as; it is remembered that they were there."""
        sources = iter(sources)
        while chunk := list(itertools.islice(sources, CHUNK_FILES)):
            before = {source: row[6] for source, row in self._found(chunk) if row[6]}
            self._put((source, None, None, None) for source in chunk)
            yield from (
                s._replace(replaces=str(uuid.UUID(bytes=before[s]))) if s in before else s for s in chunk
            )

    def _put(self, found: Iterable[_Entry]) -> None:
        """Write rows; one without an instance leaves a row that is right but for that as it is."""
        with self._conn:
            self._conn.executemany(
                """INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (folder, name) DO UPDATE
                   SET size = excluded.size, mtime_ns = excluded.mtime_ns, instance = excluded.instance,
                       md5 = excluded.md5, stored = COALESCE(excluded.stored, stored)
                   WHERE excluded.instance IS NOT NULL OR excluded.stored IS NOT NULL
                      OR (size, mtime_ns) <> (excluded.size, excluded.mtime_ns)""",
                [
                    (*self._place(source), source.size, source.mtime_ns, *content)
                    for source, *content in found
                    if source.member is None
                ],
            )

    def _unchanged(self, chunk: Sequence[Source | Batch]) -> Iterator[tuple[Source, _Row]]:
        """Those that are recorded just as they are."""
        for source, row in self._found(chunk):
            if row[2:4] == (source.size, source.mtime_ns):
                yield source, row

    def _found(self, chunk: Sequence[Source | Batch]) -> Iterator[tuple[Source, _Row]]:
        """Those whose path is recorded."""
        plain = [s for s in chunk if isinstance(s, Source) and s.member is None]
        places = [self._place(source) for source in plain]
        rows: dict[tuple[int, bytes], _Row] = {}
        for folder, group in itertools.groupby(sorted(places), key=lambda place: place[0]):
            names = [name for _, name in group]
            marks = ",".join("?" * len(names))
            found: Iterable[_Row] = self._conn.execute(
                f"SELECT folder, name, size, mtime_ns, instance, md5, stored FROM files "  # noqa: S608 - question marks
                f"WHERE folder = ? AND name IN ({marks})",
                (folder, *names),
            )
            rows.update((row[:2], row) for row in found)
        for source, place in zip(plain, places, strict=True):
            if row := rows.get(place):
                yield source, row

    def _place(self, source: Source) -> tuple[int, bytes]:
        folder, name = os.path.split(source.path)
        number = self._folders.get(folder)
        if number is None:
            if len(self._folders) >= CHUNK_FILES:
                self._folders.clear()
            number = self._folders[folder] = self._folder(os.fsencode(os.path.abspath(folder)))
        return number, os.fsencode(name)

    def _folder(self, path: bytes) -> int:
        with self._conn:
            self._conn.execute("INSERT OR IGNORE INTO folders (path) VALUES (?)", (path,))
        ((number,),) = self._conn.execute("SELECT id FROM folders WHERE path = ?", (path,))
        return int(number)


@contextmanager
def opened(path: Path | None, profile: dicom.Profile) -> Iterator[tuple[Record, list[str]]]:
    """The record in a file, made if it is missing, and warnings; without a path, a temporary one.

    A journal of ours that is damaged is set aside, and a new one is made. The file is private: it names files.

    Raises:
        PgOrthancError: The file is something else, in use by another import, or cannot be written to; or damage
            came to light in the middle.
    """
    try:
        warnings = _readable(path, profile) if path else []
        with closing(sqlite3.connect(path or "", timeout=0.5, check_same_thread=False)) as conn:
            yield Record(conn), [*warnings, *_prepare(conn, profile)]
    except sqlite3.Error as error:
        if path and _is_damage(error) and _is_ours(path):
            raise PgOrthancError(
                f"the journal {printable(str(path))} is damaged ({error}) and was set aside as {_set_aside(path)}",
                "run it again: it makes a new journal, and reads the files again",
            ) from None
        raise PgOrthancError(
            f"the journal {path} cannot be used: {error}",
            "name another file with --journal; a damaged journal may be deleted: files are read again then",
        ) from None


def _readable(path: Path, profile: dicom.Profile) -> list[str]:
    """Make the file private; set it aside if it is a damaged journal of ours. Returns warnings."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, PRIVATE)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise sqlite3.DatabaseError("it is not a regular file")
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
            f"the journal {name} is damaged ({error}) and was set aside as {_set_aside(path)}; a new one was made"
        ]
    return []


def _is_damage(error: sqlite3.Error) -> bool:
    return any(t in str(error) for t in ("malformed", "not a database", "no such table", "no such column"))


def _is_ours(path: Path) -> bool:
    """Whether a file says of itself that it is a journal, however damaged it is: no other is ever renamed."""
    try:
        with open(files.open_regular(path), "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    return head.startswith(b"SQLite format 3\0") and head[68:72] == _APPLICATION.to_bytes(4, "big")


def _set_aside(path: Path) -> str:
    """Rename a journal, and what SQLite keeps beside it; returns the new name, for messages."""
    number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{path}.damaged-{number}{suffix}")
    return printable(f"{path}.damaged-{number}")


def _prepare(conn: sqlite3.Connection, profile: dicom.Profile) -> list[str]:
    """Make the tables, or see whether they are of use; returns warnings."""
    (application,), (tables,) = conn.execute(
        "SELECT application_id FROM pragma_application_id() UNION ALL SELECT count(*) FROM sqlite_master"
    )
    if tables and application != _APPLICATION:
        raise sqlite3.DatabaseError("it is the database of another program")
    conn.execute("PRAGMA locking_mode = EXCLUSIVE")
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = NORMAL")
    if tables:
        _add_columns(conn)
    else:
        conn.executescript(f"BEGIN; PRAGMA application_id = {_APPLICATION}; {_TABLES} COMMIT;")
    # What the public id of a file depends on, besides the file.
    identifiers = f"Orthanc {'.'.join(map(str, profile.orthanc_version))}, {profile.default_encoding}"
    before = conn.execute("SELECT identifiers FROM about").fetchone()
    with conn:
        if before != (identifiers,):
            conn.execute("DELETE FROM files")
        conn.execute("DELETE FROM about")
        conn.execute("INSERT INTO about VALUES (?)", (identifiers,))
    if before in (None, (identifiers,)):
        return []
    return [f"the journal was made for {before[0]}, now it is {identifiers}: all files are read again"]


def _add_columns(conn: sqlite3.Connection) -> None:
    """Bring a journal of version 0.8 or before up to date: what it does not say is asked of the files."""
    there = {name for (name,) in conn.execute("SELECT name FROM pragma_table_info('files')")}
    with conn:
        for name in ("md5", "stored"):
            if name not in there:
                conn.execute(f"ALTER TABLE files ADD COLUMN {name} BLOB")


def _entry(item: Item, *, settled: bool) -> _Entry:
    """What a row says of a file; of one that changed just now, only what it was stored as."""
    name = uuid.UUID(item.stored).bytes if item.outcome in _STORED and item.stored else None
    if not settled:
        return item.source, None, None, name
    return item.source, _packed(item.facts.public_id), bytes.fromhex(item.md5) or None, name


def _packed(public_id: str) -> bytes:
    return bytes.fromhex(public_id.replace("-", ""))


def _public_id(packed: bytes) -> str:
    digits = packed.hex()
    return "-".join(digits[n : n + 8] for n in range(0, 40, 8))
