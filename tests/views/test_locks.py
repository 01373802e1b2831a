"""The pages of `check-lock` in the states that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.locks import NAMELESS, Lock, Orthanc, Session, Terminated, Usage
from pgorthanc_cli.views import locks as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "locks"
NOW = datetime(2026, 11, 26, 1, 17, tzinfo=timezone(timedelta(hours=1)))
SINCE = NOW - timedelta(hours=3, minutes=5)


def lock(key: int, application: str = "pacs1", pid: int = 9890) -> Lock:
    return Lock(key, db.LOCK_NAMES[key], True, pid, "orthanc", application, "10.0.0.5", SINCE, "idle", NOW)


FREE_LOCKS = tuple(Lock(key, name, held=False) for key, name in db.LOCK_NAMES.items())
ORTHANC = Orthanc(
    pid=9890, address="10.0.0.5", role="orthanc", application="pacs1", since=SINCE, sessions=51, locked=True,
    certain=True, plugin="9.0 or later", reasons=("it sets search_path, as plugins do since 10.0",),
    evidence=("holds lock 42 (index)", "is named pacs1"),
)  # fmt: skip
UNLOCKED = replace(ORTHANC, pid=9901, address="10.0.0.6", application="pacs2", locked=False, sessions=1)
FREE = Usage(
    database="orthanc", locks=FREE_LOCKS, orthancs=(), housekeeping=False, problems=(), errors=(), notes=(),
    endpoint=db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18"), time=NOW,
)  # fmt: skip
WORKING = replace(FREE, locks=(lock(42), lock(43), FREE_LOCKS[2]), orthancs=(ORTHANC,))
PERHAPS = replace(
    UNLOCKED, certain=False, application="",
    evidence=("has no name, and its last statement (ABORT) fits an Orthanc, but other programs, too",),
)  # fmt: skip
STATES = {
    "free": FREE,
    "free-but-hidden": replace(
        FREE, notes=("2 of 2 other sessions show no statements to role reader: GRANT …",)
    ),
    "one-orthanc": replace(WORKING, notes=(f"{NAMELESS}: pid 9890; name each Orthanc",)),
    "perhaps-an-orthanc": replace(FREE, orthancs=(PERHAPS,)),
    "several-orthancs": replace(FREE, orthancs=(UNLOCKED, replace(UNLOCKED, address="10.0.0.7", pid=1))),
    "an-import": replace(FREE, locks=(lock(42, "pgorthanc import"), *FREE_LOCKS[1:])),
    "set-up": replace(
        FREE, locks=(lock(42), FREE_LOCKS[1], lock(44)), orthancs=(replace(ORTHANC, sessions=1),)
    ),
    "housekeeping": replace(FREE, housekeeping=True),
    "second-orthanc": replace(
        WORKING,
        orthancs=(ORTHANC, UNLOCKED),
        problems=(
            "the Orthanc at 10.0.0.6 (pid 9901) works without a lock on a database that the Orthanc at "
            "10.0.0.5 (pid 9890) has locked for itself: stop one of them",
        ),
    ),
}  # fmt: skip
COMMANDS = views.Commands(
    wait="pgorthanc check-lock --wait 60 --config /etc/orthanc",
    watch="pgorthanc check-lock --watch --config /etc/orthanc",
    terminate="pgorthanc check-lock --terminate all --config /etc/orthanc",
)


@pytest.mark.parametrize("state", STATES)
def test_pages(state: str) -> None:
    golden.check_view(GOLDEN, state, views.page(STATES[state], COMMANDS))


def test_after_waiting() -> None:
    golden.check_view(GOLDEN, "waited", views.page(WORKING, COMMANDS, waited="60 s"))


def test_with_details() -> None:
    golden.check_view(GOLDEN, "verbose", views.page(WORKING, COMMANDS, verbose=True))


def test_while_watching() -> None:
    golden.check_view(GOLDEN, "watched", views.page(WORKING, COMMANDS, watched=True))


SESSION = Session(9890, "pacs1", "orthanc", "10.0.0.5", SINCE, "idle")


@pytest.mark.parametrize(
    ("state", "ended", "remaining"),
    [("ended", (SESSION,), ()), ("nothing-to-end", (), ()), ("not-ended", (), (SESSION,))],
)
def test_ended_sessions(state: str, ended: tuple[Session, ...], remaining: tuple[Session, ...]) -> None:
    usage = WORKING if remaining else FREE
    result = Terminated(**vars(usage), ended=ended, remaining=remaining, freed=usage.free)
    golden.check_view(GOLDEN, state, views.terminated_page(result, COMMANDS))
