"""What the database says to a configuration, against real servers and a real PgBouncer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.config import database, documents
from pgorthanc_cli.config.deployment import Deployment
from tests.support.bouncer import bouncer
from tests.support.real_servers import Server
from tests.support.schemas import as_role, init, run

SECRET = "x7-Lq0-secret-Wz"


@pytest.fixture
def subject(tmp_path: Path) -> Callable[..., Deployment]:
    def make(
        release: str | None = "10.3", containers: int = 1, *, read_only: bool = False, **section: Any
    ) -> Deployment:
        document = documents.Document({"ReadOnly": read_only, "PostgreSQL": {"EnableIndex": True, **section}})
        return Deployment.of(document, tmp_path, release=release, containers=containers)

    return make


@pytest.mark.parametrize(
    ("release", "revision", "read_only", "severity", "words"),
    [
        ("10.3", 10, False, "info", "it starts"),
        ("10.3", 6, False, "warning", "it upgrades the index when it starts"),
        ("6.2", 10, False, "error", "it starts all the same, and fails or damages the index later"),
        ("5.1", 10, False, "error", "it refuses to start"),
        ("3.2", 1, False, "error", "it refuses to start"),
        ("10.3", 6, True, "error", "refuses to start"),
        ("10.3", None, False, "info", "contains no index: it creates one"),
        ("11.0", 10, False, "info", "it is not known which revision"),
        (None, 10, False, "", ""),
    ],
)  # fmt: skip
def test_what_the_plugin_will_do(
    empty: db.Target, subject: Callable[..., Deployment], release: str | None, revision: int | None,
    read_only: bool, severity: str, words: str,
) -> None:  # fmt: skip
    if revision:
        init(empty, revision=revision)
    found = database.problems(subject(release, read_only=read_only, IndexConnectionsCount=1), empty)
    assert [(p.severity, words in p.message) for p in found] == ([(severity, True)] if severity else [])


def test_schemas_that_the_plugin_cannot_use(empty: db.Target, subject: Callable[..., Deployment]) -> None:
    few = {"IndexConnectionsCount": 1}
    [missing] = database.problems(subject(Schema="pacs", **few), db.Target(empty.dsn, schema="pacs"))
    assert "no schema pacs, and the plugin does not create it" in missing.message
    run(empty, 'CREATE SCHEMA "user"')
    reserved, _ = database.problems(subject(Schema="user", **few), db.Target(empty.dsn, schema="user"))
    assert (reserved.severity, "reserved word" in reserved.message) == ("error", True)


def test_connection_limits(fresh: db.Target, subject: Callable[..., Deployment], role: str) -> None:
    run(fresh, f"ALTER ROLE {role} LOGIN CONNECTION LIMIT 60", f"GRANT USAGE ON SCHEMA public TO {role}")
    run(fresh, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    target = as_role(fresh, role)
    assert [p for p in database.problems(subject(None), target) if "CONNECTION LIMIT" in p.message] == []
    [problem] = [
        p
        for p in database.problems(subject(None, 2, EnableStorage=True), target)
        if "ROLE" in p.message.upper()
    ]
    assert (problem.severity, "up to 102 connections" in problem.message) == ("warning", True)
    assert problem.hint == 'set "IndexConnectionsCount" to 29 or less, or raise the limit'
    [alone] = [
        p for p in database.problems(subject(None, IndexConnectionsCount=61), target) if "role" in p.message
    ]
    assert alone.severity == "error"


def test_a_right_that_is_missing_is_told_and_the_rest_is_looked_at(
    fresh: db.Target, subject: Callable[..., Deployment], role: str
) -> None:
    run(fresh, f"ALTER ROLE {role} LOGIN CONNECTION LIMIT 20", f"GRANT USAGE ON SCHEMA public TO {role}")
    blind, limited = database.problems(subject(), as_role(fresh, role))
    assert "permission denied" in blind.message
    assert "GRANT" in str(blind.hint)
    assert f"role {role} (CONNECTION LIMIT) allows 20" in limited.message


def test_a_database_that_cannot_be_reached_is_told_and_no_more(subject: Callable[..., Deployment]) -> None:
    [problem] = database.problems(subject(), db.Target(f"host=127.0.0.1 port=1 password={SECRET}"))
    assert (problem.severity, "could not be inspected" in problem.message) == ("warning", True)
    assert SECRET not in repr(problem)


def test_a_pooler_in_transaction_mode(subject: Callable[..., Deployment]) -> None:
    server = Server("local all all trust\nhost all all 127.0.0.1/32 trust\n", "")
    try:
        server.create().start()
        with bouncer(make_dsn(server.tcp, user="postgres"), "transaction") as dsn:
            problems = database.problems(subject(None, IndexConnectionsCount=1), db.Target(dsn))
    finally:
        server.remove()
    assert [(p.severity, "pooler in transaction mode" in p.message) for p in problems] == [("error", True)]
