"""Text from outside is harmless, and files are replaced whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgorthanc_cli import files
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.text import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Müller 東京 [x]", "Müller 東京 [x]"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b]0;PWNED\x07", "\\x1b]0;PWNED\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\\nb", "a\\\\nb"),
        ("abc\u202etxt.exe", "abc\\u202etxt.exe"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028end", "line\\u2028end"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_text_from_outside_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text("old")
    path.chmod(0o644)
    with pytest.raises(RuntimeError), files.replacing(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    files.replace(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["report"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(PgOrthancError, match=r"cannot write .*/missing/report: No such file"):
        files.replace(tmp_path / "missing" / "report", "x")
    with pytest.raises(PgOrthancError, match="Is a directory"):
        files.replace(tmp_path, "x")


def test_a_device_is_written_not_replaced(tmp_path: Path) -> None:
    files.replace("/dev/null", "x")
    assert Path("/dev/null").is_char_device()
