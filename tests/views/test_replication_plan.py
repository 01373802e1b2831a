"""`replication plan` and `primary`: what a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.replication import PlanItem, Prepared, PrimaryPlan
from pgorthanc_cli.replication.password import StandbyLogin
from pgorthanc_cli.views import replication_plan as views
from pgorthanc_cli.views.page import Page
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "replication"
COMMANDS = views.Commands(
    plan="pgorthanc replication plan --allow ADDRESS --host db1",
    primary="pgorthanc replication primary --allow 10.1.2.4 --host db1",
    steps="pgorthanc replication plan --allow 10.1.2.4 --print steps --host db1",
)
LINE = "hostssl replication pgorthanc_replication 10.1.2.4/32 scram-sha-256"
VERSION = PlanItem("version", "15.18", "12 or newer", "ok")
LEVEL = PlanItem("wal_level", "replica", "replica", "ok")
READY = PrimaryPlan(
    "db1:5432", "15.18", ready=True, restart=False, items=(VERSION, LEVEL), data_bytes=41 * 10**9, free_bytes=None,
    endpoint=db.Endpoint("postgres", "db1", 5432, "postgres", "15.18"),
)  # fmt: skip
NOT_READY = replace(
    READY,
    ready=False,
    items=(
        PlanItem(
            "role pgorthanc_replication", "none", "LOGIN", "missing", "",
            'CREATE ROLE "pgorthanc_replication" LOGIN REPLICATION',
        ),
        PlanItem("pg_hba.conf for 10.1.2.4/32", "no line", LINE, "missing", "reload", LINE),
        PlanItem(
            "max_slot_wal_keep_size", "-1", "10GB", "missing", "reload",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'",
        ),
        PlanItem("ssl", "off", "on", "advice", "reload, and a certificate", "ALTER SYSTEM SET ssl = 'on'"),
        PlanItem(
            "pg_hba.conf line 3", "host replication all 0.0.0.0/0 trust", "one address", "advice", "reload",
            "this line trusts: remove it",
        ),
        PlanItem("disk", "not on this machine", "more than 10GB", "hidden"),
        VERSION,
        LEVEL,
    ),
)  # fmt: skip
RESTART = replace(
    NOT_READY,
    restart=True,
    items=(
        VERSION,
        PlanItem(
            "wal_level", "minimal", "replica", "missing", "restart", "ALTER SYSTEM SET wal_level = 'replica'"
        ),
    ),
)
NO_ADDRESS = replace(
    READY, ready=False, items=(PlanItem("pg_hba.conf", "hidden", "a line for the standby", "hidden"), VERSION)
)
ADVICE = replace(READY, items=(*READY.items, NOT_READY.items[3]))

PREPARED = Prepared(
    server="db1:5432", role="pgorthanc_replication", passfile="replication.pgpass", slot="pgorthanc_standby",
    changed=("role pgorthanc_replication, its password in replication.pgpass", "slot pgorthanc_standby"),
    backup="/etc/postgresql/15/main/pg_hba.conf.20261126T011700Z.pgorthanc", login="works", restart=(), left=(),
    ready=True, standby="", standby_command="pgorthanc replication standby --pgdata DIR --from 'host=db1'",
)  # fmt: skip
LEFT = replace(
    PREPARED, ready=False, backup="none", login="not tried: pg_hba.conf lacks the line", restart=("wal_level",),
    left=(f"insert as first line of /etc/pg_hba.conf: {LINE}", "listen_addresses is localhost; needed: another"),
)  # fmt: skip
COPY = "copy replication.pgpass to the standby's machine, and there: install -m 600 replication.pgpass DIR/x"
RENEWED = replace(
    PREPARED,
    standbys=(
        StandbyLogin(
            "standby1", "this machine", "standby1", streaming=True, folder="/srv/s1", password="updated in x"
        ),
        StandbyLogin("standby2", "", "standby2", streaming=False, password=COPY),
    ),
)


def planned(plan: PrimaryPlan, *allow: str) -> Page:
    return views.plan_page(plan, allow, COMMANDS)


def prepared(result: Prepared) -> Page:
    return views.prepared_page(result, "pgorthanc replication primary --allow 10.1.2.4 --host db1")


PAGES = {
    "plan-ready": planned(READY, "10.1.2.4"),
    "plan-ready-with-advice": planned(ADVICE, "10.1.2.4"),
    "plan-not-ready": planned(NOT_READY, "10.1.2.4"),
    "plan-restart": planned(RESTART, "10.1.2.4", "10.1.3.0/24"),
    "plan-without-address": planned(NO_ADDRESS),
    "primary-prepared": prepared(PREPARED),
    "primary-nothing-to-do": prepared(replace(PREPARED, changed=(), backup="none")),
    "primary-restart-advised": prepared(replace(PREPARED, restart=("wal_log_hints",))),
    "primary-left": prepared(LEFT),
    "primary-new-password": prepared(RENEWED),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_states(name: str) -> None:
    golden.check_view(GOLDEN, name, PAGES[name])
