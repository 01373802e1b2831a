"""Running a conversion in a test."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from pgorthanc_cli import db, migrate
from pgorthanc_cli.schema import catalog
from tests.support import indexstate
from tests.support.schemas import snapshot

SERVER = "the-server"


def convert(target: db.Target, path: Path, **settings: Any) -> migrate.Converted:
    """A whole conversion; one worker, for starting another takes longer than the work on a small index."""
    given = migrate.Settings(**{"server_identifier": SERVER, "jobs": 1, **settings})
    *_, converted = migrate.convert(target, path, given)
    assert isinstance(converted, migrate.Converted)
    return converted


def check(path: Path, **settings: Any) -> migrate.Converted:
    *_, converted = migrate.check(path, migrate.Settings(**{"jobs": 1, **settings}))
    assert isinstance(converted, migrate.Converted)
    return converted


def state(target: db.Target) -> indexstate.State:
    with db.session(target) as conn:
        return indexstate.state(conn)


def require_index(target: db.Target, revision: int) -> None:
    """It is what its revision must be, and nothing of the conversion is left."""
    found = snapshot(target)
    with_storage = "table storagearea" in found
    assert [
        str(d) for d in catalog.differences(found, catalog.expected(revision, with_storage=with_storage))
    ] == []
    assert [name for name in found if "pgorthanc" in name] == []
    with db.session(target) as conn:
        assert indexstate.problems(conn) == []


def what(findings: tuple[migrate.Finding, ...]) -> list[str]:
    """Table and text of findings, in order."""
    return sorted(f"{finding.table}: {finding.what}" for finding in findings)


def closed(events: Iterator[migrate.Event]) -> None:
    """As the command ends it at Ctrl-C."""
    assert isinstance(events, Generator)
    events.close()
