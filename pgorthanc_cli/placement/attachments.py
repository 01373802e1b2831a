"""The rows of the index that a move is about, in the order of its primary key, in short transactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone

from pgorthanc_cli import db, index
from pgorthanc_cli.errors import PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.placement.model import ADVANCED, MoveSettings, Row
from pgorthanc_cli.text import plural, printable

_FETCHED = 5000
_LAST_UPDATE = 7  # metadata of a study
_COLUMNS = "a.id, a.filetype, a.uuid, a.compressedsize, COALESCE(a.compressedhash, '')"
_CONTENT_TYPE = "CASE WHEN a.filetype BETWEEN 1 AND 3 THEN a.filetype ELSE 0 END"


class Attachments:
    """Reads the rows of one index."""

    def __init__(self, conn: db.Session, settings: MoveSettings) -> None:
        """Take the open session.

        Raises:
            PgOrthancError: A storage plugin keeps attachments elsewhere.
            RevisionError: There is no index, or no storage area for large objects.
        """
        self.conn = conn
        self.settings = settings
        self._require_known_places(index.Capabilities.read(conn))
        self.selected = self._condition()
        conn.rollback()

    def _require_known_places(self, capabilities: index.Capabilities) -> None:
        """Refuse what is not where the configuration says: customdata names another place."""
        if self.settings.source.folder is None and not self.has_storage_area():
            raise RevisionError(
                "there is no storage area for large objects in this schema, expected the table storagearea",
                "name the folder of the files with --from-dir, if Orthanc stores files",
            )
        if ADVANCED in (self.settings.source.kind, self.settings.target.kind):
            if not capabilities.custom_data:
                raise RevisionError(
                    "the index has no customdata, in which the advanced-storage plugin keeps where files are",
                    "it exists from revision 5 on; run: pgorthanc upgrade",
                )
            return
        # One is enough to refuse: half of an archive in another place is worse than all of it here.
        count = 0
        if capabilities.custom_data:
            query = "SELECT count(*) FROM index.attachedfiles WHERE customdata <> ''"
            count = db.value(self.conn, query)
        elif capabilities.preserved_custom_data:
            count = db.value(self.conn, "SELECT count(*) FROM index.pgorthanc_kept_customdata")
        if count:
            raise PgOrthancError(
                f"a storage plugin keeps {plural(count, 'attachment')} in places of its own (customdata), which "
                "only Orthanc's configuration names",
                "give --config, without --from-dir; to see where they are, run: pgorthanc storage show",
            )

    def has_storage_area(self) -> bool:
        """Return whether the schema has the table of large objects."""
        query = "SELECT to_regclass(quote_ident(index_schema()) || '.storagearea') IS NOT NULL"
        exists: bool = db.value(self.conn, query)
        self.conn.rollback()
        return exists

    def _condition(self) -> str:
        """Return what selects the resources, as SQL on their internal ids.

        Raises:
            UsageError: The index does not have one of the studies.
        """
        ids: list[int] | None = None
        if self.settings.studies:
            query = "SELECT publicid, internalid FROM index.resources WHERE resourcetype = 1 AND publicid = ANY(%s)"
            known = dict(db.rows(self.conn, query, list(self.settings.studies)))
            for study in self.settings.studies:
                if study not in known:
                    raise UsageError(
                        f"the index has no study {printable(study)}",
                        "give the identifier that Orthanc shows in its address, not the StudyInstanceUID",
                    )
            ids = list(known.values())
        if self.settings.older_than_s is not None:
            # LastUpdate is UTC, as in 20260131T235959: its order is that of time.
            limit = datetime.now(timezone.utc) - timedelta(seconds=self.settings.older_than_s)
            query = f"""SELECT m.id FROM index.metadata m JOIN index.resources r ON r.internalid = m.id
                WHERE m.type = {_LAST_UPDATE} AND r.resourcetype = 1 AND m.value < %s"""  # noqa: S608
            old = {study for (study,) in db.rows(self.conn, query, limit.strftime("%Y%m%dT%H%M%S"))}
            ids = [study for study in ids if study in old] if ids is not None else sorted(old)
        if ids is None:
            return "true"
        numbers = ", ".join(map(str, ids)) or "NULL"
        return f"""a.id IN (SELECT internalid FROM index.resources
                WHERE internalid IN ({numbers}) OR parentid IN ({numbers})
            UNION SELECT instance.internalid FROM index.resources series
                JOIN index.resources instance ON instance.parentid = series.internalid
                WHERE series.parentid IN ({numbers}))"""  # noqa: S608 - numbers

    def total(self) -> tuple[int, int]:
        """Return the number of attachments, and their stored bytes."""
        query = f"""SELECT count(*), COALESCE(sum(compressedsize), 0)::int8 FROM index.attachedfiles a
                    WHERE {self.selected}"""  # noqa: S608 - constants and numbers
        count, size = db.row(self.conn, query) or (0, 0)
        self.conn.rollback()
        return count, size

    def all(self) -> Iterator[Row]:
        """Yield all rows in the order of their internal ids."""
        # A query for each piece: one that lasts for hours would keep VACUUM from its work.
        last = (-1, -1)
        query = f"""SELECT {_COLUMNS} FROM index.attachedfiles a
            WHERE (a.id, a.filetype) > (%s, %s) AND {self.selected}
            ORDER BY a.id, a.filetype LIMIT {_FETCHED}"""  # noqa: S608 - constants and numbers
        while rows := db.rows(self.conn, query, *last):
            self.conn.rollback()
            yield from (Row(*row) for row in rows)
            last = rows[-1][:2]
        self.conn.rollback()

    def by_uuid(self) -> Iterator[Row]:
        """Yield all rows in the order of their UUIDs, from one snapshot."""
        yield from self._streamed("true", 'ORDER BY a.uuid COLLATE "C"')

    def without_object(self) -> Iterator[Row]:
        """Yield the rows that have no large object, from one snapshot."""
        yield from self._streamed(
            f"""NOT EXISTS (SELECT FROM index.storagearea s
                            WHERE s.uuid = a.uuid AND s.type = {_CONTENT_TYPE})"""
        )

    def _streamed(self, condition: str, order: str = "") -> Iterator[Row]:
        # One snapshot: a file that is stored meanwhile must not shift what is compared.
        with self.conn.cursor("pgorthanc_attachments") as cur:
            cur.itersize = _FETCHED
            cur.execute(f"SELECT {_COLUMNS} FROM index.attachedfiles a WHERE {condition} {order}")  # noqa: S608
            for row in cur:
                yield Row(*row)
        self.conn.rollback()

    def existing(self, rows: Sequence[Row]) -> set[Row]:
        """Return which of these rows are still there."""
        result = set()
        for start in range(0, len(rows), _FETCHED):
            ids = [row.resource for row in rows[start : start + _FETCHED]]
            query = f"SELECT {_COLUMNS} FROM index.attachedfiles a WHERE a.id = ANY(%s)"  # noqa: S608
            result |= {Row(*row) for row in db.rows(self.conn, query, ids)}
        self.conn.rollback()
        return result

    def unknown_objects(self) -> int:
        """Return how many large objects of the storage area no row names."""
        query = f"""SELECT count(*) FROM index.storagearea s WHERE NOT EXISTS (
            SELECT FROM index.attachedfiles a WHERE a.uuid = s.uuid AND s.type = {_CONTENT_TYPE})"""  # noqa: S608
        count: int = db.value(self.conn, query)
        self.conn.rollback()
        return count

    def most_locks(self) -> int:
        """Return how many objects the sessions of the server can have locked together."""
        # PostgreSQL's own formula for the size of its lock table.
        query = """SELECT current_setting('max_locks_per_transaction')::int
            * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int)"""
        count: int = db.value(self.conn, query)
        self.conn.rollback()
        return count
