"""What an index is like and what it already has; nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli.db import encoding
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.index.model import INSTANCE

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor


@dataclass(frozen=True)
class Capabilities:
    """What this index has, by its revision."""

    recycling_table: bool  # up to revision 5: table PatientRecyclingOrder; later metadata 19
    recycling_function: bool  # from revision 2: patientaddedorupdated
    child_count: bool  # from revision 3
    direct_child_count: bool  # revision 3 alone: the trigger spoils a childcount of NULL
    delete_function: bool  # from revision 2: deleteresource
    unique_ids: bool  # from revision 2: no public id twice
    counter_notes: bool  # from revision 2: table GlobalIntegersChanges
    custom_data: bool  # from revision 5: where a storage plugin keeps a file
    kept_custom_data: bool  # the same, put aside by a downgrade
    triggers_off: bool  # this role may switch the triggers off, and they are Orthanc's alone
    encoding: str  # the server takes Orthanc's bytes, which are UTF-8, for this encoding

    @classmethod
    def read(cls, conn: Connection) -> Capabilities:
        """Read it from the catalog, never from property 4.

        Raises:
            RevisionError: There is no index here, or one older than revision 1 (plugin 3.3 and before).
        """
        with conn.cursor() as cur:
            cur.execute(
                """SELECT to_regclass(here || 'metadata') IS NOT NULL,
                    to_regclass(here || 'patientrecyclingorder') IS NOT NULL,
                    to_regproc(here || 'patientaddedorupdated') IS NOT NULL,
                    to_regproc(here || 'deleteresource') IS NOT NULL,
                    to_regclass(here || 'invalidchildcounts') IS NOT NULL,
                    EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(here || 'resources')
                            AND attname = 'childcount' AND NOT attisdropped),
                    EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(here || 'metadata')
                            AND attname = 'revision' AND NOT attisdropped),
                    to_regclass(here || 'uniquepublicid') IS NOT NULL,
                    to_regclass(here || 'globalintegerschanges') IS NOT NULL,
                    EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(here || 'attachedfiles')
                            AND attname = 'customdata' AND NOT attisdropped),
                    to_regclass(here || 'pgorthanc_kept_customdata') IS NOT NULL
                   FROM (SELECT quote_ident(index_schema()) || '.') place (here)"""
            )
            (row,) = cur.fetchall()
        index, table, touch, delete, marks, count, revisions, unique, notes, custom, kept = row
        if not index:
            raise RevisionError("there is no Orthanc index in this schema", "run: pgorthanc init")
        if not revisions:
            raise RevisionError(
                "the index is older than revision 1 (made by plugin 3.3 or before), expected 1 to 10",
                "run: pgorthanc upgrade",
            )
        off = _may_switch_triggers_off(conn) and _only_known_triggers(conn)
        text = encoding.of_orthanc(conn)
        return cls(table, touch, count, count and not marks, delete, unique, notes, custom, kept, off, text)


# Of all revisions (SCHEMA.md 3), on the tables that a new instance has rows in.
_TRIGGERS = [
    "attachedfiledecrementsize", "attachedfiledeleted", "attachedfileincrementsize", "insertedchange",
    "countresourcestracker", "incrementresourcestracker", "decrementresourcestracker",
    "incrementchildcount", "decrementchildcount", "patientadded", "resourcedeleted",
]  # fmt: skip
_TABLES = ["resources", "maindicomtags", "dicomidentifiers", "metadata", "attachedfiles", "changes"]


def _may_switch_triggers_off(conn: Connection) -> bool:
    """A superuser may, and since PostgreSQL 15 whoever was granted SET ON PARAMETER session_replication_role."""
    granted = "false"
    if conn.server_version >= 150000:
        granted = "has_parameter_privilege('session_replication_role', 'SET')"
    with conn.cursor() as cur:
        cur.execute(f"SELECT current_setting('is_superuser')::boolean OR {granted}")
        return cur.fetchone() == (True,)


def _only_known_triggers(conn: Connection) -> bool:
    """Somebody's own trigger, or one that is switched off, means something that we do not know."""
    with conn.cursor() as cur:
        cur.execute(
            """SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal
               AND tgrelid = ANY (ARRAY(
                   SELECT to_regclass(quote_ident(index_schema()) || '.' || name) FROM unnest(%s) name))
               AND (tgname <> ALL (%s) OR tgenabled <> 'O')""",
            (_TABLES, _TRIGGERS),
        )
        return cur.fetchone() == (0,)


def stored_instances(cur: Cursor, public_ids: Sequence[str]) -> set[str]:
    """Which of these instances are stored already."""
    cur.execute(
        "SELECT publicid FROM index.resources WHERE publicid = ANY(%s) AND resourcetype = %s",
        (list(public_ids), INSTANCE),
    )
    return {row[0] for row in cur.fetchall()}


