"""From one revision to another in three phases, each of which can run alone, be interrupted and run again."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError, RevisionError
from pgorthanc_cli.locks import client_sessions
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.schema import catalog, duplicates, rights
from pgorthanc_cli.schema import steps as scripts
from pgorthanc_cli.schema.steps import Step
from pgorthanc_cli.text import shortened
from pgorthanc_cli.upgrade import preserved
from pgorthanc_cli.upgrade.drift import SchemaDrift, inspect, obstacles
from pgorthanc_cli.upgrade.finish import finish, unfinished
from pgorthanc_cli.upgrade.model import Changed, Settings
from pgorthanc_cli.upgrade.plan import require_direction
from pgorthanc_cli.upgrade.prepare import prebuilt_objects, prepare
from pgorthanc_cli.upgrade.switch import Switched, switch
from pgorthanc_cli.upgrade.worker import disable_timeouts

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SHOWN = 5


def upgrade(
    target: db.Target,
    *,
    to: int | None = None,
    settings: Settings | None = None,
    report: Report = silent,
) -> Changed:
    """Bring an index to a higher revision, or repair it at its revision.

    Args:
        target: The database; connections of our own are opened.
        to: The target revision; default: the newest one.
        settings: How to do it; default: all phases, and no session of others is ended.
        report: Called with each step, and every half second in long ones. What it raises stops the change at a point
            at which everything is complete, or is rolled back.

    Raises:
        ConnectError: The server cannot be reached, takes no writes, or the schema is missing.
        InUseError: Another session uses the database, or another upgrade or downgrade is running.
        RevisionError: The index cannot be brought there, or data would have been lost.
    """
    to = catalog.newest() if to is None else to
    return _change(target, to, settings or Settings(), report, down=False)


def downgrade(
    target: db.Target, *, to: int, settings: Settings | None = None, report: Report = silent
) -> Changed:
    """Bring an index to a lower revision; what that cannot hold is kept aside, and an upgrade brings it back.

    Arguments, result and errors are those of `upgrade`.
    """
    return _change(target, to, settings or Settings(), report, down=True)


def _change(target: db.Target, to: int, settings: Settings, report: Report, *, down: bool) -> Changed:
    """Run the phases on two sessions: `conn` holds our lock and inspects, `worker` works."""
    started = time.monotonic()
    catalog.require_revision(to)
    # Checked first: after the switch it would be too late.
    if settings.export:
        preserved.require_new(settings.export)
    with ExitStack() as stack:
        conn = stack.enter_context(db.session(target))
        # VACUUM, and everything CONCURRENTLY, cannot run inside a transaction.
        worker = stack.enter_context(db.session(target, autocommit=True))
        _require_no_other_change(conn)
        stack.enter_context(db.advisory_lock(conn, db.LOCK_TRANSITION, wait_s=0))
        disable_timeouts(conn)
        disable_timeouts(worker)
        drift, steps = _plan_steps(conn, target.schema, to, down=down)
        preserved_before = preserved.rows(conn)
        conn.commit()
        repaired, switched = _prepare_and_switch(
            conn, worker, target.schema, to, drift, steps, settings, report
        )
        preserved_after = preserved.rows(conn)
        conn.commit()
        child_counts = 0
        if _finish_needed(conn, target.schema, settings, switched):
            corrected, child_counts = finish(
                conn, worker, target.schema, settings, trigram=not down, report=report
            )
            repaired += corrected
        trigram = catalog.trigram(conn, catalog.snapshot(conn, target.schema))
        endpoint = db.endpoint(conn)
    merged = switched.merged if switched else None
    return Changed(
        schema=target.schema,
        before=drift.start,
        revision=to if switched else drift.start,
        phases=settings.phases,
        repaired=tuple(repaired),
        kept=_gained(preserved_before, preserved_after),
        restored=_gained(preserved_after, preserved_before),
        merged=merged.merged if merged else (),
        differing=merged.differing if merged else (),
        surplus_files=merged.surplus_files if merged else (),
        child_counts=child_counts,
        trigram=trigram,
        blocked_s=switched.blocked_s if switched else 0.0,
        elapsed_s=time.monotonic() - started,
        to=to,
        plugins=catalog.plugins(to),
        endpoint=endpoint,
    )


def _plan_steps(conn: Connection, schema: str, to: int, *, down: bool) -> tuple[SchemaDrift, list[Step]]:
    """Inspect the schema and return the steps to the target revision.

    Raises:
        RevisionError: An administrator must fix something first.
    """
    rights.require_owner(conn, schema)
    objects = catalog.snapshot(conn, schema)
    drift = inspect(conn, schema)
    require_direction(drift.start, to, schema, down=down)
    steps = scripts.path(drift.start, to)
    rights.require_change(conn, schema, objects)
    blocking = obstacles(conn, schema, objects, drift, to)
    conn.commit()
    if blocking:
        raise RevisionError(
            f"revision {to} cannot be reached: {shortened(blocking, _SHOWN)}",
            "nothing was changed; settle that, then run the same command again",
        )
    return drift, steps


def _prepare_and_switch(
    conn: Connection,
    worker: Connection,
    schema: str,
    to: int,
    drift: SchemaDrift,
    steps: list[Step],
    settings: Settings,
    report: Report,
) -> tuple[list[str], Switched | None]:
    """Run the first two phases; the last one alone makes sense only after them."""
    phases, repaired = settings.phases, []
    if steps and "switch" not in phases and "finish" in phases:
        command = "downgrade" if to < steps[0].start else "upgrade"
        raise RevisionError(
            f"the index is at revision {steps[0].start} still, not at {to}",
            f"run before: pgorthanc {command} --to {to} --phase switch",
        )
    if "prepare" in phases:
        merge = settings.repair_duplicates
        try:
            repaired += prepare(conn, worker, schema, steps, repair_duplicates=merge, report=report)
        # CREATE UNIQUE INDEX CONCURRENTLY ends at the first duplicate, and names only
        # that one.
        except psycopg2.errors.UniqueViolation:
            raise _refuse_duplicates(duplicates.find(conn), to) from None
    own_pids = [db.backend_pid(worker)]
    if "switch" not in phases or not _switch_needed(conn, drift, steps, own_pids):
        return repaired, None
    _report_unprepared(conn, schema, steps, report)
    switched = switch(conn, schema, to, settings, own_pids=own_pids, report=report)
    return [*repaired, *switched.repaired], switched


def _switch_needed(conn: Connection, drift: SchemaDrift, steps: list[Step], own_pids: list[int]) -> bool:
    """Return whether there is anything to do: no session has to leave because of harmless leftovers."""
    needed = bool(steps) or any(finding.matters for finding in drift.repairs)
    if not needed and drift.repairs:
        needed = not client_sessions(conn, own_pids)
    conn.commit()
    return needed


def _report_unprepared(conn: Connection, schema: str, steps: list[Step], report: Report) -> None:
    """Report what the switch has to build while no other session can work."""
    objects = catalog.snapshot(conn, schema)
    conn.commit()
    unprepared = [
        prebuilt.name
        for prebuilt in prebuilt_objects(steps)
        if prebuilt.state(objects) in ("missing", "invalid")
    ]
    if unprepared:
        names = ", ".join(unprepared)
        report(Progress("switch", f"not prepared, so built now, while the index is locked: {names}"))


def _finish_needed(conn: Connection, schema: str, settings: Settings, switched: Switched | None) -> bool:
    """Return whether the last phase is requested, or an earlier call may not have finished it."""
    requested = settings.phases == ("finish",) or settings.export or settings.discard
    objects = catalog.snapshot(conn, schema)
    needed = "finish" in settings.phases and (requested or switched or unfinished(conn, objects))
    conn.commit()
    return bool(needed)


def _require_no_other_change(conn: Connection) -> None:
    """Name the session of another change; the lock that is taken next is what keeps it out."""
    holders = db.lock_holders(conn, db.LOCK_TRANSITION)
    conn.commit()
    if holders:
        raise InUseError(
            f"another upgrade or downgrade of this database goes on: {'; '.join(map(str, holders))}",
            "wait until it is done, then run the same command again",
        )


def _refuse_duplicates(found: list[duplicates.Duplicate], to: int) -> RevisionError:
    return RevisionError(
        f"{len(found):,} public ids occur more than once, and revision 2 wants them unique: "
        f"{shortened(found, _SHOWN)}",
        f"stop Orthanc, and run: pgorthanc upgrade --to {to} --repair-duplicates",
    )


def _gained(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return how many rows each table has gained, without those that have gained none."""
    return {
        table: count - before.get(table, 0) for table, count in after.items() if count > before.get(table, 0)
    }
