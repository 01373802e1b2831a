"""Where attachments are, by area, kind, modality and year; orphaned large objects, and wrong owners."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, db, placement
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.views import placement as views
from pgorthanc_cli.views.page import Note
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import REVISIONS, as_role, init, rows
from tests.support.schemas import run as execute


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return samples.folder(tmp_path / "in", 6)


def sizes(target: db.Target) -> tuple[int, int]:
    ((size, stored),) = rows(
        target, "SELECT sum(uncompressedsize)::int8, sum(compressedsize)::int8 FROM attachedfiles"
    )
    return size, stored


@pytest.mark.parametrize("revision", REVISIONS)
def test_files_of_every_revision(empty: db.Target, files: list[Path], tmp_path: Path, revision: int) -> None:
    init(empty, revision=revision)
    import_files(empty, files, tmp_path / "area", compress=True)
    size, stored = sizes(empty)
    shown = placement.show(empty)
    (area,) = shown.areas
    assert (area.kind, area.bytes, area.stored_bytes) == ("filesystem", size, stored)
    assert area.overhead_percent == round(100 * (stored / size - 1), 1)
    assert {content.compression for content in shown.contents} == {"zlib"}
    assert (shown.orphans, shown.wrong_owner) == (0, 0)


def test_large_objects(fresh: db.Target, files: list[Path]) -> None:
    import_files(fresh, files, None)
    size, _ = sizes(fresh)
    shown = placement.show(fresh, ["modality", "year"])
    (area,) = shown.areas
    assert (area.kind, area.attachments, area.bytes) == ("postgresql", 6, size)
    ((disk,),) = rows(fresh, "SELECT pg_total_relation_size('pg_largeobject')")
    assert (area.stored_bytes, area.overhead_percent) == (disk, round(100 * (disk / size - 1), 1))
    assert [(each.content, each.attachments) for each in shown.contents] == [("dicom", 6)]
    assert [(each.by, each.value, each.attachments) for each in shown.groups] == [
        ("modality", "CT", 6),
        ("year", "", 6),
    ]


def test_modality_and_year_of_a_real_file(fresh: db.Target, tmp_path: Path) -> None:
    import_files(fresh, [samples.REAL], tmp_path / "area")
    shown = placement.show(fresh, ["modality", "year"])
    assert [(each.by, each.value) for each in shown.groups] == [("modality", "CT"), ("year", "2004")]


def test_both_areas_and_those_of_plugins(fresh: db.Target, files: list[Path], tmp_path: Path) -> None:
    import_files(fresh, files[:2], None)
    import_files(fresh, files[2:], tmp_path / "area")
    forms = ['{"o":true,"s":"1","v":1}', '{"o":false,"p":"/srv/x.dcm","v":1}', '{"v":2}']
    for number, form in enumerate(forms):
        execute(
            fresh,
            f"""UPDATE attachedfiles SET customdata = '{form}'
                WHERE id = (SELECT id FROM attachedfiles ORDER BY id DESC OFFSET {number} LIMIT 1)""",
        )
    places = [(area.kind, area.storage, area.attachments) for area in placement.show(fresh).areas]
    assert places == [
        ("adopted", "", 1), ("advanced-storage", "1", 1), ("filesystem", "", 1),
        ("postgresql", "", 2), ("unknown", "", 1),
    ]  # fmt: skip


def test_orphaned_large_objects(fresh: db.Target, files: list[Path]) -> None:
    import_files(fresh, files, None)
    execute(fresh, "SELECT lo_from_bytea(0, 'x') FROM generate_series(1, 3)")
    execute(fresh, "UPDATE attachedfiles SET uuid = 'x' WHERE id = (SELECT max(id) FROM attachedfiles)")
    execute(fresh, "CREATE TABLE notes (body oid); INSERT INTO notes SELECT lo_from_bytea(0, 'y')")
    shown = placement.show(fresh)
    assert (shown.orphans, shown.other_objects, shown.unreadable_tables) == (4, 0, ())


def test_a_wrong_owner_and_the_statement_that_corrects_it(
    fresh: db.Target, files: list[Path], role: str
) -> None:
    import_files(fresh, files, None)
    execute(fresh, f"ALTER TABLE storagearea OWNER TO {role}")
    shown = placement.show(fresh)
    assert (shown.wrong_owner, shown.owner) == (6, role)
    notes = [block for block in views.page(shown, "public").blocks if isinstance(block, Note)]
    (statement,) = [note.paste for note in notes if note.paste]
    with closing(psycopg2.connect(fresh.dsn)) as conn, conn.cursor() as cur:
        conn.autocommit = True
        cur.execute(statement)
    assert placement.show(fresh).wrong_owner == 0


def test_a_role_that_may_only_read(fresh: db.Target, files: list[Path], role: str) -> None:
    import_files(fresh, files, None)
    execute(fresh, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    execute(fresh, "CREATE TABLE notes (body oid)")
    shown = placement.show(as_role(fresh, role))
    assert (shown.areas[0].attachments, shown.unreadable_tables) == (6, ("public.notes",))


def test_no_index(empty: db.Target) -> None:
    with pytest.raises(RevisionError, match="no Orthanc index"):
        placement.show(empty)


def test_the_command(fresh: db.Target, files: list[Path]) -> None:
    call = ["storage", "show", "--uri", fresh.dsn]
    assert "The index has no attachments." in CliRunner().invoke(cli.main, call).stdout
    import_files(fresh, files, None)
    page = CliRunner().invoke(cli.main, [*call, "--by", "year"])
    assert (page.exit_code, "6 attachments take" in page.stdout) == (0, True)
    assert "pgorthanc verify storage --storage postgresql --uri" in page.stdout
    result = json.loads(CliRunner().invoke(cli.main, [*call, "--json"]).stdout)
    assert result["areas"][0].keys() >= {"kind", "attachments", "bytes", "stored_bytes", "overhead_percent"}
    assert (result["orphans"], result["wrong_owner"]) == (0, 0)
