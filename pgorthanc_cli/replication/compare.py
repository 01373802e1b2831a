"""Whether a standby holds what its primary holds."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.schema.status import status

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

Counts = dict[str, int | str | None]

SAME, NOT = "none", "not compared"
_COUNTED = ("revision", "patients", "studies", "series", "instances")


def at(target: db.Target, host: str, port: int) -> db.Target:
    """The same database and login on another server."""
    given = {
        k: v for k, v in db.parse_dsn(target.dsn).items() if k not in ("hostaddr", "target_session_attrs")
    }
    return replace(target, dsn=make_dsn(**{**given, "host": host, "hostaddr": "", "port": str(port)}))


def counts(conn: Connection, schema: str) -> Counts:
    """The index of a server: its revision, and how many resources it has."""
    found = status(conn, schema)
    return {name: getattr(found, name) for name in _COUNTED}


def compare(primary: db.Target, standby: db.Target, *, wait_s: float = 60.0) -> tuple[Counts, str]:
    """The index as the standby has it, and in what it differs from that of the primary: `none` if in nothing.

    While somebody writes, the two are compared until they agree, up to `wait_s` seconds.

    Raises:
        ConnectError: One of them does not let us in.
        RevisionError: The primary holds no index.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with db.session(primary, readonly=True) as conn:
            wanted = counts(conn, primary.schema)
            conn.commit()
            lsn = one(conn, "SELECT pg_current_wal_lsn()::text")
        wait_for(standby, lsn, max(deadline - time.monotonic(), 1.0))
        with db.session(standby, readonly=True) as conn:
            found = counts(conn, standby.schema)
        if found == wanted:
            return found, SAME
        if time.monotonic() > deadline:
            pairs = ", ".join(
                f"{k} {wanted[k]} there and {v} here" for k, v in found.items() if v != wanted[k]
            )
            return found, pairs


def wait_for(standby: db.Target, lsn: str, timeout_s: float) -> None:
    """Wait until a standby has replayed the log up to a place.

    Raises:
        PgOrthancError: It has not in time.
    """
    deadline = time.monotonic() + timeout_s
    with db.session(standby, readonly=True, autocommit=True, need_schema=False) as conn:
        while not one(conn, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn):
            if time.monotonic() > deadline:
                reached = one(conn, "SELECT pg_last_wal_replay_lsn()::text")
                raise PgOrthancError(
                    f"the standby has replayed its log up to {reached} after {timeout_s:.0f} s, wanted {lsn}",
                    "its log says why; pgorthanc replication status shows the lag",
                )
            time.sleep(0.05)


def one(conn: Connection, query: str, *values: object) -> Any:
    """The one value of a query."""
    with conn.cursor() as cur:
        cur.execute(query, values or None)
        row = cur.fetchone()
    return row[0] if row else None
