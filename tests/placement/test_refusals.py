"""What `storage move` refuses: damage, a wrong order, an Orthanc that is connected, wrong folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import db, placement
from pgorthanc_cli.errors import InUseError, PgOrthancError, RevisionError, UsageError
from pgorthanc_cli.placement import Place
from tests.placement.moving import COUNT, OBJECTS, OBJECTS_COUNT, expected, in_objects, move
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import run as execute

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
