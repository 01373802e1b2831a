"""An archive of a real Orthanc: a database, a folder, and the Orthancs that are found on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.server import embedded
from tests.interop.archive import Archive
from tests.interop.orthanc import HOW_TO_GET, Program, programs
from tests.support.real_servers import free_port
from tests.support.schemas import run

REQUIRED = "PGORTHANC_REQUIRE_INTEROP"
FOUND: list[Program | None] = [*programs()] or [None]


@pytest.fixture(scope="session", params=FOUND, ids=lambda found: found.label if found else "none")
def program(request: pytest.FixtureRequest) -> Program:
    """An Orthanc of this machine."""
    found: Program | None = request.param
    if found is None:
        if os.environ.get(REQUIRED):
            pytest.fail(HOW_TO_GET)
        pytest.skip(HOW_TO_GET)
    return found


@pytest.fixture(scope="session")
def database_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.RunningServer]:
    """The server that `pgorthanc server start` makes: TCP, SCRAM, a role without special rights."""
    folder = tmp_path_factory.mktemp("interop") / "server"
    yield embedded.start(folder, port=free_port(), show_password=True)
    embedded.stop(folder)


@pytest.fixture
def new_archive(
    program: Program,
    database_server: embedded.RunningServer,
    tmp_path: Path,
) -> Iterator[Callable[..., Archive]]:
    """Makes archives: a folder and an empty database each."""
    server = database_server
    made: list[str] = []
    with embedded.attach(Path(server.directory), superuser=True) as admin:

        def make(*, postgresql_storage: bool = False, **options: object) -> Archive:
            name = f"archive_{len(made)}"
            made.append(name)
            run(admin, f"CREATE DATABASE {name} OWNER {server.role}")
            folder = tmp_path / name
            folder.mkdir()
            target = db.Target(make_dsn(server.dsn, dbname=name))
            section = {**server.orthanc["PostgreSQL"], "Database": name, "EnableStorage": postgresql_storage}
            return Archive(program, folder, target, section, options)

        yield make
        run(admin, *(f"DROP DATABASE {name} WITH (FORCE)" for name in made))


@pytest.fixture(params=[False, True], ids=["filesystem", "postgresql"])
def archive(request: pytest.FixtureRequest, new_archive: Callable[..., Archive]) -> Archive:
    """An empty archive, for each storage area."""
    return new_archive(postgresql_storage=request.param)
