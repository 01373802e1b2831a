"""Attachments moved between files and large objects, and between folders, in three phases."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner, Result
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db, placement
from pgorthanc_cli.errors import InUseError, PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.placement import MoveSettings, Place
from pgorthanc_cli.storage import FilesystemArea, bulk
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import as_role, drop_database, rows
from tests.support.schemas import run as execute

COUNT = 12
OBJECTS_COUNT = 2 * COUNT  # with compression, DICOM until pixel data is stored as well
OBJECTS = Place(None)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return samples.folder(tmp_path_factory.mktemp("in"), COUNT)


@pytest.fixture(scope="module")
def filled(
    admin: Connection,
    template: str,
    server_dsn: str,
    archive: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str, Path]]:
    """Two databases to clone, with large objects and with files, and the folder of the files."""
    names = [f"pgorthanc_{kind}_{os.getpid()}" for kind in ("objects", "files")]
    folder = tmp_path_factory.mktemp("filled") / "area"
    for name in names:
        with admin.cursor() as cur:
            cur.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    objects, files = (db.Target(make_dsn(server_dsn, dbname=name)) for name in names)
    import_files(objects, archive, None, compress=True)
    import_files(files, archive, folder)
    yield names[0], names[1], folder
    for name in names:
        drop_database(admin, name)


@pytest.fixture
def objects(filled: tuple[str, str, Path], new_database: Callable[..., db.Target]) -> db.Target:
    """An index whose attachments are large objects."""
    return new_database(filled[0])


@pytest.fixture
def indexed(filled: tuple[str, str, Path], new_database: Callable[..., db.Target]) -> db.Target:
    """An index whose attachments are files."""
    return new_database(filled[1])


@pytest.fixture
def area(filled: tuple[str, str, Path], tmp_path: Path) -> Path:
    """The folder of these files."""
    return shutil.copytree(filled[2], tmp_path / "old")


def move(
    target: db.Target, source: Place | Path, to: Place | Path, *phases: str, **settings: Any
) -> placement.Moved:
    """Do phases, each of which must be complete but for the last one."""
    ends = [place if isinstance(place, Place) else Place(place) for place in (source, to)]
    given = {"jobs": 1} | settings
    for phase in phases:
        moved = placement.move(target, MoveSettings(ends[0], ends[1], phase, **given))
        assert moved.complete or phase == phases[-1], moved.failed
    return moved


def expected(target: db.Target) -> dict[str, tuple[int, str]]:
    """What each area must hold: UUID -> size and MD5."""
    found = rows(target, "SELECT uuid, compressedsize, compressedhash FROM attachedfiles")
    return {uuid: (size, md5) for uuid, size, md5 in found}


def in_folder(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        path.name: (path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file() and path.parent != folder
    }


def in_objects(target: db.Target) -> dict[str, tuple[int, str]]:
    found = rows(target, "SELECT uuid, length(lo_get(content)), md5(lo_get(content)) FROM storagearea")
    assert rows(target, "SELECT count(*) FROM pg_largeobject_metadata") == [(len(found),)]
    return {uuid: (size, md5) for uuid, size, md5 in found}


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
        FilesystemArea(data if data.exists() else _created(data)).stage(uuid, [b"half"])
    assert move(objects, OBJECTS, data, "copy").copied == OBJECTS_COUNT
    assert in_folder(data) == expected(objects)


def _created(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- damage and refusals --------------------------------------------------------------------


def test_damaged_attachments_block_the_switch(indexed: db.Target, area: Path) -> None:
    missing, altered, short, *_ = sorted(path for path in area.rglob("*") if path.is_file())
    missing.unlink()
    altered.write_bytes(bytes(altered.stat().st_size))
    short.write_bytes(short.read_bytes()[:-1])
    for phase in ("copy", "switch"):
        moved = move(indexed, area, OBJECTS, phase)
        assert not moved.complete
        assert {failed.uuid: failed.reason.split(",")[0] for failed in moved.failed} == {
            missing.name: "there is no file",
            altered.name: "its MD5 is not that of the index",
            short.name: f"{short.stat().st_size} bytes",
        }
    with pytest.raises(UsageError, match="no record of a switch"):
        move(indexed, area, OBJECTS, "clean")
    assert len(in_objects(indexed)) == COUNT - 3


def test_the_phases_have_an_order(objects: db.Target, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for phases in ((), ("copy",)):
        if phases:
            move(objects, OBJECTS, data, *phases)
        with pytest.raises(UsageError, match="no record of a switch"):
            move(objects, OBJECTS, data, "clean")
    assert len(in_objects(objects)) == OBJECTS_COUNT


def test_clean_refuses_what_was_stored_in_the_source_since(objects: db.Target, tmp_path: Path) -> None:
    data = tmp_path / "data"
    move(objects, OBJECTS, data, "copy", "switch")
    import_files(objects, samples.folder(tmp_path / "later", 1, first=COUNT), None)
    with pytest.raises(UsageError, match=r"1 attachment is not in .*still stores in large objects"):
        move(objects, OBJECTS, data, "clean")
    assert len(in_objects(objects)) == OBJECTS_COUNT + 1


def test_clean_keeps_what_is_damaged_in_the_target(objects: db.Target, tmp_path: Path) -> None:
    data = tmp_path / "data"
    move(objects, OBJECTS, data, "copy", "switch")
    altered = next(path for path in data.rglob("????????-*") if path.is_file())
    altered.write_bytes(bytes(altered.stat().st_size))
    cleaned = move(objects, OBJECTS, data, "clean")
    assert (cleaned.removed, cleaned.left) == (OBJECTS_COUNT - 1, 0)
    assert [failed.uuid for failed in cleaned.failed] == [altered.name]
    assert in_objects(objects).keys() == {altered.name}


def test_the_configuration_must_name_the_target(objects: db.Target, tmp_path: Path) -> None:
    data = tmp_path / "data"
    move(objects, OBJECTS, data, "copy", "switch")
    with pytest.raises(UsageError, match="configuration still names large objects"):
        move(objects, OBJECTS, data, "clean", configured=OBJECTS)
    assert move(objects, OBJECTS, data, "clean", configured=Place(data)).removed == OBJECTS_COUNT


@pytest.mark.parametrize("lock", [db.LOCK_INDEX, db.LOCK_STORAGE])
def test_an_orthanc_blocks_the_switch(
    objects: db.Target, tmp_path: Path, held: Callable[[db.Target, int], None], lock: int
) -> None:
    move(objects, OBJECTS, tmp_path / "data", "copy")
    held(objects, lock)
    with pytest.raises(InUseError, match=r"holds the (index|storage) lock"):
        move(objects, OBJECTS, tmp_path / "data", "switch")


def test_an_orthanc_with_the_old_configuration_blocks_the_removal(
    objects: db.Target, tmp_path: Path, held: Callable[[db.Target, int], None]
) -> None:
    data = tmp_path / "data"
    move(objects, OBJECTS, data, "copy", "switch")
    held(objects, db.LOCK_STORAGE)
    with pytest.raises(InUseError, match="holds the storage lock"):
        move(objects, OBJECTS, data, "clean")
    move(objects, data, OBJECTS, "copy")


def test_an_orthanc_with_files_blocks_their_removal(
    indexed: db.Target, area: Path, held: Callable[[db.Target, int], None]
) -> None:
    move(indexed, area, OBJECTS, "copy", "switch")
    held(indexed, db.LOCK_INDEX)
    with pytest.raises(InUseError, match="does not use the large objects"):
        move(indexed, area, OBJECTS, "clean")
    held(indexed, db.LOCK_STORAGE)
    assert move(indexed, area, OBJECTS, "clean").removed == COUNT


@pytest.fixture
def held() -> Iterator[Callable[[db.Target, int], None]]:
    """Takes one of Orthanc's locks in a session of its own."""
    sessions: list[Connection] = []

    def hold(target: db.Target, lock: int) -> None:
        sessions.append(psycopg2.connect(target.dsn))
        with sessions[-1].cursor() as cur:
            cur.execute(f"SELECT pg_advisory_lock({lock})")
        sessions[-1].commit()

    yield hold
    for session in sessions:
        session.close()


