"""What a change of revision would do: each step, its locks, its time and space, and the statements themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.locks import Session
from pgorthanc_cli.schema import catalog, duplicates, steps
from pgorthanc_cli.upgrade import kept
from pgorthanc_cli.upgrade.items import Estimate, Item, finishing, preparing, switching
from pgorthanc_cli.upgrade.mend import words
from pgorthanc_cli.upgrade.survey import Replica, Table, find_duplicates, survey

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


@dataclass(frozen=True)
class Plan:
    """What would be done, and what it depends on; see `survey.Survey` for what is there.

    Attributes:
        schema: PostgreSQL namespace.
        revision: The revision that the index has; 0 before revision 1.
        recorded: What it says itself.
        plugins: The releases of the plugin that work with it now.
        to: The revision that is wanted.
        plugins_then: The releases of the plugin that work with it then.
        prepare: What is done first, beside a working Orthanc, in this order.
        prepare_s: How long that takes, estimated, in seconds.
        switch: What is done while everybody else is out.
        switch_s: How long that takes.
        finish: What is done last, beside a working Orthanc.
        finish_s: How long that takes.
        space_bytes: Disk space that is needed, as much again for the write-ahead log.
        tablespaces: Where it is needed.
        repairs: What is mended on the way.
        obstacles: What somebody has to settle before.
        duplicates: Public ids that occur more than once; None: there was no time to look.
        not_held: What the lower revision cannot hold, and is kept aside.
        tables: Sizes.
        sessions: Who else is connected, and has to leave for the switch.
        locks: Who holds Orthanc's locks.
        replicas: Standbys; they replay what the switch does, and their readers wait for that, too.
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
    not_held: tuple[kept.Loss, ...]
    tables: tuple[Table, ...]
    sessions: tuple[Session, ...]
    locks: tuple[db.LockHolder, ...]
    replicas: tuple[Replica, ...]
    dry_run: bool = field(default=True, metadata={"shown": False})


def plan(conn: Connection, schema: str, to: int, *, down: bool = False) -> Plan:
    """Look, and say what a change to revision `to` would do; writes nothing.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: There is no index, or no way to that revision in this direction.
    """
    require_known(to)
    found = catalog.snapshot(conn, schema)
    there = survey(conn, schema, to)
    require_direction(there.damage.start, to, schema, down=down)
    way = steps.path(there.damage.start, to)
    becomes_unique = any(step.start < 2 <= step.end for step in way)
    estimate = Estimate(conn, there)
    prepare = preparing(estimate, found, way)
    switch = switching(estimate, found, way)
    finish = finishing(estimate, to, down=down)
    losses = kept.losses(conn, found, to) if down else []
    conn.commit()
    return Plan(
        schema=schema,
        revision=there.damage.start,
        recorded=there.damage.recorded,
        plugins=there.damage.plugins,
        to=to,
        plugins_then=catalog.plugins(to),
        prepare=tuple(prepare),
        prepare_s=sum(item.seconds for item in prepare),
        switch=tuple(switch),
        switch_s=sum(item.seconds for item in switch),
        finish=tuple(finish),
        finish_s=sum(item.seconds for item in finish),
        space_bytes=sum(item.space_bytes for item in (*prepare, *switch, *finish)),
        tablespaces=tuple(sorted({table.tablespace for table in there.tables if table.tablespace})),
        repairs=words(there.damage.repairs),
        obstacles=there.obstacles,
        duplicates=find_duplicates(conn, found) if becomes_unique else (),
        not_held=tuple(losses),
        tables=there.tables,
        sessions=there.sessions,
        locks=there.locks,
        replicas=there.replicas,
    )


def require_known(to: int) -> None:
    """Make sure that there is such a revision.

    Raises:
        RevisionError: There is not; says which there are.
    """
    *others, last = catalog.revisions()
    if to not in (*others, last):
        raise RevisionError(
            f"revision {to} does not exist", f"choose {', '.join(map(str, others))} or {last}"
        )


def require_direction(start: int, to: int, schema: str, *, down: bool) -> None:
    """An upgrade goes up and a downgrade down, or neither moves.

    Raises:
        RevisionError: It would go the other way.
    """
    if to > start if down else to < start:
        raise RevisionError(
            f"the index in schema {schema} is at revision {start}, and {to} was asked for",
            f"run: pgorthanc {'upgrade' if down else 'downgrade'} --to {to}",
        )
