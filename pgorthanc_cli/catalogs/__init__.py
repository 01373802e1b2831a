"""The objects of every revision of the index, as data: `rev{N}.json`, `storagearea.json`, `layouts.json`, ...

`schema` compares a database with them, `db` learns from them which objects of a schema are the plugin's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_REVISION = re.compile(r"rev(\d+)\.json")


def revisions() -> list[int]:
    """Return the revisions that have a catalog, in ascending order."""
    names = (_REVISION.fullmatch(entry.name) for entry in _FOLDER.iterdir())
    return sorted(int(name[1]) for name in names if name)


def load(name: str) -> Any:
    """Return the content of a file, as `load("rev10.json")`; each call returns an object of its own."""
    return json.loads((_FOLDER / name).read_text(encoding="utf-8"))
