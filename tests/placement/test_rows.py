"""Moves that change rows: between the storages of the advanced-storage plugin, out of it, into it, and compression."""

from __future__ import annotations

import hashlib
import json
import shlex
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli, db, placement
from pgorthanc_cli.errors import InUseError, UsageError
from pgorthanc_cli.index import customdata, key_values
from pgorthanc_cli.placement import MoveSettings, Place
from pgorthanc_cli.placement.proved import ProvedRows
from pgorthanc_cli.schema import verify
from tests.placement.moving import COUNT, OBJECTS, OBJECTS_COUNT, expected, in_folder, in_objects
from tests.support.compressors import with_isal, without_isal
from tests.support.schemas import rows
from tests.support.schemas import run as execute

PHASES = ("copy", "switch", "clean")


def moved(target: db.Target, settings: MoveSettings, *phases: str) -> placement.Moved:
    """Do phases, each of which must be complete but for the last one."""
    for phase in phases:
        result = placement.move(target, replace(settings, phase=phase, jobs=1))
        assert result.complete or phase == phases[-1], result.failed
    return result


@pytest.fixture
def storages(tmp_path: Path) -> tuple[tuple[str, str], ...]:
    """The folders of two storages."""
    for name in ("s1", "s2"):
        (tmp_path / name).mkdir()
    return (("1", str(tmp_path / "s1")), ("2", str(tmp_path / "s2")))


def into(area: Path, storages: tuple[tuple[str, str], ...], name: str, **settings: Any) -> MoveSettings:
    """A move from everywhere into a storage."""
    return MoveSettings(
        Place(area, ""), Place(Path(dict(storages)[name]), name), storages=storages, **settings
    )


def data_of(target: db.Target) -> set[bytes | None]:
    query = "SELECT DISTINCT customdata FROM attachedfiles"
    return {None if data is None else bytes(data) for (data,) in rows(target, query)}


def set_data(target: db.Target, uuid: str, data: bytes) -> None:
    execute(target, f"UPDATE attachedfiles SET customdata = '\\x{data.hex()}' WHERE uuid = '{uuid}'")


def test_from_storage_to_storage(indexed: db.Target, area: Path, storages: Any) -> None:
    """Out of StorageDirectory into one storage, into the other one, and out of the plugin again."""
    everything = expected(indexed)
    result = moved(indexed, into(area, storages, "1"), *PHASES)
    assert (result.removed, result.target, in_folder(area)) == (COUNT, "advanced-storage", {})
    assert data_of(indexed) == {b'{"o":true,"s":"1","v":1}'}
    moved(indexed, into(area, storages, "2"), *PHASES)
    assert data_of(indexed) == {b'{"o":true,"s":"2","v":1}'}
    assert in_folder(Path(storages[0][1])) == {}
    assert in_folder(Path(storages[1][1])) == everything
    # What is at the target already is left alone: upstream's plugin deletes it (A12).
    assert moved(indexed, into(area, storages, "2"), *PHASES).removed == 0
    assert in_folder(Path(storages[1][1])) == everything
    back = MoveSettings(Place(area, ""), Place(area), storages=storages)
    moved(indexed, back, *PHASES)
    assert (data_of(indexed), in_folder(area)) == ({None}, everything)
    assert in_folder(Path(storages[1][1])) == {}


def test_between_large_objects_and_a_storage(objects: db.Target, tmp_path: Path, storages: Any) -> None:
    everything, area = expected(objects), tmp_path / "area"
    area.mkdir()
    moved(objects, replace(into(area, storages, "1"), source=OBJECTS), *PHASES)
    assert (in_folder(Path(storages[0][1])), in_objects(objects)) == (everything, {})
    assert data_of(objects) == {b'{"o":true,"s":"1","v":1}'}
    out = MoveSettings(Place(area, ""), OBJECTS, storages=storages)
    assert moved(objects, out, *PHASES).removed == OBJECTS_COUNT
    assert (in_folder(Path(storages[0][1])), in_objects(objects), data_of(objects)) == (
        {},
        everything,
        {None},
    )


