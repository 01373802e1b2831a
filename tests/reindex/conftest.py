"""Archives to reindex, cloned from one that is filled once for each module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from tests.reindex.archive import Archive, write_files
from tests.support.importing import run as import_files
from tests.support.schemas import drop_database


@pytest.fixture(scope="module")
def imported(
    admin: Connection, server_dsn: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Archive]:
    name, folder = f"pgorthanc_reindex_{os.getpid()}", tmp_path_factory.mktemp("reindex")
    with admin.cursor() as cur:
        cur.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    files = write_files(folder / "in")
    import_files(db.Target(make_dsn(server_dsn, dbname=name)), files, folder / "area")
    yield Archive(name, files, folder / "area")
    drop_database(admin, name)


@pytest.fixture
def archive(
    imported: Archive, new_database: Callable[..., db.Target], tmp_path: Path
) -> tuple[db.Target, Path]:
    """A copy of the archive."""
    shutil.copytree(imported.area, tmp_path / "area")
    return new_database(imported.database), tmp_path / "area"
