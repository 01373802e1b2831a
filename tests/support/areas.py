"""Storage areas in which earlier imports have left something."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgorthanc_cli import db, index, storage
from pgorthanc_cli.ingest import runs
from pgorthanc_cli.ingest.journal import FOLDER
from tests.support.importing import warnings_of


def identity(target: db.Target) -> str:
    """What journals call the index."""
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        return index.identity(cur)


def stored_bytes(area: storage.Area, uuid: str, file_type: int = 1) -> bytes:
    """Return the stored bytes of an attachment."""
    with area.open(uuid, file_type) as stream:
        return stream.read()


def orphan(area: Path) -> Path:
    """A file of the area that no row names."""
    name = str(uuid.uuid4())
    storage.FilesystemArea(area, sync=False).put(name, 1, [b"content"])
    return area / name[:2] / name[2:4] / name


def journal(
    area: Path, content: object, run: str = "", marker: runs.Marker | None = None, age_s: float = 0
) -> Path:
    """A journal that a run has left: bytes, or what becomes JSON. Without a marker it is of an earlier version."""
    run = run or uuid.uuid4().hex
    folder = area / FOLDER / run
    folder.mkdir(parents=True)
    path = folder / "00000001.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    lock = area / FOLDER / f"{run}.lock"
    lock.write_text(json.dumps(asdict(marker)) if marker else "")
    owner = area.stat()
    for each in (path, folder, lock, area / FOLDER):
        os.utime(each, (time.time() - age_s,) * 2)
        os.chown(each, owner.st_uid, owner.st_gid)
    return path


def settle(target: db.Target, area: Path, paths: Sequence[Path] = (), **settings: Any) -> list[str]:
    """Import something, or nothing, and return the warnings about what earlier imports have left."""
    return warnings_of(target, paths, area, **settings)