class StoredAttachment(NamedTuple):
    """One attachment of a stored instance: its DICOM file (type 1), or that until the pixel data (type 3).

    Attributes:
        instance: Internal id.
        file_type: 1 or 3.
        uuid: Its name in the storage area.
        size: Bytes, uncompressed.
        md5: Of these bytes; empty: not recorded (StoreMD5ForAttachments false, or a damaged row).
        stored_size: Bytes in the storage area.
        stored_md5: Of those bytes; empty: not recorded.
        compression_type: 1: none, 2: zlib.
        elsewhere: A storage plugin keeps it in a place of its own.
    """

    instance: int
    file_type: int
    uuid: str
    size: int
    md5: str
    stored_size: int
    stored_md5: str
    compression_type: int
    elsewhere: bool


def stored_attachments(
    cur: Cursor, capabilities: Capabilities, public_ids: Sequence[str]
) -> dict[str, list[StoredAttachment]]:
    """The instances among these public ids that are stored, with their DICOM attachments."""
    elsewhere = "false"
    if capabilities.custom_data:
        elsewhere = "COALESCE(a.customdata <> '', false)"
    elif capabilities.kept_custom_data:
        elsewhere = """EXISTS (SELECT FROM index.pgorthanc_kept_customdata k
                               WHERE k.id = a.id AND k.filetype = a.filetype AND k.uuid = a.uuid)"""
    cur.execute(
        f"""SELECT r.publicid, r.internalid, a.filetype, a.uuid, a.uncompressedsize, COALESCE(a.uncompressedhash, ''),
                   a.compressedsize, COALESCE(a.compressedhash, ''), a.compressiontype, {elsewhere}
            FROM index.resources r LEFT JOIN index.attachedfiles a ON a.id = r.internalid AND a.filetype IN (1, 3)
            WHERE r.publicid = ANY(%s) AND r.resourcetype = %s
            ORDER BY r.internalid, a.filetype""",  # noqa: S608 - constants
        (list(public_ids), INSTANCE),
    )
    found: dict[str, list[StoredAttachment]] = {}
    for public_id, *attachment in cur.fetchall():
        attachments = found.setdefault(public_id, [])
        if attachment[1] is not None:
            attachments.append(StoredAttachment(*attachment))
    return found


def missing_large_objects(cur: Cursor, uuids: Sequence[str]) -> set[str]:
    """Which of these attachments have no large object: no row in `storagearea`, or one that points to nothing."""
    cur.execute("SELECT to_regclass(quote_ident(index_schema()) || '.storagearea') IS NULL")
    if cur.fetchone() == (True,):
        return set(uuids)
    cur.execute(
        """SELECT wanted.uuid FROM pg_catalog.unnest(%s::text[]) AS wanted (uuid)
           LEFT JOIN index.storagearea s ON s.uuid = wanted.uuid
           LEFT JOIN pg_catalog.pg_largeobject_metadata m ON m.oid = s.content
           WHERE m.oid IS NULL""",
        (list(uuids),),
    )
    return {row[0] for row in cur.fetchall()}


def still_referenced(cur: Cursor, attachments: Sequence[StoredAttachment], *, lock: bool = False) -> set[str]:
    """The uuids of those attachments that are still in the index; `lock`: until the transaction ends."""
    query = "SELECT uuid FROM index.attachedfiles WHERE id = ANY(%s) AND uuid = ANY(%s) ORDER BY id, filetype"
    cur.execute(
        f"{query} FOR UPDATE" if lock else query,
        ([a.instance for a in attachments], [a.uuid for a in attachments]),
    )
    return {row[0] for row in cur.fetchall()}


def referenced_uuids(cur: Cursor, uuids: Sequence[str]) -> set[str]:
    """Which of these UUIDs a row of the index names; reads the whole table, for want of an index on uuid."""
    cur.execute("SELECT uuid FROM index.attachedfiles WHERE uuid = ANY(%s)", (list(uuids),))
    return {row[0] for row in cur.fetchall()}


def check_sequences(cur: Cursor) -> None:
    """Sequences that are behind their table would make every insert fail (INGEST.md 13).

    Raises:
        RevisionError: Names the sequence, where it stands, and the statement that mends it.
    """
    for table, column in (("resources", "internalid"), ("changes", "seq")):
        sequence = f"{table}_{column}_seq"
        cur.execute(
            f"SELECT last_value, COALESCE((SELECT max({column}) FROM index.{table}), 0) FROM index.{sequence}"  # noqa: S608 - constants
        )
        ((last, highest),) = cur.fetchall()
        if last < highest:
            raise RevisionError(
                f"the sequence {sequence} stands at {last}, behind the highest {column} {highest}",
                f"let its owner run: SELECT setval('{sequence}', {highest})",
            )


def identity(cur: Cursor) -> str:
    """What tells this index from every other: server, database and table, whatever they are called."""
    cur.execute(
        """SELECT concat_ws('/', s.system_identifier, d.oid,
                  to_regclass(quote_ident(index_schema()) || '.resources')::oid)
           FROM pg_control_system() s, pg_database d WHERE d.datname = current_database()"""
    )
    ((found,),) = cur.fetchall()
    return str(found)
