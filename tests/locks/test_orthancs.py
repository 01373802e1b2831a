"""Which sessions are one Orthanc, and which releases of the plugin it looks like: judged without a database."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pgorthanc_cli.locks import releases, statements
from pgorthanc_cli.locks.orthancs import Group, group_sessions
from pgorthanc_cli.locks.sessions import Observed
from pgorthanc_cli.locks.usage import notes, unlocked_writers
from pgorthanc_cli.schema import catalog

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
RELEASED = 'DEALLOCATE "2e126b54-0b34-4e35-beb6-455ccd56538f"'


# Which release of the plugin


@pytest.mark.parametrize(
    ("revision", "queries", "expected"),
    [
        (None, [], "unknown"),
        (0, [], "3.3 or earlier"),
        (1, [], "5.1 or earlier"),
        (2, [], "6.0 to 6.2"),
        (6, [], "6.0 to 9.0"),
        (10, [], "6.0 or later"),
        (10, ["SET search_path TO orthanc"], "10.0 or later"),
        (10, ["SELECT * FROM UpdateInvalidChildCounts()"], "7.2 or later"),
        (6, ["SELECT value FROM KeyValueStores WHERE key=$1"], "8.0 to 9.0"),
        (6, ["SELECT ProtectPatient($1)", "COMMIT"], "9.0"),
        (10, ["SELECT * FROM PatientRecyclingOrder"], "6.0 to 8.0"),
        (6, ["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE READ WRITE"], "6.0 to 9.0"),
        (None, ["BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED"], "6.0 or later"),
        (6, ["SET search_path TO orthanc"], "unknown: the reasons contradict each other"),
    ],
)
def test_releases_that_fit(revision: int | None, queries: list[str], expected: str) -> None:
    layout = next((entry for entry in catalog.layouts() if entry.revision == revision), None)
    plugin, reasons = releases.fitting([statements.read(query) for query in queries], layout)
    assert plugin == expected
    assert len(reasons) == (layout is not None) + sum(query != "COMMIT" for query in queries)


def test_a_big_pool_is_a_reason() -> None:
    _, reasons = releases.fitting([statements.read("COMMIT")] * 50, None)
    assert reasons == ("it has 50 connections; 50 is the default since 7.0, 1 before",)


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        (None, "hidden"),
        ("", "none yet"),
        ("  commit", "COMMIT"),
        ("BEGIN;", "BEGIN"),
        ("select pg_try_advisory_lock(42)", "advisory lock"),
        ("INSERT INTO StorageArea VALUES ($1, $2, $3)", "storage area"),
        ("select proname, oid from pg_proc where proname in ('lo_open')", "storage area"),
        ("CREATE TABLE Resources(internalId BIGSERIAL)", "set-up"),
        ("SELECT now()", "other"),
    ],
)
def test_kinds_of_statements(query: str | None, kind: str) -> None:
    assert statements.read(query).kind == kind


# Which sessions are one Orthanc


def observed(number: int, after_s: float, query: str | None = RELEASED, **more: Any) -> Observed:
    given = {"application": "", "role": "orthanc", "address": "10.0.0.1", "state": "idle", "locks": ()} | more
    since = START + timedelta(seconds=after_s)
    return Observed(pid=number, since=since, idle_since=since, query=query, temporary=False, **given)


def sizes(found: list[Group]) -> list[tuple[int, int]]:
    """Number of sessions of each Orthanc, and how often some of them connected together."""
    return [(group.orthanc.sessions, group.starts) for group in found]


@pytest.mark.parametrize(
    ("connected_s", "wanted"),
    [
        ([0], [(1, 1)]),
        ([0] * 50, [(50, 1)]),
        ([0, 0, 60, 60], [(2, 1), (2, 1)]),
        ([0, 60, 120], [(1, 1), (1, 1), (1, 1)]),
        ([0] * 49 + [3600], [(50, 2)]),
        ([0, 60, 120, 180], [(4, 4)]),
        ([0, 1.5, 3, 4.5], [(4, 1)]),
    ],
)
def test_a_pool_of_connections_is_one_orthanc(
    connected_s: list[float], wanted: list[tuple[int, int]]
) -> None:
    assert sizes(group_sessions([observed(i, s) for i, s in enumerate(connected_s)], None)) == wanted


SET_UP, AT_WORK = RELEASED, "COMMIT"
REVISION_1 = next(entry for entry in catalog.layouts() if entry.revision == 1)


def started(first: int, after_s: float, *locks: int, storage: bool = True, pool: int = 1) -> list[Observed]:
    """An Orthanc as the real 1.10.1 and 1.13.0 start: storage area first, then the index, then the rest of its pool."""
    held = [(lock,) if lock in locks else () for lock in (43, 42)]
    area = [observed(first, after_s, SET_UP, locks=held[0])] if storage else []
    index = [
        observed(
            first + 1 + n, after_s + 0.05 + 0.26 * bool(n) + 0.02 * n, AT_WORK, locks=() if n else held[1]
        )
        for n in range(pool)
    ]
    return [*area, *index]


@pytest.mark.parametrize("storage", [True, False])
@pytest.mark.parametrize("apart_s", [0.02, 0.6, 1.9])
@pytest.mark.parametrize("locked_first", [True, False])
def test_an_orthanc_without_lock_that_started_beside_one_with_a_lock(
    storage: bool, apart_s: float, locked_first: bool
) -> None:
    """The CRITICAL case: they have one address and role, no names, and started within two seconds."""
    with_lock = started(1, 0 if locked_first else apart_s + 0.1, 42, 43, storage=storage)
    without = started(11, 0.1 + apart_s if locked_first else 0, storage=storage)
    connections = None if storage or not locked_first else 1  # then only the configuration tells
    found = group_sessions([*with_lock, *without], REVISION_1, connections=connections)
    assert sorted((group.orthanc.locked, [m.pid for m in group.members]) for group in found) == [
        (False, [session.pid for session in without]),
        (True, [session.pid for session in with_lock]),
    ]
    [problem] = unlocked_writers(found)
    assert "works without a lock on a database" in problem


@pytest.mark.parametrize("pool", [1, 2, 5, 50])
@pytest.mark.parametrize("storage", [True, False])
@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("locks", [(42, 43), ()])
def test_one_orthanc_is_not_taken_for_two(
    pool: int, storage: bool, configured: bool, locks: tuple[int, ...]
) -> None:
    sessions = started(1, 0, *locks, storage=storage, pool=pool)
    [group] = group_sessions(sessions, REVISION_1, connections=pool if configured else None)
    assert group.orthanc.sessions == len(sessions)


def test_pools_without_locks_that_started_together_are_counted_by_the_configuration() -> None:
    sessions = [*started(1, 0, pool=3), *started(11, 0.5, pool=3)]
    assert len(group_sessions(sessions, REVISION_1)) == 1
    assert [group.orthanc.sessions for group in group_sessions(sessions, REVISION_1, connections=3)] == [4, 4]


def test_without_a_storage_area_the_pool_is_all_that_an_orthanc_has() -> None:
    sessions = [*started(1, 0, storage=False, pool=1), *started(11, 0.5, storage=False, pool=1)]
    assert len(group_sessions(sessions, REVISION_1, connections=1, storage=True)) == 1
    assert len(group_sessions(sessions, REVISION_1, connections=1, storage=False)) == 2


@pytest.mark.parametrize("difference", [{"role": "b"}, {"address": None}, {"application": "b-orthanc"}])
def test_another_role_address_or_name_is_another_orthanc(difference: dict[str, Any]) -> None:
    assert len(group_sessions([observed(1, 0), observed(2, 0, **difference)], None)) == 2


def test_idle_connections_of_the_pool_belong_to_it_and_those_of_others_do_not() -> None:
    pool = [observed(1, 0), observed(2, 0, "COMMIT"), observed(3, 0, ""), observed(4, 0, None)]
    [group] = group_sessions([*pool, observed(5, 0, "SELECT now()")], None)
    assert [member.pid for member in group.members] == [1, 2, 3, 4]


def test_a_pool_that_closes_its_connections_loses_its_lock() -> None:
    """UseDynamicConnectionPool: connections come and go, and with one of them the lock."""
    dynamic = group_sessions([observed(i, 60 * i, locks=(42,) if i == 7 else ()) for i in range(5, 10)], None)
    [note] = [note for note in notes(dynamic) if "UseDynamicConnectionPool" in note]
    assert "the connection of pid 7" in note
    fixed = group_sessions([observed(i, 0, locks=(42,) if i == 7 else ()) for i in range(5, 10)], None)
    assert not any("UseDynamicConnectionPool" in note for note in notes(fixed))
