"""What an index has and what it already holds; nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli import catalogs, db
from pgorthanc_cli.db import encoding
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.index.model import INSTANCE

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor


class Capabilities(NamedTuple):
    """What this index has (named as in `schema.features`), and what this session may do.

    Attributes:
        recycling_table: Up to revision 5: table PatientRecyclingOrder; later revisions
            use metadata 19.
        recycling_function: Function patientaddedorupdated.
        delete_function: Function deleteresource.
        child_counts: Resources have their number of children.
        direct_child_counts: The trigger counts itself, and corrupts a number that is NULL
            (revision 3).
        unique_public_ids: No public id occurs twice.
        statistics_deltas: Changes of the counters go to GlobalIntegersChanges.
        custom_data: Attachments have data of the storage plugin.
        preserved_custom_data: A downgrade has moved such data to a table of its own.
        only_known_triggers: All row triggers are Orthanc's, whose work we know, and enabled.
        triggers_off: They are, and this role may switch them off, and those of foreign keys.
        owner_triggers_off: They are, and this role owns the tables, so that it may disable
            them within a transaction, though not those of foreign keys.
        encoding: The client encoding in which Orthanc's UTF-8 reaches the server (see
            `db.encoding`).
    """

    recycling_table: bool
    recycling_function: bool
    delete_function: bool
    child_counts: bool
    direct_child_counts: bool
    unique_public_ids: bool
    statistics_deltas: bool
    custom_data: bool
    preserved_custom_data: bool
    only_known_triggers: bool
    triggers_off: bool
    owner_triggers_off: bool
    encoding: str

    @classmethod
    def read(cls, conn: Connection) -> Capabilities:
        """Read the capabilities from the catalog of the database.

        Raises:
            RevisionError: There is no index here, or one older than revision 1 (plugin
                3.3 and before).
        """
        with conn.cursor() as cur:
            cur.execute(db.statement(__package__, "capabilities.sql"))
            (row,) = cur.fetchall()
            has = {column.name: value for column, value in zip(cur.description or (), row, strict=True)}
        if not has.pop("index"):
            raise RevisionError("there is no Orthanc index in this schema", "run: pgorthanc init")
        if not has.pop("metadata_revisions"):
            raise RevisionError(
                "the index is older than revision 1 (created by plugin 3.3 or before), expected 1 to "
                f"{catalogs.revisions()[-1]}",
                "run: pgorthanc upgrade",
            )
        has_marks = has.pop("child_count_marks")
        only_known = has_only_known_triggers(conn)
        return cls(
            **has,
            direct_child_counts=has["child_counts"] and not has_marks,
            only_known_triggers=only_known,
            triggers_off=only_known and _may_switch_triggers_off(conn),
            owner_triggers_off=only_known and _may_disable_triggers(conn),
            encoding=encoding.of_orthanc(conn),
        )


# Of all revisions (SCHEMA.md 3), on the tables that a new instance has rows in.
_TRIGGERS = [
    "attachedfiledecrementsize", "attachedfiledeleted", "attachedfileincrementsize", "insertedchange",
    "countresourcestracker", "incrementresourcestracker", "decrementresourcestracker",
    "incrementchildcount", "decrementchildcount", "patientadded", "resourcedeleted",
]  # fmt: skip
_TABLES = ["resources", "maindicomtags", "dicomidentifiers", "metadata", "attachedfiles", "changes"]
TABLES_WITH_TRIGGERS = ("resources", "attachedfiles", "changes")


def _may_switch_triggers_off(conn: Connection) -> bool:
    """Return whether this role may set session_replication_role.

    Superusers may, and since PostgreSQL 15 roles with SET ON PARAMETER
    session_replication_role.
    """
    granted = "false"
    if conn.server_version >= 150000:
        granted = "has_parameter_privilege('session_replication_role', 'SET')"
    return bool(db.value(conn, f"SELECT current_setting('is_superuser')::boolean OR {granted}"))


def _may_disable_triggers(conn: Connection) -> bool:
    """Return whether this role owns the tables with triggers, and may alter them quietly.

    ALTER TABLE would reach the children of a table, and wake an event trigger.
    """
    return bool(
        db.value(
            conn,
            """SELECT count(*) = %s AND NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtenabled <> 'D')
               FROM pg_class c
               WHERE c.relnamespace = to_regnamespace(quote_ident(index_schema()))
                   AND c.relname = ANY (%s) AND c.relkind = 'r' AND pg_has_role(c.relowner, 'USAGE')
                   AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid)""",
            len(TABLES_WITH_TRIGGERS),
            list(TABLES_WITH_TRIGGERS),
        )
    )


def has_only_known_triggers(conn: Connection) -> bool:
    """Return whether all triggers are Orthanc's, whose work we know, and enabled."""
    # Another trigger would be skipped, and one set to ENABLE ALWAYS fires all the same.
    others = db.value(
        conn,
        """SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal
           AND tgrelid = ANY (ARRAY(
               SELECT to_regclass(quote_ident(index_schema()) || '.' || name)
               FROM unnest(%s) name))
           AND (tgname <> ALL (%s) OR tgenabled <> 'O')""",
        _TABLES,
        _TRIGGERS,
    )
    return bool(others == 0)


