"""Running a conversion in a test."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, migrate
from pgorthanc_cli.commands import migrate_sqlite
from pgorthanc_cli.migrate.model import SaveFindings
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.schema import catalog
from tests.support import indexstate
from tests.support.schemas import snapshot

SERVER = "the-server"


class Interruption(Exception):
    """Ends a conversion in the middle, as Ctrl-C does."""


def convert(
    target: db.Target, path: Path, *, report: Path | None = None, **settings: Any
) -> migrate.Converted:
    """Convert with one worker, because starting another takes longer than the work on a small index."""
    given = migrate.ConversionSettings(**{"server_identifier": SERVER, "jobs": 1, **settings})
    return migrate.convert(target, path, given, save=saver(report))


def check(path: Path, *, report: Path | None = None, **settings: Any) -> migrate.Converted:
    given = migrate.ConversionSettings(**{"jobs": 1, **settings})
    return migrate.check(path, given, save=saver(report))


def saver(path: Path | None) -> SaveFindings | None:
    """As the command saves a report."""
    return partial(migrate_sqlite.write_report, path) if path else None


def interrupt(target: db.Target, path: Path, phase: str, *, after: int = 0, **settings: Any) -> None:
    """Convert until a phase has got further than `after`."""

    def report(progress: Progress) -> None:
        if progress.phase == phase and (progress.done is None or progress.done > after):
            raise Interruption

    with pytest.raises(Interruption):
        migrate.convert(target, path, migrate.ConversionSettings(**settings), report=report)


def workers(pid: int) -> list[int]:
    """Return the worker processes of a run, which are forked: it has no other children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(target: db.Target) -> indexstate.State:
    with db.session(target) as conn:
        return indexstate.state(conn)


def require_index(target: db.Target, revision: int = catalog.newest()) -> None:
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
