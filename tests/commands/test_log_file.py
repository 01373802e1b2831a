"""--log-file and --log-format."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

from click.testing import CliRunner

from pgorthanc_cli import cli, db
from tests.support import samples

TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"


def run(*words: str | Path) -> int:
    return CliRunner().invoke(cli.main, list(map(str, words))).exit_code


def test_text_of_what_stderr_shows_and_of_the_result(fresh: db.Target, tmp_path: Path) -> None:
    log = tmp_path / "pgorthanc.log"
    options = ("--uri", fresh.dsn, "--log-file", log)
    assert run("status", *options) == 0
    assert run("upgrade", "--to", "7", *options) == 4
    first, second, *hint = log.read_text().splitlines()
    assert re.fullmatch(rf"{TIME} INFO Database \S+ at \S+ holds .*", first), first
    assert re.fullmatch(rf"{TIME} ERROR revision 7 does not exist.*", second)
    assert all(line.startswith("    ") for line in hint)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_json_lines(fresh: db.Target, tmp_path: Path) -> None:
    log = tmp_path / "pgorthanc.log"
    samples.folder(tmp_path / "in", 3)
    (tmp_path / "in" / "odd.dcm").write_bytes(b"odd")
    words = ("import", "--uri", fresh.dsn, "--storage-dir", tmp_path / "area", tmp_path / "in")
    assert run(*words, "--log-file", log, "--log-format", "json", "--json") == 6
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(re.fullmatch(TIME, record["time"]) for record in records)
    assert records[-1]["level"] == "info"
    assert records[-1]["message"].startswith("Imported 3 of 4 files")
    assert run("status", "--host", "/nowhere", "--log-file", log, "--log-format", "json") == 3
    refused = json.loads(log.read_text().splitlines()[-1])
    assert refused["level"] == "error"
    assert {"message", "hint"} <= set(refused)


def test_a_rotated_file_is_left_behind(fresh: db.Target, tmp_path: Path) -> None:
    log = tmp_path / "pgorthanc.log"
    assert run("status", "--uri", fresh.dsn, "--log-file", log) == 0
    log.rename(tmp_path / "pgorthanc.log.1")
    assert run("status", "--uri", fresh.dsn, "--log-file", log) == 0
    assert len(log.read_text().splitlines()) == len((tmp_path / "pgorthanc.log.1").read_text().splitlines())


def test_a_file_that_cannot_be_written_is_refused(fresh: db.Target, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.main, ["status", "--uri", fresh.dsn, "--log-file", str(tmp_path / "missing" / "log")]
    )
    assert result.exit_code == 2
    assert "cannot be written: No such file or directory" in result.stderr


def test_a_full_disk_does_not_end_the_work(fresh: db.Target) -> None:
    assert run("status", "--uri", fresh.dsn, "--log-file", "/dev/full") == 0
