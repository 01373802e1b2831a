"""The plan of a change of revision: each operation with its locks, time, space, and statements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.locks import Session
from pgorthanc_cli.progress import Report, silent
from pgorthanc_cli.schema import catalog, duplicates, features, rights, steps
from pgorthanc_cli.upgrade import drift, preserved
from pgorthanc_cli.upgrade.finish import unfinished
from pgorthanc_cli.upgrade.items import Estimate, Item, finish_items, prepare_items, switch_items
from pgorthanc_cli.upgrade.model import Obstacle
from pgorthanc_cli.upgrade.survey import Replica, Table, find_duplicates, survey

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


@dataclass(frozen=True)
class Plan:
    """The operations of a change, and what they depend on (see `survey.Survey`).

    Attributes:
        schema: PostgreSQL namespace.
        revision: The actual revision of the index; 0 before revision 1.
        recorded: The recorded revision.
        plugins: The releases of the plugin that work with it now.
        to: The target revision.
        plugins_then: The releases of the plugin that work with it then.
        prepare: The operations of the first phase, while Orthanc is running.
        prepare_s: Their estimated duration in seconds.
        switch: The operations of the switch, while no other session is connected.
        switch_s: Their estimated duration in seconds.
        finish: The operations of the last phase, while Orthanc is running.
        finish_s: Their estimated duration in seconds.
        space_bytes: The disk space needed; the write-ahead log needs as much again.
        tablespaces: The tablespaces that need it.
        repairs: The differences that the switch repairs.
        obstacles: What an administrator must fix first.
        duplicates: Public ids that occur more than once; None: the scan took too long.
        not_held: What the lower revision cannot hold, and is kept aside.
        tables: Sizes.
        sessions: The other sessions, which have to end before the switch.
        locks: The holders of Orthanc's locks.
        replicas: Standbys; they replay the switch, and their readers wait for that, too.
        endpoint: The database.
        path: The revisions on the way, both ends included.
        blockers: The obstacles, each with its fact, the advice and the statements.
        unfinished: Whether the last phase of an earlier change has not finished.
        refusal: Why this role may not run the change, and what helps; empty if it may.
        dry_run: A plan changes nothing.
    """

    schema: str
    revision: int
    recorded: int | None
    plugins: str
    to: int
    plugins_then: str
    prepare: tuple[Item, ...]
    prepare_s: float
    switch: tuple[Item, ...]
    switch_s: float
    finish: tuple[Item, ...]
    finish_s: float
    space_bytes: int
    tablespaces: tuple[str, ...]
    repairs: tuple[str, ...]
    obstacles: tuple[str, ...]
    duplicates: tuple[duplicates.Duplicate, ...] | None
    not_held: tuple[preserved.Loss, ...]
    tables: tuple[Table, ...]
    sessions: tuple[Session, ...]
    locks: tuple[db.LockHolder, ...]
    replicas: tuple[Replica, ...]
    endpoint: db.Endpoint
    path: tuple[int, ...]
    blockers: tuple[Obstacle, ...]
    unfinished: bool
    refusal: tuple[str, ...]
    dry_run: bool = True

    @property
    def needed(self) -> bool:
        """Return whether a change would do anything."""
        return len(self.path) > 1 or bool(self.repairs) or self.unfinished


def plan(conn: Connection, schema: str, to: int, *, down: bool = False, report: Report = silent) -> Plan:
    """Return what a change to revision `to` would do; writes nothing.

    Args:
        conn: A connection.
        schema: PostgreSQL namespace.
        to: The target revision.
        down: Whether it is a downgrade.
        report: If tables that will be read are large: receives that, then each step.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: There is no index, or no path to that revision in this direction.
    """
    catalog.require_revision(to)
    objects = catalog.snapshot(conn, schema)
    state = survey(conn, schema, to)
    start = state.drift.start
    require_direction(start, to, schema, down=down)
    path = steps.path(start, to)
    # Only then do duplicates matter; to find them takes a scan of the largest table.
    unique = features.first_revision("unique_public_ids")
    becomes_unique = any(step.start < unique <= step.end for step in path)
    estimate = Estimate(conn, state)
    prepare = prepare_items(estimate, objects, path)
    switch = switch_items(estimate, objects, path)
    finish = finish_items(estimate, to, down=down)
    losses = preserved.losses(conn, objects, to, report) if down else []
    remaining = unfinished(conn, objects, report)
    refusal = _refusal(conn, schema, objects)
    conn.commit()
    return Plan(
        schema=schema,
        revision=start,
        recorded=state.drift.recorded,
        plugins=state.drift.plugins,
        to=to,
        plugins_then=catalog.plugins(to),
        prepare=tuple(prepare),
        prepare_s=sum(item.seconds for item in prepare),
        switch=tuple(switch),
        switch_s=sum(item.seconds for item in switch),
        finish=tuple(finish),
        finish_s=sum(item.seconds for item in finish),
        space_bytes=sum(item.space_bytes for item in (*prepare, *switch, *finish)),
        tablespaces=tuple(sorted({table.tablespace for table in state.tables if table.tablespace})),
        repairs=drift.messages(state.drift.repairs),
        obstacles=tuple(map(str, state.obstacles)),
        duplicates=find_duplicates(conn, objects, report) if becomes_unique else (),
        not_held=tuple(losses),
        tables=state.tables,
        sessions=state.sessions,
        locks=state.locks,
        replicas=state.replicas,
        endpoint=db.endpoint(conn),
        path=(start, *(step.end for step in path)),
        blockers=state.obstacles,
        unfinished=remaining,
        refusal=refusal,
    )


def _refusal(conn: Connection, schema: str, objects: catalog.Catalog) -> tuple[str, ...]:
    """Return why this role may not run the change, and what helps: a plan needs fewer privileges."""
    try:
        rights.require_change(conn, schema, objects)
    except RevisionError as error:
        return (error.message, error.hint or "")
    return ()


def require_direction(start: int, to: int, schema: str, *, down: bool) -> None:
    """Raise an error if an upgrade would go down, or a downgrade up.

    Raises:
        RevisionError: It would.
    """
    if to > start if down else to < start:
        raise RevisionError(
            f"the index in schema {schema} is at revision {start}, and {to} was asked for",
            f"run: pgorthanc {'upgrade' if down else 'downgrade'} --to {to}",
        )
