"""The journal of a conversion: a table of the target.

Each entry is committed together with the rows that it describes.

While the table exists the schema is not an index: its properties have another name, so
neither Orthanc nor this tool accepts it as one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True)
class LoadPlan:
    """How the index is loaded and completed; kept in the journal.

    Attributes:
        fingerprint: Identifies the source.
        source: Path of the source, for messages.
        revision: Revision of the index.
        server_identifier: Owner of the server properties.
        tables: Tables to load.
        before: Catalog of the empty index.
        indexes: (name, statement), the slowest first.
        keys: (table, name, statement) that creates a key from a unique index.
        references: (table, name, statement) that creates a foreign key, not validated.
        triggers: (table, name).
    """

    fingerprint: str
    source: str
    revision: int
    server_identifier: str
    tables: list[str]
    before: dict[str, str]
    indexes: list[list[str]]
    keys: list[list[str]]
    references: list[list[str]]
    triggers: list[list[str]]


def create(cur: Cursor, plan: LoadPlan) -> None:
    """Create the journal in the transaction of the caller."""
    cur.execute(f"CREATE TABLE {TABLE} (name text PRIMARY KEY, content text NOT NULL)")
    cur.execute(_INSERT, (_PLAN, json.dumps(asdict(plan))))


def clear(cur: Cursor, plan: LoadPlan) -> None:
    """Remove all entries, and record another plan."""
    cur.execute(f"DELETE FROM {TABLE}")
    cur.execute(_INSERT, (_PLAN, json.dumps(asdict(plan))))


def drop(cur: Cursor) -> None:
    """Drop the journal: the conversion is complete."""
    cur.execute(f"DROP TABLE {TABLE}")


def plan(conn: Connection) -> LoadPlan:
    """Return the recorded plan.

    Raises:
        PgOrthancError: The record is damaged: the index cannot be completed from it.
    """
    try:
        plan = LoadPlan(**json.loads(db.value(conn, _SELECT, _PLAN) or ""))
        sound = _is_sound(plan)
    except (ValueError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise PgOrthancError(
            f"the record of the unfinished conversion (row '{_PLAN}' of table {TABLE}) is damaged: "
            "it cannot be continued",
            "convert into an empty database or schema; or drop the tables of this one, which hold no finished index",
        )
    return plan


def _is_sound(plan: LoadPlan) -> bool:
    """Return whether everything has the type of its field: the statements of a plan are executed."""
    pairs, triples = [*plan.indexes, *plan.triggers], [*plan.keys, *plan.references]
    texts = [plan.fingerprint, plan.source, plan.server_identifier, *plan.tables, *plan.before.values()]
    return (
        type(plan.revision) is int  # not isinstance: True is an int as well
        and bool(plan.tables)
        and all(len(entry) == 2 for entry in pairs)
        and all(len(entry) == 3 for entry in triples)
        and all(isinstance(text, str) for text in itertools.chain(texts, *pairs, *triples))
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
            "run it again with --start-over: everything is converted from the beginning",
        ) from None
    return Outcome(rows, checksum, **lists)
