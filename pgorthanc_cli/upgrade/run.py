"""From one revision to another, in three phases, each of which can be run by itself, interrupted and run again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError, RevisionError
from pgorthanc_cli.locks import clients
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog, duplicates, rights, steps
from pgorthanc_cli.upgrade import kept
from pgorthanc_cli.upgrade.finish import finish, unfinished
from pgorthanc_cli.upgrade.mend import Damage, diagnose
from pgorthanc_cli.upgrade.model import Changed, Event, Settings
from pgorthanc_cli.upgrade.obstacles import obstacles
from pgorthanc_cli.upgrade.plan import require_direction, require_known
from pgorthanc_cli.upgrade.preparation import beforehand
from pgorthanc_cli.upgrade.prepare import prepare
from pgorthanc_cli.upgrade.statements import settle_in
from pgorthanc_cli.upgrade.switch import Switched, switch

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SHOWN = 5


def upgrade(target: db.Target, *, to: int | None = None, settings: Settings | None = None) -> Iterator[Event]:
    """Bring an index to a higher revision, or mend what is wrong with it at its revision.

    Args:
        target: The database; connections of our own are opened.
        to: The revision that is wanted; default: the newest one.
        settings: How to do it; default: all phases, and nobody else's session is touched.

    Yields:
        What goes on, and at the end what has become of the index.

    Raises:
        ConnectError: The server cannot be reached, takes no writes, or the schema is missing.
        InUseError: Somebody works on the database, or another upgrade or downgrade does.
        RevisionError: The index cannot be brought there, or something would have been lost.
    """
    to = catalog.revisions()[-1] if to is None else to
    catalog.require_revision(to)
    yield from _Change(target, to, settings or Settings(), down=False).run()


def downgrade(target: db.Target, *, to: int, settings: Settings | None = None) -> Iterator[Event]:
    """Bring an index to a lower revision; what that cannot hold is kept aside, and an upgrade brings it back.

    Arguments, events and errors are those of `upgrade`.
    """
    catalog.require_revision(to)
    yield from _Change(target, to, settings or Settings(), down=True).run()


@dataclass
class _Change:
    """One call: its phases, and what they have told so far."""

    target: db.Target
    to: int
    settings: Settings
    down: bool
    repaired: list[str] = field(default_factory=list)
    child_counts: int = 0
    switched: Switched | None = None

    def run(self) -> Iterator[Event]:
        """All phases that are asked for, on two sessions: one holds our lock and looks, the other works."""
        started = time.monotonic()
        require_known(self.to)
        if self.settings.export:
            kept.require_new(self.settings.export)
        with ExitStack() as stack:
            conn = stack.enter_context(db.session(self.target))
            worker = stack.enter_context(db.session(self.target, autocommit=True))
            _require_alone(conn)
            stack.enter_context(db.advisory_lock(conn, db.LOCK_TRANSITION, wait_s=0))
            settle_in(conn)
            settle_in(worker)
            damage, way = self._way(conn)
            kept_before = kept.rows(conn)
            conn.commit()
            yield from self._told(self._before_finish(conn, worker, damage, way))
            kept_after = kept.rows(conn)
            conn.commit()
            if self._to_finish(conn):
                yield from self._told(
                    finish(conn, worker, self.target.schema, self.settings, trigram=not self.down)
                )
            trigram = catalog.trigram(conn, catalog.snapshot(conn, self.target.schema))
        changed = self._changed(damage.start, trigram, time.monotonic() - started)
        yield replace(changed, kept=_more(kept_before, kept_after), restored=_more(kept_after, kept_before))

    def _before_finish(
        self, conn: Connection, worker: Connection, damage: Damage, way: list[steps.Step]
    ) -> Iterator[Progress | str | Switched]:
        """The first two phases; the last one alone makes sense only behind them."""
        phases = self.settings.phases
        if way and "switch" not in phases and "finish" in phases:
            raise RevisionError(
                f"the index is at revision {way[0].start} still, not at {self.to}",
                f"run before: pgorthanc {'downgrade' if self.down else 'upgrade'} --to {self.to} --phase switch",
            )
        if "prepare" in phases:
            yield from self._prepare(conn, worker, way)
        ours = [db.backend_pid(worker)]
        if "switch" in phases and self._to_switch(conn, damage, way, ours):
            yield from self._unprepared(conn, way)
            yield from switch(conn, self.target.schema, self.to, self.settings, ours=ours)

    def _to_switch(self, conn: Connection, damage: Damage, way: list[steps.Step], ours: list[int]) -> bool:
        """Whether there is anything to do: nobody has to leave because of left-overs that do no harm."""
        harm = bool(way) or any(finding.matters for finding in damage.repairs)
        needed = harm or (bool(damage.repairs) and not clients(conn, ours))
        conn.commit()
        return needed

    def _to_finish(self, conn: Connection) -> bool:
        """Whether the last phase is asked for, or an earlier call may not have come to its end."""
        asked = self.settings.phases == ("finish",) or self.settings.export or self.settings.discard
        found = catalog.snapshot(conn, self.target.schema)
        needed = "finish" in self.settings.phases and (asked or self.switched or unfinished(conn, found))
        conn.commit()
        return bool(needed)

    def _unprepared(self, conn: Connection, way: list[steps.Step]) -> Iterator[Progress]:
        """Tell what will take its time although nobody else can work."""
        found = catalog.snapshot(conn, self.target.schema)
        conn.commit()
        missing = [made.name for made in beforehand(way) if made.state(found) in ("missing", "invalid")]
        if missing:
            yield Progress(
                "switch", f"not prepared, so it is made while nobody can work: {', '.join(missing)}"
            )

    def _changed(self, before: int, trigram: str, elapsed_s: float) -> Changed:
        merged = self.switched.merged if self.switched else None
        return Changed(
            schema=self.target.schema,
            before=before,
            revision=self.to if self.switched else before,
            phases=self.settings.phases,
            repaired=tuple(self.repaired),
            merged=merged.merged if merged else (),
            differing=merged.differing if merged else (),
            surplus_files=merged.surplus_files if merged else (),
            child_counts=self.child_counts,
            trigram=trigram,
            blocked_s=self.switched.blocked_s if self.switched else 0.0,
            elapsed_s=elapsed_s,
        )

    def _way(self, conn: Connection) -> tuple[Damage, list[steps.Step]]:
        """The revision that the index has, and the steps from there; refuses what only an administrator can settle."""
        schema = self.target.schema
        found = catalog.snapshot(conn, schema)
        damage = diagnose(conn, schema)
        require_direction(damage.start, self.to, schema, down=self.down)
        way = steps.path(damage.start, self.to)
        rights.require_change(conn, schema, found)
        in_the_way = obstacles(conn, schema, found, damage, self.to)
        conn.commit()
        if in_the_way:
            more = f"; and {len(in_the_way) - _SHOWN} more" if len(in_the_way) > _SHOWN else ""
            raise RevisionError(
                f"revision {self.to} cannot be reached: {'; '.join(in_the_way[:_SHOWN])}{more}",
                "nothing was changed; settle that, then run the same command again",
            )
        return damage, way

    def _prepare(
        self, conn: Connection, worker: Connection, way: list[steps.Step]
    ) -> Iterator[Progress | str]:
        """The first phase; where it cannot make public ids unique, because they are not, it says which."""
        schema, repair = self.target.schema, self.settings.repair_duplicates
        try:
            yield from prepare(conn, worker, schema, way, repair_duplicates=repair)
        except psycopg2.errors.UniqueViolation:
            raise refuse_duplicates(duplicates.find(conn)) from None

    def _told(self, events: Iterator[Progress | str | int | Switched]) -> Iterator[Progress]:
        """Pass on the progress, and keep the rest."""
        for event in events:
            if isinstance(event, Progress):
                yield event
            elif isinstance(event, str):
                self.repaired.append(event)
            elif isinstance(event, int):
                self.child_counts += event
            else:
                self.switched = event
                self.repaired += event.repaired


def _require_alone(conn: Connection) -> None:
    """Name another upgrade or downgrade; the lock that is taken next is what keeps it out."""
    holders = db.lock_holders(conn, db.LOCK_TRANSITION)
    conn.commit()
    if holders:
        raise InUseError(
            f"another upgrade or downgrade of this database goes on: {'; '.join(map(str, holders))}",
            "wait until it is done, then run the same command again",
        )


def refuse_duplicates(found: list[duplicates.Duplicate]) -> RevisionError:
    """Public ids are no longer unique, and who wants to merge them has to say so."""
    shown = "; ".join(map(str, found[:_SHOWN]))
    more = f"; and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return RevisionError(
        f"{len(found):,} public ids occur more than once, and revision 2 wants them unique: {shown}{more}",
        "stop Orthanc, and run: pgorthanc upgrade --repair-duplicates",
    )


def _more(less: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    """How many rows each table has gained, without those that have not."""
    return {table: count - less.get(table, 0) for table, count in more.items() if count > less.get(table, 0)}
