"""The copy of a primary: pg_basebackup creates it, pg_verifybackup verifies it.

When it runs as a standby, Orthanc's index on it is compared with the primary's.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError, RevisionError
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.replication.password import conninfo_for
from pgorthanc_cli.replication.survey import local_address
from pgorthanc_cli.replication.upstream import Upstream
from pgorthanc_cli.schema.status import status
from pgorthanc_cli.server import programs
from pgorthanc_cli.server.cluster import Cluster, space_hint
from pgorthanc_cli.server.programs import Account, Programs, last_error_line

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

IndexCounts = dict[str, int | str | None]

SAME, NOT_COMPARED = "none", "not compared"
_COUNTED = ("revision", "patients", "studies", "series", "instances")
_KILL_TIMEOUT_S = 5.0  # a killed process, if the disk is slow
_PROGRESS = re.compile(r"^\s*(\d+)/(\d+) kB \(")
_OTHER_PROCESS = re.compile(
    r"child (?:process|thread) |background process |removing (?:contents of )?(?:data|WAL) dir"
)


def copy(
    upstream: Upstream, path: Path, account: Account, installed: Programs, slot: str, report: Report
) -> bool:
    """Fill an empty folder; return whether each file was verified as it is on the disk.

    Args:
        upstream: The primary.
        path: The folder.
        account: The account that runs the programs.
        installed: Programs of the primary's version.
        slot: The slot that keeps the WAL meanwhile.
        report: Called with the bytes that are copied.

    Raises:
        PgOrthancError: The copy fails or is damaged, or there is not enough space.
    """
    with conninfo_for(account, upstream.parameters, upstream.password) as conninfo:
        # `fast`: an immediate checkpoint, instead of one spread over minutes. The slot
        # keeps the WAL that the copy needs, even if it takes hours.
        arguments = ["-D", ".", "-d", conninfo, "-X", "stream", "-S", slot, "-c", "fast"]
        arguments += ["--progress", "--no-password"]
        with programs.started(installed, "pg_basebackup", arguments, path, account) as process:
            try:
                messages = _follow(process.stderr or (), path, report)
                process.wait()
            finally:
                if process.returncode != 0:
                    _kill(process)
        if process.returncode:
            raise PgOrthancError(
                f"cannot copy {upstream.endpoint}: {_reason(messages, process.returncode)}",
                space_hint(path)
                or f"see whether the server {upstream.endpoint} and the network are up, then run the same command "
                "again; pgorthanc replication plan shows what the primary needs",
            )
    return _verify(path, account, installed)


def _follow(lines: Iterable[str], path: Path, report: Report) -> str:
    """Report the progress, and return the other messages of pg_basebackup."""
    messages = []
    for line in lines:
        match = _PROGRESS.match(line)
        if match is None:
            messages.append(line)
            continue
        done, total = (int(number) * 1024 for number in match.groups())
        # The total is an estimate of pg_basebackup, made before the copy.
        report(Progress("copy", "bytes", done, max(done, total)))
        free = shutil.disk_usage(path).free
        if total - done > free:
            raise PgOrthancError(
                f"the disk is too small: {(total - done) / 1e6:,.1f} MB are still to come, "
                f"{free / 1e6:,.1f} MB are free in {path}",
                "make room, or name a folder on another disk; nothing was left behind",
            )
    return "".join(messages)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill pg_basebackup and its child, and wait until neither writes any more."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()  # until it is reaped, the group exists
            time.sleep(0.01)


def _reason(messages: str, code: int) -> str:
    """Return the last error, but not the message that the other process has ended."""
    own = "\n".join(line for line in messages.splitlines() if not _OTHER_PROCESS.search(line))
    if not messages.strip():
        return f"pg_basebackup ended with {code} and said nothing"
    return last_error_line(own or messages)


def _verify(path: Path, account: Account, installed: Programs) -> bool:
    # pg_basebackup has verified the checksums of the pages; pg_verifybackup (since 13)
    # adds the files and their WAL.
    if installed.version < (13, 0):
        return False
    verification = programs.run(installed, "pg_verifybackup", ["-q", "."], path, account)
    if verification.returncode > 0:
        raise PgOrthancError(
            f"the copy in {path} is damaged: {last_error_line(verification.stderr)}",
            "look at the disk of this machine",
        )
    # Negative: it crashed, as that of one wheel does at every start.
    return verification.returncode == 0


# The comparison


def compare_index(cluster: Cluster, database: db.Target | None) -> tuple[IndexCounts | None, str]:
    """Return the standby's index counts, and how they differ from the primary's."""
    if database is None:
        return None, NOT_COMPARED
    address = local_address(cluster.listen_addresses())
    try:
        return compare(database, at(database, address, cluster.endpoint()[0]))
    except (ConnectError, RevisionError) as error:
        return None, f"{NOT_COMPARED}: {error.message}"


def at(target: db.Target, host: str, port: int) -> db.Target:
    """Return the same database and login on another server."""
    parameters = db.parse_dsn(target.dsn)
    # They would lead to the primary again.
    for name in ("hostaddr", "target_session_attrs"):
        parameters.pop(name, None)
    dsn = make_dsn(**{**parameters, "host": host, "hostaddr": "", "port": str(port)})
    return replace(target, dsn=dsn)


def compare(primary: db.Target, standby: db.Target, *, wait_s: float = 60.0) -> tuple[IndexCounts, str]:
    """Return the standby's index counts, and how they differ: `none` if they do not.

    While another session writes, the two are compared until they agree, up to `wait_s`
    seconds.

    Raises:
        ConnectError: One of them refuses the login.
        RevisionError: The primary holds no index.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with db.session(primary, readonly=True) as conn:
            expected = _counts(conn, primary.schema)
            # After the counts: the standby has to replay at least what was counted.
            conn.commit()
            lsn = db.value(conn, "SELECT pg_current_wal_lsn()::text")
        wait_for_replay(standby, lsn, max(deadline - time.monotonic(), 1.0))
        with db.session(standby, readonly=True) as conn:
            actual = _counts(conn, standby.schema)
        if actual == expected:
            return actual, SAME
        if time.monotonic() > deadline:
            differences = [
                f"{name} {expected[name]} there and {count} here"
                for name, count in actual.items()
                if count != expected[name]
            ]
            return actual, ", ".join(differences)


def _counts(conn: Connection, schema: str) -> IndexCounts:
    index = status(conn, schema)
    return {name: getattr(index, name) for name in _COUNTED}


def wait_for_replay(standby: db.Target, lsn: str, timeout_s: float) -> None:
    """Wait until a standby has replayed the WAL up to a position.

    Raises:
        PgOrthancError: It has not in time.
    """
    deadline = time.monotonic() + timeout_s
    with db.session(standby, readonly=True, autocommit=True, need_schema=False) as conn:
        while not db.value(conn, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn):
            if time.monotonic() > deadline:
                reached = db.value(conn, "SELECT pg_last_wal_replay_lsn()::text")
                raise PgOrthancError(
                    f"the standby has replayed its log up to {reached} after {timeout_s:.0f} s, wanted {lsn}",
                    "its log says why; pgorthanc replication status shows the lag",
                )
            time.sleep(0.05)