def test_names_of_a_naming_scheme_are_kept_with_it_and_dropped_without(
    indexed: db.Target, area: Path, storages: Any
) -> None:
    everything = expected(indexed)
    uuid, *_ = sorted(everything)
    named = area / "P Ä" / "x.dcm"
    named.parent.mkdir()
    next(area.rglob(uuid)).rename(named)
    set_data(indexed, uuid, customdata.written(path="P Ä/x.dcm"))
    moved(indexed, into(area, storages, "2", names_files=True), *PHASES)
    assert data_of(indexed) == {
        b'{"o":true,"p":"P \\u00c4/x.dcm","s":"2","v":1}', b'{"o":true,"p":"","s":"2","v":1}',
    }  # fmt: skip
    assert (Path(storages[1][1]) / "P Ä" / "x.dcm").stat().st_size == everything[uuid][0]
    assert not named.parent.exists()
    moved(indexed, into(area, storages, "1"), *PHASES)
    assert data_of(indexed) == {b'{"o":true,"s":"1","v":1}'}
    assert in_folder(Path(storages[0][1])) == everything


def test_two_files_of_one_name(indexed: db.Target, area: Path, storages: Any) -> None:
    """The path in the target is that of another instance: nothing is replaced, nothing is shared."""
    everything = expected(indexed)
    one, other, *_ = sorted(everything)
    target = Path(storages[1][1])
    content = next(area.rglob(one)).read_bytes()
    (area / "x.dcm").write_bytes(content)
    (target / "x.dcm").write_bytes(b"another")
    set_data(indexed, one, customdata.written(path="x.dcm"))
    settings = into(area, storages, "2", names_files=True)
    result = moved(indexed, settings, "copy")
    assert [(each.uuid, each.reason) for each in result.failed] == [
        (one, "another file has its path in the target")
    ]
    assert (target / "x.dcm").read_bytes() == b"another"
    # The same bytes: each row would delete the file of the other one.
    (target / "x.dcm").write_bytes(content)
    set_data(indexed, other, customdata.written(path="x.dcm", storage="2"))
    result = moved(indexed, settings, "switch")
    assert [(each.uuid, each.reason) for each in result.failed] == [
        (one, "another attachment has the same path in the target")
    ]
    assert customdata.written(path="x.dcm") in data_of(indexed)


@pytest.mark.parametrize("owned", [False, True])
def test_adopted_files(indexed: db.Target, area: Path, tmp_path: Path, storages: Any, owned: bool) -> None:
    """They stay where they are in the plugin; out of it they become owned copies, and the original stays."""
    everything = expected(indexed)
    uuid, *_ = sorted(everything)
    original = tmp_path / "adopted.dcm"
    next(area.rglob(uuid)).rename(original)
    data = customdata.written(owned=owned, path=str(original))
    set_data(indexed, uuid, data)
    values = [key_values.adopted(str(original), "a"), key_values.indexed(str(original), 1, 1, is_dicom=True)]
    for each in values:
        execute(
            indexed,
            f"INSERT INTO keyvaluestores VALUES ('{each.store}', '{each.path}', convert_to('{each.value}', 'UTF8'))",
        )
    result = moved(indexed, into(area, storages, "1"), *PHASES)
    assert (result.removed, data_of(indexed)) == (COUNT - 1, {data, b'{"o":true,"s":"1","v":1}'})
    data_folder = tmp_path / "data"
    result = moved(indexed, MoveSettings(Place(area, ""), Place(data_folder), storages=storages), *PHASES)
    assert (result.kept, in_folder(data_folder), data_of(indexed)) == (1, everything, {None})
    assert original.stat().st_size == everything[uuid][0]
    stored = rows(indexed, "SELECT storeid, convert_from(value, 'UTF8') FROM keyvaluestores")
    assert stored == [(key_values.INDEXED, '{"d":true,"r":true,"s":1,"t":1,"v":1}')]


@pytest.mark.parametrize("data", [b'{"v":2}', customdata.written(storage="9")], ids=["unknown", "storage"])
def test_customdata_that_is_not_understood(
    indexed: db.Target, area: Path, storages: Any, data: bytes
) -> None:
    uuid, *_ = sorted(expected(indexed))
    set_data(indexed, uuid, data)
    for phase in ("copy", "switch"):
        assert [each.uuid for each in moved(indexed, into(area, storages, "1"), phase).failed] == [uuid]
    assert data_of(indexed) == {None, data}


# --- compression ------------------------------------------------------------------------------


def contents_of(target: db.Target) -> dict[str, tuple[int, str]]:
    found = rows(target, "SELECT uuid, uncompressedsize, uncompressedhash FROM attachedfiles")
    return {uuid: (size, md5) for uuid, size, md5 in found}


