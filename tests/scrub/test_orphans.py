"""Orphans of instances that the index does not have are imported, and deleted only then."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli, db, index, ingest, scrub
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.scrub.orphans import folder_of_copies
from tests.scrub.injected import Store, orphan_compressed, orphan_dicom, orphan_indexed, orphan_other
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import as_role, rows
from tests.support.schemas import run as execute

BOTH = pytest.mark.parametrize("store", ["files", "large objects"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, fresh: db.Target, tmp_path: Path) -> Store:
    area = tmp_path / "area" if getattr(request, "param", "files") == "files" else None
    import_files(fresh, samples.folder(tmp_path / "in", 3), area)
    return Store(fresh, area, compress=False)


def verify(store: Store, *options: object) -> Result:
    area = ("--storage-dir", store.area) if store.area else ("--storage", "postgresql")
    words = ("verify", "storage", "--uri", store.target.dsn, *area, "--grace", "0", *options)
    return CliRunner().invoke(cli.main, [*map(str, words)])


def imported(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)["indexed"]
    return document


def instances(store: Store) -> set[str]:
    query = "SELECT publicid FROM resources WHERE resourcetype = 3"
    return {public_id for (public_id,) in rows(store.target, query)}


@BOTH
def test_what_the_index_does_not_have_is_imported(store: Store) -> None:
    before = instances(store)
    new = {orphan_dicom(store), orphan_compressed(store)}
    stay = {orphan_indexed(store), orphan_other(store)}
    planned = verify(store, "--index-orphans", "--dry-run")
    assert "Nothing was changed: 2 orphans" in planned.stdout
    assert new <= store.contents().keys()
    done = verify(store, "--index-orphans", "--yes", "--json")
    assert (done.exit_code, imported(done)["files"], imported(done)["left"]) == (6, 2, [])
    assert len(instances(store) - before) == 2
    assert store.contents().keys() & (new | stay) == stay
    assert {each.uuid for each in store.check(depth="identity").findings} == stay


@BOTH
def test_what_is_not_certain_is_left(store: Store) -> None:
    """The first part of an image (file type 3), and two files of one instance that differ."""
    image = samples.instance("P8", "1.8", "1.8.1")
    head = store.add(image[: image.rindex(b"\xe0\x7f\x10\x00")])
    one = store.add(samples.instance("P9", "1.9", "1.9.1", SeriesDescription="one"))
    other = store.add(samples.instance("P9", "1.9", "1.9.1", SeriesDescription="other"))
    before = store.contents()
    done = verify(store, "--index-orphans", "--yes", "--json")
    reasons = {each["uuid"]: each["reason"] for each in imported(done)["left"]}
    assert imported(done)["files"] == 0
    assert reasons.keys() == {head, one, other}
    assert "no pixel data" in reasons[head]
    assert "import the right one" in reasons[one]
    assert store.contents() == before


def test_two_with_the_same_content(store: Store) -> None:
    one, other = orphan_dicom(store), orphan_dicom(store)
    done = verify(store, "--index-orphans", "--yes", "--json")
    assert (imported(done)["files"], len(imported(done)["left"])) == (1, 1)
    assert len(store.contents().keys() & {one, other}) == 1


def found(store: Store) -> tuple[scrub.Settings, scrub.Orphans]:
    settings = scrub.Settings(storage_dir=store.area, grace_s=0, jobs=1)
    return settings, scrub.find_orphans(store.target, settings, scrub.check(store.target, settings))


@pytest.mark.parametrize("how", [{"store_dicom": False}, {"store_md5": False}], ids=str)
def test_an_orphan_without_a_proved_copy_stays(store: Store, how: dict[str, Any]) -> None:
    uuid = orphan_dicom(store)
    settings, orphans = found(store)
    done = scrub.index_orphans(
        store.target, settings, ingest.Settings(store.area, concurrent=True, **how), orphans
    )
    assert (done.files, [each.uuid for each in done.left]) == (0, [uuid])
    assert uuid in store.contents()


def test_an_orphan_that_vanishes_meanwhile(store: Store) -> None:
    gone, stays = orphan_dicom(store), store.add(samples.instance("P8", "1.8", "1.8.1"))
    settings, orphans = found(store)
    store.path(gone).unlink()
    how = ingest.Settings(store.area, concurrent=True)
    done = scrub.index_orphans(store.target, settings, how, orphans)
    assert (done.files, [each.uuid for each in done.left]) == (1, [gone])
    assert stays not in store.contents()


def test_copies_that_a_killed_run_has_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed after its last row was committed, so that no orphan is left to import."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with db.session(store.target, readonly=True) as conn, conn.cursor() as cur:
        copies = folder_of_copies(index.identity(cur))
    copies.mkdir()
    (copies / "copy").write_bytes(b"of a patient")
    assert verify(store, "--index-orphans", "--dry-run").exit_code == 0
    assert copies.exists()
    assert verify(store, "--index-orphans", "--yes").exit_code == 0
    assert not copies.exists()


def test_a_role_that_may_only_read_learns_what_it_lacks(store: Store, role: str) -> None:
    orphan_dicom(store)
    execute(store.target, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    reader = Store(as_role(store.target, role), store.area, compress=False)
    refused = verify(reader, "--index-orphans", "--yes")
    assert refused.exit_code == 1, refused.output
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES" in refused.stderr


def test_it_must_be_confirmed(store: Store) -> None:
    uuid = orphan_dicom(store)
    done = verify(store, "--index-orphans")
    assert (done.exit_code, uuid in store.contents()) == (2, True)
    assert uuid in done.stderr
    assert "that were deleted" in done.stderr
    with pytest.raises(UsageError, match="look for no orphans"):
        scrub.require_indexable(scrub.Settings(store.area, since=1))
