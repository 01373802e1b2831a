"""The checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psycopg2
import psycopg2.errors
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from pgorthanc_cli import db
from pgorthanc_cli.db import pooler
from pgorthanc_cli.doctor import connection, content, index, server, tables, text
from pgorthanc_cli.doctor.model import Health, Subject, Verdict
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.text import printable

# In the order of the report: what a check depends on comes before it. A pooler in transaction mode makes the
# answers of all others those of whatever session is free.
CHECKS: Mapping[str, Callable[[Subject], Verdict]] = {
    "pooler": connection.through_pooler,
    "connection": connection.connection,
    "round-trip": connection.round_trip,
    "clock": connection.clock,
    "tls": connection.tls,
    "authentication": connection.authentication,
    "settings": server.settings,
    "connections": server.connections,
    "transactions": server.transactions,
    "wraparound": server.wraparound,
    "replication": server.replication,
    "disk": server.disk,
    "encoding": text.encoding,
    "collation": text.collation,
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
    "large-objects": content.large_objects,
    "attachments": content.attachments,
}
_THERE = """
    SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relname = 'resources' AND c.relkind IN ('r', 'p'))
"""
_NEEDS_INDEX = {
    "rights", "schema", "indexes", "trigram", "counters", "child-counts", "vacuum", "large-objects", "attachments",
}  # fmt: skip


def examine(
    target: db.Target, names: Sequence[str] = (), *, deep: bool = False, storage_dir: Path | None = None
) -> Health:
    """Examine a server, its database and the index in it.

    Nothing is written, and any role that may log in will do: what it may not see is UNKNOWN, with the missing right.
    A check that fails is UNKNOWN with the reason, and the others go on.

    Args:
        target: The database.
        names: Only these checks, keys of `CHECKS`; none: all.
        deep: Also recount statistics, tree and child counts, and read all rows about stored files.
        storage_dir: Orthanc's filesystem area, if it is on this machine.

    Raises:
        UsageError: There is no check of that name.
    """
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise UsageError(f"there is no check named {', '.join(unknown)}", f"there are: {', '.join(CHECKS)}")
    done: dict[str, Verdict] = {}
    if not names or "pooler" in names:
        done["pooler"] = _pooler(target)
    left = [name for name in names if name != "pooler"] if names else None
    seen = False
    while left is None or left:
        try:
            with db.session(target, readonly=True, autocommit=True, need_schema=False) as conn:
                seen, subject = True, Subject(conn, target, deep, storage_dir)
                left = _feasible(subject) if left is None else left
                while left and not conn.closed:
                    name = left.pop(0)
                    done[name] = _verdict(name, subject)
        except ConnectError as error:
            lost = dict.fromkeys(left or (), _not_checked("the connection was lost", None)) if seen else {}
            done = {**(done if seen else {}), **lost}
            done["connection"] = Verdict("CRITICAL", error.message, error.hint)
            break
    order = [*CHECKS]
    return Health.of(str(target), dict(sorted(done.items(), key=lambda one: order.index(one[0]))))


def _pooler(target: db.Target) -> Verdict:
    """Look for a pooler before the first session is opened."""
    try:
        return connection.judge_pooler(pooler.detect(target))
    except PgOrthancError as error:
        return _not_checked(error.message, error.hint)


def _feasible(subject: Subject) -> list[str]:
    """Return all checks, without those of an index where there is none; `revision` says so."""
    (there,) = subject.row(_THERE, subject.target.schema)
    return [name for name in CHECKS if name != "pooler" and (there or name not in _NEEDS_INDEX)]


def _verdict(name: str, subject: Subject) -> Verdict:
    """Run one check; whatever fails in it, the next one finds the session as this one did."""
    try:
        return CHECKS[name](subject)
    except ConnectError as error:
        return _not_checked(error.message, error.hint)
    except PgOrthancError as error:
        return Verdict("CRITICAL", error.message, error.hint)
    except psycopg2.errors.InsufficientPrivilege as error:
        return _not_checked(
            db.primary_message(error), db.error_hint(error, subject.conn, subject.target.schema)
        )
    except psycopg2.errors.QueryCanceled as error:
        return _not_checked(
            db.primary_message(error),
            "raise statement_timeout for this role, or run the check alone: pgorthanc doctor " + name,
        )
    except psycopg2.Error as error:
        code = f" (SQLSTATE {error.pgcode})" if error.pgcode else ""
        return _not_checked(db.primary_message(error) + code, "if the server is healthy, please report this")
    except Exception as error:  # noqa: BLE001 - one check that fails must not end the examination
        return _not_checked(f"unexpected {type(error).__name__}", "this is a bug; please report it")
    finally:
        if not subject.conn.closed and subject.conn.info.transaction_status != TRANSACTION_STATUS_IDLE:
            with subject.conn.cursor() as cur:
                cur.execute("ROLLBACK")


def _not_checked(reason: str, hint: str | None) -> Verdict:
    return Verdict("UNKNOWN", f"not checked: {printable(reason)}", hint)
