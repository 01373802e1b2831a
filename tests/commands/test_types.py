"""Lengths of time, sizes and rates on the command line, and options by their former names."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from pgorthanc_cli.commands import type_options as types
from tests.commands.test_cli import pgorthanc
from tests.support import commandlines


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("4m", 240), ("1.5min", 90), ("2h", 7200), ("30d", 2_592_000)],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert types.TIME.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1s", "4 minutes", "m", "1m 2s", "nan", "1e9"])
def test_wrong_lengths_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a length of time, such as 90"):
        types.TIME.convert(text, None, None)


def test_zero_is_a_time_unless_something_must_happen_in_it() -> None:
    assert types.TIME.convert("0", None, None) == 0
    with pytest.raises(click.BadParameter, match="above 0"):
        types.POSITIVE_TIME.convert("0s", None, None)


def test_times_are_sorted() -> None:
    assert types.TIMES.convert("4m,1m,60s", None, None) == (60, 240)


def test_sizes_and_rates_are_decimal() -> None:
    assert types.SIZE.convert("64MB", None, None) == 64_000_000
    assert types.SIZE.convert("1.5kB", None, None) == 1500
    assert types.SIZE_RATE.convert("50MB/s", None, None) == 50_000_000
    assert types.FILE_RATE.convert("500/s", None, None) == 500


@pytest.mark.parametrize(
    "line",
    [
        "import x --report a.html --report-names --max-mb-per-s 5 --max-files-per-s 2 --settle 5",
        "upgrade --sql --wait 60",
        "migrate-sqlite x --to-revision 6 --restart --report a.json",
        "check-auth --fix md5 --print",
        "server start --dir x",
        "replication primary --embedded x --allow 10.0.0.6 --restart",
        "replication promote --dir x",
        "verify schema --repair --apply",
    ],
)
def test_former_names_are_taken(line: str) -> None:
    assert commandlines.refusal(line.split()) is None


def test_several_paths_are_one_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "a.json").write_text('{"Name": "A"}')
    file = tmp_path / "b.json"
    file.write_text('{"PostgreSQL": {"EnableIndex": true, "Host": "db1"}}')
    run = pgorthanc("config", "show", "--config", folder, "--config", file, "--json")
    assert run.returncode == 0, run.stderr
    assert "db1" in run.stdout
    (folder / "c.json").write_text('{"PostgreSQL": {}}')
    run = pgorthanc("status", "--config", folder, "--config", file)
    assert run.returncode == 2
    assert "is defined in 2 different configuration files: c.json and b.json" in run.stderr


def test_colours_on_request() -> None:
    run = pgorthanc("status", "--host", "127.0.0.1", "-p", "1", "--color", "always", TERM="xterm")
    assert (run.returncode, "\x1b[" in run.stderr) == (3, True)
    run = pgorthanc("status", "--host", "127.0.0.1", "-p", "1", "--color", "never")
    assert (run.returncode, "\x1b[" in run.stderr) == (3, False)
