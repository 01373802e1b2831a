"""Attachments moved between files and large objects, and between folders, in three phases."""

from __future__ import annotations

import json
import os
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli, db, placement
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.placement import MoveSettings, Place
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.storage import NamedFiles, bulk, file_path
from tests.placement.moving import COUNT, OBJECTS, OBJECTS_COUNT, expected, in_folder, in_objects, move
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import as_role, rows
from tests.support.schemas import run as execute

# --- all phases ---------------------------------------------------------------------------


def test_from_large_objects_to_files(objects: db.Target, tmp_path: Path) -> None:
    data, all_of_it = tmp_path / "data", expected(objects)
    copied = move(objects, OBJECTS, data, "copy")
    assert (copied.copied, copied.already_there, copied.bytes) == (
        OBJECTS_COUNT, 0, sum(size for size, _ in all_of_it.values()),
    )  # fmt: skip
    assert in_folder(data) == all_of_it == in_objects(objects)
    switched = move(objects, OBJECTS, data, "switch")
    assert (switched.copied, switched.complete) == (0, True)
    cleaned = move(objects, OBJECTS, data, "clean")
    assert (cleaned.removed, cleaned.left, cleaned.vacuumed) == (OBJECTS_COUNT, 0, True)
    assert in_folder(data) == all_of_it
    assert in_objects(objects) == {}
    again = move(objects, OBJECTS, data, "clean")
    assert (again.removed, again.complete) == (0, True)


def test_from_files_to_large_objects(indexed: db.Target, area: Path) -> None:
    all_of_it = expected(indexed)
    copied = move(indexed, area, OBJECTS, "copy", jobs=2)
    assert (copied.copied, copied.complete) == (COUNT, True)
    assert in_folder(area) == all_of_it == in_objects(indexed)
    cleaned = move(indexed, area, OBJECTS, "switch", "clean")
    assert (cleaned.removed, cleaned.freed_bytes) == (COUNT, sum(size for size, _ in all_of_it.values()))
    assert in_folder(area) == {}
    assert in_objects(indexed) == all_of_it


def test_from_one_folder_to_another(indexed: db.Target, area: Path, tmp_path: Path) -> None:
    all_of_it = expected(indexed)
    move(indexed, area, tmp_path / "new", "copy", "switch", "clean")
    assert in_folder(area) == {}
    assert in_folder(tmp_path / "new") == all_of_it


def test_there_and_back(indexed: db.Target, area: Path) -> None:
    all_of_it = expected(indexed)
    move(indexed, area, OBJECTS, "copy", "switch", "clean")
    move(indexed, OBJECTS, area, "copy", "switch", "clean")
    assert (in_folder(area), in_objects(indexed)) == (all_of_it, {})


# --- what happens meanwhile -----------------------------------------------------------------


def test_the_switch_copies_what_came_since(objects: db.Target, archive: list[Path], tmp_path: Path) -> None:
    move(objects, OBJECTS, tmp_path / "data", "copy")
    import_files(objects, samples.folder(tmp_path / "later", 3, first=COUNT), None)
    switched = move(objects, OBJECTS, tmp_path / "data", "switch")
    assert switched.copied == 3
    assert in_folder(tmp_path / "data") == expected(objects)


def test_a_copy_is_not_repeated(objects: db.Target, tmp_path: Path) -> None:
    move(objects, OBJECTS, tmp_path / "data", "copy")
    again = move(objects, OBJECTS, tmp_path / "data", "copy")
    assert (again.copied, again.already_there) == (0, OBJECTS_COUNT)


