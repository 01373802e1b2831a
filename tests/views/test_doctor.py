"""The page about a doctor's examination, in each state that a person can meet."""

from __future__ import annotations

import shlex
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pgorthanc_cli.db import Endpoint
from pgorthanc_cli.doctor import Health, check_names
from pgorthanc_cli.doctor.model import Verdict
from pgorthanc_cli.views import doctor as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "doctor"
AT = datetime(2026, 11, 26, 8, 20, tzinfo=timezone.utc)
ENDPOINT = Endpoint("orthanc", "db1", 5432, "orthanc", "15.18")
HEALTHY = {name: Verdict("OK", f"what {name} has measured") for name in check_names()}
HEALTHY["revision"] = Verdict("OK", "revision 10, for plugin 10.0 to 10.3", figures={"revision": 10})
DISK = Verdict(
    "WARNING",
    "21 GB (8%) of 270 GB is free on the disk of the database",
    "A full disk stops the server, and Orthanc with it. Free some space.",
)
HIDDEN = Verdict(
    "UNKNOWN",
    "not checked: 3 sessions of other roles cannot be seen by this one",
    "As a superuser:",
    statements='GRANT pg_read_all_stats TO "orthanc";',
)
SCHEMA = Verdict(
    "CRITICAL",
    "index childrenindex2 is missing: look-ups of children read whole tables",
    "Show how to repair it; this changes nothing yet:",
    command="verify schema --print-sql",
)
STATES = {
    "healthy": HEALTHY,
    "hidden": HEALTHY | {"transactions": HIDDEN},
    "problems": HEALTHY | {"schema": SCHEMA, "disk": DISK, "transactions": HIDDEN},
    "one-check": {"clock": HEALTHY["clock"]},
    "no-index": {
        "connection": HEALTHY["connection"],
        "revision": Verdict(
            "CRITICAL",
            "schema public contains no Orthanc index",
            "Give the right database and schema with --dbname and --schema, or create an index:",
            command="init",
        ),
    },
    "nothing-could-be-run": {"clock": Verdict("UNKNOWN", "not checked: the connection was lost")},
}


def command_line(*words: str) -> str:
    return shlex.join(["pgorthanc", *words, "--config", "/etc/orthanc"])


@pytest.mark.parametrize("state", STATES)
def test_states(state: str) -> None:
    health = Health.of("dbname=orthanc", STATES[state], ENDPOINT, AT)
    golden.check_view(GOLDEN, state, views.page(health, command_line))


def test_details_of_all_checks() -> None:
    health = Health.of("dbname=orthanc", STATES["problems"], ENDPOINT, AT)
    golden.check_view(GOLDEN, "verbose", views.page(health, command_line, verbose=True))


def test_a_session_that_was_never_opened() -> None:
    refused = {"connection": Verdict("CRITICAL", "connection refused", "Start the server.")}
    health = Health.of("dbname=orthanc", refused, None, AT)
    golden.check_view(GOLDEN, "unreachable", views.page(health, command_line))
