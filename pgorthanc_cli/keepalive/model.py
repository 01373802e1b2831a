"""Types of a keep-alive test: what to try, what became of each connection, the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pgorthanc_cli import db

Probes = Literal["none", "client", "server"]
Outcome = Literal["alive", "closed", "reset", "dropped", "pending"]

# Around the limits that load balancers and firewalls are known for: see verdict.py.
_LADDER_S = (1, 2, 5, 10, 20, 30, 60, 120, 240, 300, 360, 600, 900, 1200, 1800, 3600, 7200)


def ages_up_to(longest_s: float) -> tuple[float, ...]:
    """Return idle times up to the longest one that tell the known limits apart."""
    # Limits below a minute are rare; only a short test tries them.
    least = 60 if longest_s >= 120 else 1
    return (*(float(age) for age in _LADDER_S if least <= age < longest_s), longest_s)


def format_duration(seconds: float) -> str:
    """Return a duration for people: `45 s`, `5.8 min`, `2 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds, 1):g} s"


@dataclass(frozen=True)
class TrialPlan:
    """What to try.

    Attributes:
        ages_s: Idle times; the whole test lasts as long as the longest.
        answer_s: A connection that does not answer within that time is lost.
        in_transaction: The idle connections have a transaction open.
        confirm: Try again what the test recommends.
    """

    ages_s: tuple[float, ...]
    answer_s: float = 10.0
    in_transaction: bool = False
    confirm: bool = False


@dataclass(frozen=True)
class KeepAlive:
    """Keep-alive parameters of a connection.

    Attributes:
        idle_s: Silence before the kernel sends the first probe.
        interval_s: Time between two probes.
        count: Unanswered probes after which the kernel gives the connection up.
        user_timeout_ms: TCP_USER_TIMEOUT: how long sent data may stay unacknowledged.
    """

    idle_s: int
    interval_s: int
    count: int
    user_timeout_ms: int

    @classmethod
    def every(cls, idle_s: int, interval_s: int, count: int) -> KeepAlive:
        """Return parameters whose user timeout gives up a connection in use no later than an idle one."""
        return cls(idle_s, interval_s, count, (idle_s + interval_s * count) * 1000)

    @classmethod
    def of(cls, target: db.Target) -> KeepAlive:
        """Return the parameters of a connection string; those that it lacks are pgorthanc's own defaults."""
        dsn = db.parse_dsn(target.dsn)
        if dsn.get("keepalives") == "0":
            dsn = {}
        idle_s, interval_s, count = (
            _number(dsn.get(name)) or int(db.KEEPALIVE[name])
            for name in ("keepalives_idle", "keepalives_interval", "keepalives_count")
        )
        keepalive = cls.every(idle_s, interval_s, count)
        user_timeout_ms = _number(dsn.get("tcp_user_timeout"))
        if user_timeout_ms:
            keepalive = replace(keepalive, user_timeout_ms=user_timeout_ms)
        return keepalive

    def parameters(self) -> dict[str, int]:
        """Return them as libpq's connection parameters."""
        return {
            "keepalives": 1,
            "keepalives_idle": self.idle_s,
            "keepalives_interval": self.interval_s,
            "keepalives_count": self.count,
            "tcp_user_timeout": self.user_timeout_ms,
        }

    def settings(self) -> dict[str, int]:
        """Return them as PostgreSQL's settings."""
        return {
            "tcp_keepalives_idle": self.idle_s,
            "tcp_keepalives_interval": self.interval_s,
            "tcp_keepalives_count": self.count,
            "tcp_user_timeout": self.user_timeout_ms,
        }

    def sysctl(self) -> dict[str, int]:
        """Return them as Linux kernel settings, the defaults of all sockets that have keep-alive on."""
        return {
            "net.ipv4.tcp_keepalive_time": self.idle_s,
            "net.ipv4.tcp_keepalive_intvl": self.interval_s,
            "net.ipv4.tcp_keepalive_probes": self.count,
        }


def _number(text: str | None) -> int:
    # 0 is the system's default; libpq itself refuses what is not a number.
    return int(text) if text and text.isdecimal() else 0


@dataclass(frozen=True)
class SocketOptions:
    """The kernel's keep-alive options of one end of a connection; None: unknown."""

    side: str
    keepalive: bool
    idle_s: int | None
    interval_s: int | None
    count: int | None
    user_timeout_ms: int | None


@dataclass(frozen=True)
class Age:
    """What became of one idle connection.

    Attributes:
        age_s: How long it was meant to be idle.
        keepalive: Whether either end sent probes.
        probes: Which end did: `client`, `server` or `none`.
        outcome: `alive`; `closed` (FIN) by the server or by a proxy; `reset` (RST); `dropped`: no answer;
            `pending`: the test was interrupted before.
        idle_s: How long it was idle until it was used again or its end was seen.
        noticed_s: Time from its use to the outcome; 0 if it ended while it was idle.
        cause: What ended it, empty if unknown.
        detail: The evidence, such as the server's message.
    """

    age_s: float
    keepalive: bool
    probes: Probes
    outcome: Outcome
    idle_s: float
    noticed_s: float
    cause: str
    detail: str

    @property
    def died(self) -> bool:
        """Whether the connection is known to have died."""
        return self.outcome not in ("alive", "pending")

    def __str__(self) -> str:
        probes = {"none": "silent", "client": "probes from the client", "server": "probes from the server"}
        outcome = f"{self.outcome} after {format_duration(self.idle_s)} idle" if self.died else self.outcome
        return f"{format_duration(self.age_s)}, {probes[self.probes]}: {outcome}: {self.detail}"


@dataclass(frozen=True)
class TrialResult:
    """The result of a test, complete or interrupted.

    Attributes:
        place: The server's endpoint.
        ages: One row for each connection, the shortest idle time first.
        limit_s: An idle connection without probes lives at least the first and at most the second time;
            the second is None if none died.
        parameters: libpq's parameters for `ConnectionUri` that kept every connection alive; empty: none did.
        passed: The ends whose probes kept every connection alive: `client` (`parameters`, `sysctl`), `server`
            (`postgresql_conf`). Nothing is recommended that did not.
        confirmation: The connections with which `parameters` were tried again.
        confirmed: Whether all of these lived; None: not tried.
        connection_uri: `parameters` as the query of a URI.
        postgresql_conf: The same for the server's configuration.
        sysctl: The same for the kernel of Orthanc's host, for the discrete fields, which have no keep-alive.
        sockets: The effective socket options of both ends.
        timeouts_s: The server's own limits for idle sessions, 0 is none.
        pooler: `none`, `session` or `transaction`, see `pooler.detect`.
        advice: What it means and what to do, a sentence or two each.
        elapsed_s: Duration of the test.
        explanations: Of `advice`, what the outcomes mean.
        role: The session's role, quoted for SQL.
        endpoint: The database, server and role.
    """

    place: str
    ages: tuple[Age, ...]
    limit_s: tuple[float, float | None]
    parameters: Mapping[str, int]
    passed: tuple[Probes, ...]
    confirmation: tuple[Age, ...]
    confirmed: bool | None
    connection_uri: str
    postgresql_conf: tuple[str, ...]
    sysctl: tuple[str, ...]
    sockets: tuple[SocketOptions, ...]
    timeouts_s: Mapping[str, float]
    pooler: str
    advice: tuple[str, ...]
    elapsed_s: float
    explanations: tuple[str, ...]
    role: str
    endpoint: db.Endpoint | None

    @property
    def died(self) -> int:
        """The number of connections that died."""
        return sum(age.died for age in (*self.ages, *self.confirmation))
