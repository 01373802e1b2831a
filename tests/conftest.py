"""A real PostgreSQL server for every test, and one database per test.

The server is the one that PGORTHANC_TEST_DSN names (a role that may create databases), or a private one
started by `pgorthanc_cli.server.embedded`. One database per test, not one schema: advisory locks and large objects
are database-wide.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import initialize
from tests.support.real_servers import memory
from tests.support.schemas import drop_database, drop_role

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """Programs that the tests start get Ctrl-C and SIGHUP even where a shell or nohup has them ignored."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where all that tests need is installed, a skipped one is a failure: PGORTHANC_NO_SKIPS says so."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("PGORTHANC_NO_SKIPS") and reporter and reporter.stats.get("skipped"):
        reporter.write_line("nothing may be skipped here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if session.config.cache:
            session.config.cache.set("pgorthanc/skipped", True)  # read by .ci/run


@pytest.fixture(autouse=True)
def fresh_logger() -> None:
    """Commands that other tests have run within this process, with -q for example, leave no setting behind."""
    log = logging.getLogger("pgorthanc_cli")
    log.setLevel(logging.NOTSET)
    log.handlers.clear()


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """The DSN of a server where databases may be created."""
    given = os.environ.get("PGORTHANC_TEST_DSN")
    if given:
        yield given
        return
    from pgorthanc_cli.server import embedded

    folder = tempfile.mkdtemp(prefix="pgorthanc-tests-", dir=memory())
    try:
        with embedded.attach(Path(folder), superuser=True) as target:
            yield target.dsn
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def admin(server_dsn: str) -> Iterator[Connection]:
    """An autocommit connection that creates and drops databases."""
    conn = psycopg2.connect(server_dsn)
    conn.autocommit = True
    yield conn
    conn.close()


@pytest.fixture
def new_database(admin: Connection, server_dsn: str) -> Iterator[Callable[[str | None], db.Target]]:
    """Makes databases, empty or cloned from a template, that are dropped after the test."""
    made: list[str] = []

    def make(template: str | None = None) -> db.Target:
        name = f"pgorthanc_test_{os.getpid()}_{next(_numbers)}"
        with admin.cursor() as cur:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            cur.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template1")))
        made.append(name)
        return db.Target(make_dsn(server_dsn, dbname=name))

    yield make
    for name in made:
        drop_database(admin, name)


@pytest.fixture
def empty(new_database: Callable[..., db.Target]) -> db.Target:
    """A new, empty database."""
    return new_database()


@pytest.fixture(scope="session")
def template(admin: Connection, server_dsn: str) -> Iterator[str]:
    """The name of a template database with an empty index at the current revision, storage area included."""
    name = f"pgorthanc_template_{os.getpid()}"
    with admin.cursor() as cur:
        cur.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with db.session(db.Target(make_dsn(server_dsn, dbname=name))) as conn:
        initialize.init(conn, schema="public", require_idle=locks.require_idle)
    yield name
    drop_database(admin, name)


@pytest.fixture
def fresh(new_database: Callable[..., db.Target], template: str) -> db.Target:
    """A database with an empty index."""
    return new_database(template)


@pytest.fixture(params=["public", 'Or th"anc'])
def target(request: pytest.FixtureRequest, empty: db.Target) -> db.Target:
    """An empty schema, public and another one."""
    found = db.Target(empty.dsn, schema=request.param)
    with db.session(found, autocommit=True, need_schema=False) as conn, conn.cursor() as cur:
        cur.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(request.param)))
    return found


@pytest.fixture(scope="session")
def trigram(admin: Connection) -> str:
    """The state of the trigram index in a new index on this server."""
    with admin.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'")
        return "valid" if cur.fetchone() == (1,) else "unavailable"


@pytest.fixture
def role(admin: Connection) -> Iterator[str]:
    """A role that may do nothing but log in."""
    name = f"pgorthanc_role_{os.getpid()}"
    with admin.cursor() as cur:
        cur.execute(f"CREATE ROLE {name}")
    yield name
    drop_role(admin, name)
