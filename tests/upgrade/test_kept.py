"""What a lower revision cannot hold: shown, asked about, kept aside, written out, dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgorthanc_cli.errors import PgOrthancError
from tests.support import indexstate
from tests.support.schemas import CURRENT, run
from tests.upgrade.changing import Filled, invoke, require_revision, run_downgrade, run_upgrade, state

EVERYTHING = {
    "pgorthanc_kept_auditlogs", "pgorthanc_kept_customdata", "pgorthanc_kept_keyvaluestores", "pgorthanc_kept_queues",
    "pgorthanc_kept_recycling", "pgorthanc_kept_reservations",
}  # fmt: skip


def test_it_is_counted_and_comes_back(filled: Filled) -> None:
    target = filled(CURRENT)
    before = state(target)
    down = run_downgrade(target, 1)
    assert down.kept.keys() == EVERYTHING
    up = run_upgrade(target)
    assert (up.restored, up.kept) == (down.kept, {})
    assert indexstate.differing(before, state(target)) == []


def test_it_is_discarded_when_asked(filled: Filled) -> None:
    target = filled(CURRENT)
    run_downgrade(target, 1, discard=True)
    require_revision(target, 1)
    run_upgrade(target)
    require_revision(target, CURRENT)
    after = state(target)
    assert (after["audit logs"], after["key-value stores"], after["queues"]) == ([], [], [])


@pytest.mark.parametrize("discard", [True, False])
def test_it_is_written_out(filled: Filled, tmp_path: Path, discard: bool) -> None:
    target = filled(CURRENT)
    file = tmp_path / "kept.jsonl"
    changed = run_downgrade(target, 1, export=file, discard=discard)
    documents = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert {name: sum(d["table"] == name for d in documents) for name in EVERYTHING} == changed.kept
    assert file.stat().st_mode & 0o777 == 0o600
    assert any(d["row"].get("customdata", "").startswith("\\x") for d in documents)


def test_a_file_that_cannot_be_written_is_found_before_anything_is_done(
    filled: Filled, tmp_path: Path
) -> None:
    target = filled(CURRENT)
    before = state(target)
    (tmp_path / "there").touch()
    for file in (tmp_path / "there", tmp_path / "nowhere" / "kept.jsonl"):
        with pytest.raises(PgOrthancError, match="cannot write"):
            run_downgrade(target, 1, export=file, discard=True)
        assert state(target) == before


def test_what_files_need_to_be_found_needs_a_yes(filled: Filled) -> None:
    target = filled(CURRENT)
    before = state(target)
    at = ("--uri", target.dsn)
    refused = invoke("downgrade", *at, "--to", 4)
    assert (refused.exit_code, "--yes" in refused.stderr) == (2, True)
    assert "Orthanc cannot find the files of" in refused.stderr
    assert state(target) == before
    assert invoke("downgrade", *at, "--to", 5).exit_code == 0  # kept aside, and nothing needs it
    assert invoke("downgrade", *at, "--to", 4, "--yes").exit_code == 0
    require_revision(target, 4)


def test_discarding_needs_a_yes(filled: Filled) -> None:
    target = filled(CURRENT)
    at = ("--uri", target.dsn, "--to", 6, "--discard")
    assert invoke("downgrade", *at).exit_code == 2
    assert invoke("downgrade", *at, "--yes").exit_code == 0
    require_revision(target, 6)


def test_nothing_is_asked_where_nothing_is_lost(filled: Filled) -> None:
    target = filled(CURRENT)
    run(
        target,
        "DELETE FROM auditlogs",
        "DELETE FROM queues",
        "DELETE FROM keyvaluestores",
        "UPDATE attachedfiles SET customdata = NULL",
        "DELETE FROM metadata WHERE type = 18",
    )
    done = invoke("downgrade", "--uri", target.dsn, "--to", 1, "--discard", "--json")
    assert done.exit_code == 0, done.stderr