@pytest.mark.parametrize("fast", [False, True], ids=["zlib", "fastest"])
def test_compression_on_the_way(indexed: db.Target, area: Path, tmp_path: Path, fast: bool) -> None:
    contents = contents_of(indexed)
    there, back = tmp_path / "zlib", tmp_path / "none"
    with with_isal() if fast else without_isal():
        moved(indexed, MoveSettings(Place(area), Place(there), compression=2), *PHASES)
    assert rows(indexed, "SELECT DISTINCT compressiontype FROM attachedfiles") == [(2,)]
    assert contents_of(indexed) == contents
    assert in_folder(there) == expected(indexed)
    assert in_folder(area) == {}
    for uuid, (size, md5) in contents.items():
        stored = next(there.rglob(uuid)).read_bytes()
        content = zlib.decompress(stored[8:])
        assert int.from_bytes(stored[:8], "little") == len(content) == size
        assert hashlib.md5(content).hexdigest() == md5
        assert fast or stored[8:] == zlib.compress(content, 6)  # Orthanc's bytes
    with db.session(indexed) as conn:
        assert not [
            each for each in verify.schema(conn, indexed.schema, deep=True).findings if "counter" in each.name
        ]
    moved(indexed, MoveSettings(Place(there), Place(back), compression=1), *PHASES)
    assert (in_folder(back), expected(indexed)) == (contents, contents)


