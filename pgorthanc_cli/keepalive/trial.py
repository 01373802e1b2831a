"""The course of a test: look around, open, wait, look back, report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from urllib.parse import urlencode

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.keepalive import verdict
from pgorthanc_cli.keepalive.idle import UNNAMED, IdleConnection, watch
from pgorthanc_cli.keepalive.model import Age, KeepAlive, Plan, Probes, Report, SocketOptions, Started
from pgorthanc_cli.keepalive.surroundings import (
    ask,
    look,
    server_start,
    socket_options,
    with_parameters,
)

_MOST_IDLE_S = 32767  # the longest that Linux takes: as good as no probes for a test


class Trial:
    """One test. `run` yields what becomes known; `report` tells all that is known, also after an interruption."""

    def __init__(self, target: db.Target, plan: Plan) -> None:
        """Look around; nothing is left open.

        Raises:
            ConnectError: The server cannot be reached.
            UsageError: The connection string is none.
        """
        self._target = target
        self._plan = plan
        self._began = time.monotonic()
        self._around = look(target)
        self._tried = KeepAlive.of(target)
        self._client_side: SocketOptions | None = None
        self._first: list[IdleConnection] = []
        self._again: list[IdleConnection] = []
        self._restarted = False
        self._unreachable = False

    def run(self) -> Generator[Started | Age, None, None]:
        """Do it; it lasts as long as the longest age, with `confirm` twice as long.

        Raises:
            ConnectError: The server is gone, or takes fewer connections than the test needs.
        """
        around = self._around
        ways: tuple[Probes, ...] = ("none", "client", "server")
        if not around.tcp:
            ways = ("none",)
        elif around.pooler != "none":
            ways = ("none", "client")
        yield from self._pass(self._first, self._tried, ways, self._plan.ages_s)
        advised = verdict.recommended(self._ages(self._first), self._tried)
        if self._plan.confirm and advised and len(ways) > 1 and any(a.died for a in self._ages(self._first)):
            yield from self._pass(self._again, advised, ways[1:], self._plan.ages_s[-1:])

    def report(self) -> Report:
        """What is known by now."""
        ages, again = self._ages(self._first), self._ages(self._again)
        found = verdict.judge(ages, again, self._tried)
        client = found.advised_from("client") if self._around.tcp else None
        server = found.advised_from("server")
        settings = server.settings() if server else {}
        parameters = client.parameters() if client else {}
        return Report(
            place=self._around.place,
            ages=ages,
            limit_s=found.limit_s,
            parameters=parameters,
            passed=found.passed,
            confirmation=again,
            confirmed=found.confirmed,
            connection_uri=urlencode(parameters),
            postgresql_conf=_lines({k: v for k, v in settings.items() if k in self._known_settings}),
            sysctl=_lines(client.sysctl() if client else {}),
            sockets=(*self._around.sockets, *([self._client_side] if self._client_side else [])),
            timeouts_s=self._around.timeouts_s,
            pooler=self._around.pooler,
            advice=(*verdict.advice(ages, found, self._tried, self._around), *self._farewell()),
            elapsed_s=round(time.monotonic() - self._began, 1),
        )

    def _pass(
        self,
        connections: list[IdleConnection],
        keepalive: KeepAlive,
        ways: tuple[Probes, ...],
        ages_s: tuple[float, ...],
    ) -> Generator[Started | Age, None, None]:
        """Open connections, leave them idle, and see what becomes of each."""
        wanted = list(itertools.product(ages_s, ways))
        try:
            for age_s, probes in wanted:
                connections.append(
                    self._open(age_s, probes, keepalive, f"{len(connections) + 1} of {len(wanted)}")
                )
            yield Started(len(connections), ages_s[-1], again=connections is self._again)
            for connection in watch(connections, self._plan.answer_s):
                yield connection.state()
        finally:
            for connection in connections:
                connection.close()
            self._look_back(connections)

    def _open(self, age_s: float, probes: Probes, keepalive: KeepAlive, number: str) -> IdleConnection:
        parameters = keepalive.parameters() if probes == "client" else {"keepalives": 0}
        target = with_parameters(self._target, {name: str(value) for name, value in parameters.items()})
        try:
            with ExitStack() as opened:
                conn = opened.enter_context(closing(db.connect_async(target)))
                for statement in self._preparation(probes, keepalive):
                    ask(conn, statement)
                if probes == "client":
                    self._client_side = socket_options(conn, "client, as tried")
                opened.pop_all()
        except ConnectError as error:
            hints = ("name fewer --ages", error.hint)
            raise ConnectError(
                f"connection {number}: {error.message}", "; or: ".join(filter(None, hints))
            ) from None
        return IdleConnection(conn, age_s, probes)

    def _preparation(self, probes: Probes, keepalive: KeepAlive) -> list[str]:
        """Statements that make the server send the wanted probes, or as good as none, in this session alone.

        The last one makes a pooler give the connection its session before the idle time begins.
        """
        settings = keepalive.settings() if probes == "server" else {"tcp_keepalives_idle": _MOST_IDLE_S}
        return [
            *(f"SET {name} = {value}" for name, value in settings.items() if name in self._known_settings),
            "BEGIN" if self._plan.in_transaction else "SELECT 1",
        ]

    @property
    def _known_settings(self) -> dict[str, int]:
        """The server's settings of keep-alive that act on our connections: behind a pooler none do."""
        return self._around.settings if self._around.pooler == "none" else {}

    def _look_back(self, connections: list[IdleConnection]) -> None:
        """Whether the server was restarted; and end what it still keeps of connections that are lost.

        It would find out by itself only after hours, and each takes a place of max_connections.
        """
        lost = [c.backend_pid for c in connections if c.state().outcome in ("dropped", "pending")]
        try:
            with closing(db.connect_async(replace(self._target, retries=0))) as conn:
                self._restarted |= server_start(conn) != self._around.started
                if self._around.pooler == "none":
                    ask(conn, _END_SESSIONS, lost)
        except ConnectError:
            self._unreachable = True

    def _farewell(self) -> tuple[str, ...]:
        return ("The server cannot be reached any more.",) if self._unreachable else ()

    def _ages(self, connections: list[IdleConnection]) -> tuple[Age, ...]:
        found = sorted(
            (c.state() for c in connections), key=lambda age: (age.age_s, _ORDER.index(age.probes))
        )
        return tuple(replace(age, cause=self._cause(age)) for age in found)

    def _cause(self, age: Age) -> str:
        """With what only the server knows: that it was restarted; which of its limits a farewell is about."""
        if self._restarted and age.outcome == "closed":
            return "restarted"
        limits_s = self._around.timeouts_s.items() if age.cause == UNNAMED else ()
        fitting = (name for name, limit_s in limits_s if limit_s and abs(age.idle_s - limit_s) < 1)
        return next(fitting, age.cause)


def _lines(settings: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"{name} = {value}" for name, value in settings.items())


_ORDER: tuple[Probes, ...] = ("none", "client", "server")
_END_SESSIONS = """SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
    WHERE pid = ANY(%s::int[]) AND usename = current_user
      AND application_name = pg_catalog.current_setting('application_name')"""
