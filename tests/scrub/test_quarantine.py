"""Orphans are moved aside and back: nothing is lost, nothing twice."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli, db, scrub, storage
from pgorthanc_cli.errors import UsageError
from tests.scrub.injected import Store, bad_name, missing, moved_to_another_folder, orphan_dicom, orphan_other
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import run as execute


@pytest.fixture
def store(fresh: db.Target, tmp_path: Path) -> Store:
    import_files(fresh, samples.folder(tmp_path / "in", 5), tmp_path / "area")
    return Store(fresh, tmp_path / "area", compress=False)


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    return tmp_path / "aside"


def tree(folder: Path) -> dict[str, bytes]:
    """The content of each file below a folder, but for manifests."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.suffix != ".json"}


def verify(store: Store, *options: object) -> Result:
    words = ("verify", "storage", "--uri", store.target.dsn, "--storage-dir", store.area, "--grace", "0")
    return CliRunner().invoke(cli.main, [*map(str, words), *map(str, options)])


def settings(store: Store) -> scrub.Settings:
    return scrub.Settings(storage_dir=store.area, grace_s=0)


def test_there_and_back(store: Store, aside: Path) -> None:
    assert store.area
    orphan_dicom(store)
    orphan_other(store)
    before = tree(store.area)
    intact = {path: before[path] for path in before if path.rpartition("/")[2] in indexed(store)}
    done = verify(store, "--quarantine", aside, "--yes")
    assert done.exit_code == 0, done.output
    assert "All 5 attachments are intact. 2 orphans, none left." in done.stdout
    assert "Moved 2 orphans" in done.stdout
    assert tree(store.area) == intact
    assert tree(aside) == {path: before[path] for path in before if path not in intact}
    assert verify(store).exit_code == 0
    command = done.stdout.split("To move the orphans back:\n")[1].strip()
    assert "--restore" in command
    back = verify(store, "--quarantine", aside, "--restore", "--json")
    assert (back.exit_code, json.loads(back.stdout)["files"]) == (0, 2)
    assert (tree(store.area), tree(aside)) == (before, {})
    again = verify(store, "--quarantine", aside, "--restore")
    assert (again.exit_code, again.stdout.splitlines()[0]) == (
        0,
        "Nothing to do: no file is left to be moved back.",
    )


def indexed(store: Store) -> set[str]:
    from tests.support.schemas import rows

    return {uuid for (uuid,) in rows(store.target, "SELECT uuid FROM attachedfiles")}


def test_only_orphans_in_the_place_of_an_attachment(store: Store, aside: Path) -> None:
    assert store.area
    missing(store)
    bad_name(store)
    moved_to_another_folder(store)
    before = tree(store.area)
    done = verify(store, "--quarantine", aside, "--yes")
    assert done.exit_code == 6
    assert (tree(store.area), aside.exists()) == (before, False)


def test_an_orphan_that_the_index_has_got_meanwhile(store: Store, aside: Path) -> None:
    assert store.area
    uuid = orphan_dicom(store)
    report = scrub.check(store.target, settings(store))
    execute(
        store.target,
        f"""INSERT INTO attachedfiles (id, filetype, uuid, compressedsize, uncompressedsize, compressiontype,
                uncompressedhash, compressedhash, revision)
            SELECT internalid, 1000, '{uuid}', 1, 1, 1, '', '', 0 FROM resources WHERE resourcetype = 3 LIMIT 1""",
    )
    moved = scrub.set_aside(store.target, settings(store), report, aside)
    assert (moved.files, [each.uuid for each in moved.left]) == (0, [uuid])
    assert store.path(uuid).exists()


def test_a_file_of_that_name_is_never_replaced(store: Store, aside: Path) -> None:
    assert store.area
    uuid = orphan_other(store)
    content = store.read(uuid)
    verify(store, "--quarantine", aside, "--yes")
    store.write(uuid, b"another one")
    back = verify(store, "--quarantine", aside, "--restore")
    assert back.exit_code == 6
    assert f"{uuid} - a file of this name is there already" in back.stdout
    assert store.read(uuid) == b"another one"
    assert tree(aside) == {f"{uuid[:2]}/{uuid[2:4]}/{uuid}": content}


