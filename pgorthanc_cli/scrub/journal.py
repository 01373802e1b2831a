"""The journal of checks: what was checked when, so that a scrub can go on where it ended.

Attachments are immutable and their UUIDs are never used again, so a result stays valid
until the medium fails (STORAGE.md J). A journal that is lost costs time only.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.files import PRIVATE
from pgorthanc_cli.scrub.model import DEPTHS, Settings
from pgorthanc_cli.storage import is_uuid
from pgorthanc_cli.text import printable

_APPLICATION_ID = 0x50475343  # SQLite's application_id of our journals
_TABLES = """
CREATE TABLE checked (
    uuid BLOB PRIMARY KEY, at INTEGER NOT NULL, depth INTEGER NOT NULL, damaged INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE about (identity TEXT NOT NULL);
"""
# Journals of earlier releases do not have it yet.
_LAST_RUN = """CREATE TABLE IF NOT EXISTS last_run (
    finished_at INTEGER NOT NULL, attachments INTEGER NOT NULL, complete INTEGER NOT NULL, counts TEXT NOT NULL
)"""
_COMMIT_S = 5.0


class Check(NamedTuple):
    """The last check of an attachment: seconds since 1970, and whether it was damaged."""

    at: int
    damaged: bool


class Summary(NamedTuple):
    """What a journal tells about an archive.

    Attributes:
        checked: Attachments that were checked, at any time.
        oldest: When the one was checked whose check is longest ago.
        finished_at: When the last run ended; None: none has yet.
        attachments: Rows of the index at that time.
        complete: Whether that run has checked everything that was due.
        counts: Its findings by kind, without those that were repaired since.
    """

    checked: int
    oldest: datetime | None
    finished_at: datetime | None
    attachments: int
    complete: bool
    counts: dict[str, int]


class Journal:
    """The results of checks of one depth, or a deeper one.

    Attributes:
        began_at: Seconds since 1970, later than each check of an earlier run.
    """

    def __init__(self, conn: sqlite3.Connection, depth: str) -> None:
        """See `open_journal`."""
        self._conn = conn
        self._depth = DEPTHS.index(depth)
        self._committed = time.monotonic()
        # Whole seconds: what was checked in this one, by an earlier run, must not look like our own.
        (latest,) = conn.execute("SELECT max(at) FROM checked").fetchone()
        self.began_at = max(int(time.time()), (latest or 0) + 1)

    def part(self, digits: str) -> dict[str, Check]:
        """Return the checks of the attachments whose UUIDs begin with two or three digits."""
        first, last = digits.ljust(32, "0"), digits.ljust(32, "f")
        rows = self._conn.execute(
            "SELECT uuid, at, damaged FROM checked WHERE uuid BETWEEN ? AND ? AND depth >= ?",
            (bytes.fromhex(first), bytes.fromhex(last), self._depth),
        )
        return {str(uuid.UUID(bytes=key)): Check(at, bool(damaged)) for key, at, damaged in rows}

    def record(self, uuids: Iterable[str], *, damaged: bool) -> None:
        """Record attachments as checked now."""
        now = max(int(time.time()), self.began_at)
        self._conn.executemany(
            "INSERT OR REPLACE INTO checked VALUES (?, ?, ?, ?)",
            [(uuid.UUID(each).bytes, now, self._depth, damaged) for each in uuids if is_uuid(each)],
        )
        if time.monotonic() - self._committed > _COMMIT_S:
            self.commit()

    def forget(self, uuids: Iterable[str]) -> None:
        """Remove attachments that the index no longer has."""
        self._conn.executemany(
            "DELETE FROM checked WHERE uuid = ?", [(uuid.UUID(each).bytes,) for each in uuids]
        )

    def oldest(self) -> tuple[int, int | None]:
        """Return how many attachments were checked, and when the oldest check was."""
        row = self._conn.execute("SELECT count(*), min(at) FROM checked WHERE depth >= ?", (self._depth,))
        count, at = row.fetchone()
        return count, at

    def record_run(self, attachments: int, counts: Mapping[str, int], *, complete: bool) -> None:
        """Record the end of a run, with its findings by kind."""
        self._conn.execute("DELETE FROM last_run")
        self._conn.execute(
            "INSERT INTO last_run VALUES (?, ?, ?, ?)",
            (int(time.time()), attachments, complete, json.dumps(dict(counts))),
        )

    def record_repaired(self, kinds: Iterable[str]) -> None:
        """Take findings that were repaired out of those of the last run."""
        for counts in self._conn.execute("SELECT counts FROM last_run").fetchall():
            remaining = Counter(json.loads(*counts)) - Counter(kinds)
            self._conn.execute("UPDATE last_run SET counts = ?", (json.dumps(remaining),))

    def commit(self) -> None:
        """Make the results durable."""
        self._conn.commit()
        self._committed = time.monotonic()


def record_resolved(settings: Settings, identity: str, kinds: Iterable[str]) -> None:
    """Take findings that were resolved out of the journal, if the settings name one."""
    with open_journal(settings.journal, identity, settings.depth) as journal:
        if journal:
            journal.record_repaired(kinds)


def is_part(digits: str) -> bool:
    """Return whether attachments whose names begin like this can be in a journal."""
    return len(digits) in (2, 3) and not set(digits) - set("0123456789abcdef")


@contextmanager
def open_journal(path: Path | None, identity: str, depth: str) -> Iterator[Journal | None]:
    """Yield the journal in a file, created if missing and private; None without a path.

    Args:
        path: The file.
        identity: Of the index: a journal belongs to one.
        depth: Of this check.

    Raises:
        UsageError: The file is the journal of another index, or something else.
        PgOrthancError: The file cannot be used.
    """
    if path is None:
        yield None
        return
    name = printable(str(path))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, PRIVATE))
        with closing(sqlite3.connect(path, timeout=0.5)) as conn:
            _prepare(conn, name, identity)
            journal = Journal(conn, depth)
            try:
                yield journal
            finally:
                journal.commit()
    except (OSError, sqlite3.Error) as error:
        raise PgOrthancError(
            f"the journal {name} cannot be used: {getattr(error, 'strerror', None) or error}",
            "name another file with --journal; a damaged one may be deleted: everything is checked again then",
        ) from None


def _prepare(conn: sqlite3.Connection, name: str, identity: str) -> None:
    """Create the tables, or check that the journal belongs to this index."""
    ((application_id,),) = conn.execute("PRAGMA application_id")
    ((tables,),) = conn.execute("SELECT count(*) FROM sqlite_master")
    if tables and application_id != _APPLICATION_ID:
        raise UsageError(f"{name} is not a journal of verify storage", "name another file with --journal")
    conn.execute("PRAGMA locking_mode = EXCLUSIVE")
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last results
    if not tables:
        conn.executescript(f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; {_TABLES} COMMIT;")
        with conn:
            conn.execute("INSERT INTO about VALUES (?)", (identity,))
    conn.execute(_LAST_RUN)
    ((owner,),) = conn.execute("SELECT identity FROM about")
    if owner != identity:
        raise UsageError(
            f"{name} is the journal of another index",
            "name the journal of this one with --journal, or a new file",
        )


def summary(path: Path, identity: str) -> Summary:
    """Return what a journal tells; never write to it, nor wait for a check that is running.

    Args:
        path: The journal.
        identity: Of the index.

    Raises:
        OSError: It cannot be opened.
        sqlite3.Error: It is being written to, or damaged.
        UsageError: It is the journal of another index, or something else.
    """
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    # Without a write-ahead log no check is running; then SQLite needs no file beside it.
    mode = "mode=ro" if os.path.exists(f"{path}-wal") else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=0)) as conn:
        ((application_id,),) = conn.execute("PRAGMA application_id")
        if application_id != _APPLICATION_ID:
            raise UsageError(f"{printable(str(path))} is not a journal of verify storage")
        ((owner,),) = conn.execute("SELECT identity FROM about")
        if owner != identity:
            raise UsageError(f"{printable(str(path))} is the journal of another index")
        ((checked, oldest),) = conn.execute("SELECT count(*), min(at) FROM checked")
        ((has_run,),) = conn.execute("SELECT count(*) FROM sqlite_master WHERE name = 'last_run'")
        runs = conn.execute("SELECT * FROM last_run").fetchall() if has_run else []
        at, attachments, complete, counts = runs[0] if runs else (None, 0, False, "{}")
        return Summary(
            checked, _time(oldest), _time(at), attachments, bool(complete), dict(json.loads(counts))
        )


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
