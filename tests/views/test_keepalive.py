"""The pages of `keepalive-test` in the states that a person can meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlencode

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.keepalive import Age, KeepAlive, Probes, SocketOptions, TrialResult, verdict
from pgorthanc_cli.keepalive.environment import Environment
from pgorthanc_cli.keepalive.idle import UNNAMED
from pgorthanc_cli.keepalive.model import Outcome
from pgorthanc_cli.views import keepalive as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "keepalive"
TRIED = KeepAlive.every(60, 10, 3)
SERVER = db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18")
AROUND = Environment(
    "db1:5432", True, '"orthanc"', "none", (), TRIED.settings(), {"idle_session_timeout": 0.0},
    datetime(2026, 11, 25, tzinfo=timezone.utc), SERVER,
)  # fmt: skip
SOCKETS = (
    SocketOptions("client by default", True, 7200, 75, 9, None),
    SocketOptions("server", True, 7200, 75, 9, 0),
)
AGES_S = (120.0, 240.0, 300.0, 900.0)


def ages(
    *, silent: Outcome, with_probes: Outcome = "alive", from_s: float = 300.0, cause: str = ""
) -> Iterator[Age]:
    """What became of the connections: from a certain idle time on, they died."""
    senders: tuple[Probes, ...] = ("none", "client", "server")
    for age_s in AGES_S:
        for sender in senders:
            dies: Outcome = silent if sender == "none" else with_probes
            outcome: Outcome = dies if age_s >= from_s else "alive"
            why = cause if outcome not in ("alive", "pending") else ""
            yield Age(age_s, sender != "none", sender, outcome, age_s, 10.0, why, "no answer within 10 s")


def result(
    found: tuple[Age, ...], around: Environment = AROUND, confirmation: tuple[Age, ...] = ()
) -> TrialResult:
    """The result of these outcomes, as `Trial.result` makes it."""
    judged = verdict.judge(found, confirmation, TRIED)
    client, server = judged.advised_from("client"), judged.advised_from("server")
    return TrialResult(
        place=around.endpoint, ages=found, limit_s=judged.limit_s,
        parameters=client.parameters() if client else {}, passed=judged.passed, confirmation=confirmation,
        confirmed=judged.confirmed, connection_uri=urlencode(client.parameters()) if client else "",
        postgresql_conf=tuple(f"{k} = {v}" for k, v in server.settings().items()) if server else (),
        sysctl=tuple(f"{k} = {v}" for k, v in client.sysctl().items()) if client else (),
        sockets=SOCKETS, timeouts_s=around.timeouts_s, pooler=around.pooler,
        advice=tuple(verdict.advice(found, judged, TRIED, around)), elapsed_s=910.0,
        explanations=tuple(verdict.explanations(found, judged, TRIED, around)),
        role=around.role, endpoint=around.server,
    )  # fmt: skip


DROPPED = tuple(ages(silent="dropped"))
ONLY_CLIENT = tuple(
    replace(age, outcome="dropped") if age.probes == "server" and age.age_s >= 300 else age for age in DROPPED
)
STATES = {
    "all-alive": result(tuple(ages(silent="alive"))),
    "dropped": result(DROPPED),
    "only-the-client-helps": result(ONLY_CLIENT),
    "closed-early": result(tuple(ages(silent="reset", from_s=0.0))),
    "nothing-helps": result(tuple(ages(silent="reset", with_probes="reset"))),
    "probes-too-late": result(tuple(ages(silent="closed", with_probes="closed", from_s=0.0))),
    "server-limit": result(
        tuple(ages(silent="closed", with_probes="closed", cause="idle_session_timeout")),
        replace(AROUND, timeouts_s={"idle_session_timeout": 300.0}),
    ),
    "unnamed": result(tuple(ages(silent="closed", with_probes="closed", cause=UNNAMED))),
    "restarted": result(tuple(ages(silent="closed", with_probes="closed", cause="restarted"))),
    "socket": result(
        (Age(900.0, False, "none", "alive", 900.0, 0.0, "", "answered"),),
        replace(AROUND, endpoint="/var/run/postgresql:5432", tcp=False),
    ),
    "pooler": result(tuple(ages(silent="alive")), replace(AROUND, pooler="transaction")),
}


@pytest.mark.parametrize("state", STATES)
def test_pages(state: str) -> None:
    page = views.page(STATES[state], "pgorthanc keepalive-test --confirm --config /etc/orthanc")
    golden.check_view(GOLDEN, state, page)


def test_details() -> None:
    golden.check_view(GOLDEN, "verbose", views.page(STATES["dropped"], "", verbose=True))


def test_an_interruption() -> None:
    pending = tuple(ages(silent="pending", with_probes="pending"))
    golden.check_view(GOLDEN, "interrupted", views.page(result(pending), "", interrupted=True))


def test_a_confirmation() -> None:
    again = tuple(age for age in DROPPED if age.age_s == 900.0 and age.keepalive)
    golden.check_view(GOLDEN, "confirmed", views.page(result(DROPPED, confirmation=again), ""))
