"""The plan in its three forms, and the commands around it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pgorthanc_cli import db, upgrade
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import catalog, steps
from pgorthanc_cli.upgrade import prepare
from tests.support import indexstate
from tests.support.schemas import CURRENT, ODD_SCHEMA, REVISIONS, rows, run
from tests.upgrade.changing import Filled, connected, invoke, require_revision, run_upgrade, state
from tests.upgrade.test_states import STATES

PAIRS = [(1, 10), (10, 1), (2, 3), (6, 5), (3, 4), (5, 2)]
needs_psql = pytest.mark.skipif(shutil.which("psql") is None, reason="there is no psql")


def planned(target: db.Target, to: int, *, down: bool = False) -> upgrade.Plan:
    with db.session(target, readonly=True) as conn:
        return upgrade.plan(conn, target.schema, to, down=down)


def psql(target: db.Target, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "plan.sql"
    file.write_text(script, encoding="utf-8")
    command = ["psql", "-X", "-q", "-d", target.dsn, "-f", str(file)]
    return subprocess.run(command, capture_output=True, text=True)


@needs_psql
@pytest.mark.parametrize(("here", "there"), PAIRS)
@pytest.mark.parametrize("schema", ["public", ODD_SCHEMA])
def test_the_statements_lead_there(
    filled: Filled, tmp_path: Path, here: int, there: int, schema: str
) -> None:
    target = filled(here)
    if schema != "public":
        quoted = schema.replace('"', '""')
        run(target, f'ALTER SCHEMA public RENAME TO "{quoted}"')
        target = db.Target(target.dsn, schema=schema)
    before = state(target)
    command = "upgrade" if there > here else "downgrade"
    printed = invoke(command, "--uri", target.dsn, "--schema", schema, "--to", there, "--sql")
    assert printed.exit_code == 0

    done = psql(target, printed.stdout, tmp_path)

    assert done.returncode == 0, done.stderr
    require_revision(target, there)
    assert indexstate.differing(before, state(target)) == []


@needs_psql
@pytest.mark.parametrize("name", ["A2 official 6 to 5", "A3 5 to 6 without PrepareIndex", "F3 6 to 5 on 10"])
def test_the_statements_mend_as_well(filled: Filled, tmp_path: Path, name: str) -> None:
    number, damage = STATES[name]
    target = filled(number)
    run(target, *damage)
    plan = planned(target, CURRENT)
    assert plan.repairs
    done = psql(target, upgrade.sql(plan, command="upgrade"), tmp_path)
    assert done.returncode == 0, done.stderr
    require_revision(target, CURRENT)


@needs_psql
def test_the_statements_alone_keep_others_out(filled: Filled, tmp_path: Path) -> None:
    target = filled(6)
    script = upgrade.sql(planned(target, CURRENT), command="upgrade")
    with connected(target):
        done = psql(target, script, tmp_path)
    assert done.returncode == 3
    assert "application Orthanc" in done.stderr
    assert rows(target, "SELECT value FROM globalproperties WHERE property = 4") == [("6",)]


def test_a_plan_changes_nothing_and_blocks_nobody(filled: Filled) -> None:
    target = filled(1)
    before = state(target)
    with connected(target) as other, other.cursor() as cur:
        cur.execute("BEGIN; LOCK TABLE resources IN ROW EXCLUSIVE MODE")
        plan = planned(target, CURRENT)
        pid = other.info.backend_pid
    assert [session.pid for session in plan.sessions] == [pid]
    assert state(target) == before


def test_the_plan_of_an_upgrade(filled: Filled) -> None:
    plan = planned(filled(1), CURRENT)
    assert (plan.revision, plan.recorded, plan.to) == (1, 1, CURRENT)
    assert (plan.plugins, plan.plugins_then) == ("4.0 to 5.1", catalog.plugins(CURRENT))
    prepared = [item.statements[0] for item in plan.prepare]
    assert "CREATE UNIQUE INDEX CONCURRENTLY pgorthanc_uniquepublicid ON resources (publicid)" in prepared
    assert [len(item.statements) for item in plan.switch] == [1] * len(steps.path(1, CURRENT))
    assert all(
        item.blocks == "no session" or "less than 0.1 s" in item.blocks
        for item in (*plan.prepare, *plan.finish)
    )
    assert all(item.blocks == "all sessions" for item in plan.switch)
    assert plan.space_bytes > 0
    assert 0 < plan.switch_s < 1
    assert plan.tables[0].rows > 0
    assert plan.duplicates == ()
    assert (plan.obstacles, plan.repairs, plan.not_held) == ((), (), ())


def test_the_rows_of_a_table_that_was_empty_when_it_was_analyzed(fresh: db.Target) -> None:
    """The server has 0 rows on record, as PostgreSQL 12 and 13 have for every new table."""
    run(
        fresh,
        "ALTER TABLE resources SET (autovacuum_enabled = false)",
        "ANALYZE resources",
        "INSERT INTO resources (resourcetype, publicid) SELECT 0, 'p' || n FROM generate_series(1, 1000) n",
    )
    tables = {table.name: table.rows for table in planned(fresh, 1, down=True).tables}
    assert 300 < tables["resources"] < 3000


def test_the_plan_of_a_downgrade_counts_what_is_not_held(filled: Filled) -> None:
    plan = planned(filled(CURRENT), 1, down=True)
    assert {(loss.what.split()[0], loss.below, loss.unreadable) for loss in plan.not_held} == {
        ("reservations", 10, False),
        ("audit", 6, False),
        ("positions", 6, False),
        ("customData", 5, True),
        ("key-value", 5, False),
        ("queued", 5, False),
    }
    assert all(loss.rows > 0 for loss in plan.not_held)


def test_the_plan_knows_what_is_prepared_already(filled: Filled) -> None:
    target = filled(1)
    run_upgrade(target, phases=("prepare",))
    assert [item.what for item in planned(target, CURRENT).prepare] == []


def test_the_plan_lists_duplicates(filled: Filled) -> None:
    target = filled(1)
    run(target, "INSERT INTO resources (resourcetype, publicid) VALUES (0, 'p1')")
    plan = planned(target, CURRENT)
    assert plan.duplicates is not None
    assert [duplicate.public_id for duplicate in plan.duplicates] == ["p1"]
    assert "p1" in upgrade.sql(plan, command="upgrade")


def test_the_forms_of_a_plan(filled: Filled) -> None:
    target = filled(5)
    screen = invoke("upgrade", "--uri", target.dsn, "--plan")
    document = json.loads(invoke("upgrade", "--uri", target.dsn, "--plan", "--json").stdout)
    assert screen.stdout.startswith(f"Plan: upgrade from revision 5 to {CURRENT}, under 1 s.")
    revisions = " -> ".join(str(revision) for revision in REVISIONS if revision >= 5)
    assert f"revision {revisions}" in screen.stdout
    assert screen.exit_code == 0
    assert {
        "revision",
        "to",
        "prepare",
        "switch",
        "finish",
        "obstacles",
        "sessions",
        "tables",
    } <= document.keys()
    assert {"what", "tables", "lock", "blocks", "seconds", "space_bytes", "statements"} == document["switch"][
        0
    ].keys()


@pytest.mark.parametrize(
    ("release", "number"),
    [
        ("4.0", 1),
        ("5.1", 1),
        ("6.2", 2),
        ("7.1", 3),
        ("7.2", 4),
        ("8.0", 5),
        ("9.0", 6),
        ("10.2", 10),
        ("10.0.1", 10),
    ],
)
def test_the_revision_of_a_release(release: str, number: int) -> None:
    assert catalog.revision_of_plugin(release) == number


@pytest.mark.parametrize("release", ["3.3", "99.0", "10.4", "1", "new", ""])
def test_a_release_that_is_not_known(release: str) -> None:
    with pytest.raises(RevisionError) as refusal:
        catalog.revision_of_plugin(release)
    assert catalog.plugins(CURRENT) in (refusal.value.hint or "")


def test_a_release_instead_of_a_revision(empty: db.Target) -> None:
    at = ("--uri", empty.dsn, "--json")
    assert json.loads(invoke("init", *at, "--plugin", "6.1", "--no-storage").stdout)["revision"] == 2
    assert json.loads(invoke("upgrade", *at, "--plugin", "9.0").stdout)["revision"] == 6
    assert json.loads(invoke("downgrade", *at, "--plugin", "7.2").stdout)["revision"] == 4
    assert json.loads(invoke("upgrade", *at).stdout)["revision"] == REVISIONS[-1]
    assert invoke("init", *at, "--plugin", "6.1", "--revision", "2").exit_code == 2
    assert invoke("upgrade", *at, "--plugin", "6.1", "--to", "2").exit_code == 2
    assert invoke("downgrade", *at).exit_code == 2


@pytest.mark.parametrize("number", [0, 7, 9, 99, -1])
@pytest.mark.parametrize("command", ["upgrade", "downgrade"])
@pytest.mark.parametrize("plan", [True, False])
def test_a_revision_that_does_not_exist(filled: Filled, command: str, number: int, plan: bool) -> None:
    refused = invoke(command, "--uri", filled(6).dsn, "--to", number, *(["--plan"] if plan else []))
    assert refused.exit_code == 4
    assert f"revision {number} does not exist" in refused.stderr
    *others, newest = map(str, catalog.revisions())
    assert f"choose {', '.join(others)} or {newest}" in refused.stderr


def test_every_script_says_what_can_be_made_beforehand() -> None:
    """The heads are read by the tool: a line that looks like a statement is one that it understands."""
    for step in steps.all_steps():
        head = steps.text(step.script).partition("\n\n")[0].splitlines()
        said = [line for line in head if "CREATE " in line or " ADD CONSTRAINT " in line]
        assert [made.statement for made in prepare.prebuilt_objects([step])] == [
            line.removeprefix("--   ").removesuffix(";") for line in said
        ]


def test_the_screen_of_a_blocked_plan_ends_with_6(filled: Filled) -> None:
    target = filled(6)
    run(target, 'ALTER TABLE resources ADD "Foo bar" int')
    blocked = invoke("upgrade", "--uri", target.dsn, "--plan")
    assert blocked.exit_code == 6
    assert blocked.stdout.startswith(f"The upgrade from revision 6 to {CURRENT} is blocked by 1 obstacle.")
    statement = 'ALTER TABLE "public"."resources" DROP COLUMN "Foo bar";'
    assert f"    {statement}\n" in blocked.stdout
    run(target, statement)
    assert invoke("upgrade", "--uri", target.dsn, "--plan").exit_code == 0


def test_the_screens_of_the_phases(filled: Filled) -> None:
    at = ("--uri", filled(1).dsn)
    shown = [invoke("upgrade", *at, "--phase", phase).stdout for phase in ("prepare", "switch", "finish")]
    again = invoke("upgrade", *at).stdout
    assert [screen.partition(" ")[0] for screen in shown] == ["Prepared", "Upgraded", "Finished"]
    assert "    pgorthanc upgrade --phase switch --uri" in shown[0]
    assert "    pgorthanc upgrade --phase finish --uri" in shown[1]
    assert again.startswith("Nothing to do: database ")
