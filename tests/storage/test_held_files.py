"""Archives and files that are malicious: they are refused or imported, and nothing else happens."""

from __future__ import annotations

import gzip
import json
import os
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.ingest import content
from pgorthanc_cli.ingest.walk import Source
from tests.ingest.test_report import Texts
from tests.support import samples
from tests.support.dicomfile import El, dicom_file
from tests.support.importing import check_area, ends, run

MEMORY_BYTES = 1 << 30  # address space of the process
PROGRAM = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
from pgorthanc_cli.cli import main
main(prog_name="pgorthanc")
"""


def imported(target: db.Target, folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Import what is in the folder, in a process whose memory is limited."""
    words = [
        "--uri",
        target.dsn,
        "--storage-dir",
        folder / "area",
        "--jobs",
        1,
        "--json",
        *options,
        folder / "in",
    ]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "import", "--quiet", *map(str, words)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


FAILING_DISK = """
import errno, os
def fail(descriptor):
    raise OSError(errno.EIO, os.strerror(errno.EIO))
os.fsync = os.fdatasync = fail
from pgorthanc_cli.cli import main
main(prog_name="pgorthanc")
"""


def test_a_disk_that_cannot_write_stops_the_import_and_nothing_counts(
    fresh: db.Target, tmp_path: Path
) -> None:
    samples.folder(tmp_path / "in", 3)
    area = tmp_path / "area"
    words = ["--uri", fresh.dsn, "--storage-dir", area, "--jobs", 1, tmp_path / "in"]
    done = subprocess.run(
        [sys.executable, "-c", FAILING_DISK, "import", "--quiet", *map(str, words)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done
    assert "Input/output error" in done.stderr
    assert "Traceback" not in done.stderr
    with db.session(fresh, readonly=True) as conn:
        assert db.value(conn, "SELECT count(*) FROM index.resources") == 0
    assert not [path for path in area.rglob("*-*") if path.is_file()]


def names_below(folder: Path, *, but: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if but not in (path, *path.parents)}


# --- archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.dcm",
        "../../escaped.dcm",
        "..\\..\\escaped.dcm",
        "C:\\escaped.dcm",
        "{folder}/victim/escaped.dcm",
        "{folder}/victim/kept.txt",
        "../victim/kept.txt",
    ],
)
def test_a_name_in_a_zip_leads_nowhere(
    fresh: db.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "deep" / "here"
    victim = tmp_path / "deep" / "victim"
    for folder in (here, victim):
        folder.mkdir(parents=True)
    (victim / "kept.txt").write_text("kept")
    with zipfile.ZipFile(here / "a.zip", "w") as archive:
        archive.writestr(name.format(folder=victim.parent), samples.instance())
    monkeypatch.chdir(here)
    before = names_below(tmp_path, but=here / "area")
    assert ends(run(fresh, [here / "a.zip"], here / "area")) == (1, 0, 0, 0)
    check_area(fresh, here / "area")
    assert names_below(tmp_path, but=here / "area") == before
    assert (victim / "kept.txt").read_text() == "kept"


def test_a_symbolic_link_in_a_zip_is_not_followed(fresh: db.Target, tmp_path: Path) -> None:
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(samples.instance())
    link = zipfile.ZipInfo("link.dcm")
    link.create_system = 3  # Unix
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, str(secret))
    report = run(fresh, [tmp_path / "a.zip"], tmp_path / "area")
    assert ends(report) == (0, 0, 0, 1)
    assert report.refusals[0].reason.startswith("not a DICOM file")


