"""Checks of the connection: network, clock, TLS, authentication, poolers."""

from __future__ import annotations

import statistics
import time

from pgorthanc_cli import db
from pgorthanc_cli.constants import VERIFYING_SSLMODES
from pgorthanc_cli.db import pooler
from pgorthanc_cli.doctor.model import Status, Subject, Verdict, check

_ROUND_TRIPS = 21
_SLOW_MS, _TOO_SLOW_MS = 5.0, 30.0
_CLOCK_S, _CLOCK_WRONG_S = 2.0, 60.0


@check("pooler")
def through_pooler(subject: Subject) -> Verdict:
    """Check whether a pooler is in between, and whether it leaves Orthanc its sessions."""
    return judge_pooler(pooler.detect(subject.target))


def judge_pooler(detected: pooler.Pooler) -> Verdict:
    """Return the verdict on the pooler between client and server."""
    if detected.mode == "none":
        return Verdict("OK", "no pooler detected")
    if detected.mode == "session":
        return Verdict("OK", f"a pooler in session mode: {detected.evidence}")
    return Verdict(
        "CRITICAL",
        f"a pooler in transaction mode: {detected.evidence}",
        "Orthanc needs sessions of its own for its locks, prepared statements and search_path. "
        "Set pool_mode = session for its database, or connect to the server directly.",
    )


@check("connection")
def connection(subject: Subject) -> Verdict:
    """Report the server, the database and the role."""
    info = subject.conn.info
    [(version, role, superuser)] = db.rows(
        subject.conn,
        "SELECT current_setting('server_version'), current_user, current_setting('is_superuser')",
    )
    endpoint = info.host if subject.local else f"{info.host}:{info.port}"
    suffix = ", a superuser" if superuser == "on" else ""
    return Verdict(
        "OK",
        f"PostgreSQL {version} at {endpoint}, database {info.dbname}, role {role}{suffix}",
    )


@check("round-trip")
def round_trip(subject: Subject) -> Verdict:
    """Measure the shortest statement: Orthanc waits for many of them, one after the other."""
    durations_ms = []
    for _ in range(_ROUND_TRIPS):
        started = time.perf_counter()
        db.rows(subject.conn, "SELECT")
        durations_ms.append(1000 * (time.perf_counter() - started))
    median = statistics.median(durations_ms)
    status: Status = "OK"
    if median >= _SLOW_MS:
        status = "WARNING" if median < _TOO_SLOW_MS else "CRITICAL"
    return Verdict(
        status,
        f"{median:.2f} ms per round trip (median of {_ROUND_TRIPS})",
        "Orthanc sends many statements for each instance, one after the other. Run it near the database.",
        {"round_trip_s": median / 1000},
    )


@check("clock")
def clock(subject: Subject) -> Verdict:
    """Compare the clocks: reservations in Orthanc's queues are made with the client's clock."""
    before = time.time()
    server_time = db.value(subject.conn, "SELECT extract(epoch FROM clock_timestamp())::float8")
    after = time.time()
    # The time that the statement took is no difference between the clocks.
    ahead_s = server_time - after if server_time > after else min(server_time - before, 0.0)
    status: Status = "OK"
    message = "the clocks of client and server agree"
    if abs(ahead_s) >= _CLOCK_S:
        status = "WARNING" if abs(ahead_s) < _CLOCK_WRONG_S else "CRITICAL"
        direction = "ahead" if ahead_s > 0 else "behind"
        message = f"the server's clock is {abs(ahead_s):.1f} s {direction}"
    return Verdict(
        status,
        message,
        "Orthanc's queues release reserved values by the client's clock. Synchronize both machines by NTP.",
        {"clock_difference_s": ahead_s},
    )


@check("tls")
def tls(subject: Subject) -> Verdict:
    """Check that the connection is encrypted, unless it is local."""
    info = subject.conn.info
    if info.ssl_in_use:
        mode = info.dsn_parameters.get("sslmode", "prefer")
        verifies = mode in VERIFYING_SSLMODES
        doubt = "" if verifies else f"; sslmode {mode} does not verify the server's identity"
        return Verdict(
            "OK",
            f"{info.ssl_attribute('protocol')}, {info.ssl_attribute('cipher')}{doubt}",
        )
    if subject.local:
        return Verdict("OK", "no TLS (local connection)")
    return Verdict(
        "WARNING",
        "no TLS: patient data crosses the network unencrypted",
        "Enable TLS on the server (ssl = on); in Orthanc's configuration, set "
        '"EnableSsl" to true, or sslmode=verify-full in "ConnectionUri".',
    )


@check("authentication")
def authentication(subject: Subject) -> Verdict:
    """Check that the server authenticates its clients."""
    encryption = db.value(subject.conn, "SELECT current_setting('password_encryption')")
    # Only if the server asked for it (PQconnectionUsedPassword): `trust` ignores it.
    if subject.conn.info.used_password:
        weak = encryption == "md5"
        return Verdict(
            "WARNING" if weak else "OK",
            f"by password; new passwords are stored as {encryption}",
            "md5 is weak, and PostgreSQL will drop it. Check which plugins know SCRAM:",
            command="check-auth",
        )
    if subject.conn.info.host.startswith(("/", "@")):
        return Verdict("OK", "by the local socket, without a password")
    return Verdict(
        "OK" if subject.local else "WARNING",
        "the server asked for no password: by a certificate, GSS, or a line trust in its pg_hba.conf",
        "A line trust lets in everyone who reaches the server. Check which method it is:",
        command="check-auth",
    )
