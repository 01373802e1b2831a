"""Open an SQLite index: unused by any program, read-only, and of a known layout (SQLITE.md 1 and 2).

The file is never written. It is opened as `immutable`, so that SQLite creates no files
beside it, under the lock that any reader of SQLite takes, so that no Orthanc can start on
it in the meantime. The files that a crash leaves beside it (`-wal`, `-journal`) belong to
it: all are copied then, and SQLite recovers the copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from pgorthanc_cli.errors import InUseError, PgOrthancError
from pgorthanc_cli.migrate.model import Outcome
from pgorthanc_cli.migrate.source import TargetTables
from pgorthanc_cli.migrate.sources.sqlite import tree
from pgorthanc_cli.migrate.sources.sqlite.reader import SQLiteReader

# GlobalProperties 1, the same since Orthanc 0.9.5 (SQLITE.md 2).
_VERSION = 6
_JOURNALS = ("-wal", "-journal")
# The bytes of the file that SQLite's own locks are on: pending, reserved, shared (the
# file format's "lock-byte page").
_LOCK_START, _LOCK_BYTES = 0x40000000, 512
_CACHE_KB = 32_000
_COPY_BYTES = 1 << 20
_MODULUS = 1_000_003  # so that no sum overflows
# Rows: pages of a larger table cannot be exchanged without breaking the order of ids.
_SMALL_TABLE = 10_000

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
# Those that only later releases create.
_LATER_TABLES: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "Labels": ({"id", "label"}, ("id", "label")),
    "KeyValueStores": ({"storeId", "key", "value"}, ("storeId", "key")),
    "Queues": ({"id", "queueId", "value"}, ("id",)),
}
# Recomputed, or scratch tables (SQLITE.md 2).
_NOT_CONVERTED = {"GlobalIntegers", "DeletedFiles"}
_INDEXES_OF = """SELECT list.name, info.name FROM pragma_index_list(?) list, pragma_index_info(list.name) info
    WHERE info.seqno = 0 AND info.name IS NOT NULL AND NOT list.partial"""


@dataclass(frozen=True)
class SQLiteIndex:
    """An index that is open for reading. Picklable; see `migrate.source.Source`.

    Attributes:
        path: As the user named it.
        file: The file that is read: the same, or a recovered copy.
        columns_of: The columns of each table of Orthanc that exists.
        sequences: The highest id ever given, by table (sqlite_sequence).
        unknown_tables: Tables that no known release creates, and their row counts.
        fingerprint: Distinguishes this state of the index from any other.
        scratch: A folder for what does not fit into memory; removed at the end.
        tree: The scratch file of the resources to convert (`tree.survey`); None: all of
            them.
    """

    path: Path
    file: Path
    columns_of: dict[str, frozenset[str]]
    sequences: dict[str, int]
    unknown_tables: dict[str, int]
    fingerprint: str
    scratch: Path
    tree: Path | None = None

    def has(self, table: str, column: str | None = None) -> bool:
        """Return whether a table, or a column of it, exists."""
        return table in self.columns_of and (column is None or column in self.columns_of[table])

    def tables(self) -> list[str]:
        """Return the names of the tables of Orthanc."""
        return list(self.columns_of)

    def check_table(self, table: str, *, thorough: bool) -> list[str]:
        """Return the problems with the structure of a table.

        A page may be sound in itself and still not belong to its table. `thorough` looks
        up each row in each index, which takes hours once the file is larger than the
        memory; otherwise only the numbers of rows are compared.
        """
        with closing(connect(self.file)) as conn:
            pragma = "integrity_check" if thorough else "quick_check"
            rows = conn.execute(f"PRAGMA {pragma}({table})")
            answer = [line.decode("utf-8", "replace") for (line,) in rows]
            if answer != ["ok"]:
                return answer
            return [f"index {name} differs from it" for name in _differing_indexes(conn, table)]

    def survey(self) -> tuple[SQLiteIndex, Outcome]:
        """Find the resources that can be converted."""
        with closing(connect(self.file)) as conn:
            file, outcome = tree.survey(conn, self.scratch)
        return replace(self, tree=file), outcome

    def reader(self, tables: TargetTables) -> SQLiteReader:
        """Open a reader for the tables of one target."""
        return SQLiteReader(self, connect(self.file), tables)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Translate the errors of sqlite3; their messages name no values."""
        with _translated_errors(self.path):
            yield

    def damaged(self, problem: str) -> PgOrthancError:
        """Return the error for a file that SQLite cannot read completely."""
        return _damaged(self.path, problem)


