"""Whoever owns the storage folder gets nothing from root's import: neither files, nor folders, nor deletions."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import pytest

from pgorthanc_cli import db, files, storage
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest import Link
from pgorthanc_cli.ingest.journal import FOLDER
from tests.support import samples
from tests.support.areas import identity, journal, orphan, settle
from tests.support.importing import check_area, ends, run

ROOT = os.geteuid() == 0
OWNER = (12345, 23456) if ROOT else (os.geteuid(), os.getegid())
HEXES = [f"{n:02x}" for n in range(256)]


@pytest.fixture
def area(tmp_path: Path) -> Path:
    """The storage folder of another user, if we are root."""
    folder = tmp_path / "area"
    folder.mkdir()
    os.chown(folder, *OWNER)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of ours, with a file, that nobody else may enter."""
    folder = tmp_path / "victim"
    folder.mkdir(mode=0o700)
    (folder / "precious").write_text("precious")
    (folder / "precious").chmod(0o600)
    return folder


def mkdir(path: Path) -> None:
    """A folder of the owner."""
    path.mkdir()
    os.chown(path, *OWNER)


def check(victim: Path) -> None:
    """Nothing has happened to it."""
    assert [path.name for path in victim.iterdir()] == ["precious"]
    for path in (victim, victim / "precious"):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.geteuid(), os.getegid())
    assert (victim / "precious").read_text() == "precious"


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("compress", [False, True])
def test_everything_in_the_area_belongs_to_its_owner(
    fresh: db.Target, tmp_path: Path, area: Path, jobs: int, compress: bool
) -> None:
    """Also what root alone can read is imported."""
    sources = samples.folder(tmp_path / "in", 20)
    (tmp_path / "in").chmod(0o700)
    for path in sources:
        path.chmod(0o600)
    assert ends(run(fresh, sources, area, jobs, compress=compress)) == (20, 0, 0, 0)
    created = list(area.rglob("*"))
    assert len(created) > 20
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in created} == {OWNER}


@pytest.mark.parametrize("how", [Link.HARDLINK, Link.AUTO])
def test_links_into_the_area_of_another_user(fresh: db.Target, tmp_path: Path, area: Path, how: Link) -> None:
    """Root links what the owner of the area could not (fs.protected_hardlinks)."""
    (path,) = samples.folder(tmp_path / "in", 1)
    assert ends(run(fresh, [path], area, link=how)) == (1, 0, 0, 0)
    assert path.stat().st_nlink == (2 if how is Link.HARDLINK else 1)


def test_a_planted_journal_deletes_no_foreign_file(fresh: db.Target, area: Path, victim: Path) -> None:
    names = [
        str(victim / "precious"), os.path.relpath(victim / "precious", area / "x" / "y"),
        "../../../victim/precious", "..", "", ".", "aabb/../../precious",
    ]  # fmt: skip
    database = identity(fresh)
    for number, name in enumerate(names):
        journal(area, {"database": database, "uuids": [name]}, run=f"{number:04}")
    warnings = settle(fresh, area, [samples.REAL])
    check(victim)
    assert len(warnings) == len(names)
    assert all("names files that are no attachments" in warning for warning in warnings)


def test_a_dangling_lock_creates_no_file(fresh: db.Target, tmp_path: Path, area: Path, victim: Path) -> None:
    mkdir(area / FOLDER)
    (area / FOLDER / "cc.lock").symlink_to(victim / "made")
    (area / FOLDER / "dd.lock").symlink_to(victim / "precious")
    warnings = settle(fresh, area, [samples.REAL])
    check(victim)
    assert len(warnings) == 2
    assert all("is left alone" in warning for warning in warnings)


@pytest.mark.parametrize("link", ["runs", "run", "journal", "lock and run"])
def test_links_among_the_journals_lead_nowhere(fresh: db.Target, area: Path, victim: Path, link: str) -> None:
    content = {"database": identity(fresh), "uuids": [orphan(area).name]}
    (victim.parent / "elsewhere").mkdir()
    target = journal(victim.parent / "elsewhere", content, run="aa")
    if link == "runs":
        (area / FOLDER).symlink_to(target.parent.parent)
        with pytest.raises(PgOrthancError, match="cannot be written to"):
            settle(fresh, area)
    elif link == "journal":
        journal(area, content, run="aa").unlink()
        (area / FOLDER / "aa" / "00000001.json").symlink_to(victim / "precious")
        settle(fresh, area)
    else:
        mkdir(area / FOLDER)
        (area / FOLDER / "aa").symlink_to(victim if link == "run" else target.parent)
        (area / FOLDER / "aa.lock").touch()
        settle(fresh, area)
    check(victim)
    assert target.exists()


@pytest.mark.skipif(not ROOT, reason="an ordinary user follows links with the user's own rights")
@pytest.mark.parametrize("owner", [OWNER, (0, 0)], ids=["its owner's", "root's, others may write"])
def test_a_link_in_place_of_a_folder_gives_nothing_away(
    fresh: db.Target, area: Path, victim: Path, owner: tuple[int, int]
) -> None:
    os.chown(area, *owner)
    for name in HEXES:
        (area / name).symlink_to(victim)
    with pytest.raises(PgOrthancError, match="symbolic link"):
        run(fresh, [samples.REAL], area)
    check(victim)