def test_an_interrupted_copy_goes_on(
    objects: db.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgorthanc_cli.placement.phases._BATCH_FILES", 3)
    monkeypatch.setattr("pgorthanc_cli.placement.phases._REPORT_S", -1.0)
    data, stop = Place(tmp_path / "data"), threading.Event()
    settings = MoveSettings(OBJECTS, data, "copy", jobs=1)
    first = placement.move(objects, settings, stop=stop, report=lambda _: stop.set())
    assert not first.complete
    assert 0 < first.copied < OBJECTS_COUNT
    second = placement.move(objects, settings)
    assert (second.complete, second.copied + second.already_there) == (True, OBJECTS_COUNT)
    assert second.already_there >= first.copied
    assert in_folder(tmp_path / "data") == expected(objects)


class StopsAtWait(threading.Event):
    """Is set as soon as it is waited for, as by a Ctrl-C in the pauses of a slow run."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


@pytest.mark.parametrize("phase", ["copy", "clean"])
def test_an_interrupted_phase_counts_what_its_workers_have_done(
    objects: db.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr("pgorthanc_cli.placement.phases._BATCH_FILES", 3)
    data = tmp_path / "data"
    if phase == "clean":
        move(objects, OBJECTS, data, "copy", "switch")
    settings = MoveSettings(OBJECTS, Place(data), phase, jobs=1, max_bytes_per_s=1.0)
    moved = placement.move(objects, settings, stop=StopsAtWait())
    assert not moved.complete
    if phase == "copy":
        assert moved.copied == len(in_folder(data)) == 3
    else:
        assert moved.removed == OBJECTS_COUNT - len(in_objects(objects)) == 3


def test_the_last_report_is_that_everything_is_done(
    objects: db.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgorthanc_cli.placement.phases._BATCH_FILES", 3)
    monkeypatch.setattr("pgorthanc_cli.placement.phases._REPORT_S", 1e9)
    reports: list[Progress] = []
    placement.move(objects, MoveSettings(OBJECTS, Place(tmp_path / "data"), "copy"), report=reports.append)
    assert (reports[-1].done, reports[-1].total) == (OBJECTS_COUNT, OBJECTS_COUNT)


def test_a_slow_copy(objects: db.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgorthanc_cli.placement.phases._BATCH_FILES", 3)
    size = sum(size for size, _ in expected(objects).values())
    slow = move(objects, OBJECTS, tmp_path / "data", "copy", max_bytes_per_s=size)
    assert slow.complete
    assert slow.elapsed_s > 0.8


def test_a_switch_without_a_copy_copies_everything(indexed: db.Target, area: Path) -> None:
    assert move(indexed, area, OBJECTS, "switch").copied == COUNT
    assert in_objects(indexed) == expected(indexed)


def test_what_was_there_before_is_compared(objects: db.Target, tmp_path: Path) -> None:
    """Files of the right size, of which one has other content, and half a file."""
    data = tmp_path / "data"
    move(objects, OBJECTS, data, "copy")
    (data / ".pgorthanc-move.json").unlink()
    altered, half, *_ = sorted(path for path in data.rglob("????????-*") if path.is_file())
    altered.write_bytes(bytes(altered.stat().st_size))
    half.write_bytes(half.read_bytes()[:7])
    again = move(objects, OBJECTS, data, "copy")
    assert (again.copied, again.already_there) == (2, OBJECTS_COUNT - 2)
    assert in_folder(data) == expected(objects)


def test_attachments_without_md5(indexed: db.Target, area: Path, tmp_path: Path) -> None:
    """StoreMD5ForAttachments false: both sides are compared with each other."""
    execute(indexed, "UPDATE attachedfiles SET compressedhash = '', uncompressedhash = NULL")
    data = tmp_path / "data"
    move(indexed, area, data, "copy", "switch")
    assert in_folder(data) == in_folder(area)
    altered = next(path for path in data.rglob("????????-*") if path.is_file())
    altered.write_bytes(bytes(altered.stat().st_size))
    cleaned = move(indexed, area, data, "clean")
    assert (cleaned.removed, [failed.uuid for failed in cleaned.failed]) == (COUNT - 1, [altered.name])
    assert in_folder(area).keys() == {altered.name}


def test_what_orthanc_deletes_since_the_copy(objects: db.Target, tmp_path: Path) -> None:
    move(objects, OBJECTS, tmp_path / "data", "copy")
    execute(objects, "SET session_replication_role = replica; DELETE FROM attachedfiles WHERE id < 6")
    count = len(expected(objects))
    assert 0 < count < OBJECTS_COUNT
    switched = move(objects, OBJECTS, tmp_path / "data", "switch")
    assert (switched.complete, switched.unknown) == (True, OBJECTS_COUNT - count)
    cleaned = move(objects, OBJECTS, tmp_path / "data", "clean")
    assert (cleaned.removed, cleaned.left) == (count, OBJECTS_COUNT - count)
    cleaned = move(objects, OBJECTS, tmp_path / "data", "clean", orphans=True)
    assert (cleaned.complete, cleaned.left) == (True, 0)
    assert in_objects(objects) == {}


def test_temporary_files_of_a_killed_run(objects: db.Target, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for uuid in expected(objects):
        NamedFiles(data if data.exists() else _created(data)).stage(file_path(uuid), uuid, [b"half"])
    assert move(objects, OBJECTS, data, "copy").copied == OBJECTS_COUNT
    assert in_folder(data) == expected(objects)


def _created(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- a part, roles, large attachments ---------------------------------------------------------


def test_some_studies(indexed: db.Target, area: Path, tmp_path: Path) -> None:
    ((study,),) = rows(indexed, "SELECT publicid FROM resources WHERE resourcetype = 1 LIMIT 1")
    moved = move(indexed, area, tmp_path / "data", "copy", studies=(study,))
    assert 0 < moved.copied == moved.attachments < COUNT
    assert move(indexed, area, tmp_path / "other", "copy", older_than_s=3600.0).attachments == 0
    execute(indexed, "UPDATE metadata SET value = '20200101T000000' WHERE type = 7")
    assert move(indexed, area, tmp_path / "other", "copy", older_than_s=3600.0).copied == COUNT
    with pytest.raises(UsageError, match="no study"):
        move(indexed, area, tmp_path / "data", "copy", studies=("x",))
    with pytest.raises(UsageError, match="is for all attachments"):
        move(indexed, area, tmp_path / "data", "switch", studies=(study,))


def test_the_owner_of_the_index_is_enough(
    fresh: db.Target, archive: list[Path], role: str, tmp_path: Path
) -> None:
    ((database,),) = rows(fresh, "SELECT current_database()")
    execute(fresh, f'ALTER DATABASE "{database}" OWNER TO {role}; ALTER SCHEMA public OWNER TO {role}')
    for (table,) in rows(fresh, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        execute(fresh, f"ALTER TABLE {table} OWNER TO {role}")
    for (sequence,) in rows(fresh, "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'"):
        execute(fresh, f"ALTER SEQUENCE {sequence} OWNER TO {role}")
    for (function,) in rows(
        fresh, "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    ):
        execute(fresh, f"ALTER FUNCTION {function} OWNER TO {role}")
    owner = as_role(fresh, role)
    import_files(owner, archive, None)
    cleaned = move(owner, OBJECTS, tmp_path / "data", "copy", "switch", "clean")
    assert (cleaned.removed, cleaned.vacuumed) == (COUNT, True)
    back = move(owner, tmp_path / "data", OBJECTS, "copy", "switch", "clean")
    assert back.removed == COUNT
    assert in_objects(fresh) == expected(fresh)
    assert placement.show(fresh).wrong_owner == 0


def test_attachments_that_are_read_piece_by_piece(
    indexed: db.Target, area: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "WHOLE_BYTES", 500)
    move(indexed, area, OBJECTS, "copy", "switch", "clean")
    assert in_objects(indexed) == expected(indexed)
    move(indexed, OBJECTS, tmp_path / "new", "copy", "switch", "clean")
    assert in_folder(tmp_path / "new") == expected(indexed)


def test_a_folder_of_root_is_a_warning(objects: db.Target, tmp_path: Path) -> None:
    warnings = move(objects, OBJECTS, tmp_path / "data", "copy").warnings
    if (tmp_path / "data").stat().st_uid == 0:
        assert "belongs to root" in warnings[0]
        os.chown(tmp_path / "data", 65534, 65534)
    assert move(objects, OBJECTS, tmp_path / "data", "copy").warnings == ()


# --- the command --------------------------------------------------------------------------------


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.main, ["storage", "move", *map(str, words)])


def configuration(tmp_path: Path, target: db.Target, **keys: Any) -> Path:
    path = tmp_path / "orthanc.json"
    parts = db.parse_dsn(target.dsn)
    section = {
        "EnableIndex": True, "Host": parts["host"], "Port": int(parts["port"]),
        "Database": parts["dbname"], "Username": parts["user"], "EnableStorage": True,
    }  # fmt: skip
    path.write_text(json.dumps({"PostgreSQL": section} | keys))
    return path


def test_what_follows_the_copy_of_a_part(indexed: db.Target, area: Path, tmp_path: Path) -> None:
    ((study,),) = rows(indexed, "SELECT publicid FROM resources WHERE resourcetype = 1 LIMIT 1")
    ends = (
        "--to",
        "filesystem",
        "--from-dir",
        area,
        "--storage-dir",
        tmp_path / "data",
        "--uri",
        indexed.dsn,
    )
    part = run(*ends, "--study", study)
    assert part.exit_code == 0, part.output
    assert "--phase switch" not in part.stdout
    whole = CliRunner().invoke(cli.main, shlex.split(part.stdout.splitlines()[-1])[1:])
    assert whole.exit_code == 0, whole.output
    assert "--phase switch" in whole.stdout
    assert in_folder(tmp_path / "data") == expected(indexed)


def test_the_whole_run_book(objects: db.Target, tmp_path: Path) -> None:
    """Each page prints the next command, and the changes of the configuration."""
    data = tmp_path / "data"
    config = configuration(tmp_path, objects, StorageDirectory=str(tmp_path / "old"))
    words = ["--to", "filesystem", "--storage-dir", str(data), "--config", str(config)]
    for phase in ("copy", "switch"):
        result = run(*words, *([] if phase == "copy" else ["--phase", phase]))
        assert result.exit_code == 0, result.output
        following = {"copy": "switch", "switch": "clean"}[phase]
        (line,) = [line for line in result.stdout.splitlines() if f"--phase {following}" in line]
        ends = f"--to filesystem --storage-dir {data}"
        assert line.strip() == f"pgorthanc storage move {ends} --phase {following} --config {config}"
    refused = run(*words, "--phase", "clean")
    assert (refused.exit_code, "configuration still names" in refused.stderr) == (2, True)
    changes = [line.strip() for line in result.stdout.splitlines() if "config set" in line]
    assert len(changes) == 2
    for change in changes:
        assert CliRunner().invoke(cli.main, change.split()[1:]).exit_code == 0
    cleaned = run(*words, "--phase", "clean", "--json")
    document = json.loads(cleaned.stdout)
    assert document.keys() >= {"from", "to", "copied", "bytes", "already_there", "failed", "phase"}
    assert (document["from"], document["to"], document["removed"]) == (
        "postgresql",
        "filesystem",
        OBJECTS_COUNT,
    )


def test_exit_codes(indexed: db.Target, area: Path) -> None:
    next(path for path in area.rglob("????????-*") if path.is_file()).unlink()
    words = ["--to", "postgresql", "--storage-dir", area, "--uri", indexed.dsn]
    failed = run(*words, "--json")
    assert failed.exit_code == 6
    assert json.loads(failed.stdout)["failed"][0].keys() == {"uuid", "reason"}
    page = run(*words)
    assert (page.exit_code, "The switch is blocked" in page.stdout) == (6, True)
    assert run("--to", "filesystem", "--uri", indexed.dsn).exit_code == 2
    assert run(*words, "--phase", "clean", "--orphans").exit_code == 2
    assert (
        run("--to", "filesystem", "--storage-dir", area, "--from-dir", area, "--uri", indexed.dsn).exit_code
        == 2
    )
