"""No failure is a traceback, and no text from outside is obeyed by a terminal."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.commands.test_cli import pgorthanc, terminal
from tests.support import samples

PROGRAM = [sys.executable, "-m", "pgorthanc_cli"]
HOSTILE = "evil\x1b]0;PWNED\x07\u202egpj.\x9b31m\nsecond"
OBEYED = ("\x1b]", "\x07", "\u202e", "\x9b")

# A bug in the library, with a password in its text.
BUG = """
from pgorthanc_cli.schema import status
from pgorthanc_cli.cli import main
def broken(*arguments, **options):
    raise ValueError("secret")
status.find = broken
main(prog_name="pgorthanc")
"""


def redirected(words: list[str | Path], place: str) -> subprocess.CompletedProcess[str]:
    command = " ".join(["exec", *(f'"{word}"' for word in (*PROGRAM, *words)), place])
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_disk_behind_stdout(fresh: db.Target, tmp_path: Path, options: tuple[str, ...]) -> None:
    for words in (["status"], ["import", "--storage-dir", tmp_path / "area", samples.REAL]):
        run = redirected([*words, "--uri", fresh.dsn, *options], ">/dev/full")
        assert run.returncode == 1
        assert "cannot be written to standard output: No space left on device" in run.stderr
        assert "Traceback" not in run.stderr
        assert "Exception ignored" not in run.stderr
        if options:
            assert json.loads(run.stderr)["hint"]


@pytest.mark.parametrize("place", [">/dev/full", ">&-", "2>&-", "2>/dev/full", ">&- 2>&- <&-", "| true"])
@pytest.mark.parametrize("words", [["--help"], ["status", "--uri", "host=/nosuch"]])
def test_streams_that_cannot_be_written(words: list[str | Path], place: str) -> None:
    run = redirected(words, place)
    assert "Traceback" not in run.stdout + run.stderr
    assert "Exception ignored" not in run.stderr
    assert run.returncode in (0, 1, 2, 3)


def test_a_closed_stdout_is_not_given_to_a_connection(fresh: db.Target) -> None:
    run = redirected(["status", "--uri", fresh.dsn], ">&-")
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("limit", "value"),
    [(resource.RLIMIT_NOFILE, 9), (resource.RLIMIT_AS, 60_000_000)],
    ids=["files", "memory"],
)
def test_limits_of_the_process(fresh: db.Target, tmp_path: Path, limit: int, value: int) -> None:
    words = ["import", "--uri", fresh.dsn, "--storage-dir", str(tmp_path / "area"), str(samples.REAL)]
    run = subprocess.run(
        [*PROGRAM, *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
    )
    assert "Traceback" not in run.stderr, run.stderr
    assert run.returncode in (0, 1, 3), run.stderr


def test_interrupted_at_the_start() -> None:
    """Python itself reports on stderr what has been imported: an event to wait for."""
    command = [sys.executable, "-X", "importtime", "-m", "pgorthanc_cli", "status", "--uri", "host=/nosuch"]
    for event in ("click.globals", "pgorthanc_cli.errors", "psycopg2.extensions"):
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stderr
            for line in process.stderr:
                if line.rstrip().endswith(event):
                    process.send_signal(signal.SIGINT)
                    break
            rest = process.stderr.read()
        assert "Traceback" not in rest, event
        assert process.returncode == 130


@pytest.mark.parametrize(
    "words",
    [
        ["downgrade", "--to"],
        ["downgrade", "--plan", "--to"],
        ["upgrade", "--to"],
        ["upgrade", "--sql", "--to"],
        ["wait", "--timeout", "30", "--revision"],
        ["init", "--revision"],
        ["init", "--print-sql", "--revision"],
    ],
    ids=" ".join,
)
def test_revisions_that_do_not_exist(fresh: db.Target, words: list[str]) -> None:
    for number in ("7", "0", "-1") if words[0] == "downgrade" else ("11",):
        run = pgorthanc(*words, number, "--json", "--uri", fresh.dsn)
        failure = json.loads(run.stderr)
        assert failure["message"] == f"revision {number} does not exist"
        assert failure["hint"] == "choose 1, 2, 3, 4, 5, 6 or 10"
        assert (run.returncode, run.stdout) == (4, "")


@pytest.mark.parametrize("option", ["--html", "--prometheus"])
@pytest.mark.parametrize("place", ["/nosuch/x.html", "/proc/x.html"])
def test_reports_that_cannot_be_written(fresh: db.Target, option: str, place: str) -> None:
    run = pgorthanc("doctor", "--uri", fresh.dsn, option, place)
    assert run.returncode == 1
    assert f"cannot write {place}: " in run.stderr
    assert "Traceback" not in run.stderr


def test_reports_are_private_or_readable_for_the_exporter(fresh: db.Target, tmp_path: Path) -> None:
    html, metrics = tmp_path / "x.html", tmp_path / "x.prom"
    before = os.umask(0o077)
    try:
        pgorthanc("doctor", "--uri", fresh.dsn, "--html", html, "--prometheus", metrics)
    finally:
        os.umask(before)
    assert (html.stat().st_mode & 0o777, metrics.stat().st_mode & 0o777) == (0o600, 0o644)


def test_a_bug_is_one_line(fresh: db.Target) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BUG, "status", "--uri", fresh.dsn, *options]
        return subprocess.run(command, capture_output=True, text=True)

    plain = run()
    assert plain.returncode == 1
    assert "error: unexpected error: ValueError in <string>, line 5" in plain.stderr
    assert "this is a bug; run again with --traceback" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert "secret" not in plain.stderr + plain.stdout
    assert json.loads(run("--json").stderr)["message"].startswith("unexpected error: ValueError")
    assert "ValueError: secret" in run("--traceback").stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--nonsense"],
        ["nonsense"],
        ["status", "--port", "x"],
        ["status", "--nonsense"],
        ["config", "nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_json_where_json_is_asked(words: list[str]) -> None:
    run = pgorthanc(*words, "--json")
    failure = json.loads(run.stderr)
    assert (run.returncode, run.stdout, failure["error"]) == (2, "", "UsageError")
    assert failure["hint"].startswith("run: pgorthanc")
    assert failure["hint"].endswith("--help")


def test_wrong_usage_is_unknown_for_nagios() -> None:
    run = pgorthanc("doctor", "--nagios", "--port", "x")
    assert run.returncode == 3
    assert run.stdout.startswith("DOCTOR UNKNOWN - ")
    assert run.stdout.count("\n") == 1


def test_hostile_file_names(fresh: db.Target, tmp_path: Path) -> None:
    bad = tmp_path / HOSTILE
    bad.write_text("no DICOM")
    words = ("import", "--uri", fresh.dsn, "--storage-dir", tmp_path / "area", bad)
    shown: list[Callable[[], str]] = [
        lambda: "".join((run := pgorthanc(*words)).stdout + run.stderr),
        lambda: terminal(*words)[1],
        lambda: pgorthanc(*words, "--json").stdout,
    ]
    for show in shown:
        screen = show()
        assert "evil" in re.sub(r"\s|\x1b\[\d*m", "", screen)  # a narrow column breaks the name anywhere
        assert not [character for character in OBEYED if character in screen]
    (refusal,) = json.loads(pgorthanc(*words, "--json").stdout)["refusals"]
    assert refusal["path"] == str(bad)  # JSON itself escapes what a terminal would obey


def test_a_hostile_name_in_an_error(tmp_path: Path) -> None:
    for options in ((), ("--json",), ("--nagios",)):
        run = pgorthanc("check-lock", "--uri", f"host='{tmp_path}/{HOSTILE}'", *options)
        assert not [character for character in OBEYED if character in run.stdout + run.stderr]
        assert run.returncode in (2, 3)


def test_names_that_are_not_utf8(fresh: db.Target, tmp_path: Path) -> None:
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(bad).write_text("no DICOM")
    words = ("import", "--uri", fresh.dsn, "--storage-dir", tmp_path / "area", bad)
    assert "caf\\xe9" in pgorthanc(*words).stdout
    assert "Traceback" not in pgorthanc(*words, "--json").stderr
    run = pgorthanc(*words, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert run.returncode == 6, run.stderr
