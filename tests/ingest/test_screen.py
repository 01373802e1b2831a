"""What `import` shows at its end, however it ends, and that the command which it suggests completes the work."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.support import samples
from tests.support.importing import check_area, dumped
from tests.support.real_servers import wait_until

PROGRAM = [sys.executable, "-m", "pgorthanc_cli"]
FILES = 60


def rows(target: db.Target) -> int:
    with db.session(target, readonly=True) as conn:
        count: int = db.value(conn, "SELECT count(*) FROM public.attachedfiles")
    return count


def ended(
    target: db.Target, folder: Path, end: Callable[[subprocess.Popen[str]], None], *options: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of an import that is slow, and ended after its first batches."""
    command = [*PROGRAM, "import", "--uri", target.dsn, "--storage-dir", str(folder / "area"), "--jobs", "1"]
    slowly = ["--batch-files", "5", "--max-files-per-s", "20", *options]
    with subprocess.Popen(
        [*command, *slowly, str(folder / "in")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: process.poll() is not None or rows(target) > 0)
        end(process)
        stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def terminate(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)


def check_continues(target: db.Target, folder: Path, screen: str) -> None:
    """The suggested command imports the rest."""
    (command,) = re.findall(r"^    pgorthanc (.*)", screen, re.MULTILINE)
    done = subprocess.run([*PROGRAM, *shlex.split(command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len([row for row in dumped(target)["resources"] if row[1] == 3]) == FILES
    check_area(target, folder / "area")


def test_an_interruption(fresh: db.Target, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", FILES)
    code, screen, stderr = ended(fresh, tmp_path, terminate)
    assert (code, "error" in stderr) == (130, False)
    counted = re.match(r"Interrupted: (\d+)(?: of \d+)? files were imported in .* s\.\ndatabase ", screen)
    assert counted
    assert int(counted[1]) == rows(fresh)
    assert "Next, continue" in screen
    check_continues(fresh, tmp_path, screen)


def test_ctrl_c_at_a_terminal_is_answered(fresh: db.Target, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", FILES)
    parent, child = pty.openpty()
    command = [*PROGRAM, "import", "--uri", fresh.dsn, "--storage", "postgresql", "--jobs", "1"]
    slowly = ["--batch-files", "5", "--max-files-per-s", "20", str(tmp_path / "in")]
    with subprocess.Popen([*command, *slowly], stdout=subprocess.DEVNULL, stderr=child) as process:
        os.close(child)
        wait_until(lambda: process.poll() is not None or rows(fresh) > 0)
        process.send_signal(signal.SIGINT)
        screen = b""
        with suppress(OSError):  # the program has closed its end
            while block := os.read(parent, 4096):
                screen += block
    os.close(parent)
    assert process.returncode == 130
    assert screen.count(b"Stopping after this batch") == 1


def test_a_lost_connection(fresh: db.Target, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", FILES)

    def lose(_: object) -> None:
        with db.session(fresh, autocommit=True) as conn:
            db.value(
                conn,
                """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'pgorthanc import'""",
            )

    code, screen, stderr = ended(fresh, tmp_path, lose)
    assert code == 3
    assert screen.startswith("Interrupted by the error below: ")
    assert stderr.startswith("error: ")
    check_continues(fresh, tmp_path, screen)


def test_the_end_of_following(fresh: db.Target, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", FILES)
    code, screen, stderr = ended(fresh, tmp_path, terminate, "--follow", "--settle", "0")
    assert (code, "error" in stderr) == (0, False)
    assert re.match(r"Stopped after .*: \d+ files were imported\.\n", screen)
    assert "--follow" in screen


def test_a_delivery(fresh: db.Target, tmp_path: Path) -> None:
    """Counts that add up, reasons, and a command that lists all refused files."""
    samples.folder(tmp_path / "in", 12)
    for number in range(11):
        (tmp_path / "in" / f"{number}.txt").write_text("no DICOM")
    command = [*PROGRAM, "import", "--uri", fresh.dsn, "--storage", "postgresql", str(tmp_path / "in")]

    def run(*words: str) -> str:
        done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (6, "")
        return str(done.stdout)

    screen = run("--dry-run")
    assert screen.startswith(
        "Dry run, nothing was imported: 12 of 23 files could be imported; 11 files would"
    )
    assert rows(fresh) == 0
    screen = run()
    assert screen.startswith("Imported 12 of 23 files in ")
    assert "warn 11 files refused: not a DICOM file" in screen
    (suggested,) = re.findall(r"^    pgorthanc (.*)", screen, re.MULTILINE)
    subprocess.run([*PROGRAM, *shlex.split(suggested)], check=False, capture_output=True, cwd=tmp_path)
    assert len((tmp_path / "refused.txt").read_text().splitlines()) == 11
    quiet = run("--quiet")
    assert quiet.startswith("Nothing was imported: 12 files are already stored; 11 files were refused.\n")


def test_a_password_is_never_repeated(fresh: db.Target, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", 1)
    dsn = f"{fresh.dsn} password=geheim"
    for uri in ([f"--uri={dsn}"], ["--uri", dsn]):
        done = subprocess.run(
            [*PROGRAM, "import", "--dry-run", *uri, "--storage", "postgresql", tmp_path / "in"],
            capture_output=True,
            text=True,
        )
        assert "--uri" in done.stdout.partition("\n    pgorthanc import ")[2]
        assert "geheim" not in done.stdout + done.stderr


@pytest.mark.parametrize("options", [(), ("--quiet",)])
def test_nothing_to_do(fresh: db.Target, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "in").mkdir()
    command = [*PROGRAM, "import", "--uri", fresh.dsn, "--storage", "postgresql", str(tmp_path / "in")]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    headline = done.stdout.partition("\n")[0]
    assert headline == ("" if options else "Nothing to do: there are no files to import.")
