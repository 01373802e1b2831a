"""Differences of a check, on disk beyond a few megabytes: an unmounted folder has millions."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress

from pgorthanc_cli.scrub.model import Difference, Row

GROUP = 10_000  # about as many differences are looked at together


class Spool:
    """Keeps differences in the order of the first two digits of their names.

    What a row and files of its name have to do with each other is decided within one group.
    """

    def __init__(self) -> None:
        """Create a private database without a name, which SQLite writes to disk if it grows."""
        self._conn = sqlite3.connect("", isolation_level=None)
        # Nothing is ever rolled back, and the file is gone with the process.
        self._conn.execute("PRAGMA journal_mode = OFF")
        self._conn.execute("CREATE TABLE differences (part TEXT NOT NULL, data BLOB NOT NULL)")
        self._conn.execute("BEGIN")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __del__(self) -> None:
        with suppress(sqlite3.Error):
            self._conn.close()

    def append(self, difference: Difference) -> None:
        """Add a difference."""
        self.extend([difference])

    def extend(self, differences: Iterable[Difference]) -> None:
        """Add differences."""
        for each in differences:
            row = each.row
            if row and row.customdata is not None:
                row = row._replace(customdata=bytes(row.customdata))  # a memoryview cannot be pickled
            name = row.uuid if row else each.uuid or each.path
            # Plain tuples are pickled several times faster than named ones.
            data = pickle.dumps((each.kind, each.detail, row and tuple(row), *each[3:]))
            self._conn.execute("INSERT INTO differences VALUES (?, ?)", (name[:2].lower(), data))
            self._count += 1

    def groups(self) -> Iterator[list[Difference]]:
        """Yield the differences; those whose names begin alike come together."""
        parts = self._conn.execute("SELECT part, count(*) FROM differences GROUP BY part ORDER BY part")
        # Only now: to keep an index up to date while rows come takes longer.
        self._conn.execute("CREATE INDEX IF NOT EXISTS by_part ON differences (part)")
        waiting, size = [], 0
        for part, count in parts.fetchall():
            waiting.append(part)
            size += count
            if size >= GROUP:
                yield self._of(waiting)
                waiting, size = [], 0
        if waiting:
            yield self._of(waiting)

    def _of(self, parts: list[str]) -> list[Difference]:
        query = "SELECT data FROM differences WHERE part BETWEEN ? AND ? ORDER BY part, rowid"
        return [_loaded(data) for (data,) in self._conn.execute(query, (parts[0], parts[-1]))]


def _loaded(data: bytes) -> Difference:
    kind, detail, row, *rest = pickle.loads(data)  # noqa: S301 - written by this process
    return Difference(kind, detail, Row(*row) if row else None, *rest)
