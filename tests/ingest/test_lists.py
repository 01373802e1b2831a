"""Lists and pages about an import: for their owner alone if they name files, and one line for each file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.support import samples

NAMES = [
    b"plain.txt", b"new\nline", b"carriage\rreturn", b"tab\tbed", b"esc\x1b]0;PWNED\x07\x1b[2J", b"not UTF-8 \xff\xfe",
    "right to left \u202e".encode(), "zero width \u200b".encode(), b"back\\slash", b"back\\nslash", "Bärbel".encode(),
    "\u2028".encode(), "c1 \x9b".encode(),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def import_(target: db.Target, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pgorthanc_cli", "import", "--quiet", "--jobs", "1", "--uri", target.dsn]
    return subprocess.run(
        [*command, "--storage-dir", str(folder / "area"), *options, str(folder / "in")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(b"no DICOM")
    return tmp_path


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("before", [None, 0o644])
def test_refused_files_are_one_line_each_whatever_their_name(
    fresh: db.Target, folder: Path, before: int | None
) -> None:
    path = folder / "refused.txt"
    if before:
        path.write_text("an older and longer list\n" * 1000)
        path.chmod(before)
    done = import_(fresh, folder, "--refused", str(path))
    assert done.returncode == 6, done.stderr
    assert permissions(path) == 0o600
    content = path.read_text("utf-8")
    assert content.endswith("\n")
    lines = content[:-1].split("\n")
    assert len(lines) == len(NAMES)
    assert all(line.replace("\t", "").isprintable() for line in lines)
    listed = [line.split("\t") for line in lines]
    assert {len(parts) for parts in listed} == {2}
    assert {parts[1] for parts in listed} == {
        "not a DICOM file: it begins neither with a DICOM header nor with DICOM elements"
    }
    names = {parts[0].rpartition("/")[2] for parts in listed}
    assert names >= {
        "plain.txt",
        r"new\nline",
        r"not UTF-8 \xff\xfe",
        r"back\\slash",
        r"back\\nslash",
        "Bärbel",
    }


def test_nothing_of_a_name_reaches_the_terminal_raw(fresh: db.Target, folder: Path) -> None:
    done = import_(fresh, folder)
    for stream in (done.stdout, done.stderr):
        assert not set("\x1b\x07\x9b\u202e\r") & set(stream)


def test_refused_files_on_standard_output(fresh: db.Target, folder: Path) -> None:
    done = import_(fresh, folder, "--refused", "-")
    assert r"new\nline" in done.stdout


@pytest.mark.parametrize("option", ["--refused", "--html"])
def test_a_list_that_cannot_be_written_is_refused_before_the_work(
    fresh: db.Target, folder: Path, option: str
) -> None:
    done = import_(fresh, folder, option, str(folder / "missing" / "list"))
    assert done.returncode == 2
    assert option in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "area").exists()


@pytest.mark.parametrize("names", [True, False])
def test_a_page_with_names_is_private(fresh: db.Target, folder: Path, names: bool) -> None:
    path = folder / "page.html"
    done = import_(fresh, folder, "--report", str(path), *(["--report-names"] if names else []))
    assert done.returncode == 6, done.stderr
    assert permissions(path) == (0o600 if names else 0o666)
    assert not [each.name for each in folder.iterdir() if each.name.startswith(".")]
    assert ("This page names patients" in path.read_text("utf-8")) == names


def test_journals_are_private(fresh: db.Target, folder: Path) -> None:
    (folder / "in" / "1.dcm").write_bytes(samples.instance())
    import_(fresh, folder, "--journal", str(folder / "journal"))
    assert permissions(folder / "journal") == 0o600
