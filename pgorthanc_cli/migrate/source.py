"""The SQLite index: found unused, opened read-only, and of a layout that is known (SQLITE.md 1 and 2).

The file is never written. It is read as it lies (`immutable`: SQLite creates nothing beside it) under the lock that
any other reader of SQLite takes, so no Orthanc can start on it meanwhile. What a crash has left beside it (`-wal`,
`-journal`) belongs to it: then all are copied, and SQLite recovers the copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pgorthanc_cli.errors import InUseError, PgOrthancError

VERSION = 6
_LEFTOVERS = ("-wal", "-journal")
# The bytes of the file that SQLite's own locks are on: pending, reserved, shared (the file format's "lock-byte page").
_LOCK_START, _LOCK_BYTES = 0x40000000, 512
_CACHE_KB = 32_000
_PIECE_BYTES = 1 << 20
_MODULUS = 1_000_003  # so that no sum overflows
_SMALL = 10_000  # pages of a large table cannot be exchanged without their order being wrong

# Table -> its columns and its primary key, in each release (SQLITE.md 2).
_OWN_TAGS = ({"id", "tagGroup", "tagElement", "value"}, ("id", "tagGroup", "tagElement"))
_TABLES: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "GlobalProperties": ({"property", "value"}, ("property",)),
    "Resources": ({"internalId", "resourceType", "publicId", "parentId"}, ("internalId",)),
    "MainDicomTags": _OWN_TAGS,
    "DicomIdentifiers": _OWN_TAGS,
    "Metadata": ({"id", "type", "value"}, ("id", "type")),
    "AttachedFiles": (
        {"id", "fileType", "uuid", "compressedSize", "uncompressedSize", "compressionType",
         "uncompressedMD5", "compressedMD5"}, ("id", "fileType")),
    "Changes": ({"seq", "changeType", "internalId", "resourceType", "date"}, ("seq",)),
    "ExportedResources": (
        {"seq", "resourceType", "publicId", "remoteModality", "patientId", "studyInstanceUid",
         "seriesInstanceUid", "sopInstanceUid", "date"}, ("seq",)),
    "PatientRecyclingOrder": ({"seq", "patientId"}, ("seq",)),
}  # fmt: skip
# Those of later releases; if they are there, they are whole.
_LATER: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "Labels": ({"id", "label"}, ("id", "label")),
    "KeyValueStores": ({"storeId", "key", "value"}, ("storeId", "key")),
    "Queues": ({"id", "queueId", "value"}, ("id",)),
}
# Not converted: recomputed, or scratch tables (SQLITE.md 2).
_PASSED_OVER = {"GlobalIntegers", "DeletedFiles"}
_INDEXES_OF = """SELECT list.name, info.name FROM pragma_index_list(?) list, pragma_index_info(list.name) info
    WHERE info.seqno = 0 AND info.name IS NOT NULL AND NOT list.partial"""
_RECOVER = (
    "have SQLite recover what can be read: sqlite3 {path} .recover | sqlite3 recovered; or restore a backup"
)


@dataclass(frozen=True)
class Source:
    """An index that can be read; picklable.

    Attributes:
        path: As the user named it.
        file: What is read: the same, or a recovered copy.
        columns: Table -> its columns, of the tables that are there.
        highest: Table -> the highest number ever given (sqlite_sequence).
        unknown: Tables that no known release makes, and how many rows they hold.
        fingerprint: Tells this state of the index from any other.
        scratch: A folder for what does not fit into memory; removed at the end.
    """

    path: Path
    file: Path
    columns: dict[str, frozenset[str]]
    highest: dict[str, int]
    unknown: dict[str, int]
    fingerprint: str
    scratch: Path

    def has(self, table: str, column: str | None = None) -> bool:
        """Whether there is such a table, or column."""
        return table in self.columns and (column is None or column in self.columns[table])


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Make sure of an index for the length of a block; nobody else can write to it meanwhile.

    Raises:
        InUseError: An Orthanc, or any other program, works with it.
        PgOrthancError: It is no index of Orthanc, too old, or damaged; or there is no room for a copy.
    """
    with _locked(path) as descriptor, tempfile.TemporaryDirectory(prefix="pgorthanc-sqlite-") as folder:
        before = _state(path)
        file = _recovered(path, descriptor, Path(folder)) if _leftovers(path) else path.absolute()
        with readable(path), closing(connect(file)) as conn:
            yield _examined(conn, path, file, Path(folder))
            if _state(path) != before:
                raise PgOrthancError(
                    f"{path} was changed while it was read", "stop whatever writes to it, then run it again"
                )


