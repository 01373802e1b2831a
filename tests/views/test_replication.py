"""`replication`: what a person can meet."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pgorthanc_cli.replication import (
    Branch,
    Follower,
    Problem,
    ReplicationStatus,
    ServerState,
    Slot,
    Split,
)
from pgorthanc_cli.views import replication as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "replication"
NOW = datetime(2026, 11, 26, 1, 17, tzinfo=timezone(timedelta(hours=1)))
HOUR = timedelta(hours=1)

# Status

PRIMARY = ServerState("db1:5432", "primary", "15.18 (Debian 15.18-1)", 3, "0/5A3F2C8")
STANDBY = ServerState(
    "db2:5432", "standby", "15.18 (Debian 15.18-1)", 3, "0/5A3F2C8", 0, 0.0, "streaming", "db1:5432",
    NOW - timedelta(seconds=40), 0, "yes, with plugin 10.0 to 10.3",
)  # fmt: skip
FOLLOWER = Follower("pgorthanc_standby", "10.0.0.6", "streaming", "async", 0, None)
SLOT = Slot("pgorthanc_standby", in_use=True, holds_bytes=16_000_000, left_bytes=10**10, state="reserved")
WORKS = ReplicationStatus(
    "OK", (), (PRIMARY, STANDBY), (FOLLOWER,), (SLOT,), "none", 88 * 10**9, time=NOW
)  # fmt: skip
BEHIND = replace(STANDBY, lag_bytes=3_200_000, lag_s=4.0)


def failing(*problems: Problem, of: ReplicationStatus = WORKS) -> ReplicationStatus:
    return replace(of, verdict=problems[0].level, findings=problems)


PAUSED = Problem(
    "CRITICAL", "db2:5432 has stopped replaying what it receives", "resume on it:", ("db2:5432",),
    "SELECT pg_wal_replay_resume();",
)  # fmt: skip
CANCELLED = Problem(
    "WARNING", "db2:5432 has cancelled 2 queries", "set hot_standby_feedback there:", ("db2:5432",),
    "ALTER SYSTEM SET hot_standby_feedback = on;\nSELECT pg_reload_conf();",
)  # fmt: skip
STATES = {
    "status-works": WORKS,
    "status-works-synchronously": replace(
        WORKS, synchronous='FIRST 1 ("pgorthanc_standby")', standbys=(replace(FOLLOWER, sync="sync"),)
    ),
    "status-works-with-lag": replace(WORKS, servers=(PRIMARY, BEHIND)),
    "status-works-seen-at-the-primary": replace(
        WORKS, servers=(PRIMARY,), standbys=(replace(FOLLOWER, lag_bytes=16_000, lag_s=0.2),)
    ),
    "status-works-seen-at-the-standby": replace(WORKS, servers=(STANDBY,), standbys=(), slots=()),
    "status-two-standbys": replace(
        WORKS,
        servers=(PRIMARY, STANDBY, replace(BEHIND, place="db3:5432", read_only_orthanc="no: it is too old")),
    ),
    "status-hidden": failing(
        Problem(
            "WARNING", 'role "orthanc" may not see the state of the standbys', "as a superuser:", ("db1:5432",),
            'GRANT pg_monitor TO "orthanc";',
        ),
        of=replace(
            WORKS,
            servers=(PRIMARY, replace(STANDBY, follows="hidden", receiver="running")),
            standbys=(Follower("pgorthanc_standby", "hidden", "hidden", "hidden", None, None),),
        ),
    ),
    "status-unreachable-standby": failing(
        Problem("CRITICAL", "no standby streams from db1:5432", "check that the standby runs", ("db1:5432",)),
        Problem("CRITICAL", "cannot log in to db2:5432 as orthanc", "check the password", ("db2:5432",)),
        of=replace(
            WORKS,
            servers=(
                PRIMARY,
                ServerState("db2:5432", "unreachable", server_message='password authentication failed for user "x"'),
            ),
            standbys=(),
            slots=(replace(SLOT, in_use=False),),
        ),
    ),
    "status-paused": failing(PAUSED, CANCELLED, of=replace(WORKS, servers=(PRIMARY, BEHIND))),
    "status-two-primaries": failing(
        Problem(
            "CRITICAL", "two primaries: db1:5432 and db2:5432 accept writes", "stop every Orthanc now",
            ("db1:5432", "db2:5432"),
        ),
        of=replace(WORKS, servers=(PRIMARY, replace(PRIMARY, place="db2:5432", timeline=4)), standbys=(), slots=()),
    ),
    "status-two-primaries-dated": failing(
        Problem(
            "CRITICAL", "two primaries: db1:5432 and db2:5432 accept writes", "stop every Orthanc now",
            ("db1:5432", "db2:5432"),
        ),
        of=replace(
            WORKS, servers=(PRIMARY, replace(PRIMARY, place="db2:5432", timeline=4)), standbys=(), slots=(),
            split=Split((Branch("db1:5432", NOW - HOUR, 14_300), Branch("db2:5432", NOW, 81_200_000)), 3, "0/5000060"),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_the_states(state: str) -> None:
    golden.check_view(GOLDEN, state, views.status_page(STATES[state]))


def test_details_and_the_time_of_a_page_that_is_watched() -> None:
    page = views.status_page(WORKS, watched=True, verbose=True)
    golden.check_view(GOLDEN, "status-watched-in-detail", page)
