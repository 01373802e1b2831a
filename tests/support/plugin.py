"""A session of Orthanc's PostgreSQL plugin, as far as an index can tell."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from psycopg2 import sql

from pgorthanc_cli import db

PATIENT, STUDY, SERIES, INSTANCE = range(4)
TREE = ("p", "p.s", "p.s.e", "p.s.e.i")
# What works in a schema of this name works in public.
SCHEMA = 'Or th"anc'


class Session:
    """A session of the plugin: each call is a transaction of its own, unless `conn.autocommit` is off."""

    def __init__(self, target: db.Target) -> None:
        self.conn = db.connect(target, autocommit=True)
        self.create_temporary_tables()

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        with self.conn.cursor() as cur:
            cur.execute(query, arguments or None)
            return cur.fetchall() if cur.description else []

    def value(self, query: str, *arguments: object) -> Any:
        return self.rows(query, *arguments)[0][0]

    def create_temporary_tables(self) -> None:
        self.rows("SELECT createdeletedfilestemporarytable()")

    def create(self, *public_ids: str | None) -> dict[str, int | None]:
        """Create an instance; the public ids stand for themselves and their ancestors."""
        with self.conn.cursor() as cur:
            cur.execute("SELECT * FROM createinstance(%s, %s, %s, %s)", public_ids)
            row = cur.fetchone()
            assert row
            assert cur.description
            return dict(zip((column.name for column in cur.description), row, strict=True))

    def instance(self, path: str) -> dict[str, int | None]:
        """Create an instance by its path: `p.s.e.i` lies in `p.s.e`, and so on."""
        return self.create(*itertools.accumulate(path.split("."), "{}.{}".format))

    def id(self, public_id: str) -> int:
        return int(self.value("SELECT internalid FROM resources WHERE publicid = %s", public_id))

    def attach(self, resource: int, kind: int, size: int | None) -> None:
        values = (resource, kind, f"uuid-{resource}-{kind}", size, size and 2 * size)
        self.rows(
            "INSERT INTO attachedfiles VALUES (%s, %s, %s, %s, %s, 1, 'md5', 'md5', 0, 'custom')", *values
        )

    def delete(self, public_id: str) -> tuple[int | None, str | None]:
        kind, parent = self.rows("SELECT * FROM deleteresource(%s)", self.id(public_id))[0]
        return kind, parent

    def public_ids(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT publicid FROM resources ORDER BY 1")]

    def deleted(self) -> list[tuple[int, str]]:
        return [(kind, name) for kind, name in self.rows("SELECT * FROM deletedresources ORDER BY 1, 2")]

    def statistics(self) -> tuple[int, ...]:
        """Patients, studies, series, instances, compressed and uncompressed size, brought up to date."""
        return self.rows("SELECT * FROM updatestatistics()")[0]

    def statistics_read_only(self) -> tuple[int, ...]:
        keys = (2, 3, 4, 5, 0, 1)
        return tuple(self.value("SELECT * FROM computestatisticsreadonly(%s)", key) for key in keys)

    def child_counts(self) -> dict[str, int | None]:
        return dict(self.rows("SELECT publicid, childcount FROM resources WHERE resourcetype < 3"))

    def metadata(self, resource: int, kind: int) -> str | None:
        found = self.rows("SELECT value FROM metadata WHERE id = %s AND type = %s", resource, kind)
        return found[0][0] if found else None


Open = Callable[[], Session]


@contextmanager
def opening(index: db.Target, kind: type[Session] = Session) -> Iterator[Open]:
    """Opens sessions on an index, which moves from public to another schema before."""
    with db.session(index) as conn, conn.cursor() as cur:
        cur.execute(sql.SQL("ALTER SCHEMA public RENAME TO {}").format(sql.Identifier(SCHEMA)))
        conn.commit()
    opened: list[Session] = []

    def open_one() -> Session:
        opened.append(kind(db.Target(index.dsn, schema=SCHEMA)))
        return opened[-1]

    yield open_one
    for session in opened:
        session.conn.close()


def flags(created: dict[str, int | None]) -> tuple[int | None, ...]:
    """Which levels a call of createinstance has made."""
    return tuple(value for name, value in created.items() if name.startswith("is_new"))


@contextmanager
def waiting(watcher: Session, session: Session, query: str, *arguments: object) -> Iterator[Future[Any]]:
    """Run a query in another session, and come back when it waits for a lock; then the block lets it go on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(session.rows, query, *arguments)
        pause = threading.Event()
        state = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
        while not future.done() and watcher.value(state, session.conn.info.backend_pid) != "Lock":
            pause.wait(0.005)
        assert not future.done(), future.result()
        yield future