def connect(file: Path) -> sqlite3.Connection:
    """Open a file that nobody writes to; text comes as bytes, for it may be no UTF-8."""
    conn = sqlite3.connect(f"file:{quote(str(file))}?mode=ro&immutable=1", uri=True, isolation_level=None)
    conn.text_factory = bytes
    conn.execute("PRAGMA query_only = ON")
    conn.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
    return conn


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What SQLite finds wrong with a file, in plain words; never a value of it."""
    try:
        yield
    except (sqlite3.DatabaseError, OverflowError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, what: str) -> PgOrthancError:
    """The refusal of a file that SQLite cannot read through."""
    return PgOrthancError(f"{path} is damaged, or no SQLite index: {what}", _RECOVER.format(path=path))


def check_pages(file: Path, table: str, *, thorough: bool) -> list[str]:
    """What is wrong with the structure of a table; empty if it is whole.

    A page may be sound in itself and still not be that of its table. `thorough` looks each row up in each index, which
    takes hours once the file is larger than the memory; otherwise both have to hold as many rows.
    """
    with closing(connect(file)) as conn:
        check = "integrity_check" if thorough else "quick_check"
        said = [row[0].decode("utf-8", "replace") for row in conn.execute(f"PRAGMA {check}({table})")]
        if said != ["ok"]:
            return said
        indexes = [(name.decode(), column.decode()) for name, column in conn.execute(_INDEXES_OF, (table,))]
        return [f"index {name} differs from it" for name in _differing(conn, table, indexes)]


def _differing(conn: sqlite3.Connection, table: str, indexes: list[tuple[str, str]]) -> Iterator[str]:
    """The indexes that hold another number of rows than their table; of a small table other ids or first columns."""
    (rows,) = conn.execute(f"SELECT count(*) FROM {table} NOT INDEXED").fetchone()
    for name, column in indexes:
        sums = "count(*)"
        if rows <= _SMALL:
            sums += f', sum(rowid % {_MODULUS}), sum("{column}" % {_MODULUS})'
        of_table, of_index = (
            conn.execute(f"SELECT {sums} FROM {table} {where}").fetchone()
            for where in ("NOT INDEXED", f'INDEXED BY "{name}"')
        )
        if of_table != of_index:
            yield name


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The descriptor that the lock is on; closing any other one of the same file would give up the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PgOrthancError(
            f"the index {path} cannot be read: {error.strerror}",
            "name the file, or the configuration of its Orthanc with --config (IndexDirectory)",
        ) from None
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, _LOCK_BYTES, _LOCK_START)
        except BlockingIOError:
            raise InUseError(
                f"another program works with {path}, an Orthanc most likely",
                "stop that Orthanc, then run the same command again; for a rehearsal beside it see "
                "docs/migrate-sqlite.md",
            ) from None
        except OSError as error:
            raise PgOrthancError(
                f"{path} cannot be locked: {error.strerror}", "copy it to a local disk, and name the copy"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _leftovers(path: Path) -> list[Path]:
    beside = [Path(f"{path}{suffix}") for suffix in _LEFTOVERS]
    return [file for file in beside if file.exists() and file.stat().st_size]


def _state(path: Path) -> list[tuple[str, int, int]]:
    files = [path, *_leftovers(path)]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _recovered(path: Path, descriptor: int, folder: Path) -> Path:
    """A copy of the file and of what a crash has left beside it, made one by SQLite."""
    files = [path, *_leftovers(path)]
    needed = sum(file.stat().st_size for file in files)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise PgOrthancError(
            f"{path} was not closed properly and has to be copied: {needed:,} bytes, but {folder.parent} has "
            f"{free:,} bytes free",
            "set TMPDIR to a folder with enough room; or start and stop Orthanc once, and run it again",
        )
    copy = folder / path.name
    with copy.open("wb") as stream:
        while piece := os.pread(descriptor, _PIECE_BYTES, stream.tell()):
            stream.write(piece)
    for file in files[1:]:
        shutil.copyfile(file, folder / file.name)
    with readable(path), closing(sqlite3.connect(copy, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = DELETE").fetchall()
        conn.execute("SELECT count(*) FROM sqlite_master").fetchall()
    return copy


def _examined(conn: sqlite3.Connection, path: Path, file: Path, scratch: Path) -> Source:
    names = [
        row[0].decode("utf-8", "replace")
        for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    known = _TABLES | _LATER
    columns = {name: _columns(conn, path, name) for name in names if name in known}
    if not {"GlobalProperties", "Resources"} <= columns.keys():
        raise PgOrthancError(
            f"{path} is no index of Orthanc: it holds the tables {', '.join(sorted(names)) or 'none'}",
            "name the file `index` of Orthanc's IndexDirectory",
        )
    _require_version(conn, path)
    missing = [f"table {name}" for name in _TABLES if name not in columns]
    missing += [
        f"column {name}.{column}"
        for name, there in columns.items()
        for column in sorted(known[name][0] - there)
    ]
    if missing:
        raise damaged(path, f"it lacks {', '.join(missing)}")
    strange = [
        name for name in names if name not in known | dict.fromkeys(_PASSED_OVER) and name[:7] != "sqlite_"
    ]
    unknown = {name: _count(conn, name) for name in strange}
    return Source(path, file, columns, _highest(conn), unknown, _fingerprint(conn), scratch)


def _columns(conn: sqlite3.Connection, path: Path, table: str) -> frozenset[str]:
    """The columns of a table whose primary key is what it has to be."""
    rows = conn.execute("SELECT name, pk FROM pragma_table_info(?) ORDER BY pk", (table,)).fetchall()
    found = [(name.decode("utf-8", "replace"), key) for name, key in rows]
    wanted = (_TABLES | _LATER)[table][1]
    key = tuple(name for name, place in found if place)
    if key != wanted:
        raise damaged(
            path, f"the primary key of table {table} is ({', '.join(key)}), wanted ({', '.join(wanted)})"
        )
    if (
        len(wanted) == 1
        and conn.execute(f"SELECT 1 FROM {table} WHERE typeof({wanted[0]}) <> 'integer' LIMIT 1").fetchone()
    ):
        raise damaged(path, f"column {table}.{wanted[0]} holds what is no integer")
    conn.execute(f"SELECT rowid FROM {table} LIMIT 1").fetchall()  # no view, and not WITHOUT ROWID
    return frozenset(name for name, _ in found)


def _require_version(conn: sqlite3.Connection, path: Path) -> None:
    row = conn.execute("SELECT value FROM GlobalProperties WHERE property = 1").fetchone()
    found = row[0] if row else None
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
    if text == str(VERSION):
        return
    if text.isdecimal() and int(text) < VERSION:
        raise PgOrthancError(
            f"{path} has version {text} of the database, wanted {VERSION}",
            "on a copy, run a newer Orthanc once with: Orthanc --upgrade CONFIGURATION; then convert the copy",
        )
    raise PgOrthancError(
        f"{path} has version {text!r} of the database, wanted {VERSION}", "look for a newer pgorthanc"
    )


def _highest(conn: sqlite3.Connection) -> dict[str, int]:
    rows = conn.execute(
        "SELECT name, max(seq) FROM sqlite_sequence WHERE typeof(seq) = 'integer' GROUP BY name"
    )
    return {name.decode("utf-8", "replace"): seq for name, seq in rows if isinstance(name, bytes)}


def _count(conn: sqlite3.Connection, table: str) -> int:
    quoted = table.replace('"', '""')
    number: int = conn.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()[0]
    return number


def _fingerprint(conn: sqlite3.Connection) -> str:
    """Every transaction of Orthanc changes a sequence, a property, a counter or the number of pages or rows."""
    digest = hashlib.sha256()
    for query in (
        "PRAGMA page_count",
        "PRAGMA schema_version",
        "SELECT name, seq FROM sqlite_sequence ORDER BY name",
        "SELECT property, value FROM GlobalProperties ORDER BY property",
        "SELECT max(rowid) FROM Resources",
        "SELECT count(*), max(rowid) FROM Metadata",
        "SELECT count(*), max(rowid) FROM AttachedFiles",
    ):
        digest.update(repr(conn.execute(query).fetchall()).encode())
    return digest.hexdigest()