@contextmanager
def open_index(path: Path) -> Iterator[SQLiteIndex]:
    """Open an index for the length of a block, in which no other program can write to it.

    Raises:
        InUseError: An Orthanc, or any other program, uses it.
        PgOrthancError: It is not an index of Orthanc, too old, or damaged; or there is no
            room for a copy.
    """
    with _locked(path) as descriptor, tempfile.TemporaryDirectory(prefix="pgorthanc-sqlite-") as folder:
        before = _file_state(path)
        file = _recover(path, descriptor, Path(folder)) if _journals(path) else path.absolute()
        with _translated_errors(path), closing(connect(file)) as conn:
            yield _inspect(conn, path, file, Path(folder))
            if _file_state(path) != before:
                raise PgOrthancError(
                    f"{path} was changed while it was read", "stop whatever writes to it, then run it again"
                )


def connect(file: Path) -> sqlite3.Connection:
    """Open a file that no program writes to. Text is returned as bytes, because it may not be UTF-8."""
    conn = sqlite3.connect(f"file:{quote(str(file))}?mode=ro&immutable=1", uri=True, isolation_level=None)
    conn.text_factory = bytes
    conn.execute("PRAGMA query_only = ON")
    conn.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
    return conn


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, OverflowError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, problem: str) -> PgOrthancError:
    return PgOrthancError(
        f"{path} is damaged, or no SQLite index: {problem}",
        # Not .recover: it fails even for a sound file with the sqlite3 3.40 of Debian 12. A dump of a damaged file
        # ends with a rollback.
        "restore a backup; or copy what can be read into a new file, and convert that: "
        f"sqlite3 {shlex.quote(str(path))} .dump | sed 's/^ROLLBACK.*/COMMIT;/' | sqlite3 recovered",
    )


