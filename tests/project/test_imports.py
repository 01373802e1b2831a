"""The direction of imports, read from the source: see the table in docs/architecture.md."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgorthanc_cli

PACKAGE = Path(pgorthanc_cli.__file__).parent

# room -> what of our own it may import, besides itself and what stands in BASE
BASE = {"catalogs", "constants", "db", "errors", "files", "progress", "text"}
ALLOWED = {
    "cli": {"commands", "output", "signals"},
    "commands": {"*"},
    "log_file": set(),
    "output": set(),
    "orthanc_log": set(),
    "render": {"views"},
    "errors": set(),
    "text": set(),
    "constants": set(),
    "files": set(),
    "progress": set(),
    "signals": set(),
    "pacing": set(),
    "workers": set(),
    "db": set(),
    "catalogs": set(),
    "config": {"schema"},
    "server": set(),
    "schema": set(),
    "upgrade": {"locks", "schema"},
    "locks": {"schema"},
    "waiting": {"schema"},
    "areas": {"config", "index"},
    "authentication": {"server"},
    "keepalive": set(),
    "doctor": {"config", "index", "locks", "placement", "schema", "scrub"},
    "replication": {"authentication", "schema", "server"},
    "dicom": set(),
    "index": set(),
    "storage": set(),
    "ingest": {"config", "dicom", "index", "locks", "pacing", "storage", "workers"},
    "scrub": {"config", "dicom", "index", "ingest", "storage", "workers"},
    "reindex": {"config", "dicom", "index", "pacing", "storage", "workers"},
    "placement": {"config", "index", "locks", "schema", "storage", "workers"},
    "migrate": {"config", "index", "locks", "schema", "storage", "workers"},
    "guides": set(),
    "views": {
        "authentication",
        "config",
        "doctor",
        "index",
        "ingest",
        "keepalive",
        "locks",
        "migrate",
        "orthanc_log",
        "placement",
        "replication",
        "schema",
        "reindex",
        "scrub",
        "server",
        "upgrade",
        "waiting",
    },
}
# third-party module -> the only rooms that may import it
ONLY = {"click": {"cli", "commands"}, "rich": {"output", "render"}, "pydicom": {"dicom"}}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            yield room, path


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(top-level module, our room) of every import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, inner = alias.name.partition(".")
                yield top, inner.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            top, *rest = (node.module or "").split(".")
            for alias in node.names:
                yield top, rest[0] if rest else alias.name


@pytest.mark.parametrize(
    ("room", "path"), list(modules()), ids=lambda value: str(getattr(value, "name", value))
)
def test_direction(room: str, path: Path) -> None:
    allowed = (
        ALLOWED[room] | {room, "__version__"} | (BASE if room != "output" else {"errors", "progress", "text"})
    )
    for top, inner in imports(path):
        if top == "pgorthanc_cli":
            assert "*" in allowed or inner in allowed, f"{path.name} must not import {inner}"
        elif top in ONLY:
            assert room in ONLY[top], f"{path.name} must not import {top}"


def test_every_room_is_known() -> None:
    assert {room for room, _ in modules()} == set(ALLOWED)


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    """Whoever reads a room has to know only those below it."""
    uses: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for room, path in modules():
        uses[room] |= {inner for top, inner in imports(path) if top == "pgorthanc_cli"} - {room}
    order = graphlib.TopologicalSorter({room: users & ALLOWED.keys() for room, users in uses.items()})
    order.prepare()  # raises CycleError with the rooms of the circle


def test_psycopg2_connect_is_called_in_db_only() -> None:
    callers = {
        room
        for room, path in modules()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr == "connect"
        and isinstance(node.value, ast.Name)
        and node.value.id == "psycopg2"
    }
    assert callers == {"db"}


def test_rooms_do_not_print_or_exit() -> None:
    for room, path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name):
                assert called.id != "print" or room == "output", f"{path.name}:{called.lineno} prints"
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                assert (called.value.id, called.attr) != ("sys", "exit") or room == "cli", (
                    f"{path.name} exits"
                )


def test_no_file_is_longer_than_500_lines() -> None:
    for folder in ("pgorthanc_cli", "tests", "bench", "scripts"):
        for path in (PACKAGE.parent / folder).rglob("*.py"):
            assert len(path.read_text("utf-8").splitlines()) <= 500, path
