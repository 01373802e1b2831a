"""What the pages for users say of revisions, plugins and checks is what the program knows."""

from __future__ import annotations

import re
from pathlib import Path

from pgorthanc_cli import cli, doctor
from pgorthanc_cli.schema import catalog
from tests.support import commandlines

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
NEW = ("getting-started", "compatibility", "which-command", "init", "doctor", "checks", "config")


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table whose head begins with these words, without its head."""
    _, _, after = text.partition(f"\n| {heading} |")
    rows = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def revisions_in(text: str) -> set[int]:
    """The revisions of a text such as "1 to 6, 10"."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_compatibility_lists_every_release_of_the_plugin() -> None:
    rows = table(page("docs/compatibility.md"), "revision")
    expected = [(str(revision), catalog.plugins(revision)) for revision in catalog.revisions()]
    older = [("before 1", layout.plugins) for layout in reversed(catalog.layouts()) if not layout.revision]
    assert [(row[0], row[1]) for row in rows] == older + expected


def test_compatibility_of_commands_names_the_revisions_that_there_are() -> None:
    rows = {row[0]: row[1] for row in table(page("docs/compatibility.md"), "command")}
    for name in ("`init`", "`verify schema`"):
        assert revisions_in(rows[name]) == set(catalog.revisions())
    assert revisions_in(rows["`import`"].partition(";")[0]) == set(catalog.revisions())


def test_compatibility_names_what_continuous_integration_runs() -> None:
    text = page("docs/compatibility.md")
    ci = page(".ci/run")
    versions = set(re.findall(r'"PostgreSQL (\d+)\b', ci)) | {"15"}  # Debian's
    (listed,) = re.findall(r"^\| PostgreSQL \| ([\d, and]+), in each run", text, re.MULTILINE)
    assert set(re.findall(r"\d+", listed)) == versions
    for release in re.findall(r"(\d+\.\d+\.\d+) with (?:the )?plugin", ci):
        assert release in text


def test_the_page_of_doctor_lists_every_check() -> None:
    rows = table(page("docs/doctor.md"), "check")
    assert [row[0].strip("`") for row in rows] == list(doctor.check_names())


def test_the_commands_of_the_tables_are_accepted() -> None:
    """Those of `which-command.md` stand in cells, with N, PID and the like for values."""
    cells = re.findall(r"`([^`]+)`", page("docs/which-command.md"))
    calls = [cell.split() for cell in cells if cell.split()[0] in cli.COMMANDS]
    assert len(calls) > 40
    values = {"N": str(catalog.newest()), "PID": "1"}
    for words in calls:
        given = [values.get(word, word) for word in words]
        reason = commandlines.refusal(given)
        assert reason is None or reason.startswith("Missing argument"), words


def test_links_lead_somewhere() -> None:
    """Files, and headings in them."""
    for path in (ROOT / "README.md", ROOT / "deploy" / "README.md", *(ROOT / "docs").glob("*.md")):
        for name, anchor in LINK.findall(path.read_text("utf-8")):
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), f"{path.name}: {name}"
            if anchor:
                assert anchor in _anchors(target.read_text("utf-8")), f"{path.name}: {name}#{anchor}"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_links_the_pages_for_users() -> None:
    readme = page("README.md")
    assert [name for name in NEW if f"(docs/{name}.md)" not in readme] == []
    assert "(deploy/README.md)" in readme
