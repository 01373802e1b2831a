"""Files that are damaged in every way: a report or a refusal, never a crash, never a half index that looks whole."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, migrate, workers
from pgorthanc_cli.errors import PgOrthancError, RevisionError
from pgorthanc_cli.schema import catalog
from tests.support import migrating, sqliteindex
from tests.support.schemas import run, snapshot

_TARGETS = {
    "Resources": "resources", "MainDicomTags": "maindicomtags", "DicomIdentifiers": "dicomidentifiers",
    "Metadata": "metadata", "AttachedFiles": "attachedfiles", "Changes": "changes", "Labels": "labels",
    "ExportedResources": "exportedresources", "KeyValueStores": "keyvaluestores", "Queues": "queues",
}  # fmt: skip
_CELLS: tuple[Any, ...] = (
    None, -1, 0, 5, 2**31, 2**62, 1.5, "", "text", "\0", "a\0b", "x" * 300, "\x1d", "\x1f\n", b"\xff\xfe", b"", "7",
)  # fmt: skip


def truncated(path: Path, dice: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: dice.randrange(len(content))])


def overwritten(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 5, 100))):
        content[dice.randrange(len(content))] = dice.randrange(256)
    path.write_bytes(content)


def pages(path: Path, dice: random.Random) -> None:
    """A page is empty, noise, or the copy of another one."""
    content = bytearray(path.read_bytes())
    size = 4096
    count = len(content) // size
    page, other = (size * dice.randrange(1, count) for _ in range(2))
    filling = dice.choice((bytes(size), dice.randbytes(size), bytes(content[other : other + size])))
    content[page : page + size] = filling
    path.write_bytes(content)


def cells(path: Path, dice: random.Random) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        for _ in range(dice.choice((1, 3, 20))):
            table = dice.choice([*_TARGETS, "GlobalProperties", "PatientRecyclingOrder", "sqlite_sequence"])
            columns = [name for (name,) in conn.execute("SELECT name FROM pragma_table_info(?)", (table,))]
            value = dice.choice(_CELLS)
            given = "CAST(? AS TEXT)" if isinstance(value, bytes) and dice.random() < 0.7 else "?"
            ids = [i for (i,) in conn.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
            chosen = dice.sample(ids, min(len(ids), dice.choice((1, 1, 10))))
            marks = ", ".join(map(str, chosen))
            with suppress(sqlite3.IntegrityError):
                change = f"UPDATE {table} SET {dice.choice(columns)} = {given} WHERE rowid IN ({marks})"
                conn.execute(change, (value,))


def tree(path: Path, dice: random.Random) -> None:
    """Circles, orphans, doubles, wrong levels."""
    statements = (
        "UPDATE Resources SET parentId = internalId WHERE internalId = {a}",
        "UPDATE Resources SET parentId = {b} WHERE internalId = {a}",
        "UPDATE Resources SET parentId = {b}, resourceType = 2 WHERE internalId = {a}",
        "DELETE FROM Resources WHERE internalId = {a}",
        "UPDATE Resources SET publicId = (SELECT publicId FROM Resources WHERE internalId = {b})"
        " WHERE internalId = {a}",
        "UPDATE Resources SET resourceType = {level} WHERE internalId = {a}",
        "INSERT INTO Resources SELECT {a} + 9000, resourceType, publicId, parentId FROM Resources"
        " WHERE internalId = {b}",
        "INSERT OR IGNORE INTO Metadata SELECT {a} + 9000, type, value, revision FROM Metadata WHERE id = {a}",
    )
    ids = "SELECT internalId FROM Resources"
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        known = [name for (name,) in conn.execute(f"{ids} WHERE resourceType < 4")] * 4 + [
            i for (i,) in conn.execute(ids)
        ]
        for _ in range(dice.choice((1, 4, 12))):
            a, b = dice.choice(known), dice.choice(known)
            with suppress(sqlite3.IntegrityError):
                conn.execute(dice.choice(statements).format(a=a, b=b, level=dice.randrange(6)))


def schema(path: Path, dice: random.Random) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        table = dice.choice([*_TARGETS, "GlobalProperties", "PatientRecyclingOrder", "GlobalIntegers"])
        columns = [name for (name,) in conn.execute("SELECT name FROM pragma_table_info(?)", (table,))]
        column = dice.choice(columns)
        with suppress(sqlite3.OperationalError):  # a key cannot be dropped
            conn.execute(
                dice.choice(
                    (
                        f"DROP TABLE {table}",
                        f"ALTER TABLE {table} RENAME TO Other",
                        f"ALTER TABLE {table} DROP COLUMN {column}",
                        f"ALTER TABLE {table} RENAME COLUMN {column} TO other",
                        f"ALTER TABLE {table} ADD COLUMN more",
                        f"CREATE VIEW Strange AS SELECT * FROM {table}",
                        "DROP INDEX ChildrenIndex",
                    )
                )
            )


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    truncated,
    overwritten,
    pages,
    cells,
    tree,
    schema,
)


@contextmanager
def inline(jobs: int, call: Callable[..., Any], stop: object, *, fork: bool) -> Iterator[workers.Pool[Any]]:
    """Workers within this process: starting processes takes longer than the rest."""
    yield workers.Pool(call, threading.Event())


def accounted(path: Path, converted: migrate.Converted) -> None:
    """Each row that SQLite can read is converted or listed."""
    listed = json.loads(path.with_suffix(".json").read_text("utf-8"))["findings"]
    skipped = Counter(finding["table"] for finding in listed if finding["kind"] == "skipped")
    merged = sum("were merged" in finding["what"] for finding in listed)
    with closing(sqlite3.connect(path)) as conn:
        there = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for source, target in _TARGETS.items():
            if source not in there:
                continue
            (count,) = conn.execute(f"SELECT count(*) FROM {source} NOT INDEXED").fetchone()
            found = converted.rows.get(target, 0) + skipped[source]
            found += merged if source == "Resources" else 0
            if source == "Metadata":  # among its rows is the recycling order
                protected = converted.rows["metadata"] - count + skipped[source]
                assert converted.resources["patients"] <= protected <= 2 * converted.resources["patients"]
            else:
                assert found == count, source


def try_it(target: db.Target, path: Path) -> str:
    """How it ends: refused, repaired or sound; an assertion fails if it ends in another way."""
    try:
        converted = migrating.convert(target, path, report=path.with_suffix(".json"))
    except PgOrthancError as error:
        refusal = error
    else:
        return ended_well(target, path, converted)
    assert refusal.hint, refusal
    found = snapshot(target)
    if found:
        with pytest.raises(RevisionError, match="not complete"):
            catalog.layout(found, target.schema)
    return "refused"


def ended_well(target: db.Target, path: Path, converted: migrate.Converted) -> str:
    migrating.require_index(target)
    assert converted.verified
    accounted(path, converted)
    return "repaired" if converted.repaired_rows + converted.skipped_rows else "sound"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = sqliteindex.rich(tmp_path_factory.mktemp("sound") / "index", instances=150)
    return path.read_bytes()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.once) for seed in range(2, 7))])
def test_damaged_files(
    empty: db.Target, sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Fifty for each seed."""
    monkeypatch.setattr(workers, "pool", inline)
    dice = random.Random(seed)
    ends: Counter[tuple[str, str]] = Counter()
    path = tmp_path / "index"
    for number in range(50):
        damage = DAMAGES[number % len(DAMAGES)]
        path.write_bytes(sound)
        damage(path, dice)
        try:
            ends[damage.__name__, try_it(empty, path)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, number {number}: {damage.__name__}") from error
        run(empty, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    assert ends["truncated", "refused"] > 5
    assert ends["tree", "repaired"] > 2
    assert ends["cells", "repaired"] > 2
