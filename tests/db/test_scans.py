"""What reads whole tables says so before, if they are large; what need not, does not."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, db, upgrade
from pgorthanc_cli.progress import Progress, silent
from pgorthanc_cli.schema import verify
from tests.support.schemas import FILL, run

COMMANDS = (
    ("verify", "schema", "--deep"),
    ("doctor", "--deep", "attachments"),
    ("storage", "show", "--by", "modality"),
    ("reindex", "--check"),
    ("downgrade", "--to", "4", "--plan"),
)


@pytest.fixture
def filled(fresh: db.Target) -> db.Target:
    run(fresh, *FILL, "SELECT updatestatistics(), updateinvalidchildcounts()", "ANALYZE")
    return fresh


@pytest.fixture
def large(filled: db.Target) -> db.Target:
    """An index whose statistics say that it is large."""
    tables = "'resources', 'attachedfiles', 'metadata'"
    run(filled, f"UPDATE pg_class SET reltuples = 4000000 WHERE relname IN ({tables})")
    return filled


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_says_so_before_and_only_then(large: db.Target, words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.main, [*words, "--uri", large.dsn])
    assert "reading all rows, which takes a while: about 4,000,000 of " in result.stderr
    quiet = CliRunner().invoke(cli.main, [*words, "--uri", large.dsn, "--quiet"])
    assert quiet.stderr == ""
    assert quiet.exit_code == result.exit_code


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_small_index_is_not_worth_a_word(filled: db.Target, words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli.main, [*words, "--uri", filled.dsn]).stderr == ""


def test_the_steps_of_a_deep_check(large: db.Target) -> None:
    steps: list[Progress] = []
    with db.session(large, readonly=True) as conn:
        assert verify.schema(conn, large.schema, deep=True, report=steps.append).healthy
    announcement, *others = steps
    assert announcement.done is None
    assert "4,000,000 of attachedfiles, 4,000,000 of resources" in announcement.what
    assert [step.done for step in others] == list(range(1, len(others) + 1))
    assert {step.total for step in others} == {len(others)}
    assert "recounting children" in {step.what for step in others}


def test_a_check_of_the_schema_alone_reads_no_table_as_a_whole(large: db.Target) -> None:
    steps: list[Progress] = []
    with db.session(large, readonly=True) as conn:
        verify.schema(conn, large.schema, report=steps.append)
    assert steps == []


def test_the_steps_of_a_plan(large: db.Target) -> None:
    """Two announcements: of what a lower revision cannot hold, and of child counts that are still missing."""
    steps: list[Progress] = []
    with db.session(large, readonly=True) as conn:
        upgrade.plan(conn, large.schema, 4, down=True, report=steps.append)
    announced = [step.what.partition("about ")[2] for step in steps if step.done is None]
    assert announced == ["4,000,000 of attachedfiles", "4,000,000 of resources"]
    assert "counting customData of attachments" in [step.what for step in steps]
    assert steps[-1] == Progress("", "looking for missing child counts", 1, 1)


def test_tables_that_do_not_exist(filled: db.Target) -> None:
    with db.session(filled, readonly=True) as conn:
        assert db.announce_scans(conn, ["nothing"], print) is silent


@pytest.mark.parametrize("autocommit", [False, True])
def test_the_limit_of_statements_ends_with_the_transaction(filled: db.Target, *, autocommit: bool) -> None:
    with db.session(filled, readonly=True, autocommit=autocommit) as conn:
        conn.limit_statements(12.5)
        assert db.value(conn, "SHOW statement_timeout") == "12500ms"
        conn.rollback()
        conn.preamble = ""
        assert db.value(conn, "SHOW statement_timeout") == "0"
