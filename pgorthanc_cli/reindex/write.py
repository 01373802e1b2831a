"""Rows of a batch compared with the index in SQL; what differs is written, in one short transaction.

Lock order: resources first, ascending, as the deletion of a patient takes them; then their
rows, ascending. A resource that another session is deleting is not waited for while others
are locked: Orthanc deletes an instance before its parents, and would wait for these.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from psycopg2 import errors as pg

from pgorthanc_cli import db, dicom, index, storage
from pgorthanc_cli.db import planted
from pgorthanc_cli.index import copy_cell
from pgorthanc_cli.reindex.model import (
    SEQUENCES,
    SIGNATURE,
    SOP_CLASS,
    TRANSFER_SYNTAX,
    Decided,
    Done,
    Kind,
    Settings,
)

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

_COLLISIONS = (
    pg.SerializationFailure,
    pg.DeadlockDetected,
    pg.UniqueViolation,
    pg.ForeignKeyViolation,
    pg.LockNotAvailable,
)
_ATTEMPTS = 10  # as often as Orthanc tries by default (MaximumConnectionRetries)
_BUSY_ATTEMPTS = 5  # without waiting for a resource that another session has locked
_DICOM_AS_JSON = 2  # type of an attachment that no Orthanc since 1.9.1 writes

_Find = Callable[["Cursor"], list[tuple[int, str]]]
"""Notes what differs in the tables of the session; returns old attachments to remove."""


@dataclass
class Rows:
    """The rows of one resource as they should be: (table, key) to value."""

    resource: Decided
    values: dict[tuple[str, int], str] = field(default_factory=dict)


def rows_of(resource: Decided, instance: dicom.Instance, settings: Settings) -> Rows:
    """Return the rows that a file decides for a resource (STORAGE.md B3, B5)."""
    level = instance.levels[resource.level]
    rows = Rows(resource)
    for group, element, value in level.main_dicom_tags:
        rows.values["maindicomtags", group << 16 | element] = value
    for group, element, value in level.identifiers:
        rows.values["dicomidentifiers", group << 16 | element] = value
    kinds = [SIGNATURE]
    if not settings.limit_to_level:
        kinds += [SEQUENCES] + ([TRANSFER_SYNTAX, SOP_CLASS] if resource.level == index.INSTANCE else [])
    metadata = dict(level.metadata)
    if TRANSFER_SYNTAX not in metadata and instance.transfer_syntax and not settings.keep_first:
        # Where ingest leaves it out for bad file meta information, a reconstruction adds it.
        metadata[TRANSFER_SYNTAX] = instance.transfer_syntax
    for kind in kinds:
        if kind in metadata:
            rows.values["metadata", kind] = metadata[kind]
    return rows


def writing_alone(conn: db.Session, settings: Settings) -> AbstractContextManager[None]:
    """Keep other runs from writing during a block: theirs may have other tags.

    Raises:
        InUseError: Another run is writing; the message names its session.
    """
    if settings.dry_run:
        return nullcontext()
    return db.advisory_lock(conn, db.LOCK_REINDEX, wait_s=0)


class Writer:
    """Writes batches in a session of its own."""

    def __init__(self, conn: db.Session, settings: Settings) -> None:
        """Read what the index has, and create the tables for staging."""
        self.conn = conn
        self.settings = settings
        self.capabilities = index.Capabilities.read(conn)
        with conn.cursor() as cur:
            cur.execute(db.statement(__package__, "stage.sql"))
        conn.commit()
        self._area = storage.FilesystemArea(settings.storage_dir) if settings.storage_dir else None
        signatures = [level.signature for level in dicom.indexed_tags(settings.profile).levels]
        # An Orthanc before 1.11 has no sequences in its index either.
        handles_sequences = signatures[0] is not None and not settings.limit_to_level
        self._vanishing = [SEQUENCES] if handles_sequences else []

    def write(self, rows: Sequence[Rows]) -> Done:
        """Write what differs; repeat what collides with another session."""
        done, pending = Done(), list(rows)
        for attempt in itertools.count(1):
            busy, part = (
                self._repeated(partial(self._stage_and_compare, pending), attempt)
                if pending
                else (set(), Done())
            )
            done.add(part)
            existing = self._existing(busy)
            done.gone += len(busy) - len(existing)
            pending = [each for each in pending if each.resource.id in existing]
            if not pending:
                return done
            _back_off(attempt)
        raise AssertionError

    def repair(self, query: str, arguments: Mapping[str, Any]) -> Done:
        """Write what a query puts into the table of changes; repeat what collides."""

        def find(cur: Cursor) -> list[tuple[int, str]]:
            cur.execute(query, arguments)
            cur.execute(
                """INSERT INTO pg_temp.pgorthanc_resources SELECT internalid, resourcetype FROM index.resources
                   WHERE internalid IN (SELECT id FROM pg_temp.pgorthanc_changes)"""
            )
            return []

        done = Done()
        for attempt in itertools.count(1):
            busy, part = self._repeated(find, attempt)
            done.add(part)
            if not self._existing(busy):
                return done
            _back_off(attempt)
        raise AssertionError

    def _repeated(self, find: _Find, attempt: int) -> tuple[set[int], Done]:
        wait = attempt > _BUSY_ATTEMPTS
        for collision in range(1, _ATTEMPTS):
            try:
                return self._transaction(find, wait=wait)
            except _COLLISIONS:
                self.conn.rollback()
                _back_off(collision)
        return self._transaction(find, wait=wait)

    def _existing(self, ids: Iterable[int]) -> set[int]:
        if not ids:
            return set()
        query = "SELECT internalid FROM index.resources WHERE internalid = ANY(%s)"
        existing = {number for (number,) in db.rows(self.conn, query, list(ids))}
        self.conn.rollback()
        return existing

    def _transaction(self, find: _Find, *, wait: bool) -> tuple[set[int], Done]:
        """Write what differs in one transaction; return the resources that were locked, and what was done."""
        with self.conn.cursor() as cur:
            if self.settings.dry_run:
                cur.execute("SET TRANSACTION READ ONLY")
            else:
                planted.refuse_until_commit(self.conn)
            old = find(cur)
            busy: set[int] = set()
            if not self.settings.dry_run:
                busy = self._lock(cur, wait=wait)
                old = [(number, uuid) for number, uuid in old if number not in busy]
            done = self._count(cur, busy)
            if done.changed and not self.settings.dry_run:
                self._write(cur)
                self._delete_old(cur, old)
                self.conn.commit()
                # After the commit: a row without its file would be damage, a file without a row is not.
                if self._area:
                    for _, uuid in old:
                        self._area.delete(uuid, _DICOM_AS_JSON)
            else:
                self.conn.rollback()
        return busy, done

    # --- comparing ------------------------------------------------------------------------

    def _stage_and_compare(self, rows: Sequence[Rows], cur: Cursor) -> list[tuple[int, str]]:
        """Note what differs; return old attachments of type 2, which a reconstruction removes."""
        encoding = self.capabilities.encoding
        resources = "".join(f"{each.resource.id}\t{each.resource.level}\n" for each in rows)
        lines = "".join(
            f"{table}\t{each.resource.id}\t{key}\t{copy_cell(value)}\n"
            for each in rows
            for (table, key), value in each.values.items()
        )
        for table, text in (("pgorthanc_resources", resources), ("pgorthanc_rows", lines)):
            copy = f"COPY pg_temp.{table} FROM STDIN (ENCODING '{encoding}')"
            cur.copy_expert(copy, BytesIO(text.encode()))
        ids = [each.resource.id for each in rows]
        query = db.statement(__package__, "compare.sql")
        cur.execute(query, {"ids": ids, "vanishing": self._vanishing})
        instances = [each.resource.id for each in rows if each.resource.level == index.INSTANCE]
        if self.settings.limit_to_level or not instances:
            return []
        return self._find_old(cur, instances)

    def _find_old(self, cur: Cursor, instances: list[int]) -> list[tuple[int, str]]:
        # Where a storage plugin keeps such a file, only Orthanc can remove it.
        ours = "true"
        if self.capabilities.custom_data:
            ours = "COALESCE(a.customdata, '') = ''"
        elif self.capabilities.preserved_custom_data:
            ours = """NOT EXISTS (SELECT FROM index.pgorthanc_kept_customdata k
                WHERE k.id = a.id AND k.filetype = a.filetype AND k.uuid = a.uuid)"""
        cur.execute(
            f"""INSERT INTO pg_temp.pgorthanc_changes (relation, id, key, change, value)
                SELECT 'attachedfiles', a.id, a.filetype, 'extra', a.uuid FROM index.attachedfiles a
                WHERE a.id = ANY(%s) AND a.filetype = {_DICOM_AS_JSON} AND {ours}
                RETURNING id, value""",  # noqa: S608 - constants
            (instances,),
        )
        return list(cur.fetchall())

    def _lock(self, cur: Cursor, *, wait: bool) -> set[int]:
        """Keep resources from being deleted; return those that are locked by others, or gone."""
        cur.execute("SELECT DISTINCT id FROM pg_temp.pgorthanc_changes")
        ids = {number for (number,) in cur.fetchall()}
        if not ids:
            return set()
        # KEY SHARE: enough against deletion, and Orthanc can still insert children.
        how = "" if wait else "SKIP LOCKED"
        cur.execute(
            f"""SELECT internalid FROM index.resources WHERE internalid = ANY(%s)
                ORDER BY internalid FOR KEY SHARE {how}""",  # noqa: S608 - constants
            (sorted(ids),),
        )
        busy = ids - {number for (number,) in cur.fetchall()}
        if busy:
            cur.execute("DELETE FROM pg_temp.pgorthanc_changes WHERE id = ANY(%s)", (list(busy),))
        return busy

    def _count(self, cur: Cursor, busy: set[int]) -> Done:
        done = Done()
        cur.execute(
            "SELECT level, count(*) FROM pg_temp.pgorthanc_resources WHERE id <> ALL (%s) GROUP BY 1",
            (list(busy),),
        )
        done.resources = Counter(dict(cur.fetchall()))
        cur.execute(
            """SELECT r.level, c.relation, c.key, c.change, count(*) FROM pg_temp.pgorthanc_changes c
               JOIN pg_temp.pgorthanc_resources r ON r.id = c.id GROUP BY 1, 2, 3, 4"""
        )
        for level, table, key, change, count in cur.fetchall():
            done.kinds[Kind(level, table, key, change)] = count
        if done.kinds:
            cur.execute(
                """SELECT level, count(*) FROM pg_temp.pgorthanc_resources r
                   WHERE EXISTS (SELECT FROM pg_temp.pgorthanc_changes c WHERE c.id = r.id) GROUP BY 1"""
            )
            done.changed = Counter(dict(cur.fetchall()))
        return done

    # --- writing --------------------------------------------------------------------------

    def _write(self, cur: Cursor) -> None:
        for table in ("maindicomtags", "dicomidentifiers"):
            cur.execute(
                f"""DELETE FROM index.{table} t USING pg_temp.pgorthanc_changes c
                    WHERE c.relation = '{table}' AND c.change = 'extra' AND t.id = c.id
                        AND t.taggroup = c.key / 65536 AND t.tagelement = c.key % 65536;
                    INSERT INTO index.{table} (id, taggroup, tagelement, value)
                    SELECT id, key / 65536, key % 65536, value FROM pg_temp.pgorthanc_changes
                    WHERE relation = '{table}' AND change <> 'extra' ORDER BY id, key
                    ON CONFLICT (id, taggroup, tagelement) DO UPDATE SET value = excluded.value"""  # noqa: S608
            )
        cur.execute(
            """DELETE FROM index.metadata m USING pg_temp.pgorthanc_changes c
               WHERE c.relation = 'metadata' AND c.change = 'extra' AND m.id = c.id AND m.type = c.key;
               INSERT INTO index.metadata AS m (id, type, value, revision)
               SELECT id, key, value, 0 FROM pg_temp.pgorthanc_changes
               WHERE relation = 'metadata' AND change <> 'extra' ORDER BY id, key
               ON CONFLICT (id, type) DO UPDATE
                   SET value = excluded.value, revision = COALESCE(m.revision, 0) + 1
                   WHERE m.value IS DISTINCT FROM excluded.value"""
        )

    def _delete_old(self, cur: Cursor, old: Sequence[tuple[int, str]]) -> None:
        """Delete rows of attachments, and their large objects; triggers count the sizes."""
        if not old:
            return
        # The trigger records each in a table, which the session has to create since revision 2.
        cur.execute(
            "SELECT to_regproc(quote_ident(index_schema()) || '.createdeletedfilestemporarytable') IS NOT NULL"
        )
        ((has_function,),) = cur.fetchall()
        cur.execute(
            "SELECT createdeletedfilestemporarytable()" if has_function else "DELETE FROM deletedfiles"
        )
        ids = [number for number, _ in old]
        cur.execute(
            "DELETE FROM index.attachedfiles WHERE id = ANY(%s) AND filetype = %s AND uuid = ANY(%s)",
            (ids, _DICOM_AS_JSON, [uuid for _, uuid in old]),
        )
        cur.execute("DELETE FROM deletedfiles")
        if self._area is None:
            objects = storage.LargeObjectArea(self.conn)
            for _, uuid in old:
                objects.delete(uuid, _DICOM_AS_JSON)


def _back_off(attempt: int) -> None:
    time.sleep(random.uniform(0, 0.02 * attempt))  # noqa: S311 - only to get out of step
