"""What a conversion has done so far, in a table of the target; each entry is committed with what it speaks of.

While the table is there the index is none: its properties are away, so neither Orthanc nor this tool takes it for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.migrate.model import Finding, Outcome

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

TABLE = "pgorthanc_migration"
_RUN = "run"
_CREATE = f"CREATE TABLE {TABLE} (name text PRIMARY KEY, content text NOT NULL)"
_WRITE = f"INSERT INTO {TABLE} (name, content) VALUES (%s, %s)"
_READ = f"SELECT content FROM {TABLE} WHERE name = %s"


def create(cur: Cursor, run: dict[str, Any]) -> None:
    """Begin a journal, in the transaction of the caller."""
    cur.execute(_CREATE)
    cur.execute(_WRITE, (_RUN, json.dumps(run)))


def run(conn: Connection) -> dict[str, Any]:
    """What the conversion was told, and how the index is put together again.

    Raises:
        PgOrthancError: The record is damaged.
    """
    with conn.cursor() as cur:
        cur.execute(_READ, (_RUN,))
        (content,) = cur.fetchone() or ("",)
    try:
        found: dict[str, Any] = json.loads(content)
        if type(found["revision"]) is not int:
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise unusable() from None
    return found


def unusable() -> PgOrthancError:
    """What to tell when it is not known how to put the index together."""
    return PgOrthancError(
        f"the record of the unfinished conversion (row '{_RUN}' of table {TABLE}) is damaged: it cannot be continued",
        "convert into an empty database or schema; or drop the tables of this one, which hold no finished index",
    )


def record(cur: Cursor, name: str, found: Outcome) -> None:
    """Note that a piece of work is done, in the transaction that did it.

    Raises:
        psycopg2.errors.UniqueViolation: It was done already, by a worker that has outlived its parent.
    """
    cur.execute(_WRITE, (name, json.dumps(asdict(found))))


def done(conn: Connection) -> Iterator[tuple[str, Outcome]]:
    """The pieces of work that are done."""
    with conn.cursor() as cur:
        cur.execute(f"SELECT name FROM {TABLE} WHERE name <> %s ORDER BY name", (_RUN,))
        for (name,) in cur.fetchall():
            yield name, outcome(cur, name)


def outcome(cur: Cursor, name: str) -> Outcome:
    """What a piece of work found that is done.

    Raises:
        PgOrthancError: The record is damaged.
    """
    cur.execute(_READ, (name,))
    (text,) = cur.fetchone() or ("",)
    try:
        content = json.loads(text)
        lists = {kind: [Finding(**one) for one in content[kind]] for kind in ("repaired", "skipped")}
        rows, checksum = content["rows"], content["checksum"]
        if type(rows) is not int or type(checksum) is not int:
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PgOrthancError(
            f"the record of what was converted (row '{name}' of table {TABLE}) is damaged, so it cannot be continued",
            "run it again with --restart: everything is converted from the beginning",
        ) from None
    return Outcome(rows, checksum, **lists)


def begin_again(cur: Cursor, run: dict[str, Any]) -> None:
    """Nothing is done yet."""
    cur.execute(f"DELETE FROM {TABLE}")
    cur.execute(_WRITE, (_RUN, json.dumps(run)))


def drop(cur: Cursor) -> None:
    """The conversion is complete."""
    cur.execute(f"DROP TABLE {TABLE}")
