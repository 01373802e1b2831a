"""The journal of a conversion: a table of the target.

Each entry is committed together with the rows that it describes.

While the table exists the schema is not an index: its properties have another name, so
neither Orthanc nor this tool accepts it as one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.migrate.model import Finding, Outcome

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

TABLE = "pgorthanc_migration"
_PLAN = "run"  # name of the row; the other rows are named after pieces of work
_INSERT = f"INSERT INTO {TABLE} (name, content) VALUES (%s, %s)"
_SELECT = f"SELECT content FROM {TABLE} WHERE name = %s"


def create(cur: Cursor, plan: dict[str, Any]) -> None:
    """Create the journal in the transaction of the caller."""
    cur.execute(f"CREATE TABLE {TABLE} (name text PRIMARY KEY, content text NOT NULL)")
    cur.execute(_INSERT, (_PLAN, json.dumps(plan)))


def clear(cur: Cursor, plan: dict[str, Any]) -> None:
    """Remove all entries, and record another plan."""
    cur.execute(f"DELETE FROM {TABLE}")
    cur.execute(_INSERT, (_PLAN, json.dumps(plan)))


def drop(cur: Cursor) -> None:
    """Drop the journal: the conversion is complete."""
    cur.execute(f"DROP TABLE {TABLE}")


def plan(conn: Connection) -> dict[str, Any]:
    """Return the recorded plan: settings of the conversion, and how to complete the index.

    Raises:
        PgOrthancError: The record is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(db.value(conn, _SELECT, _PLAN) or "")
        # Not isinstance: True is an int as well.
        if type(content["revision"]) is not int:
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged_plan() from None
    return content


def damaged_plan() -> PgOrthancError:
    """Return the error for a plan from which the index cannot be completed."""
    return PgOrthancError(
        f"the record of the unfinished conversion (row '{_PLAN}' of table {TABLE}) is damaged: "
        "it cannot be continued",
        "convert into an empty database or schema; or drop the tables of this one, which hold no finished index",
    )


def record(cur: Cursor, name: str, outcome: Outcome) -> None:
    """Record a piece of work in the transaction that has done it.

    Raises:
        psycopg2.errors.UniqueViolation: A worker that has outlived its parent has already
        done it.
    """
    cur.execute(_INSERT, (name, json.dumps(asdict(outcome))))


def done(conn: Connection) -> Iterator[tuple[str, Outcome]]:
    """Yield the names and the outcomes of the pieces of work that are done."""
    with conn.cursor() as cur:
        cur.execute(f"SELECT name FROM {TABLE} WHERE name <> %s ORDER BY name", (_PLAN,))
        for (name,) in cur.fetchall():
            yield name, outcome(cur, name)


def outcome(cur: Cursor, name: str) -> Outcome:
    """Return the outcome of a piece of work that is done.

    Raises:
        PgOrthancError: The record is damaged.
    """
    cur.execute(_SELECT, (name,))
    (text,) = cur.fetchone() or ("",)
    try:
        content = json.loads(text)
        lists = {kind: [Finding(**one) for one in content[kind]] for kind in ("repaired", "skipped")}
        rows, checksum = content["rows"], content["checksum"]
        if type(rows) is not int or type(checksum) is not int:
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PgOrthancError(
            f"the record of what was converted (row '{name}' of table {TABLE}) is damaged, "
            "so it cannot be continued",
            "run it again with --restart: everything is converted from the beginning",
        ) from None
    return Outcome(rows, checksum, **lists)
