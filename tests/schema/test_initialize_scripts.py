"""The scripts by themselves: printed, loaded without the tool, found by their names."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError, RevisionError
from pgorthanc_cli.schema import catalog, initialize, steps
from tests.support.schemas import CURRENT, ODD_SCHEMA, init, run, snapshot


def load_as_one_text(target: db.Target, script: Path) -> None:
    run(target, script.read_text(encoding="utf-8"))


def load_with_psql(*options: str) -> Callable[[db.Target, Path], None]:
    def load(target: db.Target, script: Path) -> None:
        command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *options, "-d", target.dsn, "-f", str(script)]
        subprocess.run(command, check=True, capture_output=True)

    return load


LOADERS = [load_as_one_text, *([load_with_psql(), load_with_psql("-1")] if shutil.which("psql") else [])]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("schema", ["public", ODD_SCHEMA])
def test_the_printed_script(
    empty: db.Target, tmp_path: Path, schema: str, load: Callable[[db.Target, Path], None]
) -> None:
    script = tmp_path / "index.sql"
    script.write_text(initialize.print_sql(schema=schema), encoding="utf-8")

    load(empty, script)
    load(empty, script)

    made = init(db.Target(empty.dsn, schema=schema))
    assert (made.created, made.storage, made.repaired) == (False, True, ())


def test_the_printed_script_is_all_or_nothing(empty: db.Target) -> None:
    run(empty, "CREATE TABLE storagearea (id integer)")
    before = snapshot(empty)
    with pytest.raises(PgOrthancError):
        run(empty, initialize.print_sql(schema="public"))
    assert snapshot(empty) == before


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["CREATE TABLE labels (id integer)"], "holds labels, but no Orthanc index"),
        (["SET search_path TO nowhere"], "names no schema that exists"),
    ],
)
def test_the_script_alone_refuses_as_well(empty: db.Target, statements: list[str], message: str) -> None:
    with pytest.raises(PgOrthancError, match=message):
        run(empty, *statements, steps.text(steps.PREPARE_INDEX))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE globalproperties SET value = '9' WHERE property = 4",
        "UPDATE globalproperties SET value = '5' WHERE property = 1",
        "ALTER TABLE queues DROP reserveduntil",
        "CREATE TABLE patientrecyclingorder (seq bigint)",
    ],
)
def test_the_script_alone_refuses_another_revision(fresh: db.Target, statement: str) -> None:
    run(fresh, statement)
    with pytest.raises(PgOrthancError, match="revision"):
        run(fresh, steps.text(steps.PREPARE_INDEX))


def test_the_script_makes_everything_in_the_first_schema_of_the_path(fresh: db.Target) -> None:
    run(
        fresh,
        "CREATE SCHEMA second",
        "SET search_path TO second, public",
        steps.text(steps.PREPARE_INDEX),
        steps.text(steps.STORAGE_AREA),
    )
    found = snapshot(db.Target(fresh.dsn, schema="second"))
    assert catalog.differences(found, catalog.expected(CURRENT, with_storage=True)) == []
    assert f"index {catalog.TRIGRAM_INDEX}" in found or f"index {catalog.TRIGRAM_INDEX}" not in snapshot(
        fresh
    )


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the scripts of the next issue; they are found by their names."""
    for name in (
        "UnknownToRev1",
        "Rev1ToRev2",
        "Rev2ToRev6",
        "Rev6ToRev10",
        "Rev10ToRev6",
        "Rev6ToRev2",
        "PrepareIndex",
    ):
        (tmp_path / f"{name}.sql").touch()
    monkeypatch.setattr(steps, "folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(
    ("start", "end", "names"),
    [
        (0, 10, ["UnknownToRev1.sql", "Rev1ToRev2.sql", "Rev2ToRev6.sql", "Rev6ToRev10.sql"]),
        (10, 2, ["Rev10ToRev6.sql", "Rev6ToRev2.sql"]),
        (2, 6, ["Rev2ToRev6.sql"]),
        (6, 6, []),
    ],
)
def test_the_way_between_two_revisions(start: int, end: int, names: list[str]) -> None:
    assert [step.script for step in steps.path(start, end)] == names


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(("start", "end"), [(10, 1), (10, 7), (2, 99), (3, 10)])
def test_there_is_no_way(start: int, end: int) -> None:
    with pytest.raises(RevisionError, match=f"from revision {start} to {end}"):
        steps.path(start, end)
