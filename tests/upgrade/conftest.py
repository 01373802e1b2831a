"""Filled indexes of every revision, each cloned from a template."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog
from tests.support import fillindex
from tests.support.schemas import drop_database
from tests.support.stepwalk import walk
from tests.upgrade.changing import Filled


@pytest.fixture(scope="session")
def archives(admin: Connection, server_dsn: str, template: str) -> Iterator[Callable[[int], str]]:
    """Makes template databases with a filled index of a revision."""
    made: dict[int, str] = {}

    def archive(number: int) -> str:
        if number not in made:
            name = f"pgorthanc_filled_{number}_{os.getpid()}"
            with admin.cursor() as cur:
                cur.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template)))
                )
            made[number] = name
            with db.session(db.Target(make_dsn(server_dsn, dbname=name))) as conn:
                walk(conn, catalog.newest(), number)
                fillindex.fill(conn)
        return made[number]

    yield archive
    for name in made.values():
        drop_database(admin, name)


@pytest.fixture
def filled(archives: Callable[[int], str], new_database: Callable[[str], db.Target]) -> Filled:
    """A new database with a filled index of a revision."""
    return lambda number: new_database(archives(number))
