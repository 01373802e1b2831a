"""The checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.doctor import connection, index, server, tables
from pgorthanc_cli.doctor.model import Health, Subject, Verdict
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError

# In the order of the report: what a check stands on comes before it.
CHECKS: Mapping[str, Callable[[Subject], Verdict]] = {
    "connection": connection.connection,
    "round-trip": connection.round_trip,
    "clock": connection.clock,
    "tls": connection.tls,
    "authentication": connection.authentication,
    "pooler": connection.through_pooler,
    "settings": server.settings,
    "connections": server.connections,
    "transactions": server.transactions,
    "wraparound": server.wraparound,
    "replication": server.replication,
    "disk": server.disk,
    "rights": index.rights,
    "revision": index.revision,
    "schema": index.schema,
    "foreign-code": index.foreign_code,
    "locks": index.at_work,
    "indexes": tables.indexes,
    "trigram": index.trigram,
    "counters": tables.counters,
    "child-counts": tables.child_counts,
    "vacuum": tables.vacuum,
}
_THERE = "SELECT to_regclass(quote_ident(index_schema()) || '.resources') IS NOT NULL"
_NEEDS_INDEX = {"rights", "schema", "indexes", "trigram", "counters", "child-counts", "vacuum"}


def examine(
    target: db.Target, names: Sequence[str] = (), *, deep: bool = False, storage_dir: Path | None = None
) -> Health:
    """Look at a server, its database and the index in it.

    Nothing is written, any role that may log in will do: what it may not see is UNKNOWN, with the right that it lacks.

    Args:
        target: The database.
        names: Only these checks, keys of `CHECKS`; none: all.
        deep: Also recount statistics, tree and child counts.
        storage_dir: Orthanc's filesystem area, if it is on this machine.

    Raises:
        UsageError: There is no check of that name.
    """
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise UsageError(f"there is no check named {', '.join(unknown)}", f"there are: {', '.join(CHECKS)}")
    done: dict[str, Verdict] = {}
    try:
        with db.session(target, readonly=True, autocommit=True, need_schema=False) as conn:
            subject = Subject(conn, target, deep, storage_dir)
            for name in names or _feasible(subject):
                done[name] = _verdict(name, subject)
    except ConnectError as error:
        done = {"connection": Verdict("CRITICAL", error.message, error.hint), **done}
    return Health.of(str(target), done)


def _feasible(subject: Subject) -> list[str]:
    """All checks, without those of an index where there is none; `revision` says so."""
    (there,) = subject.row(_THERE)
    return [name for name in CHECKS if there or name not in _NEEDS_INDEX]


def _verdict(name: str, subject: Subject) -> Verdict:
    try:
        return CHECKS[name](subject)
    except ConnectError:
        raise
    except PgOrthancError as error:
        return Verdict("CRITICAL", error.message, error.hint)
    except psycopg2.errors.InsufficientPrivilege as error:
        return Verdict(
            "UNKNOWN",
            f"not seen: {db.primary_message(error)}",
            "log in as a role that may read it, or grant that",
        )
