"""`check-lock` and `wait` beside the real Orthanc: with locks, without, killed, two at once, its sessions ended."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, locks
from tests.interop.archive import Archive
from tests.interop.orthanc import DoesNotStart
from tests.support.real_servers import wait_until
from tests.support.schemas import rows

pytestmark = pytest.mark.interop


@pytest.fixture
def archive(new_archive: Callable[..., Archive]) -> Archive:
    return new_archive(postgresql_storage=True)


def beside(archive: Archive, folder: Path, **section: Any) -> Archive:
    """Another Orthanc on the same database."""
    folder.mkdir()
    return replace(archive, folder=folder, section={**archive.section, **section})


def unlocked(archive: Archive) -> dict[str, Any]:
    """The configuration of the official container image: no lock."""
    return {"PostgreSQL": {**archive.configuration()["PostgreSQL"], "Lock": False}}


def check(archive: Archive, code: int = 5) -> dict[str, Any]:
    result = archive.pgorthanc("check-lock", "--json")
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def held(found: dict[str, Any]) -> list[int]:
    return [lock["key"] for lock in found["locks"] if lock["held"]]


def test_an_orthanc_with_its_locks(archive: Archive) -> None:
    with archive.orthanc():
        found = check(archive)
        result = archive.pgorthanc("wait", "--unlocked", "--timeout", "0")
        assert result.exit_code == 5
    assert held(found) == [42, 43]
    assert {lock["address"] for lock in found["locks"] if lock["held"]} == {"127.0.0.1"}
    [one] = found["orthancs"]
    assert (one["address"], one["role"], one["sessions"]) == ("127.0.0.1", archive.section["Username"], 2)
    assert (one["locked"], one["certain"]) == (True, True)
    assert one["plugin"] in ("4.0 or earlier", "5.1 or earlier")
    assert found["problems"] == []
    archive.done("wait --unlocked --ready --revision 1", "--timeout", "30")
    assert held(check(archive, code=0)) == []


def test_what_it_says_is_what_is_explained(archive: Archive, tmp_path: Path) -> None:
    second = beside(archive, tmp_path / "second")
    with archive.orthanc():
        [explained] = check(archive)["errors"]
        with pytest.raises(DoesNotStart) as refusal, second.orthanc():
            pass
    said = explained.split('"')[1]
    assert said in str(refusal.value)


def test_an_orthanc_without_lock(archive: Archive) -> None:
    with archive.orthanc(**unlocked(archive)):
        found = check(archive)
        archive.done("wait --unlocked --ready")
    assert held(found) == []
    [one] = found["orthancs"]
    assert (one["locked"], one["certain"], one["address"]) == (False, True, "127.0.0.1")
    assert "prepares its statements under UUIDs" in one["evidence"]
    assert any("holds no lock" in note for note in found["notes"])


def test_two_at_once(archive: Archive, tmp_path: Path) -> None:
    second = beside(archive, tmp_path / "second", ConnectionUri=f"{uri(archive)}?application_name=second")
    with archive.orthanc(), second.orthanc(**unlocked(second)):
        found = check(archive)
    assert [(one["application"], one["locked"]) for one in found["orthancs"]] == [
        ("", True),
        ("second", False),
    ]
    [problem] = found["problems"]
    assert "works without a lock on a database" in problem


def test_two_at_once_on_one_machine_without_names(archive: Archive, tmp_path: Path) -> None:
    second = beside(archive, tmp_path / "second")
    with archive.orthanc():
        first = rows(
            archive.target, "SELECT max(backend_start) FROM pg_stat_activity WHERE application_name = ''"
        )
        wait_until(
            lambda: rows(archive.target, f"SELECT now() - '{first[0][0]}' > interval '3 s'") == [(True,)]
        )
        with second.orthanc(**unlocked(second)):
            found = check(archive)
    assert [(one["sessions"], one["locked"]) for one in found["orthancs"]] == [(2, True), (2, False)]
    assert "or both are one, which has connected again" in found["problems"][0]


@pytest.mark.parametrize("postgresql_storage", [True, False])
def test_two_that_start_at_once_on_one_machine_without_names(
    new_archive: Callable[..., Archive], tmp_path: Path, postgresql_storage: bool
) -> None:
    archive = new_archive(postgresql_storage=postgresql_storage)
    second = beside(archive, tmp_path / "second")
    with archive.orthanc(), second.orthanc(**unlocked(second)):
        found = check(archive)
    assert [(one["sessions"], one["locked"]) for one in found["orthancs"]] == [
        (1 + postgresql_storage, True),
        (1 + postgresql_storage, False),
    ]
    assert "works without a lock on a database" in found["problems"][0]


def test_one_that_was_killed(archive: Archive) -> None:
    """The server notices at once that the process is gone, and frees the locks."""
    seen = []
    with pytest.raises(AssertionError), archive.orthanc():  # it does not end as it should
        seen.append(held(check(archive)))
        os.kill(pid_of(archive), signal.SIGKILL)
        archive.done("wait --unlocked", "--timeout", "20")
        seen.append(held(check(archive, code=0)))
    assert seen == [[42, 43], []]
    with archive.orthanc():
        assert held(check(archive)) == [42, 43]


def test_ending_its_sessions_frees_the_locks_but_does_not_stop_it(archive: Archive) -> None:
    """It connects again without its locks, which `--terminate` must not hide."""
    seen: list[Any] = []
    with pytest.raises(AssertionError), archive.orthanc() as rest:  # it logs the lost connections as errors
        with db.session(archive.target, autocommit=True) as conn:
            watcher = locks.Watcher(conn, "public")
            seen.append([lock.key for lock in watcher.inspect().held])
            seen.append(
                json.loads(archive.pgorthanc("check-lock", *["--terminate", "all", "--yes", "--json"]).stdout)
            )
            wait_until(lambda: _asked(rest) and bool(watcher.inspect().orthancs))
            seen.append(watcher.inspect().problems)
        seen.append(check(archive)["orthancs"])
    before, ended, watched, after = seen
    assert before == [42, 43]
    assert (ended["freed"], len(ended["ended"])) == (True, 2)
    assert [problem.partition(",")[0] for problem in watched] == [
        "lock 42 (index) was lost",
        "lock 43 (storage) was lost",
    ]
    assert [one["locked"] for one in after] == [False]


def _asked(rest: Any) -> bool:
    """Let it work with the index; it answers 503 while it connects again."""
    try:
        rest.get("/statistics")
    except OSError:
        return False
    return True


def uri(archive: Archive) -> str:
    section = archive.section
    return "postgresql://{Username}:{Password}@{Host}:{Port}/{Database}".format_map(section)


def pid_of(archive: Archive) -> int:
    """Of the Orthanc that works with this configuration."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if folder.name.isdecimal() and str(archive.folder / "orthanc.json").encode() in words:
            return int(folder.name)
    raise AssertionError("no Orthanc is running")
