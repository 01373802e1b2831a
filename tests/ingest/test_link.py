"""Storing without copying: what is linked is what was read, and nothing is linked that must not be."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import db, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest import Link, walk
from pgorthanc_cli.ingest.link import Linker
from tests.support import samples
from tests.support.importing import check_area, ends, run, stored_files
from tests.support.indexdump import attachments

UUID = "0a1b2c3d-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that can share blocks."""
    if os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
        pytest.skip("needs root, and mkfs.xfs (apt-get install xfsprogs)")
    folder = tmp_path_factory.mktemp("xfs")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    mounted = folder / "mounted"
    mounted.mkdir()
    done = subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device can be mounted here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def shared_blocks(path: Path) -> bool:
    """Whether the file shares its blocks with another, by its extents (filefrag's flag `shared`)."""
    out = subprocess.run(["filefrag", "-v", str(path)], capture_output=True, text=True, check=True).stdout
    return "shared" in out


def only_file(area: Path) -> Path:
    (path,) = (p for p in area.rglob("*") if p.is_file())
    return path


def big(path: Path, **tags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(samples.instance(number=1, PixelData=os.urandom(200_000), **tags))
    return path


# --- reflinks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [Link.AUTO, Link.REFLINK])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_reflink_shares_blocks_until_one_is_changed(
    fresh: db.Target, xfs: Path, link: Link, jobs: int
) -> None:
    where = xfs / f"{link.value}{jobs}"
    path = big(where / "in" / "1.dcm")
    before = path.read_bytes()
    assert ends(run(fresh, [path], where / "area", jobs=jobs, link=link)) == (1, 0, 0, 0)
    stored = only_file(where / "area")
    os.sync()
    assert shared_blocks(stored)
    with path.open("r+b") as file:
        file.write(b"changed later")
    assert stored.read_bytes() == before
    check_area(fresh, where / "area")


