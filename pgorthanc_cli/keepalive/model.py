"""What is tried and what is found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pgorthanc_cli import db
from pgorthanc_cli.errors import UsageError

Probes = Literal["none", "client", "server"]
Outcome = Literal["alive", "closed", "reset", "dropped", "pending"]

_UNITS_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}
# Around the limits that load balancers and firewalls are known for: see verdict.py.
_LADDER_S = (1, 2, 5, 10, 20, 30, 60, 120, 240, 300, 360, 600, 900, 1200, 1800, 3600, 7200)


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `1.5m`, `2h`.

    Raises:
        UsageError: It is none, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if match is None or match[2] not in _UNITS_S or not float(match[1]):
        raise UsageError(f"{text!r} is no length of time", "write it as 30s, 4m or 1h")
    return float(match[1]) * _UNITS_S[match[2]]


def ages(text: str) -> tuple[float, ...]:
    """The ages of a list such as `1m,4m,6m`, in seconds, each once, the youngest first."""
    return tuple(sorted({duration(part) for part in text.split(",")}))


def ages_up_to(longest_s: float) -> tuple[float, ...]:
    """Ages that tell known limits apart, up to the given one; below a minute only if that is a short one."""
    least = 60 if longest_s >= 120 else 1
    return (*(float(age) for age in _LADDER_S if least <= age < longest_s), longest_s)


def shown(seconds: float) -> str:
    """A length of time for people: `45 s`, `5.8 min`, `2 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds, 1):g} s"


@dataclass(frozen=True)
class Plan:
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
    """When the kernel sends probes: after `idle_s` of silence, then each `interval_s`; `count` lost ones are the end.

    `user_timeout_ms`: what was sent and is not acknowledged by then ends the connection, too (TCP_USER_TIMEOUT).
    """

    idle_s: int
    interval_s: int
    count: int
    user_timeout_ms: int

    @classmethod
    def every(cls, idle_s: int, interval_s: int, count: int) -> KeepAlive:
        """With the user timeout that fits: a connection in use is given up no later than an idle one."""
        return cls(idle_s, interval_s, count, (idle_s + interval_s * count) * 1000)

    @classmethod
    def of(cls, target: db.Target) -> KeepAlive:
        """What the connection string says, else what pgorthanc uses itself."""
        given = db.parse_dsn(target.dsn)
        if given.get("keepalives") == "0":
            given = {}
        idle_s, interval_s, count = (
            _number(given.get(name)) or int(db.KEEPALIVE[name])
            for name in ("keepalives_idle", "keepalives_interval", "keepalives_count")
        )
        found = cls.every(idle_s, interval_s, count)
        user_timeout_ms = _number(given.get("tcp_user_timeout"))
        return replace(found, user_timeout_ms=user_timeout_ms) if user_timeout_ms else found

    def parameters(self) -> dict[str, int]:
        """As libpq's connection parameters."""
        return {
            "keepalives": 1,
            "keepalives_idle": self.idle_s,
            "keepalives_interval": self.interval_s,
            "keepalives_count": self.count,
            "tcp_user_timeout": self.user_timeout_ms,
        }

    def settings(self) -> dict[str, int]:
        """As PostgreSQL's settings."""
        return {
            "tcp_keepalives_idle": self.idle_s,
            "tcp_keepalives_interval": self.interval_s,
            "tcp_keepalives_count": self.count,
            "tcp_user_timeout": self.user_timeout_ms,
        }

    def sysctl(self) -> dict[str, int]:
        """As settings of the Linux kernel, for all sockets that ask for keep-alive and say no more."""
        return {
            "net.ipv4.tcp_keepalive_time": self.idle_s,
            "net.ipv4.tcp_keepalive_intvl": self.interval_s,
            "net.ipv4.tcp_keepalive_probes": self.count,
        }


def _number(text: str | None) -> int:
    """0, the system's default, for what is no number: libpq is the one to refuse that."""
    return int(text) if text and text.isdecimal() else 0


@dataclass(frozen=True)
class SocketOptions:
    """The effective options of one end of a connection, as the kernel has them; None: not to be seen."""

    side: str
    keepalive: bool
    idle_s: int | None
    interval_s: int | None
    count: int | None
    user_timeout_ms: int | None


@dataclass(frozen=True)
class Age:
    """What became of one connection.

    Attributes:
        age_s: How long it was to be idle.
        keepalive: Whether anybody sent probes.
        probes: Who did: `client`, `server` or `none`.
        outcome: `alive`; `closed` by the server, or by a proxy in the ordinary way; `reset` (RST); `dropped`: what
            is sent gets no answer; `pending`: the test was ended before.
        idle_s: How long it was idle until it was used again or its end was seen.
        noticed_s: How long it took from its use to the outcome; 0 if the end was seen at once, while it was idle.
        cause: What ended it, as far as that is known.
        detail: What was seen; the words of the server.
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
        """Whether it is known to have died."""
        return self.outcome not in ("alive", "pending")

    def told(self) -> str:
        """In one line, for progress."""
        who = {"none": "silent", "client": "probes from the client", "server": "probes from the server"}
        what = f"{self.outcome} after {shown(self.idle_s)} idle" if self.died else self.outcome
        return f"{shown(self.age_s)}, {who[self.probes]}: {what}: {self.detail}"


@dataclass(frozen=True)
class Started:
    """The connections are open and idle now."""

    connections: int
    longest_s: float
    again: bool

    def told(self) -> str:
        """In one line, for progress."""
        what = "recommended parameters are tried again: " if self.again else ""
        return f"{what}{self.connections} connections are idle now; this takes {shown(self.longest_s)}"


@dataclass(frozen=True)
class Report:
    """What a test has found.

    Attributes:
        place: Where the connections lead.
        ages: One row for each connection, the youngest first.
        limit_s: An idle connection without probes lives at least the first and at most the second time;
            the second is None if none died.
        parameters: libpq's parameters for `ConnectionUri` that were seen to keep connections alive; empty: none.
        passed: With probes from which side every connection lived: `client` (`parameters`, `sysctl`), `server`
            (`postgresql_conf`). What was tried in vain is not recommended.
        confirmation: What became of the connections with which `parameters` were tried again.
        confirmed: Whether all of these lived; None: not tried.
        connection_uri: `parameters` as the end of a URI.
        postgresql_conf: The same for the server's configuration.
        sysctl: The same for the kernel of Orthanc's machine: for the discrete fields, which cannot say it.
        sockets: The effective socket options of both ends.
        timeouts_s: The server's own time limits, 0 is none.
        pooler: `none`, `session` or `transaction`, see `pooler.detect`.
        advice: What it means and what to do, a sentence or two each.
        elapsed_s: How long it took.
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

    @property
    def died(self) -> int:
        """How many connections died."""
        return sum(age.died for age in (*self.ages, *self.confirmation))
