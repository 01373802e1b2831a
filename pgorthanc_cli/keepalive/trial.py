"""A keep-alive test: inspect the environment, open connections, wait, clean up, judge."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from urllib.parse import urlencode

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.keepalive import verdict
from pgorthanc_cli.keepalive.environment import (
    async_rows,
    inspect,
    server_start,
    socket_options,
    with_parameters,
)
from pgorthanc_cli.keepalive.idle import UNNAMED, IdleConnection, watch
from pgorthanc_cli.keepalive.model import (
    Age,
    KeepAlive,
    Probes,
    SocketOptions,
    TrialPlan,
    TrialResult,
    format_duration,
)
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.text import plural

_MAX_IDLE_S = 32767  # the longest that Linux accepts: as good as no probes
_PROBES: tuple[Probes, ...] = ("none", "client", "server")
# A pid may belong to another session by now: only one of this test is ended.
_END_SESSIONS = """SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
    WHERE pid = ANY(%s::int[]) AND usename = current_user
      AND application_name = pg_catalog.current_setting('application_name')"""


class Trial:
    """One test; `result` may be called after an interruption of `run`, too."""

    def __init__(self, target: db.Target, plan: TrialPlan) -> None:
        """Inspect the environment; nothing is left open.

        Raises:
            ConnectError: The server cannot be reached.
            UsageError: The connection string is invalid.
        """
        self._target = target
        self._plan = plan
        self._began = time.monotonic()
        self._environment = inspect(target)
        self._tried = KeepAlive.of(target)
        self._client_side: SocketOptions | None = None
        self._first: list[IdleConnection] = []
        self._again: list[IdleConnection] = []
        self._restarted = False
        self._unreachable = False

    def run(self, report: Report = silent) -> None:
        """Run the test; it lasts as long as the longest idle time, with `confirm` twice as long.

        Raises:
            ConnectError: The server is gone, or accepts fewer connections than the test needs.
        """
        probes = _PROBES
        if not self._environment.tcp:
            probes = ("none",)
        elif self._environment.pooler != "none":
            # Probes of the server would end at the pooler.
            probes = ("none", "client")
        self._pass(self._first, self._tried, probes, self._plan.ages_s, report)
        ages = self._ages(self._first)
        advised = verdict.recommended(ages, self._tried)
        if self._plan.confirm and advised and len(probes) > 1 and any(age.died for age in ages):
            self._pass(self._again, advised, probes[1:], self._plan.ages_s[-1:], report)

    def result(self) -> TrialResult:
        """Return the outcomes until now, and conclusions from them."""
        ages, again = self._ages(self._first), self._ages(self._again)
        conclusions = verdict.judge(ages, again, self._tried)
        client = conclusions.advised_from("client") if self._environment.tcp else None
        server = conclusions.advised_from("server")
        settings = server.settings() if server else {}
        parameters = client.parameters() if client else {}
        outcome = (ages, conclusions, self._tried, self._environment)
        end = ("The server cannot be reached any more.",) if self._unreachable else ()
        return TrialResult(
            place=self._environment.endpoint,
            ages=ages,
            limit_s=conclusions.limit_s,
            parameters=parameters,
            passed=conclusions.passed,
            confirmation=again,
            confirmed=conclusions.confirmed,
            connection_uri=urlencode(parameters),
            postgresql_conf=_lines({k: v for k, v in settings.items() if k in self._known_settings}),
            sysctl=_lines(client.sysctl() if client else {}),
            sockets=(*self._environment.sockets, *([self._client_side] if self._client_side else [])),
            timeouts_s=self._environment.timeouts_s,
            pooler=self._environment.pooler,
            advice=(*verdict.advice(*outcome), *end),
            elapsed_s=round(time.monotonic() - self._began, 1),
            explanations=(*verdict.explanations(*outcome), *end),
            role=self._environment.role,
            endpoint=self._environment.server,
        )

    def _pass(
        self,
        connections: list[IdleConnection],
        keepalive: KeepAlive,
        probes: tuple[Probes, ...],
        ages_s: tuple[float, ...],
        report: Report,
    ) -> None:
        """Open connections, leave them idle, use each at the end of its time, and clean up."""
        combinations = list(itertools.product(ages_s, probes))
        again = "recommended parameters are tried again: " if connections is self._again else ""
        try:
            for age_s, side in combinations:
                number = f"{len(connections) + 1} of {len(combinations)}"
                connections.append(self._open(age_s, side, keepalive, number))
            duration = format_duration(ages_s[-1])
            count = plural(len(connections), "connection is", "connections are")
            idle = f"{again}{count} idle now; this takes {duration}"
            report(Progress("", idle, 0, len(connections)))
            for done, connection in enumerate(watch(connections, self._plan.answer_s), 1):
                report(Progress("", str(connection.state()), done, len(connections)))
        finally:
            for connection in connections:
                connection.close()
            self._clean_up(connections)

    def _open(self, age_s: float, probes: Probes, keepalive: KeepAlive, number: str) -> IdleConnection:
        parameters = keepalive.parameters() if probes == "client" else {"keepalives": 0}
        target = with_parameters(self._target, {name: str(value) for name, value in parameters.items()})
        try:
            with ExitStack() as opened:
                conn = opened.enter_context(closing(db.connect_async(target)))
                for statement in self._preparation(probes, keepalive):
                    async_rows(conn, statement)
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
        """Return statements that make the server send these probes, or practically none, in this session alone."""
        settings = keepalive.settings() if probes == "server" else {"tcp_keepalives_idle": _MAX_IDLE_S}
        return [
            *(f"SET {name} = {value}" for name, value in settings.items() if name in self._known_settings),
            # A pooler assigns a session with the first statement: before the idle time begins.
            "BEGIN" if self._plan.in_transaction else "SELECT 1",
        ]

    @property
    def _known_settings(self) -> dict[str, int]:
        """The server's keep-alive settings that act on our connections: behind a pooler none do."""
        return self._environment.settings if self._environment.pooler == "none" else {}

    def _clean_up(self, connections: list[IdleConnection]) -> None:
        """Notice a restart of the server, and end the server's side of connections that are lost.

        By itself the server would notice after hours, and each of them counts for max_connections.
        """
        lost = [c.backend_pid for c in connections if c.state().outcome in ("dropped", "pending")]
        try:
            with closing(db.connect_async(replace(self._target, retries=0))) as conn:
                self._restarted |= server_start(conn) != self._environment.started
                if self._environment.pooler == "none":
                    async_rows(conn, _END_SESSIONS, lost)
        except ConnectError:
            self._unreachable = True

    def _ages(self, connections: list[IdleConnection]) -> tuple[Age, ...]:
        ages = [connection.state() for connection in connections]
        ages.sort(key=lambda age: (age.age_s, _PROBES.index(age.probes)))
        return tuple(replace(age, cause=self._cause(age)) for age in ages)

    def _cause(self, age: Age) -> str:
        """Return the cause, completed by what only the server knows: a restart, and its limits."""
        if self._restarted and age.outcome == "closed":
            return "restarted"
        limits_s = self._environment.timeouts_s.items() if age.cause == UNNAMED else ()
        matches = (name for name, limit_s in limits_s if limit_s and abs(age.idle_s - limit_s) < 1)
        return next(matches, age.cause)


def _lines(settings: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"{name} = {value}" for name, value in settings.items())
