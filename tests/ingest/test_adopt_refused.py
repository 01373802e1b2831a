"""When nothing can be adopted: the index, the configuration or an option; nothing is written then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, upgrade
from pgorthanc_cli.db import Target
from tests.support.adopting import Archive
from tests.support.schemas import rows


@pytest.fixture
def archive(fresh: Target, tmp_path: Path) -> Archive:
    return Archive(fresh, tmp_path)


def test_an_index_below_revision_5(archive: Archive) -> None:
    upgrade.downgrade(archive.target, to=4)
    run = archive.run(archive.folder / "in")
    assert run.exit_code == 4
    assert json.loads(run.stderr)["hint"].startswith("run: pgorthanc upgrade")
    assert rows(archive.target, "SELECT FROM resources") == []


UNSUITABLE: list[tuple[dict[str, Any], str]] = [
    ({"AdvancedStorage": {"Enable": False}}, "does not enable the advanced-storage plugin"),
    ({"AdvancedStorage": {}}, "does not enable the advanced-storage plugin"),
    ({"Plugins": ["old/libOrthancPostgreSQLIndex.so"]}, "PostgreSQL plugin 7.2 has no key-value stores"),
    ({"Plugins": ["old/libAdvancedStorage.so"]}, "the advanced-storage plugin is 0.1.0"),
    ({"Plugins": ["old/libOther.so"]}, "does not load libAdvancedStorage.so"),
    ({"AwsS3Storage": {"BucketName": "x"}}, "another storage plugin"),
    ({"PostgreSQL": {"EnableStorage": True}}, "another storage plugin"),
    ({"StoreDicom": False}, "keeps no DICOM files"),
    ({"AdvancedStorage": {"Enable": True, "Indexer": {"Enable": True, "Folders": "/x"}}}, "list of strings"),
    ({"AdvancedStorage": {"Enable": True, "NamingScheme": 1}}, "not a string"),
    ({"AdvancedStorage": {"Enable": True, "MultipleStorages": []}}, "not an object"),
]


def test_an_orthanc_that_could_not_read_them(archive: Archive) -> None:
    old = archive.folder / "old"
    old.mkdir()
    (old / "libOther.so").touch()
    for name, release in (("libOrthancPostgreSQLIndex.so", "7.2"), ("libAdvancedStorage.so", "0.1.0")):
        (old / f"{name}.{release}").touch()
        (old / name).symlink_to(f"{name}.{release}")
    for options, reason in UNSUITABLE:
        archive.configure(**options)
        run = archive.run(archive.folder / "in")
        assert run.exit_code == 2, run.output
        assert reason in json.loads(run.stderr)["message"]
    assert rows(archive.target, "SELECT FROM resources") == []


def test_options_that_contradict_it(archive: Archive) -> None:
    for option, value in (("--storage-dir", "x"), ("--storage", "postgresql"), ("--link", "hardlink")):
        run = archive.run(option, value, archive.folder / "in")
        assert run.exit_code == 2
        assert f"{option} says how files are stored" in json.loads(run.stderr)["message"]


def test_options_that_need_another(archive: Archive) -> None:
    base = ["import", "--json", "--uri", archive.target.dsn, str(archive.folder / "in")]
    without = CliRunner().invoke(cli.main, [*base, "--adopt"])
    assert "--adopt needs Orthanc's configuration" in json.loads(without.stderr)["message"]
    alone = CliRunner().invoke(
        cli.main, [*base, "--take-ownership", "--storage-dir", str(archive.folder / "s")]
    )
    assert "--take-ownership is about files that are adopted" in json.loads(alone.stderr)["message"]


def test_two_folders_to_change_at_once(archive: Archive) -> None:
    several = {"MultipleStorages": {"Storages": {"1": "s1"}, "CurrentWriteStorage": "1"}}
    archive.configure(several, StorageCompression=True)
    run = archive.run("--overwrite", "always", archive.folder / "in")
    assert run.exit_code == 2
    assert "--overwrite may replace instances" in json.loads(run.stderr)["message"]
    archive.configure(several)
    assert archive.adopt("--overwrite", "always", archive.folder / "in")["adopted"] == 3