def stored_instances(cur: Cursor, public_ids: Sequence[str]) -> set[str]:
    """Return which of these instances are stored."""
    cur.execute(
        "SELECT publicid FROM index.resources WHERE publicid = ANY(%s) AND resourcetype = %s",
        (list(public_ids), INSTANCE),
    )
    return {row[0] for row in cur.fetchall()}


class StoredAttachment(NamedTuple):
    """The DICOM file of a stored instance, or its beginning up to the pixel data.

    Attributes:
        instance: Internal id.
        file_type: 1 or 3.
        uuid: Its name in the storage area.
        size: Bytes, uncompressed.
        md5: Of these bytes; empty if not recorded (StoreMD5ForAttachments false, or a
            damaged row).
        stored_size: Bytes in the storage area.
        stored_md5: Of those bytes; empty if not recorded.
        compression_type: 1 none, 2 zlib.
        elsewhere: A storage plugin decides where the file is.
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
    """Return those of these instances that are stored, with their DICOM attachments."""
    # After a downgrade below revision 5, the data of a storage plugin are in a table of their own.
    elsewhere = "false"
    if capabilities.custom_data:
        elsewhere = "COALESCE(a.customdata <> '', false)"
    elif capabilities.preserved_custom_data:
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
    # An instance that has lost its attachments is stored all the same: hence LEFT JOIN.
    stored: dict[str, list[StoredAttachment]] = {}
    for public_id, *attachment in cur.fetchall():
        attachments = stored.setdefault(public_id, [])
        if attachment[1] is not None:
            attachments.append(StoredAttachment(*attachment))
    return stored


def stored_custom_data(cur: Cursor, public_ids: Sequence[str]) -> dict[str, bytes]:
    """Return what a storage plugin keeps about the DICOM files of these instances, empty for none."""
    cur.execute(
        """SELECT r.publicid, COALESCE(a.customdata, '') FROM index.resources r
           LEFT JOIN index.attachedfiles a ON a.id = r.internalid AND a.filetype = 1
           WHERE r.publicid = ANY(%s) AND r.resourcetype = %s""",
        (list(public_ids), INSTANCE),
    )
    return {public_id: bytes(data) for public_id, data in cur.fetchall()}


def missing_large_objects(cur: Cursor, uuids: Sequence[str]) -> set[str]:
    """Return which of these attachments have no row in `storagearea`, or no object."""
    cur.execute("SELECT to_regclass(quote_ident(index_schema()) || '.storagearea') IS NULL")
    if cur.fetchone() == (True,):
        return set(uuids)
    cur.execute(
        """SELECT attachment.uuid FROM pg_catalog.unnest(%s::text[]) AS attachment (uuid)
           LEFT JOIN index.storagearea s ON s.uuid = attachment.uuid
           LEFT JOIN pg_catalog.pg_largeobject_metadata m ON m.oid = s.content
           WHERE m.oid IS NULL""",
        (list(uuids),),
    )
    return {row[0] for row in cur.fetchall()}


def still_referenced(cur: Cursor, attachments: Sequence[StoredAttachment], *, lock: bool = False) -> set[str]:
    """Return the uuids still in the index; with `lock`, until the transaction ends."""
    # Ordered, so that two sessions lock the rows in the same order.
    query = "SELECT uuid FROM index.attachedfiles WHERE id = ANY(%s) AND uuid = ANY(%s) ORDER BY id, filetype"
    cur.execute(
        f"{query} FOR UPDATE" if lock else query,
        ([a.instance for a in attachments], [a.uuid for a in attachments]),
    )
    return {row[0] for row in cur.fetchall()}


def referenced_uuids(cur: Cursor, uuids: Sequence[str]) -> set[str]:
    """Return which of these uuids are in the index.

    Reads the whole table: there is no index on uuid.
    """
    cur.execute("SELECT uuid FROM index.attachedfiles WHERE uuid = ANY(%s)", (list(uuids),))
    return {row[0] for row in cur.fetchall()}


def check_sequences(cur: Cursor) -> None:
    """Check that no sequence is behind its table, or inserts would fail (INGEST.md 13).

    Raises:
        RevisionError: Names the sequences, their values, and the statements that repair them.
    """
    behind, repairs = [], []
    for table, column in (("resources", "internalid"), ("changes", "seq")):
        sequence = f"{table}_{column}_seq"
        # A sequence that has given no number yet has the last_value 1, too.
        cur.execute(
            f"""SELECT last_value - (NOT is_called)::integer,
                       COALESCE((SELECT max({column}) FROM index.{table}), 0),
                       quote_literal(format('%I.{sequence}', index_schema()))
                FROM index.{sequence}"""  # noqa: S608 - constants
        )
        ((last, highest, literal),) = cur.fetchall()
        if last < highest:
            behind.append(f"the sequence {sequence} stands at {last}, behind the highest {column} {highest}")
            repairs.append(f"SELECT setval({literal}, {highest});")
    if behind:
        raise RevisionError("; ".join(behind), f"let the owner of the index run: {' '.join(repairs)}")


def identity(cur: Cursor) -> str:
    """Return what identifies this index: ids of server, database and table."""
    cur.execute(
        """SELECT concat_ws('/', s.system_identifier, d.oid,
                  to_regclass(quote_ident(index_schema()) || '.resources')::oid)
           FROM pg_control_system() s, pg_database d WHERE d.datname = current_database()"""
    )
    ((text,),) = cur.fetchall()
    return str(text)
