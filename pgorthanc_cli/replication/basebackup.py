"""A base backup of a primary: pg_basebackup copies it, pg_verifybackup verifies it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.progress import Progress, Report
from pgorthanc_cli.replication.password import conninfo_for
from pgorthanc_cli.replication.upstream import Upstream
from pgorthanc_cli.server import programs
from pgorthanc_cli.server.cluster import space_hint
from pgorthanc_cli.server.programs import Account, Programs, last_error_line

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
    return verification.returncode == 0  # negative: it crashed, as that of one wheel does at every start
