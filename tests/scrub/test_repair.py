"""Damaged attachments are replaced by copies whose MD5 is right, and by nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli, db, scrub, storage
from pgorthanc_cli.errors import InUseError, UsageError
from tests.scrub.injected import (
    Store,
    altered_end,
    empty,
    folder_in_its_place,
    longer,
    missing,
    missing_object,
    null_hash,
    one_byte_less,
    other_instance,
    wrong_content_hash,
)
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import rows

DAMAGES = (missing, missing_object, one_byte_less, empty, longer, altered_end, other_instance)


BOTH = pytest.mark.parametrize("store", ["files", "compressed large objects"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, fresh: db.Target, tmp_path: Path) -> Store:
    kind = getattr(request, "param", "files")
    area = tmp_path / "area" if kind == "files" else None
    compress = "compressed" in kind
    import_files(fresh, samples.folder(tmp_path / "in", 12), area, compress=compress)
    return Store(fresh, area, compress)


@pytest.fixture
def mirror(store: Store, tmp_path: Path) -> Path:
    """A copy of the whole area."""
    return store.copy_to(tmp_path / "mirror")


def copy_of(mirror: Path, uuid: str) -> Path:
    return mirror / uuid[:2] / uuid[2:4] / uuid


def verify(store: Store, *options: object) -> Result:
    area = ("--storage-dir", store.area) if store.area else ("--storage", "postgresql")
    words = ("verify", "storage", "--uri", store.target.dsn, *area, "--grace", "0", *options)
    return CliRunner().invoke(cli.main, [*map(str, words)])


def repaired(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)["repaired"]
    return document


@BOTH
def test_everything_is_as_it_was(store: Store, mirror: Path) -> None:
    before = store.contents()
    for damage in DAMAGES:
        damage(store)
    unnamed = objects_without_a_row(store)
    assert store.contents() != before
    planned = verify(store, "--repair-from", mirror, "--dry-run")
    assert f"Nothing was changed: {len(DAMAGES)} attachments" in planned.stdout
    assert store.contents() != before
    done = verify(store, "--repair-from", mirror, "--yes", "--json", "--depth", "identity")
    assert done.exit_code == 0, done.output
    assert (repaired(done)["files"], repaired(done)["left"]) == (len(DAMAGES), [])
    document = json.loads(done.stdout)
    assert sum(document["counts"].values()) == sum(repaired(done)["kinds"].values()) == len(DAMAGES)
    assert document["remaining"] == {}
    assert repaired(done)["restart_orthanc"] is True
    assert store.contents() == before
    assert verify(store).exit_code == 0
    assert objects_without_a_row(store) == unnamed


def objects_without_a_row(store: Store) -> set[int]:
    query = """SELECT oid::int8 FROM pg_largeobject_metadata
               WHERE oid NOT IN (SELECT content FROM storagearea)"""
    return {oid for (oid,) in rows(store.target, query)}


def test_only_a_missing_one_needs_no_restart(store: Store, mirror: Path) -> None:
    missing(store)
    done = verify(store, "--repair-from", mirror, "--yes")
    assert "Repaired 1 attachment" in done.stdout
    assert "Restart Orthanc" not in done.stdout
    assert "list the affected studies" not in done.stdout
    assert "1 of 12 attachments was damaged, in 1 study; it is repaired." in done.stdout
    assert done.exit_code == 0


def test_what_has_no_right_copy_stays_as_it_is(store: Store, mirror: Path) -> None:
    none, short, other = missing(store), missing(store), altered_end(store)
    damaged = store.contents()
    copy_of(mirror, none).unlink()
    copy_of(mirror, short).write_bytes(b"short")
    copy_of(mirror, other).write_bytes(damaged[other])
    wrong_content_hash(store), null_hash(store)  # the files are right
    done = verify(store, "--repair-from", mirror, "--yes", "--json")
    reasons = {each["uuid"]: each["reason"] for each in repaired(done)["left"]}
    assert reasons[none] == "there is no copy of it"
    assert reasons[short].startswith("its copy is truncated: 5 of ")
    assert reasons[other].startswith("its copy is altered: MD5 ")
    assert (repaired(done)["files"], len(reasons), done.exit_code) == (0, 3, 6)
    assert store.contents() == damaged
    shown = verify(store, "--repair-from", mirror, "--yes")
    assert "3 attachments cannot be repaired from there:" in shown.stdout
    assert "list the affected studies" in shown.stdout


def settings(store: Store, **more: Any) -> scrub.Settings:
    return scrub.Settings(storage_dir=store.area, grace_s=0, jobs=1, **more)


def copies(store: Store, mirror: Path, **more: Any) -> scrub.Copies:
    report = scrub.check(store.target, settings(store, **more))
    return scrub.find_copies(store.target, settings(store, **more), report, mirror)


@BOTH
def test_a_copy_that_changes_meanwhile(store: Store, mirror: Path) -> None:
    uuid = missing(store)
    found = copies(store, mirror)
    altered = bytearray(copy_of(mirror, uuid).read_bytes())
    altered[-1] ^= 0xFF
    copy_of(mirror, uuid).write_bytes(altered)
    before = store.contents()
    done = scrub.repair(store.target, settings(store), found)
    assert (done.files, done.left[0].reason) == (0, "its copy has changed meanwhile")
    assert store.contents() == before


@BOTH
def test_an_attachment_that_is_deleted_meanwhile(store: Store, mirror: Path) -> None:
    uuid = missing(store)
    found = copies(store, mirror)
    store.update(uuid, "uuid = 'gone'")
    assert scrub.repair(store.target, settings(store), found).files == 0
    assert uuid not in store.contents()


def test_the_journal_knows_what_was_repaired(store: Store, mirror: Path, tmp_path: Path) -> None:
    altered_end(store)
    journal = tmp_path / "scrub.db"
    verify(store, "--journal", journal, "--repair-from", mirror, "--yes")
    again = verify(store, "--journal", journal, "--max-age", "1d", "--json")
    assert (again.exit_code, json.loads(again.stdout)["checked"]) == (0, 0)


def test_one_at_a_time(store: Store, mirror: Path) -> None:
    missing(store)
    found = copies(store, mirror)
    with db.session(store.target) as conn:
        db.rows(conn, "SELECT pg_advisory_lock(%s, 1)", 0x50474F52)
        with pytest.raises(InUseError, match="another verify storage"):
            scrub.repair(store.target, settings(store), found)


def test_it_must_be_confirmed(store: Store, mirror: Path) -> None:
    uuid = missing(store)
    done = verify(store, "--repair-from", mirror)
    assert (done.exit_code, uuid in store.contents()) == (2, False)
    assert uuid in done.stderr
    assert "--yes" in done.stderr


def test_after_a_kill(store: Store, mirror: Path) -> None:
    """What the killed one had written is replaced; a folder in the place of a file is not."""
    assert store.area
    uuid, other = missing(store), folder_in_its_place(store)
    store.path(uuid).with_name(storage.temporary_name(uuid)).write_bytes(b"half")
    done = verify(store, "--repair-from", mirror, "--yes", "--json")
    assert repaired(done)["files"] == 1
    assert [each["uuid"] for each in repaired(done)["left"]] == [other]
    store.path(other).rmdir()
    assert repaired(verify(store, "--repair-from", mirror, "--yes", "--json"))["files"] == 1
    assert verify(store).exit_code == 0


def test_what_the_storage_plugin_keeps_elsewhere(store: Store, mirror: Path, tmp_path: Path) -> None:
    usual, elsewhere = store.take(), store.take()
    store.update(usual, """customdata = '{"o":true,"v":1}'""")
    store.update(elsewhere, f"""customdata = '{{"o":false,"p":"{tmp_path}/x.dcm","v":1}}'""")
    store.path(usual).unlink()
    done = scrub.repair(store.target, settings(store), copies(store, mirror))
    assert (done.files, [each.uuid for each in done.left]) == (1, [elsewhere])
    assert "in another place" in done.left[0].reason


def test_what_is_no_mirror(store: Store, tmp_path: Path) -> None:
    assert store.area
    for folder in (store.area, store.area.parent):
        with pytest.raises(UsageError, match="is not a copy"):
            scrub.require_mirror(settings(store), folder)
    with pytest.raises(UsageError, match="is not a folder"):
        scrub.require_mirror(settings(store), tmp_path / "nothing")
    shutil.copytree(store.area, tmp_path / "copy")
    scrub.require_mirror(settings(store), tmp_path / "copy")
    assert verify(store, "--dry-run").exit_code == 2