def test_a_copy_shares_nothing(fresh: db.Target, xfs: Path) -> None:
    path = big(xfs / "copy" / "1.dcm")
    run(fresh, [path], xfs / "copy" / "area", link=Link.COPY)
    os.sync()
    assert not shared_blocks(only_file(xfs / "copy" / "area"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_auto_copies_where_a_reflink_cannot_be(fresh: db.Target, tmp_path: Path, jobs: int) -> None:
    files = samples.folder(tmp_path / "in", 10)
    assert ends(run(fresh, files, tmp_path / "area", jobs=jobs, link=Link.AUTO)) == (10, 0, 0, 0)
    check_area(fresh, tmp_path / "area")


@pytest.mark.parametrize("link", [Link.REFLINK, Link.HARDLINK])
def test_across_file_systems_what_was_asked_for_is_refused(
    fresh: db.Target, tmp_path: Path, link: Link
) -> None:
    """/dev/shm is another file system than that of the tests."""
    folder = Path("/dev/shm") / f"pgorthanc-test-{os.getpid()}-{link.value}"
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is no file system of its own")
    try:
        files = samples.folder(folder, 5)
        with pytest.raises(PgOrthancError, match=f"no {link.value} of .*00000.dcm in .*area") as caught:
            run(fresh, files, tmp_path / "area", link=link)
        assert "--link auto" in str(caught.value.hint)
        check_area(fresh, tmp_path / "area")
        assert stored_files(tmp_path / "area") == {}
        assert ends(run(fresh, files, tmp_path / "area", link=Link.AUTO)) == (5, 0, 0, 0)
        check_area(fresh, tmp_path / "area")
    finally:
        shutil.rmtree(folder)


# --- hard links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_hard_link_is_the_same_file(fresh: db.Target, tmp_path: Path, jobs: int) -> None:
    files = samples.folder(tmp_path / "in", 10)
    assert ends(run(fresh, files, tmp_path / "area", jobs=jobs, link=Link.HARDLINK)) == (10, 0, 0, 0)
    check_area(fresh, tmp_path / "area")
    stored = {p.stat().st_ino for p in (tmp_path / "area").rglob("*") if p.is_file()}
    assert stored == {path.stat().st_ino for path in files}


def test_a_symbolic_link_is_followed(fresh: db.Target, tmp_path: Path) -> None:
    path = big(tmp_path / "real.dcm")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "name.dcm").symlink_to(path)
    run(fresh, [tmp_path / "in"], tmp_path / "area", link=Link.HARDLINK)
    stored = only_file(tmp_path / "area")
    assert not stored.is_symlink()
    assert stored.stat().st_ino == path.stat().st_ino


def test_what_is_no_plain_file_is_copied(fresh: db.Target, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.dcm.gz").write_bytes(gzip.compress(samples.instance(number=1)))
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.writestr("2.dcm", samples.instance(number=2))
    report = run(fresh, [folder], tmp_path / "area", link=Link.HARDLINK)
    assert ends(report) == (2, 0, 0, 0)
    check_area(fresh, tmp_path / "area")
    assert all(p.stat().st_nlink == 1 for p in (tmp_path / "area").rglob("*") if p.is_file())


def test_a_hard_link_that_orthanc_could_not_read_is_refused(fresh: db.Target, tmp_path: Path) -> None:
    (path,) = samples.folder(tmp_path / "in", 1)
    path.chmod(0)
    if os.geteuid() == 0:
        (tmp_path / "area").mkdir()
        os.chown(tmp_path / "area", 12345, 12345)
        path.chmod(0o600)
        with pytest.raises(PgOrthancError, match="Orthanc could not read a hard link"):
            run(fresh, [path], tmp_path / "area", link=Link.HARDLINK)
        path.chmod(0o644)
    else:
        path.chmod(0o600)
    assert ends(run(fresh, [path], tmp_path / "area", link=Link.HARDLINK)) == (1, 0, 0, 0)


@pytest.mark.parametrize("how", [Link.HARDLINK, Link.AUTO])
def test_a_source_that_is_not_what_was_read_is_not_linked(tmp_path: Path, how: Link) -> None:
    """Changed in content, in size, or replaced by another file since the walk."""
    area = storage.FilesystemArea(tmp_path / "area")
    area.prepare()
    linker = Linker(area, how)
    path = big(tmp_path / "1.dcm")
    (source,) = walk([str(path)])
    head = path.read_bytes()[:64]
    os.utime(path, ns=(1, 1))
    assert linker.place(UUID, source, head) is False
    (source,) = walk([str(path)])
    assert linker.place(UUID, source, b"\x1f\x8b" + head[2:]) is False
    path.unlink()
    assert linker.place(UUID, source, head) is False
    assert stored_files(tmp_path / "area") == {}


def test_overwriting_leaves_the_source_alone(fresh: db.Target, tmp_path: Path) -> None:
    """The name in the area goes, the file stays."""
    from pgorthanc_cli.index import Overwrite

    first, second = big(tmp_path / "in" / "1.dcm"), big(tmp_path / "in" / "2.dcm", ImageComments="again")
    run(fresh, [first], tmp_path / "area", link=Link.HARDLINK)
    assert ends(run(fresh, [second], tmp_path / "area", link=Link.HARDLINK, overwrite=Overwrite.ALWAYS)) == (
        0,
        0,
        1,
        0,
    )
    check_area(fresh, tmp_path / "area")
    assert first.exists()
    assert only_file(tmp_path / "area").stat().st_ino == second.stat().st_ino


def test_compressed_files_are_never_links(fresh: db.Target, tmp_path: Path) -> None:
    path = big(tmp_path / "in" / "1.dcm")
    run(fresh, [path], tmp_path / "area", link=Link.AUTO, compress=True)
    check_area(fresh, tmp_path / "area")
    with db.session(fresh) as conn:
        assert len(attachments(conn)) == 2
