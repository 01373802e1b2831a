"""The pages of `upgrade` and `downgrade` in the states that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.schema.duplicates import Differing, Duplicate, SurplusFile
from pgorthanc_cli.upgrade import Changed, Item, Loss, Obstacle, Plan, Session
from pgorthanc_cli.upgrade.survey import Replica, Table
from pgorthanc_cli.views import upgrade as views
from pgorthanc_cli.views.page import Page
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "upgrade"
ENDPOINT = db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18")
SINCE = datetime(2026, 11, 25, 22, 12, tzinfo=timezone.utc)


def line(*words: str) -> str:
    return " ".join(("pgorthanc", *words, "--config", "/etc/orthanc"))


UP = views.Commands(line, ("upgrade",))
DOWN = views.Commands(line, ("downgrade", "--to", "4"))


def item(what: str, seconds: float, space_bytes: int = 0) -> Item:
    return Item(what, (), "", "", seconds, space_bytes, ())


PLAN = Plan(
    schema="public", revision=1, recorded=1, plugins="4.0 to 5.1", to=10, plugins_then="10.0 to 10.3",
    prepare=(
        item("build index pgorthanc_uniquepublicid", 180, 1_100_000_000),
        item("build index childrenindex2", 120.4, 900_000_000),
        item("add and validate constraint pgorthanc_no_action", 20),
    ),
    prepare_s=320.4,
    switch=(item("From revision 1 to 2", 0.2),), switch_s=0.2,
    finish=(
        item("count the children of patients, studies and series", 240, 100_000_000),
        item("build the wildcard-search index (needs the extension pg_trgm)", 420, 2_000_000_000),
    ),
    finish_s=660, space_bytes=4_100_000_000, tablespaces=("pg_default",),
    repairs=(), obstacles=(), duplicates=(), not_held=(),
    tables=(Table("resources", 12_010_000, 30_000_000_000, 11_000_000_000, None),),
    sessions=(), locks=(), replicas=(), endpoint=ENDPOINT, path=(1, 2, 3, 4, 5, 6, 10), blockers=(),
    unfinished=False, refusal=(),
)  # fmt: skip
OBSTACLES = (
    Obstacle(
        "extra column resources.foo (not created by the plugin)",
        "copy its values to a table of your own if anybody needs them, then drop it:",
        ('ALTER TABLE "public"."resources" DROP COLUMN "foo";',),
    ),
    Obstacle(
        "prepared transaction 'xa-17' of role app has held locks on the index since 2026-11-24",
        "ask its application whether to commit it or roll it back, as role app:",
        ("ROLLBACK PREPARED 'xa-17';", "COMMIT PREPARED 'xa-17';"),
    ),
    Obstacle(
        "view own depends on column resources.childcount, which revision 1 does not have",
        "save its definition, drop it, and create it again afterwards",
    ),
)
LOSSES = (
    Loss(
        "customData of attachments",
        1204,
        5,
        "pgorthanc_kept_customdata",
        unreadable=True,
        files=1204,
        adopted=204,
    ),
    Loss("key-value pairs", 87, 5, "pgorthanc_kept_keyvaluestores"),
    Loss("audit log entries", 512, 6, "pgorthanc_kept_auditlogs"),
)
SMALL = replace(PLAN, prepare_s=0.1, switch_s=0.1, finish_s=0.1, space_bytes=0)
DOWNGRADE = replace(
    SMALL, revision=10, to=4, plugins_then="7.2", path=(10, 6, 5, 4), prepare=(), finish=(), not_held=LOSSES
)
PLANS = {
    "plan": PLAN,
    "plan of a small index": SMALL,
    "plan in a busy database": replace(
        PLAN,
        schema="odd schema",
        repairs=("index childrenindex2 is missing", "column resources.pk does not belong there"),
        sessions=(
            Session(9890, "Orthanc", "orthanc", "10.0.0.5", SINCE, "idle"),
            Session(10021, None, None, None, None, None),
        ),
        replicas=(Replica("standby1", "streaming", 0, None),),
        duplicates=None,
        tablespaces=("fast", "pg_default"),
        refusal=(
            "role readonly may not change the index in schema public: its tables belong to role orthanc",
            "log in as role orthanc (--username orthanc, or --config with Orthanc's configuration)",
        ),
    ),
    "plan with obstacles": replace(
        PLAN, blockers=OBSTACLES, duplicates=(Duplicate("0a9b3153-2512774b", "study", 2, None),)
    ),
    "plan with nothing to do": replace(PLAN, revision=10, path=(10,), prepare=(), switch=()),
    "plan of a repair": replace(
        SMALL, revision=10, path=(10,), prepare=(), repairs=("index childrenindex2 is missing",)
    ),
    "plan of an older layout": replace(SMALL, revision=0, path=(0, 1, 2, 3, 4, 5, 6, 10)),
}
CHANGED = Changed(
    schema="public", before=1, revision=10, phases=("prepare", "switch", "finish"), to=10,
    plugins="10.0 to 10.3", endpoint=ENDPOINT, blocked_s=0.5, elapsed_s=2.4,
)  # fmt: skip
RESULTS = {
    "upgraded": CHANGED,
    "upgraded with findings": replace(
        CHANGED,
        schema="odd schema",
        repaired=("index childrenindex2 is missing",),
        restored={"pgorthanc_kept_customdata": 1204, "pgorthanc_kept_auditlogs": 512},
        merged=(Duplicate("0a9b3153-2512774b", "study", 2, None),),
        differing=(Differing("0a9b3153-2512774b", "study", ("metadata 7",)),),
        surplus_files=tuple(SurplusFile(f"uuid-{number}", "0a9b3153", 1) for number in range(7)),
        child_counts=31_000,
        trigram="missing",
    ),
    "nothing to do": replace(CHANGED, before=10),
    "repaired": replace(CHANGED, before=10, repaired=("index childrenindex2 is missing",)),
    "prepared": replace(CHANGED, revision=1, phases=("prepare",), elapsed_s=331),
    "switched": replace(CHANGED, phases=("switch",)),
    "finished": replace(CHANGED, before=10, phases=("finish",), child_counts=31_000, trigram="unavailable"),
}


def check(state: str, page: Page) -> None:
    golden.check_view(GOLDEN, state.replace(" ", "-"), page)


@pytest.mark.parametrize("state", PLANS)
def test_plans(state: str) -> None:
    page = views.plan_page(PLANS[state], UP)
    check(state, page)
    assert (page.status == "problem") is (state == "plan with obstacles")


def test_duplicates_that_will_be_merged_block_nothing() -> None:
    plan = replace(PLAN, duplicates=(Duplicate("0a9b3153-2512774b", "study", 2, None),))
    assert views.plan_page(plan, UP).status == "problem"
    assert views.plan_page(plan, UP, merge=True).status != "problem"


@pytest.mark.parametrize("state", RESULTS)
def test_results(state: str) -> None:
    check(state, views.changed_page(RESULTS[state], UP))


def test_downgrades() -> None:
    check("plan of a downgrade", views.plan_page(DOWNGRADE, DOWN))
    check("question", views.losses_page(DOWNGRADE, discard=False))
    check("question before rows are deleted", views.losses_page(DOWNGRADE, discard=True))
    check("sessions to be ended", views.sessions_page(PLANS["plan in a busy database"].sessions))
    kept = {loss.table: loss.rows for loss in LOSSES}
    done = replace(CHANGED, before=10, revision=4, to=4, plugins="7.2", kept=kept)
    check("downgraded", views.changed_page(done, DOWN))
