"""What the outcomes of the connections mean, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgorthanc_cli.keepalive.environment import Environment
from pgorthanc_cli.keepalive.idle import ACCIDENTS, UNNAMED
from pgorthanc_cli.keepalive.model import Age, KeepAlive, Probes, format_duration
from pgorthanc_cli.text import plural

# Idle limits that vendors document as the default.
_KNOWN_LIMITS_S = (
    (60, "AWS Classic Load Balancer (60 s), and proxies with the usual time-out of a minute"),
    (240, "Azure Load Balancer and Azure NAT (4 min)"),
    (300, "F5 BIG-IP (5 min)"),
    (350, "AWS Network Load Balancer, NAT gateway and PrivateLink (350 s)"),
    (600, "Google Cloud VPC (10 min)"),
    (900, "Linux IPVS, as in Docker Swarm and Kubernetes (15 min)"),
    (3600, "firewalls of Cisco, Check Point, Fortinet and Palo Alto (1 h)"),
)
_CONNTRACK = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")

# Limits of PostgreSQL and PgBouncer themselves, which no probe prevents -> what to do.
_SERVER_LIMITS = {
    "idle_session_timeout": "The server ends sessions that are idle for {limit}, whatever keep-alive does."
    " Switch that off for Orthanc: ALTER ROLE {role} SET idle_session_timeout = 0;",
    "idle_in_transaction_session_timeout": "The server ends sessions that leave a transaction open for {limit},"
    " whatever keep-alive does: ALTER ROLE {role} SET idle_in_transaction_session_timeout = 0;",
    "PgBouncer's client_idle_timeout": "PgBouncer ends idle clients, whatever keep-alive does:"
    " set client_idle_timeout = 0 in pgbouncer.ini.",
    "PgBouncer's idle_transaction_timeout": "PgBouncer ends clients that leave a transaction open,"
    " whatever keep-alive does: set idle_transaction_timeout = 0 in pgbouncer.ini.",
    "PgBouncer lost the server": "PgBouncer lost a session of the server, and ended its client. Run this test on"
    " PgBouncer's machine, to the server; its own probes are tcp_keepidle, tcp_keepintvl and tcp_keepcnt in"
    " pgbouncer.ini.",
    UNNAMED: "The server, or a pooler in its name, ended connections of its own accord; -v shows its message.",
}
_AFTER_ACCIDENTS = {
    "terminated": "An administrator ended sessions (pg_terminate_backend), or stopped the server: that is no idle"
    " limit. The server's log says who; then run the test again.",
    "restarted": "The server was restarted during the test: that is no idle limit. Run the test again.",
    "crashed": "A process of the server crashed, or the server was stopped at once, and all sessions ended: that"
    " is no idle limit. The server's log says why; then run the test again.",
}  # fmt: skip
_ORTHANC_SAYS = (
    'Orthanc finds out when it uses the connection again: "server closed the connection unexpectedly";'
    ' "no connection to the server" is what libpq says of a connection that it has given up before.'
)
_ORTHANC_HANGS = (
    "Orthanc does not notice that the connection is gone: it waits until the kernel gives up, about 15 min"
    ' (net.ipv4.tcp_retries2), and then says "could not receive data from server: Connection timed out";'
    " tcp_user_timeout makes that sooner."
)
_DATA_ONLY = "A middle box may answer probes itself, or count only data."
_RAISE = (
    "Raise the idle limit of the middle box (HAProxy: timeout client, timeout server and timeout tunnel; Envoy:"
    " idle_timeout; PgBouncer: client_idle_timeout) above the longest pause of Orthanc, or connect past it."
)
_HOUSEKEEPING = (
    'Orthanc itself sends data every "HousekeepingInterval" (plugin 7.0 and later, 1 s by default), but on one'
    ' connection at a time: that keeps them all alive only with "IndexConnectionsCount": 1. With'
    ' "UseDynamicConnectionPool": true (9.0 and later) it closes connections that are idle for 60 s, before a longer'
    " limit does."
)


@dataclass(frozen=True)
class Verdict:
    """Conclusions from the outcomes.

    Attributes:
        limit_s: See `TrialResult.limit_s`.
        advised: Probes to recommend, None if none help.
        passed: The ends whose probes kept all connections alive.
        confirmed: See `TrialResult.confirmed`.
        tried: Whether the advised probes are the ones that were tried.
        futile: Whether connections died although probes came well within the limit of silence.
    """

    limit_s: tuple[float, float | None]
    advised: KeepAlive | None
    passed: tuple[Probes, ...]
    confirmed: bool | None
    tried: bool
    futile: bool

    def advised_from(self, side: Probes) -> KeepAlive | None:
        """Return the probes to recommend for one end, None unless they kept every connection alive."""
        return self.advised if side in self.passed else None


def judge(ages: tuple[Age, ...], again: tuple[Age, ...], tried: KeepAlive) -> Verdict:
    """Draw conclusions from the first pass and, if there was one, the second with the recommended probes."""
    advised = recommended(ages, tried)
    confirmed = None
    if again and all(age.outcome != "pending" for age in again):
        confirmed = not any(age.died for age in again)
    was_tried = bool(again) or advised == tried
    sides: tuple[Probes, ...] = ("client", "server")
    return Verdict(
        limit_s=limit(ages),
        advised=advised,
        passed=tuple(side for side in sides if was_tried and _lived(again or ages, side)),
        confirmed=confirmed,
        tried=was_tried,
        futile=_died_with_probes(ages) and tried.idle_s < limit(ages)[0],
    )


def limit(ages: tuple[Age, ...]) -> tuple[float, float | None]:
    """Return between which two idle times a connection without probes dies; None if none did."""
    silent = [age for age in ages if age.probes == "none"]
    died = [min(age.age_s, age.idle_s) for age in silent if age.died and age.cause not in ACCIDENTS]
    high = round(min(died), 1) if died else None
    lived = [age.age_s for age in silent if age.outcome == "alive" and (high is None or age.age_s < high)]
    return max(lived, default=0.0), high


def recommended(ages: tuple[Age, ...], tried: KeepAlive) -> KeepAlive | None:
    """Return the tried probes if they help, faster ones if they were too slow, None if none can help."""
    if any(age.cause for age in ages):
        return None
    if not _died_with_probes(ages):
        return tried
    low, high = limit(ages)
    # It broke although probed: the middle box does not count probes as traffic.
    if tried.idle_s < low:
        return None
    # Nothing is known to have lived: half of what died is the best guess.
    bound = low or (high or 0) / 2
    # Two probes may get lost before the limit.
    faster = max(1, int(bound / 3))
    return KeepAlive.every(faster, max(1, faster // 3), 3) if faster < tried.idle_s else None


def _died_with_probes(ages: tuple[Age, ...]) -> bool:
    some = any(age.died and age.keepalive for age in ages)
    return some and not (_lived(ages, "client") or _lived(ages, "server"))


def _lived(ages: tuple[Age, ...], probes: Probes) -> bool:
    """Return whether there are connections with probes from that end, and all are alive."""
    outcomes = {age.outcome for age in ages if age.probes == probes}
    return outcomes == {"alive"}


def advice(
    ages: tuple[Age, ...], verdict: Verdict, tried: KeepAlive, environment: Environment
) -> Iterator[str]:
    """Yield what the outcomes mean and what to do, a sentence or two each."""
    unexplained = any(age.died and not age.cause for age in ages)
    if unexplained:
        yield from _about_limit(verdict.limit_s)
    yield from explanations(ages, verdict, tried, environment)
    if unexplained and verdict.passed and environment.tcp:
        yield from _about_what_passed(verdict, environment)
    if all(age.outcome == "alive" for age in ages):
        yield f"No connection died within {format_duration(ages[-1].age_s)}. For a longer time use --up-to."


def explanations(
    ages: tuple[Age, ...], verdict: Verdict, tried: KeepAlive, environment: Environment
) -> Iterator[str]:
    """Yield what the outcomes mean; and what to do, unless parameters passed."""
    yield from _about_the_path(environment)
    pending = sum(age.outcome == "pending" for age in ages)
    if pending:
        were = plural(pending, "connection was", "connections were")
        yield f"{were} still idle when the test was ended: nothing is known of them."
    if not any(age.died for age in ages):
        return
    causes = {age.cause for age in ages if age.died}
    for cause in sorted(causes - {""}):
        seconds = environment.timeouts_s.get(cause, 0)
        text = _SERVER_LIMITS.get(cause) or _AFTER_ACCIDENTS[cause]
        yield text.format(limit=format_duration(seconds) if seconds else "some time", role=environment.role)
    outcomes = {age.outcome for age in ages}
    if outcomes & {"closed", "reset"}:
        yield _ORTHANC_SAYS
    if "dropped" in outcomes:
        yield _ORTHANC_HANGS
    if "" in causes:
        yield from _known_limits(verdict.limit_s, _survived(ages, verdict.limit_s))
        if environment.tcp and not verdict.passed:
            yield from _about_keepalive(verdict, tried)


def _about_the_path(environment: Environment) -> Iterator[str]:
    if not environment.tcp:
        yield (
            "The connection is a UNIX socket: keep-alive does not apply, and nothing on the way can drop it."
            " Only the server's own time limits were tried."
        )
    if environment.pooler != "none":
        yield (
            f"A pooler in {environment.pooler} mode is in between: the way to the pooler was tried. The server's"
            " tcp_keepalives_* act between pooler and server."
        )
    if environment.pooler == "transaction":
        yield (
            "Orthanc needs pool_mode = session: its locks and prepared statements belong to a session, and in"
            " transaction mode sessions are shared."
        )


def _survived(ages: tuple[Age, ...], limit_s: tuple[float, float | None]) -> float:
    """Return the longest silence that a connection lived through, to the millisecond."""
    silent = (age for age in ages if age.probes == "none" and age.outcome == "alive")
    return max((age.idle_s for age in silent if age.age_s <= limit_s[0]), default=0.0)


def _about_limit(limit_s: tuple[float, float | None]) -> Iterator[str]:
    low, high = limit_s
    if high is not None:
        yield f"A silent connection dies after {format_duration(low)} to {format_duration(high)}."


def _known_limits(limit_s: tuple[float, float | None], survived_s: float | None = None) -> Iterator[str]:
    low, high = limit_s
    if high is None:
        return
    survived = low if survived_s is None else survived_s
    matches = [name for seconds, name in _KNOWN_LIMITS_S if survived <= seconds <= high]
    if matches:
        yield f"Known limits that fit: {'; '.join(matches)}."
    own_s = _conntrack_s()
    if own_s and survived <= own_s <= high:
        yield (
            "This machine's own connection tracking forgets connections"
            f" after {format_duration(own_s)}: {_CONNTRACK}."
        )


def _conntrack_s() -> int | None:
    try:
        return int(_CONNTRACK.read_text())
    except (OSError, ValueError):  # not loaded, or not Linux
        return None


def _about_futility(verdict: Verdict, tried: KeepAlive) -> Iterator[str]:
    if verdict.futile:
        yield (
            f"Probes every {tried.idle_s} s do not keep a connection alive, although a silent one lives"
            f" {format_duration(verdict.limit_s[0])}: a middle box (HAProxy, Envoy, PgBouncer, stunnel, a load"
            " balancer) answers them itself, or counts only data. No parameter of keep-alive helps."
        )
    else:
        yield f"Probes every {tried.idle_s} s do not help, and faster ones cannot be recommended. {_DATA_ONLY}"
    yield _RAISE
    yield _HOUSEKEEPING


def _about_keepalive(verdict: Verdict, tried: KeepAlive) -> Iterator[str]:
    if verdict.advised is None:
        yield from _about_futility(verdict, tried)
        return
    if not verdict.tried:
        yield (
            f"Probes after {tried.idle_s} s come too late. Those after {verdict.advised.idle_s} s have not been"
            " tried, so nothing is recommended: add --confirm."
        )
        return
    yield (
        f"Probes after {verdict.advised.idle_s} s were tried, too, and connections died: nothing is recommended."
        f" {_DATA_ONLY}"
    )
    yield _RAISE
    yield _HOUSEKEEPING


def _about_what_passed(verdict: Verdict, environment: Environment) -> Iterator[str]:
    if "client" in verdict.passed:
        yield "With the parameters above every connection lived: add them to ConnectionUri."
    elif "server" in verdict.passed:
        yield "Only probes from the server keep connections alive: use the lines for postgresql.conf."
    # Else an operator would look for the setting that is there already.
    server_s = environment.settings.get("tcp_keepalives_idle", 0)
    if environment.pooler == "none" and 0 < server_s < (verdict.limit_s[1] or 0):
        yield f"The server itself sends probes after {server_s} s already; the test switched that off in its sessions."
    yield (
        "The discrete fields (Host, Port, ...) cannot say keep-alive. With them use the sysctl lines on Orthanc's"
        f" machine, or on the server postgresql.conf or ALTER ROLE {environment.role} SET tcp_keepalives_idle ="
        f" {verdict.advised.idle_s if verdict.advised else 0};"
    )
    yield "Plugins up to 3.2 carry libpq 9.6, which refuses tcp_user_timeout: leave it out there."
