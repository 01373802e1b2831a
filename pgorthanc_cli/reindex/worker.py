"""What a worker process does with a batch: read, parse, compare, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pgorthanc_cli import db
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.reindex.heads import Heads, Read
from pgorthanc_cli.reindex.model import INSTANCE, Done, Item, Settings, Unreadable
from pgorthanc_cli.reindex.write import Rows, Writer, rows_of
from pgorthanc_cli.workers import checkpoint


class Worker:
    """Works on batches, in a session of its own."""

    def __init__(self, target: db.Target, settings: Settings) -> None:
        """Connect with the first batch."""
        self.target = target
        self.settings = settings
        self._heads = Heads(settings)
        self._stack = ExitStack()
        self._writer: Writer | None = None

    def close(self) -> None:
        """Close the session."""
        self._writer = None
        self._stack.close()

    @property
    def writer(self) -> Writer:
        """The session that writes, opened when it is needed."""
        if self._writer is None:
            conn = self._stack.enter_context(db.session(self.target))
            self._writer = Writer(conn, self.settings)
        return self._writer

    def work(self, items: Sequence[Item], checkpoint: Callable[[], None] = checkpoint) -> Done:
        """Bring the rows that these files decide up to date."""
        writer = self.writer
        with db.translate_errors(writer.conn, self.target.schema):
            done, rows = Done(), list[Rows]()
            for read in self._heads.read(items, writer.conn, checkpoint):
                done.files += bool(read.bytes)
                done.bytes += read.bytes
                reason = read.reason or _mismatch(read)
                if reason:
                    item = read.item
                    done.unreadable.append(Unreadable(item.uuid, reason, item.public_id, item.study))
                elif read.instance:
                    rows += [rows_of(each, read.instance, self.settings) for each in read.item.decides]
            writer.conn.rollback()  # what reading large objects has begun
            # A file may be gone because Orthanc has deleted the instance while it was read.
            if done.unreadable:
                _leave_out_deleted(writer.conn, items, done)
            # In the order in which all writers lock, so that no two wait for each other.
            done.add(writer.write(sorted(rows, key=lambda each: each.resource.id)))
            done.again |= _decided_by_deleted(writer.conn, items)
        return done


def _leave_out_deleted(conn: db.Session, items: Sequence[Item], done: Done) -> None:
    """Leave out files whose attachment was deleted meanwhile: Orthanc deletes the row first."""
    stored = _stored(conn, [each.instance for each in done.unreadable])
    deleted = {each.instance for each in done.unreadable if each.uuid not in stored}
    done.unreadable = [each for each in done.unreadable if each.instance not in deleted]
    done.gone += len(deleted)
    done.again |= {item.patient for item in items if item.public_id in deleted}


def _decided_by_deleted(conn: db.Session, items: Sequence[Item]) -> set[int]:
    """Return the patients with a resource that was decided by a file which was deleted, or replaced, meanwhile.

    Whatever is deleted after this look was stored when the rows were written.
    """
    deciding = [item for item in items if any(each.level != INSTANCE for each in item.decides)]
    if not deciding:
        return set()
    stored = _stored(conn, [item.public_id for item in deciding])
    return {item.patient for item in deciding if item.uuid not in stored}


def _stored(conn: db.Session, instances: Sequence[str]) -> set[str]:
    """Return the UUIDs of the DICOM files of instances, empty for an instance without one."""
    query = """SELECT COALESCE(a.uuid, '') FROM index.resources r
        LEFT JOIN index.attachedfiles a ON a.id = r.internalid AND a.filetype = 1
        WHERE r.publicid = ANY(%s) AND r.resourcetype = 3"""
    uuids = {uuid for (uuid,) in db.rows(conn, query, list(instances))}
    conn.rollback()
    return uuids


def _mismatch(read: Read) -> str:
    """Return why a file is not that of its row, empty if it is."""
    if read.instance is None:
        return ""
    levels = read.instance.levels
    if levels[-1].public_id != read.item.public_id:
        return f"it holds instance {levels[-1].public_id}"
    for resource in read.item.decides:
        if levels[resource.level].public_id != resource.public_id:
            return f"it belongs to another {LEVELS[resource.level]} than its row"
    return ""


_worker: Worker | None = None


def call(target: db.Target, settings: Settings, items: Sequence[Item]) -> Done:
    """Let the worker of this process work on a batch."""
    global _worker
    if _worker is None or (_worker.target, _worker.settings) != (target, settings):
        _worker = Worker(target, settings)
    return _worker.work(items)
