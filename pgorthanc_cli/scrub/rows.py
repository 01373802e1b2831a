"""The index's side of a check: rows of attachments in the order of their UUIDs, and single ones again.

There is no index on `attachedfiles.uuid` (SCHEMA.md 2), so a range of UUIDs costs a scan
of the table: few large ranges, each in a transaction of minutes, never of hours.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgorthanc_cli import db, index
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.errors import InUseError, PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.index.model import NEW_INSTANCE
from pgorthanc_cli.scrub import bulk, model
from pgorthanc_cli.scrub.model import Finding, Row, Settings
from pgorthanc_cli.storage import CHUNK_BYTES
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from pgorthanc_cli.index import Capabilities

_FETCHED = 5000
_SAMPLE = 200
_MANY = 10_000  # looked up together
_LOCK = (0x50474F52, 1)

_COLUMNS = """a.filetype, a.uncompressedsize, a.uncompressedhash,
    a.compressedsize, a.compressedhash, a.compressiontype"""
# The size of a large object by seeking to its end reads its last page only.
_OBJECT_SIZE = """CASE WHEN m.oid IS NOT NULL THEN (
    SELECT size FROM (
        SELECT lo_lseek64(fd, 0, 2) AS size, lo_close(fd)
        FROM (SELECT lo_open(m.oid, 262144) AS fd OFFSET 0) AS opened OFFSET 0) AS measured) END"""


class Place(NamedTuple):
    """The resource of an attachment: its level, its public id, and that of its study."""

    level: str
    public_id: str
    study: str | None


class Rows:
    """Reads the rows of one index; its session only reads."""

    def __init__(self, conn: db.Session, capabilities: Capabilities, settings: Settings) -> None:
        """Take the open session."""
        self.conn = conn
        self.settings = settings
        self._selected = self._condition()
        self._customdata = "NULL::bytea"
        if capabilities.custom_data:
            self._customdata = "NULLIF(a.customdata, ''::bytea)"
        elif capabilities.preserved_custom_data:  # a downgrade has put them aside
            self._customdata = """(SELECT k.customdata FROM index.pgorthanc_kept_customdata k
                WHERE k.id = a.id AND k.filetype = a.filetype AND k.uuid = a.uuid)"""

    def _condition(self) -> str:
        """Return what selects the resources to check, as SQL on their internal ids.

        Raises:
            UsageError: The index does not have one of the studies.
        """
        conditions = []
        if self.settings.studies:
            query = "SELECT publicid, internalid FROM index.resources WHERE resourcetype = 1 AND publicid = ANY(%s)"
            ids = dict(db.rows(self.conn, query, list(self.settings.studies)))
            self.conn.rollback()
            for study in self.settings.studies:
                if study not in ids:
                    raise UsageError(
                        f"the index has no study {printable(study)}",
                        "give the identifier that Orthanc shows in its address, not the StudyInstanceUID",
                    )
            numbers = ", ".join(map(str, ids.values()))
            conditions.append(
                f"""id IN (SELECT internalid FROM index.resources
                        WHERE internalid IN ({numbers}) OR parentid IN ({numbers})
                    UNION SELECT instance.internalid FROM index.resources series
                        JOIN index.resources instance ON instance.parentid = series.internalid
                        WHERE series.parentid IN ({numbers}))"""  # noqa: S608 - numbers
            )
        if self.settings.since is not None:
            conditions.append(
                f"""id IN (SELECT internalid FROM index.changes
                    WHERE seq > {self.settings.since} AND changetype = {NEW_INSTANCE})"""  # noqa: S608
            )
        return " AND ".join(conditions) or "true"

    def total(self) -> tuple[int, int, int]:
        """Return the number of attachments, their stored bytes, and how many are not in plain small files."""
        query = f"""SELECT count(*), COALESCE(sum(compressedsize), 0),
                count(*) FILTER (WHERE ({self._plain()}) IS NOT TRUE OR strpos(uuid, ' ') > 0)
            FROM index.attachedfiles a WHERE {self._selected}"""  # noqa: S608 - constants and numbers
        ((count, size, others),) = db.rows(self.conn, query)
        self.conn.rollback()
        return int(count), int(size), int(others)

    def sample(self) -> list[str]:
        """Return UUIDs of the newest and the oldest attachments in their usual place."""
        query = f"""SELECT a.uuid FROM index.attachedfiles a WHERE {self._customdata} IS NULL
                    ORDER BY a.id %s LIMIT {_SAMPLE}"""  # noqa: S608 - constants
        uuids = {uuid for order in ("", "DESC") for (uuid,) in db.rows(self.conn, query.replace("%s", order))}
        self.conn.rollback()
        return sorted(uuids)

    def require_readable_objects(self) -> int:
        """Check that there is a table `storagearea` whose objects this role may read; return its rows.

        Raises:
            RevisionError: There is no such table.
            PgOrthancError: The role may not read the large objects.
        """
        if not db.value(self.conn, "SELECT to_regclass(quote_ident(index_schema()) || '.storagearea')"):
            raise RevisionError(
                "there is no storage area in this schema, expected the table storagearea",
                "name the folder with --storage-dir, if Orthanc stores files",
            )
        count: int = db.value(self.conn, "SELECT count(*) FROM index.storagearea")
        if self.settings.depth != model.EXISTS:
            hidden = db.row(self.conn, db.statement(__package__, "hidden_objects.sql"))
            if hidden:
                role, owner = hidden
                raise PgOrthancError(
                    f"role {role} may not read the large objects of the storage area, which belong to {owner}",
                    f"log in as {owner}, this command only reads; or add --depth exists, which reads tables only",
                )
        self.conn.rollback()
        return count

    def identity(self) -> str:
        """Return what identifies this index."""
        with self.conn.cursor() as cur:
            identity = index.identity(cur)
        self.conn.rollback()
        return identity

    # --- in order -----------------------------------------------------------------------

    def names(self, first: str, end: str | None, digits: int) -> Generator[tuple[str, str, int], None, None]:
        """Yield the rows with first <= UUID < end, those whose names begin alike as one text.

        `str.split` is much faster than a tuple for each row.

        Yields:
            The first digits; UUIDs, each followed by what the listing of its part has if
            `content.shallow_problem` finds nothing (the size, or -1; to compare content, size
            and MD5 as `size-md5`), or by one of `bulk.NOT_PLAIN` and `bulk.NO_NAME`; the sum
            of the stored bytes.
        """
        expected = {
            model.EXISTS: "' -1'",
            model.SIZE: "' ' || a.compressedsize",
            model.HASH: "' ' || a.compressedsize || '-' || a.compressedhash",
        }[self.settings.depth]
        query = f"""SELECT left(a.uuid COLLATE "C", {digits}), string_agg(
                replace(a.uuid, ' ', '_') || CASE WHEN strpos(a.uuid, ' ') > 0 THEN ' {bulk.NO_NAME}'
                    WHEN {self._plain()} THEN {expected}
                    ELSE ' {bulk.NOT_PLAIN}' END, ' '),
                COALESCE(sum(a.compressedsize), 0)::int8
            FROM index.attachedfiles a
            WHERE {_limits(first, end) % {"column": "a.uuid"}}
            GROUP BY 1 ORDER BY left(a.uuid COLLATE "C", {digits})"""  # noqa: S608 - constants
        self.conn.autocommit = False
        with self.conn.cursor("pgorthanc_names") as cur:
            cur.itersize = 8
            cur.execute(query)
            yield from cur
        self.conn.rollback()

    def _plain(self) -> str:
        """Return the SQL for rows without customdata and, with sizes or MD5s, without a problem of their own."""
        plain = f"{self._customdata} IS NULL"
        if self.settings.depth == model.HASH:
            plain += f""" AND a.compressiontype = 1 AND a.compressedsize BETWEEN 0 AND {CHUNK_BYTES - 1}
                AND a.compressedsize = a.uncompressedsize
                AND a.compressedhash = a.uncompressedhash AND a.compressedhash ~ '^[0-9a-f]{{32}}$'"""
        if self.settings.depth == model.SIZE:
            plain += """ AND a.compressedsize IS NOT NULL AND a.uncompressedsize IS NOT NULL
                AND (a.compressedhash = '') = (a.uncompressedhash = '')
                AND (a.compressiontype = 2 OR a.compressiontype = 1 AND a.compressedsize = a.uncompressedsize)"""
            plain += " AND a.compressedhash <> ''" if self.settings.store_md5 else ""
        return plain

    def between(self, first: str, end: str | None, only: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield the rows with first <= UUID < end in byte order, from one snapshot.

        With large objects, also what is in `storagearea` only: a row whose `resource` is 0.
        `only`: of a filesystem area, these UUIDs.
        """
        limits = _limits(first, end)
        instance, join = "NULL", ""
        if self.settings.depth == model.IDENTITY:
            instance = "CASE WHEN r.resourcetype = 3 THEN r.publicid END"
            join = "LEFT JOIN index.resources r ON r.internalid = a.id"
        if self.settings.storage_dir:
            query = f"""SELECT a.uuid, a.id, {_COLUMNS}, {self._customdata}, 0, NULL::int, '', {instance}
                FROM (SELECT * FROM index.attachedfiles WHERE {self._selected}) a {join}
                WHERE {limits % {"column": "a.uuid"}} {"" if only is None else "AND a.uuid = ANY(%s)"}
                ORDER BY a.uuid COLLATE "C", a.id, a.filetype"""  # noqa: S608 - hexadecimal digits
        else:
            size = _OBJECT_SIZE if self.settings.depth != model.EXISTS else "NULL::bigint"
            # The plugin's type of content, as a column: a full join needs plain equality.
            content_type = "CASE WHEN filetype BETWEEN 1 AND 3 THEN filetype ELSE 0 END AS content_type"
            within = limits % {"column": "uuid"}
            query = f"""SELECT COALESCE(a.uuid, s.uuid), COALESCE(a.id, 0), {_COLUMNS},
                    {self._customdata}, COALESCE(m.oid, 0)::int8, {size}, '', {instance}
                FROM (SELECT *, {content_type} FROM index.attachedfiles WHERE {within} AND {self._selected}) a
                {"LEFT" if self.settings.is_partial else "FULL"} JOIN (SELECT * FROM index.storagearea WHERE {within}) s
                    ON s.uuid = a.uuid AND s.type = a.content_type
                LEFT JOIN pg_largeobject_metadata m ON m.oid = s.content {join}
                ORDER BY COALESCE(a.uuid, s.uuid) COLLATE "C", a.id, a.filetype"""  # noqa: S608
        self.conn.autocommit = False
        with self.conn.cursor("pgorthanc_rows") as cur:
            cur.itersize = _FETCHED
            cur.execute(query, None if only is None else [list(only)])
            while rows := cur.fetchmany(_FETCHED):
                for row in rows:
                    yield Row(*row)
        self.conn.rollback()

    # --- again --------------------------------------------------------------------------

    def current(self, rows: Sequence[Row]) -> dict[tuple[int, int, str], tuple[Row, Place]]:
        """Return those of these rows that are still there, as they are now, with their resources."""
        current = {}
        query = db.statement(__package__, "again.sql").replace("/* customdata */ NULL", self._customdata)
        for start in range(0, len(rows), _MANY):
            part = rows[start : start + _MANY]
            keys = [
                [row.resource for row in part],
                [row.file_type for row in part],
                [row.uuid for row in part],
            ]
            for *columns, level, public_id, study in db.rows(self.conn, query, *keys):
                # The large object stays the same: attachments are immutable.
                row = Row(*columns)
                place = Place(LEVELS[level] if level in range(4) else "", public_id, study)
                current[row.resource, row.file_type, row.uuid] = row, place
        self.conn.rollback()
        return current

    def of(self, findings: Sequence[Finding]) -> list[Row | None]:
        """Return the rows of findings of attachments as they are now; None: there is none any more."""
        query = "SELECT publicid, internalid FROM index.resources WHERE publicid = ANY(%s)"
        asked: list[Row | None] = []
        for start in range(0, len(findings), _MANY):
            part = findings[start : start + _MANY]
            ids = dict(db.rows(self.conn, query, [each.public_id for each in part]))
            asked += [
                Row(each.uuid or "", ids[each.public_id], each.file_type or 0, None, None, None, None, None)
                if each.public_id in ids
                else None
                for each in part
            ]
        current = self.current([row for row in asked if row])
        rows = (row and current.get((row.resource, row.file_type, row.uuid)) for row in asked)
        return [each[0] if each else None for each in rows]

    def of_instances(self, instances: Sequence[str]) -> list[Row]:
        """Return the rows of the DICOM files of instances."""
        query = """SELECT r.internalid, a.filetype, a.uuid FROM index.resources r
                   JOIN index.attachedfiles a ON a.id = r.internalid AND a.filetype = 1
                   WHERE r.publicid = ANY(%s) AND r.resourcetype = 3"""
        keys = db.rows(self.conn, query, list(instances))
        asked = [Row(uuid, id_, file_type, None, None, None, None, None) for id_, file_type, uuid in keys]
        return [row for row, _ in self.current(asked).values()]

    def with_objects(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows with the large objects that they have now."""
        query = "SELECT uuid, content::int8 FROM index.storagearea WHERE uuid = ANY(%s)"
        oids = dict(db.rows(self.conn, query, [row.uuid for row in rows]))
        self.conn.rollback()
        return [row._replace(oid=oids.get(row.uuid, 0), actual_size=row.stored_size) for row in rows]

    def known(self, uuids: Sequence[str]) -> set[str]:
        """Return which of these UUIDs the index has."""
        return self._among("SELECT uuid FROM index.attachedfiles WHERE uuid = ANY(%s)", uuids)

    def objects(self, uuids: Sequence[str]) -> set[str]:
        """Return which of these UUIDs are in the storage area of the database, if there is one."""
        if not db.value(self.conn, "SELECT to_regclass(quote_ident(index_schema()) || '.storagearea')"):
            self.conn.rollback()
            return set()
        return self._among("SELECT uuid FROM index.storagearea WHERE uuid = ANY(%s)", uuids)

    def _among(self, query: str, values: Sequence[str]) -> set[str]:
        result = set()
        for start in range(0, len(values), _MANY):
            result |= {value for (value,) in db.rows(self.conn, query, list(values[start : start + _MANY]))}
        self.conn.rollback()
        return result

    def attachments_of(self, instances: Sequence[str]) -> Mapping[str, str]:
        """Return the UUIDs of the DICOM files that the index has for these instances."""
        rows = db.rows(
            self.conn,
            """SELECT r.publicid, a.uuid FROM index.resources r
               JOIN index.attachedfiles a ON a.id = r.internalid AND a.filetype = 1
               WHERE r.publicid = ANY(%s) AND r.resourcetype = 3""",
            list(instances),
        )
        self.conn.rollback()
        return dict(rows)

    def pending_deletions(self) -> set[str]:
        """Return the paths that the storage plugin will delete later (STORAGE.md A11)."""
        if not db.value(self.conn, "SELECT to_regclass(quote_ident(index_schema()) || '.queues')"):
            self.conn.rollback()
            return set()
        rows = db.rows(self.conn, "SELECT value FROM index.queues WHERE queueid = 'advst-delayed-deletion'")
        self.conn.rollback()
        return {bytes(value).decode("utf-8", "surrogateescape") for (value,) in rows}

    def open_transactions(self) -> set[str]:
        """Return the open transactions of other sessions in this database.

        From pg_locks, which shows them to every role; pg_stat_activity hides its times.
        """
        rows = db.rows(self.conn, db.statement(__package__, "transactions.sql"))
        self.conn.rollback()
        return {transaction for (transaction,) in rows}


def require_alone(conn: db.Session) -> None:
    """Take the advisory lock of those who change the storage area until the end of the session.

    Raises:
        InUseError: Another session has it.
    """
    alone = db.value(conn, "SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", *_LOCK)
    conn.commit()
    if not alone:
        raise InUseError(
            "another verify storage that repairs is working on this index",
            "wait until it has finished",
        )


def _limits(first: str, end: str | None) -> str:
    """Return the condition first <= column < end in byte order, of hexadecimal digits."""
    limits = f"%(column)s COLLATE \"C\" >= '{first}'"
    return limits + (f" AND %(column)s COLLATE \"C\" < '{end}'" if end else "")
