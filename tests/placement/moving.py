"""Doing the phases of a move, and what each area holds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pgorthanc_cli import db, placement
from pgorthanc_cli.placement import MoveSettings, Place
from tests.support.schemas import rows

COUNT = 12
OBJECTS_COUNT = 2 * COUNT  # with compression, DICOM until pixel data is stored as well
OBJECTS = Place(None)


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
