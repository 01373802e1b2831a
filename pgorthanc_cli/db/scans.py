"""Say before tables are read as a whole that this takes a while."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pgorthanc_cli.db.safe_session import rows
from pgorthanc_cli.progress import Progress, Report, silent

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

LARGE_ROWS = 1_000_000
"""Rows that a server may need seconds to read, if they are not in its memory."""

# As of the last VACUUM or ANALYZE; -1 before the first one.
_ROWS = """
    SELECT c.relname, c.reltuples::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = index_schema() AND c.relkind = 'r' AND c.relname = ANY (%s)
        ORDER BY 2 DESC, 1
"""


def announce_scans(conn: Connection, tables: Iterable[str], report: Report) -> Report:
    """Report that tables of the index are about to be read as a whole, unless they are small.

    Args:
        conn: A connection to the index.
        tables: Their names; those that do not exist are left out.
        report: Receives the announcement, which has no `done`.

    Returns:
        Where the steps of this work are reported: `report`, or `silent` if the tables are small.
    """
    sizes = [(name, count) for name, count in rows(conn, _ROWS, list(tables)) if count > 0]
    if sum(count for _, count in sizes) < LARGE_ROWS:
        return silent
    listed = ", ".join(f"{count:,} of {name}" for name, count in sizes)
    report(Progress("", f"reading all rows, which takes a while: about {listed}"))
    return report