@pytest.mark.skipif(not ROOT, reason="an ordinary user follows links with the user's own rights")
def test_a_link_that_is_flipped_gives_nothing_away(
    fresh: db.Target, tmp_path: Path, area: Path, victim: Path
) -> None:
    """Xx -> .cur; .cur leads now to an empty folder, now to one in which every name leads to the victim."""
    (area / ".a").mkdir()
    (area / ".b").mkdir()
    for name in HEXES:
        (area / name).symlink_to(".cur")
        (area / ".b" / name).symlink_to(victim)
    for path in (area / ".a", area / ".b"):
        os.chown(path, *OWNER)
    (area / ".cur").symlink_to(".a")
    done = threading.Event()

    def flip() -> None:
        while not done.is_set():
            for way in (".b", ".a"):
                (area / ".next").symlink_to(way)
                os.replace(area / ".next", area / ".cur")

    flipping = threading.Thread(target=flip)
    flipping.start()
    sources = samples.folder(tmp_path / "in", 5)
    try:
        for _ in range(5):
            with pytest.raises(PgOrthancError, match="cannot be written to"):
                run(fresh, sources, area)
    finally:
        done.set()
        flipping.join()
    check(victim)


def test_another_folder_in_its_place_is_noticed(tmp_path: Path) -> None:
    """Whoever owns the folder above may exchange it; a worker opens it later than the parent."""
    folder = tmp_path / "area"
    folder.mkdir()
    area = storage.FilesystemArea(folder)
    area.prepare()
    pickled = pickle.dumps(area)
    folder.rename(tmp_path / "old")
    folder.mkdir()
    with pytest.raises(OSError, match="another folder has taken its place"):
        pickle.loads(pickled).put(storage.new_uuids(1)[0], 1, [b"x"])  # noqa: S301 - our own
    assert not list(folder.iterdir())


def test_what_an_earlier_version_has_left_as_root_is_settled(fresh: db.Target, area: Path) -> None:
    """It made the folder of the journals, and all in it, root's own."""
    file = orphan(area)
    path = journal(area, {"database": identity(fresh), "uuids": [file.name]})
    for each in (path, path.parent, path.parent.with_suffix(".lock"), area / FOLDER):
        os.chown(each, os.geteuid(), os.getegid())
    assert settle(fresh, area, [samples.REAL]) == []
    check_area(fresh, area)


@pytest.mark.skipif(not ROOT, reason="an ordinary user owns what the user makes")
def test_only_what_root_has_made_among_journals_is_given_away(
    fresh: db.Target, area: Path, victim: Path
) -> None:
    (area / FOLDER).mkdir(mode=0o777)
    os.link(victim / "precious", area / FOLDER / "aa.lock")
    (area / FOLDER / "bb").symlink_to(victim)
    settle(fresh, area)
    check(victim)


# --- rights ------------------------------------------------------------------------------------------------------


def test_rights_are_those_of_the_owner_in_this_thread_only(victim: Path) -> None:
    def status(name: str) -> list[str]:
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        return next(line for line in lines if line.startswith(f"{name}:")).split()[1:]

    rights = files.OwnerRights(*OWNER)
    inside = threading.Event()
    others: list[str] = []

    def read() -> None:
        inside.wait()
        others.append((victim / "precious").read_text())

    reading = threading.Thread(target=read)
    reading.start()
    before = status("Groups"), status("Uid"), status("Gid")
    with rights:
        with rights:
            assert (status("Uid")[3], status("Gid")[3]) == tuple(map(str, OWNER))
        assert status("Uid")[3] == str(OWNER[0])
        assert status("Groups") == ([] if ROOT else before[0])
        inside.set()
        reading.join()
        if ROOT:
            with pytest.raises(PermissionError):
                (victim / "precious").read_text()
    assert others == ["precious"]
    assert (status("Groups"), status("Uid"), status("Gid")) == before


@pytest.mark.skipif(not ROOT, reason="an ordinary user changes nothing")
def test_rights_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container without CAP_SETUID: setfsuid(2) fails without a word."""

    class Powerless:
        def __getattr__(self, name: str) -> object:
            return lambda *arguments: 0

    monkeypatch.setattr(files, "_libc", Powerless())
    with (
        pytest.raises(PgOrthancError, match="cannot take on the rights") as caught,
        files.OwnerRights(*OWNER),
    ):
        raise AssertionError
    assert "sudo -u '#12345'" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["../x", "a" * 36, "", "12345678-1234-1234-1234-123456789ab/", "x" * 1000])
def test_names_that_are_no_uuids_never_reach_the_disk(tmp_path: Path, name: str) -> None:
    area = storage.FilesystemArea(tmp_path)
    (tmp_path.parent / "x").mkdir(exist_ok=True)
    with pytest.raises(OSError, match="not a UUID"):
        area.put(name, 1, [b"x"])
    with pytest.raises(OSError, match="not a UUID"):
        area.open(name)
    area.delete(name)
    assert not list(tmp_path.iterdir())
    assert (tmp_path.parent / "x").exists()