def test_one_move_at_a_time(
    objects: db.Target, tmp_path: Path, held: Callable[[db.Target, int], None]
) -> None:
    held(objects, db.LOCK_MOVE)
    with pytest.raises(InUseError, match="holds the storage move lock"):
        move(objects, OBJECTS, tmp_path / "data", "copy")


def test_folders_that_are_not_the_right_ones(indexed: db.Target, area: Path, tmp_path: Path) -> None:
    (tmp_path / "unmounted").mkdir()
    with pytest.raises(UsageError, match="is empty, but the index lists 12 attachments"):
        move(indexed, tmp_path / "unmounted", OBJECTS, "copy")
    with pytest.raises(PgOrthancError, match="cannot be read"):
        move(indexed, tmp_path / "nowhere", OBJECTS, "copy")
    (tmp_path / "link").symlink_to(area)
    with pytest.raises(UsageError, match="are to be moved from"):
        move(indexed, area, tmp_path / "link", "copy")
    (tmp_path / "file").touch()
    with pytest.raises(PgOrthancError, match="cannot be written to"):
        move(indexed, area, tmp_path / "file", "copy")


def test_customdata_is_refused(objects: db.Target, tmp_path: Path) -> None:
    execute(objects, """UPDATE attachedfiles SET customdata = '{"o":true,"s":"1","v":1}' WHERE id < 5""")
    with pytest.raises(PgOrthancError, match=r"attachments? in places of its own"):
        move(objects, OBJECTS, tmp_path / "data", "copy")


def test_the_storage_area_is_created(indexed: db.Target, area: Path, tmp_path: Path, role: str) -> None:
    """Its owner is that of the index, who can then delete the large objects."""
    execute(indexed, "DROP TABLE storagearea", f"ALTER TABLE resources OWNER TO {role}")
    with pytest.raises(RevisionError, match="no storage area"):
        move(indexed, OBJECTS, tmp_path / "data", "copy")
    move(indexed, area, OBJECTS, "copy")
    assert in_objects(indexed) == expected(indexed)
    shown = placement.show(indexed)
    assert (shown.owner, shown.wrong_owner) == (role, 0)


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
