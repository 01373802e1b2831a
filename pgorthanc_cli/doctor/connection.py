"""The way to the server: how far it is, who can listen, who is let in."""

from __future__ import annotations

import statistics
import time

from pgorthanc_cli.constants import VERIFYING_SSLMODES
from pgorthanc_cli.db import pooler
from pgorthanc_cli.doctor.model import Status, Subject, Verdict

_TRIPS = 21
_SLOW_MS, _FAR_MS = 5.0, 30.0
_CLOCK_S, _CLOCK_WRONG_S = 2.0, 60.0


def connection(subject: Subject) -> Verdict:
    """Which server answers."""
    info = subject.conn.info
    version, role, superuser = subject.row(
        "SELECT current_setting('server_version'), current_user, current_setting('is_superuser')"
    )
    place = info.host if subject.local else f"{info.host}:{info.port}"
    rights = ", a superuser" if superuser == "on" else ""
    return Verdict("OK", f"PostgreSQL {version} at {place}, database {info.dbname}, role {role}{rights}")


def round_trip(subject: Subject) -> Verdict:
    """How long the shortest statement takes: Orthanc waits for many of them, one after the other."""
    taken = []
    for _ in range(_TRIPS):
        started = time.perf_counter()
        subject.rows("SELECT")
        taken.append(1000 * (time.perf_counter() - started))
    median = statistics.median(taken)
    status: Status = "OK" if median < _SLOW_MS else "WARNING" if median < _FAR_MS else "CRITICAL"
    return Verdict(
        status,
        f"{median:.2f} ms to the server and back (median of {_TRIPS})",
        "Orthanc sends many statements for each instance, one after the other: run it near the database",
        {"round_trip_s": median / 1000},
    )


def clock(subject: Subject) -> Verdict:
    """Whether both machines know what time it is: reservations of queues are made with the client's clock."""
    before = time.time()
    (there,) = subject.row("SELECT extract(epoch FROM clock_timestamp())::float8")
    after = time.time()
    # What the way there and back may have taken says nothing about the clocks.
    ahead = there - after if there > after else min(there - before, 0.0)
    status: Status = (
        "OK" if abs(ahead) < _CLOCK_S else "WARNING" if abs(ahead) < _CLOCK_WRONG_S else "CRITICAL"
    )
    return Verdict(
        status,
        f"the server's clock is {abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}"
        if abs(ahead) >= _CLOCK_S
        else "the clocks of client and server agree",
        "keep the time of both machines by NTP: values reserved in Orthanc's queues come free by the client's clock",
        {"clock_difference_s": ahead},
    )


def tls(subject: Subject) -> Verdict:
    """Who can listen on the way."""
    info = subject.conn.info
    if info.ssl_in_use:
        mode = info.dsn_parameters.get("sslmode", "prefer")
        sure = mode in VERIFYING_SSLMODES
        doubt = "" if sure else f"; sslmode {mode} does not make sure that it is the right server"
        return Verdict(
            "OK",
            f"{info.ssl_attribute('protocol')}, {info.ssl_attribute('cipher')}{doubt}",
            None if sure else "see: pgorthanc check-auth",
        )
    if subject.local:
        return Verdict("OK", "none, and none is needed on this machine")
    return Verdict(
        "WARNING",
        "none: patient data crosses the network for everybody to read",
        'have the server offer TLS (ssl = on), and set "EnableSsl" to true, or sslmode=verify-full in "ConnectionUri"',
    )


def authentication(subject: Subject) -> Verdict:
    """Whether the server asked who we are."""
    encryption = subject.row("SELECT current_setting('password_encryption')")[0]
    if subject.conn.info.used_password:
        weak = encryption == "md5"
        return Verdict(
            "WARNING" if weak else "OK",
            f"with a password; new ones are stored as {encryption}",
            "md5 is going away: pgorthanc check-auth" if weak else None,
        )
    if subject.conn.info.host.startswith(("/", "@")):
        return Verdict("OK", "without a password, by the local socket")
    return Verdict(
        "OK" if subject.local else "WARNING",
        "the server asked for no password: by a certificate, GSS, or a line trust in its pg_hba.conf",
        "see which: pgorthanc check-auth",
    )


def through_pooler(subject: Subject) -> Verdict:
    """Check whether a pooler stands between, and whether it leaves Orthanc its sessions."""
    return judge_pooler(pooler.detect(subject.target))


def judge_pooler(seen: pooler.Pooler) -> Verdict:
    """Judge what stands between client and server."""
    if seen.mode == "none":
        return Verdict("OK", "no pooler detected")
    if seen.mode == "session":
        return Verdict("OK", f"a pooler in session mode: {seen.evidence}")
    return Verdict(
        "CRITICAL",
        f"a pooler in transaction mode: {seen.evidence}",
        "Orthanc needs sessions of its own (locks, prepared statements, search_path): set pool_mode = session for its "
        "database, or connect to the server directly",
    )
