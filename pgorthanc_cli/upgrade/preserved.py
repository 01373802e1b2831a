"""Contents that a lower revision cannot hold: count them, keep them aside in tables of ours, export or drop them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.db import encoding
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.upgrade.model import Settings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PREFIX = "pgorthanc_kept_"
_BATCH = 1000
_CUSTOM_DATA = "column attachedfiles.customdata"

_TABLES = """
    SELECT relname FROM pg_class WHERE relnamespace = quote_ident(index_schema())::regnamespace
        AND relkind = 'r' AND starts_with(relname, %s) ORDER BY 1
"""


@dataclass(frozen=True)
class Loss:
    """Contents that a lower revision cannot hold.

    Attributes:
        what: What they are, for a message.
        rows: The number of rows.
        below: The first revision that can hold them.
        table: The table in which they are kept.
        unreadable: Whether Orthanc cannot find files without them.
        files: How many files these are.
        adopted: How many of the files were adopted: Orthanc only reads them where they lie.
    """

    what: str
    rows: int
    below: int
    table: str
    unreadable: bool = False
    files: int = 0
    adopted: int = 0


# (what, the object that holds it, the table that keeps it, query). customdata has no index: one
# scan, while Orthanc is running.
_LOSSES = (
    (
        "reservations of queued values", "column queues.reserveduntil", "reservations",
        "SELECT count(*) FROM index.queues WHERE reserveduntil IS NOT NULL",
    ),
    ("audit log entries", "column auditlogs.ts", "auditlogs", "SELECT count(*) FROM index.auditlogs"),
    (
        "positions of protected patients in the recycling order", "sequence patientrecyclingordersequence",
        "recycling",
        """SELECT count(*) FROM index.resources
               JOIN index.metadata p ON p.id = internalid AND p.type = 18 AND p.value = 'true'
               JOIN index.metadata o ON o.id = internalid AND o.type = 19 WHERE resourcetype = 0""",
    ),
    (
        "customData of attachments", _CUSTOM_DATA, "customdata",
        "SELECT count(*) FROM index.attachedfiles WHERE customdata IS NOT NULL",
    ),
    (
        "key-value pairs", "column keyvaluestores.key", "keyvaluestores",
        "SELECT count(*) FROM index.keyvaluestores",
    ),
    ("queued values", "column queues.value", "queues", "SELECT count(*) FROM index.queues"),
)  # fmt: skip


# Without customdata Orthanc looks for ab/cd/abcd... below StorageDirectory, where some rows name the file anyway
# (STORAGE.md A2). The plugin writes no spaces, and a quotation mark within a path has a backslash before it.
_FILES = """
    SELECT count(*), count(*) FILTER (WHERE position('"o":false'::bytea IN customdata) > 0)
        FROM index.attachedfiles WHERE customdata <> ''::bytea AND customdata <> convert_to(
            '{"o":true,"p":"' || left(uuid, 2) || '/' || substr(uuid, 3, 2) || '/' || uuid || '","v":1}', 'UTF8')
"""


def losses(conn: Connection, objects: catalog.Catalog, to: int, report: Report = silent) -> list[Loss]:
    """Return the contents of an index that revision `to` cannot hold.

    Args:
        conn: A connection to the index.
        objects: What it has.
        to: The target revision.
        report: If tables that are counted are large: receives that they will be read, then each count.
    """
    first = catalog.revisions_of_objects()
    counts = [each for each in _LOSSES if to < first[each[1]][0] and each[1] in objects]
    scanned = {name.split()[1].partition(".")[0] for _, name, _, _ in counts if name.startswith("column ")}
    report = db.announce_scans(conn, scanned, report)
    result = []
    for number, (what, name, table, query) in enumerate(counts, 1):
        report(Progress("", f"counting {what}", number, len(counts)))
        count = db.value(conn, query)
        files, adopted = (db.row(conn, _FILES) if count and name == _CUSTOM_DATA else None) or (0, 0)
        result.append(Loss(what, count, first[name][0], f"{PREFIX}{table}", files > 0, files, adopted))
    return [loss for loss in result if loss.rows]


def rows(conn: Connection) -> dict[str, int]:
    """Return our tables in the schema, and how many rows each holds."""
    counts = {}
    for (table,) in db.rows(conn, _TABLES, PREFIX):
        query = sql.SQL("SELECT count(*) FROM index.{}").format(sql.Identifier(table))
        counts[table] = int(db.value(conn, query))
    return counts


def export_or_drop(conn: Connection, settings: Settings) -> None:
    """Export and drop the tables that are kept aside, as the settings say; they are dropped only once the file is safe.

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
    """Check before the change that a file can be created.

    Raises:
        PgOrthancError: It exists, or its folder does not exist or may not be written.
    """
    if file.exists() or not os.access(file.parent, os.W_OK):
        raise PgOrthancError(
            f"cannot write {file}: "
            + ("it is there already" if file.exists() else "no such folder, or not allowed"),
            "name a new file in a folder that may be written",
        )


def export(conn: Connection, file: Path) -> None:
    """Write all rows that are kept aside to a new file, and sync it.

    Each line is a JSON document `{"table": ..., "row": ...}`.

    Text is what Orthanc reads, in UTF-8, whatever the encoding of the database.

    Raises:
        PgOrthancError: The file exists, or cannot be written.
    """
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            for table in rows(conn):
                query = sql.SQL(
                    "SELECT pg_catalog.convert_to(pg_catalog.json_build_object("
                    "'table', {}::text, 'row', pg_catalog.to_json(t))::text, {}) FROM index.{} t"
                )
                # A cursor of the server: psycopg2 would otherwise load the whole table
                # into memory.
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