def test_another_file_system(store: Store) -> None:
    """Also after a kill in the middle of a copy, and after one between the copy and the removal."""
    assert store.area
    device = store.area.stat().st_dev
    other = next(path for path in map(Path, ("/dev/shm", "/tmp")) if path.stat().st_dev != device)
    memory = other / f"pgorthanc-aside-{os.getpid()}"
    uuid = orphan_dicom(store)
    content = store.read(uuid)
    try:
        half = memory / uuid[:2] / uuid[2:4] / storage.temporary_name(uuid)
        half.parent.mkdir(parents=True)
        half.write_bytes(content[:100])
        assert verify(store, "--quarantine", memory, "--yes").exit_code == 0
        assert tree(memory) == {f"{uuid[:2]}/{uuid[2:4]}/{uuid}": content}
        store.write(uuid, content)
        assert verify(store, "--quarantine", memory, "--restore").exit_code == 0
        assert (store.read(uuid), tree(memory)) == (content, {})
    finally:
        shutil.rmtree(memory, ignore_errors=True)


def test_a_kill_between_the_two_names(store: Store, aside: Path) -> None:
    """The file has both; the next run removes the first one."""
    uuid = orphan_other(store)
    path = aside / uuid[:2] / uuid[2:4] / uuid
    path.parent.mkdir(parents=True)
    path.hardlink_to(store.path(uuid))
    assert "Moved 1 orphan" in verify(store, "--quarantine", aside, "--yes").stdout
    assert (store.path(uuid).exists(), path.exists()) == (False, True)


def test_without_a_terminal_it_must_be_confirmed(store: Store, aside: Path) -> None:
    uuid = orphan_other(store)
    done = verify(store, "--quarantine", aside)
    assert (done.exit_code, store.path(uuid).exists(), aside.exists()) == (2, True, False)
    assert "--yes" in done.stderr


def test_a_dry_run(store: Store, aside: Path) -> None:
    uuid = orphan_other(store)
    size = store.path(uuid).stat().st_size
    done = verify(store, "--quarantine", aside, "--dry-run")
    assert (done.exit_code, store.path(uuid).exists(), aside.exists()) == (6, True, False)
    assert f"Nothing was changed: 1 orphan ({size} B) can be moved to {aside}." in done.stdout
    command = done.stdout.split("Next, move them aside:\n")[1].strip()
    assert command.startswith("pgorthanc verify storage")
    assert "--dry-run" not in command
    moved = json.loads(verify(store, "--quarantine", aside, "--dry-run", "--json").stdout)["quarantined"]
    assert (moved["files"], moved["bytes"], moved["dry_run"]) == (1, size, True)


def test_a_restore_has_no_dry_run(store: Store, aside: Path) -> None:
    uuid = orphan_other(store)
    verify(store, "--quarantine", aside, "--yes")
    done = verify(store, "--quarantine", aside, "--restore", "--dry-run")
    assert (done.exit_code, store.path(uuid).exists()) == (2, False)
    assert "a check changes nothing" not in done.stderr


def test_a_check_that_is_not_complete_moves_nothing(store: Store, aside: Path) -> None:
    uuid = orphan_other(store)
    done = verify(store, "--quarantine", aside, "--yes", "--budget", "0.000001")
    assert "no orphan was moved, as the check was not complete" in done.stderr
    assert (store.path(uuid).exists(), aside.exists()) == (True, False)


def test_what_is_refused(store: Store, aside: Path, tmp_path: Path) -> None:
    assert store.area
    with pytest.raises(UsageError, match="within the storage area"):
        scrub.require_usable(settings(store), store.area / "aside")
    with pytest.raises(UsageError, match="in the database"):
        scrub.require_usable(scrub.Settings(storage_dir=None), aside)
    with pytest.raises(UsageError, match="look for no orphans"):
        scrub.require_usable(scrub.Settings(storage_dir=store.area, since=1), aside)
    aside.mkdir()
    with pytest.raises(UsageError, match="is no quarantine"):
        scrub.restore(store.target, settings(store), aside)
    orphan_other(store)
    verify(store, "--quarantine", aside, "--yes")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match=r"come from .*/area, not from .*/other"):
        scrub.restore(store.target, scrub.Settings(storage_dir=tmp_path / "other"), aside)
    assert verify(store, "--restore").exit_code == 2


def test_a_manifest_with_other_names_leads_nowhere(store: Store, aside: Path, tmp_path: Path) -> None:
    assert store.area
    aside.mkdir()
    (tmp_path / "precious").write_text("precious")
    manifest = {"area": str(store.area.resolve()), "files": [{"uuid": "../../precious"}]}
    (aside / "quarantine-1.json").write_text(json.dumps(manifest))
    moved = scrub.restore(store.target, settings(store), aside)
    assert (moved.files, moved.left[0].reason) == (0, "its name is not a UUID")
    assert (tmp_path / "precious").read_text() == "precious"