def test_a_member_of_a_zip_with_a_wrong_checksum_is_refused(fresh: db.Target, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(
                f"{number}.dcm", samples.instance(number=number, ImageComments=f"comment {number}")
            )
    path.write_bytes(path.read_bytes().replace(b"comment 1", b"COMMENT 1"))
    report = run(fresh, [path], tmp_path / "area")
    assert ends(report) == (2, 0, 0, 1)
    assert report.refusals[0].path.endswith("a.zip!1.dcm")
    assert "CRC" in report.refusals[0].reason
    check_area(fresh, tmp_path / "area")


def _cut(packed: bytes) -> bytes:
    return packed[: len(packed) // 2]


def _without_checksum(packed: bytes) -> bytes:
    return packed[:-8]


def _wrong_checksum(packed: bytes) -> bytes:
    return packed[:-8] + bytes(4) + packed[-4:]


@pytest.mark.parametrize("damage", [_cut, _without_checksum, _wrong_checksum])
def test_a_damaged_gzip_file_is_refused(
    fresh: db.Target, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.dcm.gz").write_bytes(damage(gzip.compress(samples.instance())))
    assert ends(run(fresh, [tmp_path / "a.dcm.gz"], tmp_path / "area")) == (0, 0, 0, 1)
    check_area(fresh, tmp_path / "area")


def test_a_zip_that_is_cut_off_is_refused(fresh: db.Target, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.dcm", samples.instance())
    path.write_bytes(_cut(path.read_bytes()))
    assert ends(run(fresh, [path], tmp_path / "area")) == (0, 0, 0, 1)
    check_area(fresh, tmp_path / "area")


@pytest.mark.once
def test_a_zip_of_seventy_thousand_members(fresh: db.Target, tmp_path: Path) -> None:
    """More than the 65,535 that the first format of ZIP could count."""
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as archive:
        for number in range(70_000):
            archive.writestr(f"{number}.txt", b"")
        archive.writestr("last.dcm", samples.instance())
    done = imported(fresh, tmp_path)
    assert done.returncode == 6, done.stderr
    report = json.loads(done.stdout)
    assert (report["imported"], report["refused"]) == (1, 70_000)
    check_area(fresh, tmp_path / "area")


# --- files ----------------------------------------------------------------------------------------


def _device(folder: Path) -> Path:
    return Path("/dev/zero")


def _link_to_a_device(folder: Path) -> Path:
    (folder / "image.dcm").symlink_to("/dev/zero")
    return folder


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as bound:
        before = Path.cwd()
        os.chdir(folder)  # the path of a socket has 107 bytes at most
        try:
            bound.bind("image.dcm")
        finally:
            os.chdir(before)
    return folder


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [_device, _link_to_a_device, _socket])
def test_what_is_no_regular_file_is_refused(
    fresh: db.Target, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    (tmp_path / "in").mkdir()
    report = run(fresh, [make(tmp_path / "in")], tmp_path / "area")
    assert ends(report) == (0, 0, 0, 1)
    assert report.refusals[0].reason == "not a regular file"


@pytest.mark.timeout(30)
def test_a_device_in_place_of_a_file_is_not_read() -> None:
    """It was a regular file when the folder was listed."""
    with pytest.raises(content.UnreadableError, match="not a regular file"):
        content.read(Source("/dev/zero", size=1000))


def _shorten(path: Path) -> None:
    os.truncate(path, 1_000_000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(1_000_000))


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2_000_000)
        file.write(b"other pixels")


def _replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(b"another file")
    other.replace(path)


@pytest.mark.parametrize("change", [_shorten, _empty, _append, _overwrite, _replace])
def test_a_file_that_changes_while_it_is_copied(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """It is refused, or what was opened is read to its end; the mapped copy never shrinks."""
    path = tmp_path / "image.dcm"
    path.write_bytes(samples.instance(PixelData=bytes(8_000_000)))
    before = path.read_bytes()
    os.utime(path, (1_700_000_000, 1_700_000_000))
    changes = [change]

    def checkpoint() -> None:
        if changes:
            changes.pop()(path)

    source = Source(str(path), size=len(before))
    if change is _replace:
        assert bytes(content.read(source, checkpoint=checkpoint, memory_bytes=100_000)) == before
    else:
        with pytest.raises(content.UnreadableError, match="changed while it was read"):
            content.read(source, checkpoint=checkpoint, memory_bytes=100_000)
    assert not changes


@pytest.mark.once
def test_a_million_elements(fresh: db.Target, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    uid = "1.2.3"
    first = [
        El(0x00080018, "UI", f"{uid}.1.1"), El(0x0020000D, "UI", uid), El(0x0020000E, "UI", f"{uid}.1"),
    ]  # fmt: skip
    many = [
        El(0x00410000 + (n // 60_000 * 2 << 16) + n % 60_000 + 0x1000, "LO", "x") for n in range(1_000_000)
    ]
    (tmp_path / "in" / "many.dcm").write_bytes(dicom_file(*first, *many))
    done = imported(fresh, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["imported"] == 1
    check_area(fresh, tmp_path / "area")


# --- pages ----------------------------------------------------------------------------------------


def test_the_page_of_an_import_runs_no_script_of_a_file(fresh: db.Target, tmp_path: Path) -> None:
    """Names of files and patients come from outside, and a browser opens the page."""
    script = "<script>alert('folder')<\u2215script>"
    folder = tmp_path / "in" / script
    folder.mkdir(parents=True)
    (folder / '"><img src=x onerror=alert(1)>.txt').write_text("no DICOM")
    image = samples.instance("P<script>", PatientName="<script>alert('name')</script>")
    (folder / "good.dcm").write_bytes(image)
    done = imported(fresh, tmp_path, "--report", tmp_path / "report.html", "--report-names")
    assert done.returncode == 6, done.stderr
    page = (tmp_path / "report.html").read_text("utf-8")
    texts = Texts(page)
    text = " ".join(texts.words)
    assert "<script>alert('name')</script>" in text
    assert "onerror=alert(1)>.txt" in text
    assert not {"script", "img"} & set(texts.tags)
    assert not {name for name, _ in texts.attributes} & {"src", "href", "onerror"}
    assert "Content-Security-Policy" in page
    assert "default-src 'none'" in page
