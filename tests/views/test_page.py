"""How pages look in every medium, compared with the files in golden/."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from pgorthanc_cli import render
from pgorthanc_cli.render import Medium
from pgorthanc_cli.views.page import Facts, Note, Page, Table, only_problems
from tests.support.golden import body, compare, texts

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "<b>[bold]Doe\x1b[31m\u202e\\ 検査\udcff"
MEDIA = {
    "terminal, 80 columns": Medium(80, colour=True, symbols=True),
    "terminal, 60 columns": Medium(60, colour=True, symbols=True),
    "terminal, 80 columns, NO_COLOR or TERM=dumb": Medium(80, symbols=True),
    "terminal, 80 columns, not UTF-8": Medium(80, colour=True),
    "not a terminal": Medium(),
}
LONG = "Looking up the children of a study reads the whole table, which takes longer as it grows."
SQL = f"ALTER TABLE public.resources DROP COLUMN foo; -- → {'long ' * 20}end"
PAGES = {
    "headline": Page(
        "The database orthanc at db1:5432 contains an index at revision 10, with 12.0 million instances.",
        ("database orthanc at db1:5432", "role orthanc", "PostgreSQL 15.18"),
    ),
    "facts": Page(
        "Facts", blocks=(Facts((("Content", LONG), ("Files", "70.7 MB"), ("Hostile", HOSTILE))),)
    ),
    "findings": Page(
        "One of each.",
        blocks=(
            Note("the schema matches revision 10", "ok"),
            Note("extra column resources.foo", "warning", ("It blocks upgrades.",), SQL),
            Note("the index childrenindex2 is missing", "problem", (LONG, "Repair it.")),
            Note("the certificate could not be checked", "unknown"),
        ),
        status="problem",
    ),
    "note": Page("Notes", blocks=(Note(f"{LONG} 1 → 2…", details=(HOSTILE,), paste='{\n  "Host": "db1"\n}'),)),
    "table": Page(
        "A table with marks, and one without",
        blocks=(
            Table(
                (("missing", "1", LONG), ("orphans", "36,120,411", HOSTILE), ("intact", "2", "")),
                ("kind", "count", "meaning"), (1,), ("problem", "warning", "ok"),
            ),
            Table((("build an index", "3 min", "1.1 GB"),), ("step", "time", "disk"), (1, 2)),
        ),
    ),
    "list": Page(
        "A long list", blocks=(Table(tuple((f"/mnt/{n}.dcm",) for n in range(23)), all_with="--list FILE"),)
    ),
    "next": Page(
        "Prepared.", next_steps=(Note("Next, stop Orthanc, then", paste="pgorthanc upgrade --phase switch"),)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_pages_look_as_they_should(name: str) -> None:
    compare(GOLDEN / f"{name}.txt", texts(PAGES[name], MEDIA))
    compare(GOLDEN / f"{name}.html", body(PAGES[name]))


def words(page: Page) -> Iterator[str]:
    yield from page.headline.split()
    for block in (*page.blocks, *page.next_steps):
        if isinstance(block, Note):
            parts = [block.text, *block.details, block.paste]
        else:
            parts = [cell for row in block.rows for cell in row]
        for part in parts:
            yield from part.split()


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_lost_and_nothing_wrapped_when_it_is_piped(name: str) -> None:
    plain = render.text(PAGES[name], Medium())
    for word in words(PAGES[name]):
        if word.isascii() and word.isprintable():
            assert word in plain
    if name in ("facts", "note", "table"):
        assert any(LONG in line for line in plain.splitlines())


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [80, 60])
def test_no_line_is_wider_than_the_terminal_except_what_is_pasted(name: str, width: int) -> None:
    for line in render.text(PAGES[name], Medium(width, symbols=True)).splitlines():
        assert cell_len(line) <= width or line.strip() == SQL


@pytest.mark.parametrize("medium", MEDIA.values(), ids=list(MEDIA))
def test_text_from_outside_is_harmless(medium: Medium) -> None:
    shown = render.text(PAGES["facts"], medium) + render.html(PAGES["facts"])
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown
    assert "\udcff" not in shown
    assert "<b>[bold]" in shown
    assert "&lt;b&gt;[bold]" in shown


def test_what_is_pasted_is_never_changed() -> None:
    for medium in MEDIA.values():
        plain = Medium(medium.width, symbols=medium.symbols)
        assert f"    {SQL}\n" in render.text(PAGES["findings"], plain)


def test_the_web_page_says_judgements_in_words() -> None:
    shown = body(PAGES["findings"])
    for word in ("✓ ok", "! warning", "✗ problem", "? not checked"):
        assert word in shown


class Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "encoding", "expected"),
    [
        ({"TERM": "xterm-256color"}, "utf-8", Medium(80, colour=True, symbols=True)),
        ({"TERM": "xterm-256color", "COLUMNS": "60"}, "utf-8", Medium(60, colour=True, symbols=True)),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "utf-8", Medium(80, symbols=True)),
        ({"TERM": "dumb"}, "utf-8", Medium(80, symbols=True)),
        ({"TERM": "xterm-256color"}, "iso8859-1", Medium(80, colour=True)),
    ],
)
def test_a_terminal_is_recognized(
    environment: dict[str, str], encoding: str, expected: Medium, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "80", **environment}.items():
        monkeypatch.setenv(name, value)
    assert Medium.of(Screen(io.BytesIO(), encoding=encoding)) == expected


def test_a_pipe_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert Medium.of(io.StringIO()) == Medium()


def test_quiet_shows_problems_only() -> None:
    page = PAGES["findings"]
    shown = only_problems(page)
    assert shown
    assert [block.status for block in shown.blocks if isinstance(block, Note)] == ["warning", "problem"]
    assert only_problems(PAGES["note"]) is None


@pytest.mark.parametrize("rows", [(("a", "b"), ("c",)), (("1", "2", "3", "4", "5"),)])
def test_tables_are_narrow_and_regular(rows: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(ValueError, match="at most 4"):
        Table(rows)


def test_an_empty_table_shows_nothing() -> None:
    page = Page("Nothing.", blocks=(Table(()), Facts(())))
    assert render.text(page, Medium(80)) == "Nothing.\n"
    assert "<section>" not in body(page)


def test_help_does_not_load_rich() -> None:
    code = (
        "import sys; from pgorthanc_cli import render, commands; "
        "sys.exit(any(name.split('.')[0] == 'rich' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