def _differing_indexes(conn: sqlite3.Connection, table: str) -> Iterator[str]:
    """Yield the indexes that hold another number of rows than their table.

    Those of a small table are also compared by the sums of ids and first columns: in a
    small table, an exchanged page need not show in the order of the rows.
    """
    (rows,) = conn.execute(f"SELECT count(*) FROM {table} NOT INDEXED").fetchone()
    for name, column in conn.execute(_INDEXES_OF, (table,)).fetchall():
        sums = "count(*)"
        if rows <= _SMALL_TABLE:
            sums += f', sum(rowid % {_MODULUS}), sum("{column.decode()}" % {_MODULUS})'
        by_table = conn.execute(f"SELECT {sums} FROM {table} NOT INDEXED").fetchone()
        by_index = conn.execute(f'SELECT {sums} FROM {table} INDEXED BY "{name.decode()}"').fetchone()
        if by_table != by_index:
            yield name.decode()


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Lock the file as a reader of SQLite does, and yield the descriptor.

    Closing any other descriptor of the same file in this process would give up the lock.
    """
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


def _journals(path: Path) -> list[Path]:
    candidates = [Path(f"{path}{suffix}") for suffix in _JOURNALS]
    return [file for file in candidates if file.exists() and file.stat().st_size]


def _file_state(path: Path) -> list[tuple[str, int, int]]:
    files = [path, *_journals(path)]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _recover(path: Path, descriptor: int, folder: Path) -> Path:
    """Copy the file and its journals into a folder, have SQLite recover the copy, and return its path."""
    files = [path, *_journals(path)]
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
        # Not `shutil.copyfile`: closing a second descriptor would give up the lock.
        while block := os.pread(descriptor, _COPY_BYTES, stream.tell()):
            stream.write(block)
    for file in files[1:]:
        shutil.copyfile(file, folder / file.name)
    with _translated_errors(path), closing(sqlite3.connect(copy, isolation_level=None)) as conn:
        # This writes the WAL into the file, and the first read rolls a hot journal back:
        # a connection that is `immutable` would ignore both.
        conn.execute("PRAGMA journal_mode = DELETE").fetchall()
        conn.execute("SELECT count(*) FROM sqlite_master").fetchall()
    return copy


def _inspect(conn: sqlite3.Connection, path: Path, file: Path, scratch: Path) -> SQLiteIndex:
    rows = conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    names = [name.decode("utf-8", "replace") for (name,) in rows]
    expected = _TABLES | _LATER_TABLES
    columns = {name: _columns(conn, path, name) for name in names if name in expected}
    if not {"GlobalProperties", "Resources"} <= columns.keys():
        raise PgOrthancError(
            f"{path} is no index of Orthanc: it holds the tables {', '.join(sorted(names)) or 'none'}",
            "name the file `index` of Orthanc's IndexDirectory",
        )
    _require_version(conn, path)
    missing = [f"table {name}" for name in _TABLES if name not in columns]
    for name, actual in columns.items():
        missing += [f"column {name}.{column}" for column in sorted(expected[name][0] - actual)]
    if missing:
        raise _damaged(path, f"it lacks {', '.join(missing)}")
    unknown = {}
    for name in names:
        if not (name in expected or name in _NOT_CONVERTED or name.startswith("sqlite_")):
            quoted = name.replace('"', '""')
            (unknown[name],) = conn.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()
    # SQLite enforces no types, not even in its own tables.
    sequences = conn.execute(
        "SELECT name, max(seq) FROM sqlite_sequence WHERE typeof(seq) = 'integer' GROUP BY name"
    )
    return SQLiteIndex(
        path=path,
        file=file,
        columns_of=columns,
        sequences={n.decode("utf-8", "replace"): seq for n, seq in sequences if isinstance(n, bytes)},
        unknown_tables=unknown,
        fingerprint=_fingerprint(conn),
        scratch=scratch,
    )


def _columns(conn: sqlite3.Connection, path: Path, table: str) -> frozenset[str]:
    """Return the columns of a table, and refuse one with another primary key than Orthanc's."""
    rows = conn.execute("SELECT name, pk FROM pragma_table_info(?) ORDER BY pk", (table,)).fetchall()
    columns = [(name.decode("utf-8", "replace"), key_position) for name, key_position in rows]
    actual = tuple(name for name, key_position in columns if key_position)
    _, expected = (_TABLES | _LATER_TABLES)[table]
    if actual != expected:
        raise _damaged(
            path,
            f"the primary key of table {table} is ({', '.join(actual)}), wanted ({', '.join(expected)})",
        )
    if len(expected) == 1:
        query = f"SELECT 1 FROM {table} WHERE typeof({expected[0]}) <> 'integer' LIMIT 1"
        if conn.execute(query).fetchone():
            raise _damaged(path, f"column {table}.{expected[0]} holds what is no integer")
    # Fails for a view, and for a table that was created WITHOUT ROWID.
    conn.execute(f"SELECT rowid FROM {table} LIMIT 1").fetchall()
    return frozenset(name for name, _ in columns)


def _require_version(conn: sqlite3.Connection, path: Path) -> None:
    row = conn.execute("SELECT value FROM GlobalProperties WHERE property = 1").fetchone()
    value = row[0] if row else None
    version = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if version == str(_VERSION):
        return
    if version.isdecimal() and int(version) < _VERSION:
        raise PgOrthancError(
            f"{path} has version {version} of the database, wanted {_VERSION}",
            "on a copy, run a newer Orthanc once with: Orthanc --upgrade CONFIGURATION; then convert the copy",
        )
    raise PgOrthancError(
        f"{path} has version {version!r} of the database, wanted {_VERSION}", "look for a newer pgorthanc"
    )


def _fingerprint(conn: sqlite3.Connection) -> str:
    """Return a hash of what every transaction of Orthanc changes: a sequence, a property, or the pages or rows."""
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
