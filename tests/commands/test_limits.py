"""Limits of this machine: what the message advises is executed, and the same command then succeeds."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import db, files, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server import programs
from tests.support import samples
from tests.support.servers import ROOT, as_ordinary_user, fill

IMPORT = ("import", "--storage-dir", "{area}", "{files}")
VERIFY = ("verify", "storage", "--storage-dir", "{area}")


def call(limits: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The program, started by a shell with some limits."""
    command = ["bash", "-ec", f'{limits} exec "$@"', "bash", sys.executable, "-m", "pgorthanc_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("number", "words"),
    [(6, (*IMPORT, "--jobs", "1")), (9, (*IMPORT, "--jobs", "1")), (12, (*IMPORT, "--jobs", "3")), (12, VERIFY)],
    ids=["a module", "the storage folder", "workers", "workers of verify"],
)  # fmt: skip
def test_open_files(fresh: db.Target, tmp_path: Path, number: int, words: tuple[str, ...]) -> None:
    samples.folder(tmp_path / "in", 3)
    (tmp_path / "area").mkdir()
    names = {"area": tmp_path / "area", "files": tmp_path / "in"}
    line = [word.format(**names) for word in words] + ["--uri", fresh.dsn]
    low = f"ulimit -Sn {number};"
    refused = call(low, *line)
    assert refused.returncode == 1, refused.stderr
    assert "Too many open files" in refused.stderr
    [command] = re.findall("hint: raise the limit on open files: (ulimit -n [0-9]+)$", refused.stderr.strip())
    done = call(f"{low} {command};", *line)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own that is full."""
    folder = tmp_path / "area"
    folder.mkdir()
    mounted = subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system; continuous integration has it")
    try:
        fill(folder / "ballast")
        yield folder
    finally:
        subprocess.run(["/bin/umount", folder], check=True)


def test_a_full_disk(fresh: db.Target, tmp_path: Path, small_disk: Path) -> None:
    samples.folder(tmp_path / "in", 3)
    line = (
        "import",
        "--storage-dir",
        str(small_disk),
        "--jobs",
        "1",
        str(tmp_path / "in"),
        "--uri",
        fresh.dsn,
    )
    refused = call("", *line)
    assert refused.returncode == 1, refused.stderr
    assert "free some space" in refused.stderr
    (small_disk / "ballast").unlink()
    done = call("", *line)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not ROOT, reason="an ordinary user changes nothing")
def test_the_owner_of_a_storage_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container without CAP_SETUID; the account that the hint names for sudo needs no capability."""
    account = programs.service_account()

    class Powerless:
        def __getattr__(self, name: str) -> object:
            return lambda *arguments: 0

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # that account cannot enter pytest's
        account.own(Path(folder))
        monkeypatch.setattr(files, "_libc", Powerless())

        def write() -> None:
            with storage.FilesystemArea(Path(folder)).rights:
                (Path(folder) / "written").touch()

        with pytest.raises(PgOrthancError, match="cannot take on the rights") as refused:
            write()
        [uid] = re.findall("sudo -u '#([0-9]+)'", str(refused.value.hint))
        assert int(uid) == account.uid
        as_ordinary_user(write)
        assert (Path(folder) / "written").stat().st_uid == int(uid)