def test_a_stop_when_the_rows_are_changed_comes_too_late(
    indexed: db.Target, area: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the page would call the switch interrupted, and Orthanc be started with its old configuration."""
    stop, switch = threading.Event(), ProvedRows.switch

    def stopped_meanwhile(proved: ProvedRows) -> None:
        switch(proved)
        stop.set()

    monkeypatch.setattr(ProvedRows, "switch", stopped_meanwhile)
    settings = MoveSettings(Place(area), Place(tmp_path / "zlib"), "switch", compression=2, jobs=1)
    result = placement.move(indexed, settings, stop=stop)
    assert rows(indexed, "SELECT DISTINCT compressiontype FROM attachedfiles") == [(2,)]
    assert (result.complete, stop.is_set()) == (True, True)


def test_clean_before_the_switch_of_a_compression(indexed: db.Target, area: Path, tmp_path: Path) -> None:
    """Rows that need no change look the same before and after."""
    everything = expected(indexed)
    settings = MoveSettings(Place(area), Place(tmp_path / "data"), compression=1)
    moved(indexed, settings, "copy")
    with pytest.raises(UsageError, match="no record of a switch"):
        moved(indexed, settings, "clean")
    assert in_folder(area) == everything


def test_damaged_content_is_not_compressed(indexed: db.Target, area: Path, tmp_path: Path) -> None:
    uuid, *_ = sorted(expected(indexed))
    execute(indexed, f"UPDATE attachedfiles SET uncompressedhash = '{'0' * 32}' WHERE uuid = '{uuid}'")
    settings = MoveSettings(Place(area), Place(tmp_path / "data"), compression=2)
    result = moved(indexed, settings, "switch")
    assert [(each.uuid, each.reason) for each in result.failed] == [
        (uuid, "its content is not what the index says")
    ]
    assert rows(indexed, "SELECT DISTINCT compressiontype FROM attachedfiles") == [(1,)]


# --- meanwhile --------------------------------------------------------------------------------


def test_what_changes_between_the_phases(indexed: db.Target, area: Path, storages: Any) -> None:
    """A deleted instance stays deleted, a damaged copy is copied again, half a line of the journal is dropped."""
    gone, damaged, *_ = sorted(expected(indexed))
    settings, target = into(area, storages, "1"), Path(storages[0][1])
    moved(indexed, settings, "copy")
    execute(
        indexed, f"SET session_replication_role = replica; DELETE FROM attachedfiles WHERE uuid = '{gone}'"
    )
    next(target.rglob(damaged)).write_bytes(b"short")
    (journal,) = target.glob(".pgorthanc-move-*.rows")
    with journal.open("ab") as stream:
        stream.write(b"17\t1\t")
    result = moved(indexed, settings, "switch")
    assert (result.copied, result.unknown) == (1, 1)
    everything = expected(indexed)
    assert {uuid: file for uuid, file in in_folder(target).items() if uuid != gone} == everything
    next(target.rglob(damaged)).write_bytes(b"short")
    result = moved(indexed, settings, "clean")
    assert [(each.uuid, each.reason) for each in result.failed] == [
        (damaged, "the target does not have its content")
    ]
    assert in_folder(area).keys() == {gone, damaged}


def test_some_studies(indexed: db.Target, area: Path, storages: Any) -> None:
    ((study,),) = rows(indexed, "SELECT publicid FROM resources WHERE resourcetype = 1 LIMIT 1")
    result = moved(indexed, into(area, storages, "1", studies=(study,)), *PHASES)
    assert 0 < result.removed == result.attachments < COUNT
    assert len(in_folder(area)) == COUNT - result.removed
    assert data_of(indexed) == {None, b'{"o":true,"s":"1","v":1}'}


def test_the_switch_needs_orthanc_to_be_stopped(
    indexed: db.Target, area: Path, storages: Any, held: Callable[[db.Target, int], None]
) -> None:
    held(indexed, db.LOCK_INDEX)
    with pytest.raises(InUseError):
        moved(indexed, into(area, storages, "1"), "copy", "switch")
    assert data_of(indexed) == {None}


def test_options_and_next_commands(indexed: db.Target, area: Path, storages: Any, tmp_path: Path) -> None:
    """As an operator does it, with Orthanc's configuration."""
    path = tmp_path / "orthanc.json"
    several = {"Storages": dict(storages), "CurrentWriteStorage": "1"}
    section = {"Enable": True, "MultipleStorages": several}
    path.write_text(json.dumps({"StorageDirectory": str(area), "AdvancedStorage": section}))
    path.chmod(0o600)

    def run(*words: str) -> Result:
        given = ["--uri", indexed.dsn, "--config", str(path), "-j", "1"]
        return CliRunner().invoke(cli.main, ["storage", "move", *words, *given])

    ends = ["--to", "advanced-storage", "--storage-id", "2"]
    copied = run(*ends, "--older-than", "0s")
    assert copied.exit_code == 0, copied.output
    assert "storage move --to advanced-storage --storage-id 2 --older-than 0s --phase switch" in copied.stdout
    switched = run(*ends, "--phase", "switch")
    assert switched.exit_code == 0, switched.output
    assert "its configuration stays as it is" in switched.stdout
    cleaned = run(*ends, "--phase", "clean", "--json")
    assert (json.loads(cleaned.stdout)["removed"], in_folder(area)) == (COUNT, {})
    out = run("--to", "postgresql", "--compression", "zlib", "--phase", "switch")
    assert out.exit_code == 0, out.output
    assert "config set AdvancedStorage.Enable false" in out.stdout
    assert len(in_objects(indexed)) == COUNT
    for words in (["--to", "advanced-storage"], ["--to", "advanced-storage", "--storage-id", "9"]):
        assert run(*words).exit_code == 2


WAYS = {
    "large objects to a storage": (True, False, ["advanced-storage", "--storage-id", "2"]),
    "a storage to large objects": (False, True, ["postgresql"]),
    "a storage to another folder": (False, True, ["filesystem", "--storage-dir", "data"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_run_book(
    indexed: db.Target, area: Path, storages: Any, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the switch Orthanc has another configuration; the printed command still cleans the source."""
    has_objects, has_plugin, words = WAYS[way]
    monkeypatch.chdir(tmp_path)
    if has_objects:
        moved(indexed, MoveSettings(Place(area), OBJECTS), *PHASES)
    else:
        uuid, *_ = sorted(expected(indexed))
        moved(indexed, into(area, storages, "1"), *PHASES)
        # One has stayed in StorageDirectory.
        stored = next(Path(storages[0][1]).rglob(uuid))
        stored.rename(create_parents(area / stored.relative_to(storages[0][1])))
        execute(indexed, f"UPDATE attachedfiles SET customdata = NULL WHERE uuid = '{uuid}'")
    several = {"Storages": dict(storages), "CurrentWriteStorage": "1"}
    options = {
        "StorageDirectory": str(area),
        "PostgreSQL": {"EnableStorage": has_objects},
        "AdvancedStorage": {"Enable": has_plugin, "MultipleStorages": several},
    }
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps(options))
    path.chmod(0o600)

    def run(*words: str) -> list[str]:
        result = CliRunner().invoke(cli.main, words)
        assert result.exit_code == 0, result.output
        lines = map(str.strip, result.stdout.splitlines())
        return [line.removeprefix("pgorthanc ") for line in lines if line.startswith("pgorthanc ")]

    everything = expected(indexed)
    given = ["--uri", indexed.dsn, "--config", str(path), "-j", "1"]
    (switch,) = run("storage", "move", "--to", *words, *given)
    *changes, clean = run(*shlex.split(switch), "--uri", indexed.dsn)
    assert run(*shlex.split(switch), "--uri", indexed.dsn) == [*changes, clean]
    for change in changes:
        run(*shlex.split(change))
    run(*shlex.split(clean), "--uri", indexed.dsn)
    places = [in_folder(area), in_folder(tmp_path / "s1"), in_folder(tmp_path / "s2"), in_objects(indexed)]
    if (tmp_path / "data").exists():
        places.append(in_folder(tmp_path / "data"))
    assert [place for place in places if place] == [everything]


def create_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
