"""Comparison of Orthanc's index on a standby with that on its primary."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError, RevisionError
from pgorthanc_cli.replication.survey import local_address
from pgorthanc_cli.schema.status import status
from pgorthanc_cli.server.cluster import Cluster

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

IndexCounts = dict[str, int | str | None]

SAME, NOT_COMPARED = "none", "not compared"
_COUNTED = ("revision", "patients", "studies", "series", "instances")


def compare_index(cluster: Cluster, database: db.Target | None) -> tuple[IndexCounts | None, str]:
    """Return the standby's index counts, and how they differ from the primary's."""
    if database is None:
        return None, NOT_COMPARED
    address = local_address(cluster.listen_addresses())
    try:
        return compare(database, at(database, address, cluster.endpoint()[0]))
    except (ConnectError, RevisionError) as error:
        return None, f"{NOT_COMPARED}: {error.message}"


def at(target: db.Target, host: str, port: int) -> db.Target:
    """Return the same database and login on another server."""
    parameters = db.parse_dsn(target.dsn)
    for name in ("hostaddr", "target_session_attrs"):
        parameters.pop(name, None)
    dsn = make_dsn(**{**parameters, "host": host, "hostaddr": "", "port": str(port)})
    return replace(target, dsn=dsn)


def compare(primary: db.Target, standby: db.Target, *, wait_s: float = 60.0) -> tuple[IndexCounts, str]:
    """Return the standby's index counts, and how they differ: `none` if they do not.

    While another session writes, the two are compared until they agree, up to `wait_s`
    seconds.

    Raises:
        ConnectError: One of them refuses the login.
        RevisionError: The primary holds no index.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with db.session(primary, readonly=True) as conn:
            expected = _counts(conn, primary.schema)
            conn.commit()
            lsn = db.value(conn, "SELECT pg_current_wal_lsn()::text")
        wait_for_replay(standby, lsn, max(deadline - time.monotonic(), 1.0))
        with db.session(standby, readonly=True) as conn:
            actual = _counts(conn, standby.schema)
        if actual == expected:
            return actual, SAME
        if time.monotonic() > deadline:
            differences = [
                f"{name} {expected[name]} there and {count} here"
                for name, count in actual.items()
                if count != expected[name]
            ]
            return actual, ", ".join(differences)


def _counts(conn: Connection, schema: str) -> IndexCounts:
    index = status(conn, schema)
    return {name: getattr(index, name) for name in _COUNTED}


def wait_for_replay(standby: db.Target, lsn: str, timeout_s: float) -> None:
    """Wait until a standby has replayed the WAL up to a position.

    Raises:
        PgOrthancError: It has not in time.
    """
    deadline = time.monotonic() + timeout_s
    with db.session(standby, readonly=True, autocommit=True, need_schema=False) as conn:
        while not db.value(conn, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn):
            if time.monotonic() > deadline:
                reached = db.value(conn, "SELECT pg_last_wal_replay_lsn()::text")
                raise PgOrthancError(
                    f"the standby has replayed its log up to {reached} after {timeout_s:.0f} s, wanted {lsn}",
                    "its log says why; pgorthanc replication status shows the lag",
                )
            time.sleep(0.05)
