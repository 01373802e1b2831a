"""The command line as users and programs see it: help, JSON keys, exit codes, streams."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import reference

from pgorthanc_cli import cli, db, errors
from tests.support import samples

ROOT = Path(__file__).parents[2]

KEYS = {
    "check-auth": "method tls stored password_encryption hba_line plugins remedies",
    "check-lock": "locks orthancs problems errors notes",
    "keepalive-test": "ages limit_s parameters",
    "wait": "reached waited_s",
    "init": "revision schema_version created storage trigram schema",
    "import": "imported known overwritten refused refusals instances_per_s mb_per_s elapsed_s bytes",
    "status": "revision recorded_revision schema_version plugins patients studies series instances"
    " compressed_size_bytes uncompressed_size_bytes storage_area trigram locks server_version pending",
}


def pgorthanc(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgorthanc_cli", *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def test_the_reference_shows_the_help_of_every_command() -> None:
    assert reference.reference() == (ROOT / "docs" / "reference.md").read_text("utf-8"), "run: make docs"


def test_every_command_is_found_and_documented() -> None:
    for words in reference.commands(cli.main):
        assert f"## {' '.join(('pgorthanc', *words))}\n" in reference.reference()


def test_json_contract(empty: db.Target, tmp_path: Path) -> None:
    at = ("--uri", empty.dsn, "--json")
    runs = {
        "check-auth": pgorthanc("check-auth", *at),
        "init": pgorthanc("init", *at),
        "check-lock": pgorthanc("check-lock", *at),
        "keepalive-test": pgorthanc("keepalive-test", *at, "--ages", "0.1s"),
        "wait": pgorthanc("wait", *at, "--revision", "10"),
        "import": pgorthanc("import", *at, "--storage-dir", tmp_path / "area", samples.REAL),
        "status": pgorthanc("status", *at),
    }
    for name, run in runs.items():
        document = json.loads(run.stdout)
        assert set(KEYS[name].split()) <= set(document), name
        assert run.returncode == 0, run.stderr
    assert json.loads(runs["import"].stdout)["imported"] == 1
    assert json.loads(runs["status"].stdout)["instances"] == 1


def test_refusals_in_json_in_the_file_and_on_the_screen(fresh: db.Target, tmp_path: Path) -> None:
    bad = tmp_path / "[red]odd[bold].txt"
    bad.write_text("no DICOM")
    words = ("import", "--uri", fresh.dsn, "--storage-dir", tmp_path / "area", bad)
    run = pgorthanc(*words, "--json", "--refused", tmp_path / "refused.txt")
    assert run.returncode == errors.PartialFailure.exit_code
    (refusal,) = json.loads(run.stdout)["refusals"]
    assert refusal["path"] == str(bad)
    assert json.loads(run.stdout)["reasons"] == [{"reason": refusal["reason"], "files": 1}]
    assert run.stderr == ""
    assert (tmp_path / "refused.txt").read_text() == f"{bad}\t{refusal['reason']}\n"
    assert f"{bad}: {refusal['reason']}" in pgorthanc(*words).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["import"], 2, "nothing to import"),
        (["import", "."], 2, "no storage given"),
        (["import", ".", "--storage", "postgresql", "--storage-dir", "y"], 2, "contradict each other"),
        (["import", ".", "--storage-dir", "y", "--orthanc-version", "new"], 2, "wanted three numbers"),
        (["import", ".", "--storage-dir", "y", "--orthanc-version", "1.9.0"], 2, "1.9.0"),
        (["status", "--uri", "postgresql://127.0.0.1:1/x"], 3, "127.0.0.1"),
        (["status", "--uri", "a b c"], 2, "no connection string"),
        (["status", "--nonsense"], 2, "no such option: --nonsense"),
        (["nonsense"], 2, "no such command: nonsense"),
    ],
)
def test_exit_codes(fresh: db.Target, words: list[str], code: int, said: str) -> None:
    if words[0] == "import":
        words += ["--uri", fresh.dsn]
    run = pgorthanc(*words)
    assert (run.returncode, run.stdout) == (code, "")
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_no_index_is_exit_code_4_and_says_what_to_do(empty: db.Target) -> None:
    run = pgorthanc("upgrade", "--uri", empty.dsn, "--json")
    failure = json.loads(run.stderr)
    assert (run.returncode, run.stdout, failure["error"]) == (4, "", "RevisionError")
    assert "pgorthanc init" in failure["hint"]


def test_somebody_works_on_it_is_exit_code_5(fresh: db.Target, tmp_path: Path) -> None:
    with (
        db.session(db.Target(fresh.dsn, application="Orthanc")) as conn,
        db.advisory_lock(conn, db.LOCK_INDEX),
    ):
        run = pgorthanc("import", "--uri", fresh.dsn, "--storage-dir", tmp_path / "area", samples.REAL)
    assert (run.returncode, run.stdout) == (5, "")
    assert "holds the index lock" in run.stderr


def test_verbose_tells_where_settings_come_from(fresh: db.Target) -> None:
    run = pgorthanc("status", "-v", PGORTHANC_URI=fresh.dsn)
    assert run.returncode == 0
    assert "(from PGORTHANC_URI)" in run.stderr
    assert "schema = public (from default)" in run.stderr


def terminal(*words: str | Path, **environment: str) -> tuple[int, str]:
    """Exit code and screen of a command on a terminal of 60 columns."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pgorthanc_cli", *map(str, words)],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "COLUMNS": "60", "TERM": "xterm-256color", **environment},
    )
    os.close(child)
    screen = b""
    while True:
        try:
            block = os.read(parent, 4096)
        except OSError:  # the last one has closed the terminal
            break
        screen += block
    os.close(parent)
    return process.wait(), screen.decode()


def test_a_terminal_gets_colours_and_folded_lines(fresh: db.Target, tmp_path: Path) -> None:
    where = tmp_path / "a-long-name-of-a-folder-so-that-lines-must-be-folded-somewhere"
    words = ("import", "--uri", fresh.dsn, "--storage-dir", tmp_path / "area", samples.REAL, where)
    where.mkdir()
    (where / "odd.txt").write_text("no DICOM")
    code, screen = terminal(*words)
    assert code == 6
    assert "\x1b[33m!" in screen  # the refusal is yellow
    code, screen = terminal(*words, NO_COLOR="1")
    assert "! refused" in screen
    assert "\x1b[33m" not in screen


def test_pipes_get_plain_whole_lines(fresh: db.Target, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 200)
    long.write_text("no DICOM")
    run = pgorthanc("import", "--uri", fresh.dsn, "--storage-dir", tmp_path / "area", long, COLUMNS="60")
    assert "\x1b" not in run.stdout + run.stderr
    assert str(long) in run.stdout
    assert not any(line.endswith(" ") for line in run.stdout.splitlines())
