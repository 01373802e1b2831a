"""Configurations in which another storage plugin keeps the DICOM files are refused, unless the storage is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import config, db
from pgorthanc_cli.errors import UsageError
from tests.support import samples, sqliteindex
from tests.support.importing import check_area

OTHERS: dict[str, dict[str, Any]] = {
    "AwsS3Storage": {"AwsS3Storage": {"BucketName": "x"}},
    "AzureBlobStorage": {"AzureBlobStorage": {}},
    "GoogleCloudStorage": {"GoogleCloudStorage": {"BucketName": "x", "HybridMode": "WriteToFileSystem"}},
    "S3Zip": {"S3Zip": {"BucketName": "x"}, "PythonScript": "stores.py"},
    "MySQL": {"MySQL": {"EnableIndex": False, "EnableStorage": True}},
    "Odbc": {"Odbc": {"EnableStorage": True}},
    "PythonScript stores.py": {"PythonScript": "stores.py"},
    "PythonScript imports.py": {"PythonScript": "imports.py"},
    "AdvancedStorage": {"AdvancedStorage": {"Enable": True}, "PostgreSQL": {"EnableStorage": True}},
    "AwsS3Storage, AdvancedStorage": {
        "AwsS3Storage": {},
        "AdvancedStorage": {"Enable": True},
        "PostgreSQL": {"EnableStorage": True},
    },
}
OWN: list[dict[str, Any]] = [
    {},
    {"PostgreSQL": {"EnableStorage": True}},
    {"AwsS3Storage": None},
    {"MySQL": {"EnableIndex": True}, "Odbc": {"EnableStorage": False}},
    {"AdvancedStorage": {"Enable": True, "NamingScheme": "{PatientID}/{UUID}{.ext}"}},
    {"AdvancedStorage": {"Enable": False}, "PostgreSQL": {"EnableStorage": True}},
    {"PythonScript": "no-such.py"},
    {"PythonScript": "other.py"},
    {"PythonScript": ""},
    {"Plugins": ["/usr/share/orthanc/plugins/libOrthancAwsS3Storage.so"]},  # without its section it is off
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scripts of the Python plugin."""
    (tmp_path / "stores.py").write_text("import orthanc\northanc.RegisterStorageArea3(a, b, c)\n")
    (tmp_path / "imports.py").write_text("import orthanc\nfrom stores import *\n")
    (tmp_path / "other.py").write_text("import orthanc\nimport json\northanc.RegisterRestCallback('/x', y)\n")
    return tmp_path


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "orthanc.json"
    path.write_text(json.dumps({"StorageDirectory": "area", **values}))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(("named", "values"), OTHERS.items())
def test_the_plugin_is_named(folder: Path, named: str, values: dict[str, Any]) -> None:
    found = config.load(write(folder, values))
    with pytest.raises(UsageError) as caught:
        found.require_own_storage()
    assert f"({named})" in caught.value.message
    assert "--storage-dir" in str(caught.value.hint)


@pytest.mark.parametrize("values", OWN)
def test_others_pass(folder: Path, values: dict[str, Any]) -> None:
    config.load(write(folder, values)).require_own_storage()


def pgorthanc(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "pgorthanc_cli", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, " ".join(done.stderr.split())


def test_import_writes_only_where_it_is_told_to(fresh: db.Target, folder: Path) -> None:
    path = write(folder, OTHERS["AwsS3Storage"])
    [file] = samples.folder(folder / "in", 1)
    code, said = pgorthanc("import", "--uri", fresh.dsn, "--config", path, file)
    assert code == UsageError.exit_code
    assert "AwsS3Storage" in said
    assert not (folder / "area").exists()
    assert pgorthanc("import", "--uri", fresh.dsn, "--config", path, "--storage", "filesystem", file)[0] == 0
    check_area(fresh, folder / "area")


def test_migrate_sqlite_reads_files_only_where_it_is_told_to(empty: db.Target, folder: Path) -> None:
    index = sqliteindex.rich(folder / "index", instances=250)
    path = write(folder, OTHERS["AzureBlobStorage"])
    options = ["--uri", empty.dsn, "--config", path, index]
    for more in (["--verify-files"], ["--verify-hashes", "--check"], ["--storage", "postgresql"]):
        code, said = pgorthanc("migrate-sqlite", *options, *more)
        assert (code, "AzureBlobStorage" in said) == (UsageError.exit_code, True)
    assert pgorthanc("migrate-sqlite", *options)[0] in (
        0,
        6,
    )  # the index alone is converted; odd rows are reported
