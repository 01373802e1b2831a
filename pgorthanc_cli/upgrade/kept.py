"""What a lower revision cannot hold: counted, kept aside in tables of ours, written out, dropped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import sql

from pgorthanc_cli.db import encoding
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.upgrade.model import Settings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PREFIX = "pgorthanc_kept_"
_BATCH = 1000

_TABLES = """
    SELECT relname FROM pg_class WHERE relnamespace = quote_ident(index_schema())::regnamespace
        AND relkind = 'r' AND starts_with(relname, %s) ORDER BY 1
"""


@dataclass(frozen=True)
class Loss:
    """Something that a lower revision cannot hold.

    Attributes:
        what: In words.
        rows: How much of it there is.
        below: It goes on the way below this revision.
        unreadable: Whether files cannot be found without it.
    """

    what: str
    rows: int
    below: int
    unreadable: bool = False

    def __str__(self) -> str:
        """A line of the list that is shown before."""
        return f"{self.rows:,} {self.what} (not below revision {self.below})"


# (what, below, column by which the layout is recognised, query). customdata has no index: one scan, beside Orthanc.
_LOSSES = (
    (
        "reservations of queued values", 10, "queues.reserveduntil",
        "SELECT count(*) FROM index.queues WHERE reserveduntil IS NOT NULL",
    ),
    ("audit logs", 6, "auditlogs.ts", "SELECT count(*) FROM index.auditlogs"),
    (
        "places of protected patients in the recycling order", 6, "patientrecyclingordersequence",
        """SELECT count(*) FROM index.resources
               JOIN index.metadata p ON p.id = internalid AND p.type = 18 AND p.value = 'true'
               JOIN index.metadata o ON o.id = internalid AND o.type = 19 WHERE resourcetype = 0""",
    ),
    (
        "attachments with data of a storage plugin, whose files Orthanc cannot find without it", 5,
        "attachedfiles.customdata", "SELECT count(*) FROM index.attachedfiles WHERE customdata IS NOT NULL",
    ),
    ("entries of key-value stores", 5, "keyvaluestores.key", "SELECT count(*) FROM index.keyvaluestores"),
    ("values in queues", 5, "queues.value", "SELECT count(*) FROM index.queues"),
)  # fmt: skip


def losses(conn: Connection, found: catalog.Catalog, to: int) -> list[Loss]:
    """What an index holds that revision `to` cannot hold."""
    there = [
        entry
        for entry in _LOSSES
        if to < entry[1] and (f"column {entry[2]}" in found or f"sequence {entry[2]}" in found)
    ]
    counted = []
    with conn.cursor() as cur:
        for what, below, column, query in there:
            cur.execute(query)
            rows = (cur.fetchone() or (0,))[0]
            counted.append(Loss(what, rows, below, unreadable=column == "attachedfiles.customdata"))
    return [loss for loss in counted if loss.rows]


def rows(conn: Connection) -> dict[str, int]:
    """The tables of ours in the schema, and how many rows each holds."""
    with conn.cursor() as cur:
        cur.execute(_TABLES, (PREFIX,))
        counted = {}
        for (table,) in cur.fetchall():
            cur.execute(sql.SQL("SELECT count(*) FROM index.{}").format(sql.Identifier(table)))
            counted[table] = int((cur.fetchone() or (0,))[0])
    return counted


def settle(conn: Connection, settings: Settings) -> None:
    """Write out and drop what is kept aside, as far as that is asked for; dropped only once the file is safe.

    Raises:
        PgOrthancError: The file cannot be written.
    """
    if settings.export:
        export(conn, settings.export)
    if settings.discard:
        with conn.cursor() as cur:
            for table in rows(conn):
                cur.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(table)))


def require_new(file: Path) -> None:
    """Make sure, before anything is done, that a file can be written.

    Raises:
        PgOrthancError: It is there already, or its folder is not, or may not be written.
    """
    if file.exists() or not os.access(file.parent, os.W_OK):
        raise PgOrthancError(
            f"cannot write {file}: "
            + ("it is there already" if file.exists() else "no such folder, or not allowed"),
            "name a new file in a folder that may be written",
        )


def export(conn: Connection, file: Path) -> None:
    """Write all rows that are kept aside, one JSON document `{"table": ..., "row": ...}` per line, and sync the file.

    Text is what Orthanc reads there, in UTF-8, whatever encoding the database has.

    Raises:
        PgOrthancError: The file is there already, or cannot be written.
    """
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            for table in rows(conn):
                query = sql.SQL(
                    "SELECT pg_catalog.convert_to(pg_catalog.json_build_object("
                    "'table', {}::text, 'row', pg_catalog.to_json(t))::text, {}) FROM index.{} t"
                )
                with conn.cursor(name="export") as cur:
                    cur.itersize = _BATCH
                    names = sql.Literal(table), sql.Literal(encoding.of_orthanc(conn)), sql.Identifier(table)
                    cur.execute(query.format(*names))
                    stream.writelines(bytes(line) + b"\n" for (line,) in cur)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise PgOrthancError(
            f"cannot write {file}: {error.strerror}", "name a new file in a folder that may be written"
        ) from None
