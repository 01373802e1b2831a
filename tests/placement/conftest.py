"""Archives to move, cloned from two that are filled once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from tests.placement.moving import COUNT
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import drop_database


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return samples.folder(tmp_path_factory.mktemp("in"), COUNT)


@pytest.fixture(scope="module")
def filled(
    admin: Connection,
    template: str,
    server_dsn: str,
    archive: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str, Path]]:
    """Two databases to clone, with large objects and with files, and the folder of the files."""
    names = [f"pgorthanc_{kind}_{os.getpid()}" for kind in ("objects", "files")]
    folder = tmp_path_factory.mktemp("filled") / "area"
    for name in names:
        with admin.cursor() as cur:
            cur.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    objects, files = (db.Target(make_dsn(server_dsn, dbname=name)) for name in names)
    import_files(objects, archive, None, compress=True)
    import_files(files, archive, folder)
    yield names[0], names[1], folder
    for name in names:
        drop_database(admin, name)


@pytest.fixture
def objects(filled: tuple[str, str, Path], new_database: Callable[..., db.Target]) -> db.Target:
    """An index whose attachments are large objects."""
    return new_database(filled[0])


@pytest.fixture
def indexed(filled: tuple[str, str, Path], new_database: Callable[..., db.Target]) -> db.Target:
    """An index whose attachments are files."""
    return new_database(filled[1])


@pytest.fixture
def area(filled: tuple[str, str, Path], tmp_path: Path) -> Path:
    """The folder of these files."""
    return shutil.copytree(filled[2], tmp_path / "old")


@pytest.fixture
def held() -> Iterator[Callable[[db.Target, int], None]]:
    """Takes one of Orthanc's locks in a session of its own."""
    sessions: list[Connection] = []

    def hold(target: db.Target, lock: int) -> None:
        sessions.append(psycopg2.connect(target.dsn))
        with sessions[-1].cursor() as cur:
            cur.execute(f"SELECT pg_advisory_lock({lock})")
        sessions[-1].commit()

    yield hold
    for session in sessions:
        session.close()
