"""The page about a conversion, and all its findings, as one JSON document or an HTML table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from pgorthanc_cli.migrate import Converted
from pgorthanc_cli.text import duration, plural, printable
from pgorthanc_cli.views import html
from pgorthanc_cli.views.page import Block, Note, Page, Status

Finding = dict[str, "str | None"]
_SHOWN = 5  # of the findings


def json_report(converted: Converted, findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the facts of a run and all findings, piece by piece: there may be millions."""
    facts = {k: v for k, v in asdict(converted).items() if k not in ("repaired", "skipped")}
    yield json.dumps(facts, indent=1, default=str)[:-2] + ',\n "findings": ['
    for number, finding in enumerate(findings):
        yield (",\n  " if number else "\n  ") + json.dumps(finding, ensure_ascii=False)
    yield "\n ]\n}\n"


def all_findings(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield all findings as an HTML table, row by row."""
    rows = ([text or "" for text in finding.values()] for finding in findings)
    yield from html.table(("kind", "table", "resource", "what"), rows)


def page(converted: Converted, again: str, verify: str) -> Page:
    """Return the page of a conversion or a check; `again` and `verify` are the commands to run next."""
    source = printable(converted.source)
    resources = converted.resources
    studies = plural(resources.get("studies", 0), "study", "studies")
    problems = tuple(_problems(converted))
    bad = [note.status for note in problems if note.status != "ok"]
    status: Status = "problem" if "problem" in bad else "warning" if bad else "ok"
    contents = Note(", ".join(f"{count:,} {level}" for level, count in resources.items()))
    took = f"in {duration(converted.elapsed_s)}"
    if converted.dry_run:
        verb = "can be converted"
        if converted.skipped_rows:
            verb = f"can be converted without {plural(converted.skipped_rows, 'row')}"
        headline = f"Dry run, nothing was changed: the index with {studies} {verb}."
        steps = (Note("Next, stop Orthanc and convert the index:", paste=again),)
        return Page(headline, (source, f"read {took}"), (contents, *problems), steps, status)
    headline = f"Converted the SQLite index with {studies} to revision {converted.revision} {took}."
    where = (source, str(converted.endpoint)) if converted.endpoint else (source,)
    blocks: list[Block] = [contents]
    if converted.verified:
        rows = sum(table.stored for table in converted.compared)
        tables = plural(len(converted.compared), "table")
        blocks.append(Note(f"{plural(rows, 'row')} of {tables} were read back and are equal", "ok"))
    else:
        blocks.append(Note("the new index was not compared with the old one", "warning"))
    if converted.large_objects:
        copied = plural(converted.large_objects, "attachment was", "attachments were")
        blocks.append(Note(f"{copied} copied into PostgreSQL", "ok"))
    blocks += problems
    return Page(headline, where, tuple(blocks), tuple(_steps(converted, verify)), status)


def _problems(converted: Converted) -> Iterator[Note]:
    """Yield what was changed, left out, or does not match the files."""
    for count, verb, examples in (
        (converted.repaired_rows, "changed so that PostgreSQL can hold", converted.repaired),
        (converted.skipped_rows, "skipped, as PostgreSQL cannot hold", converted.skipped),
    ):
        if count:
            rows = plural(count, "row was", "rows were")
            shown = tuple(printable(str(example)) for example in examples[:_SHOWN])
            more = ("All of them: --html FILE.html",) if count > len(shown) else ()
            yield Note(f"{rows} {verb} {'it' if count == 1 else 'them'}", "warning", shown + more)
    files = converted.files
    if files is None:
        return
    if files.missing or files.differing:
        counts = f"{plural(files.missing, 'file')} missing, {files.differing:,} not as in the index"
        yield Note(counts, "problem", tuple(map(printable, files.examples[:_SHOWN])))
    elif files.checked:
        what = "size and MD5" if files.hashed else "size"
        yield Note(f"the files of {plural(files.checked, 'attachment')} exist, with the right {what}", "ok")
    if files.elsewhere:
        yield Note(
            f"the files of {plural(files.elsewhere, 'attachment')} were not compared",
            "unknown",
            ("A storage plugin keeps them (customData); what was given does not say where.",),
        )


def _steps(converted: Converted, verify: str) -> Iterator[Note]:
    plugin = f"Put this into Orthanc's configuration, with the password (plugin {converted.plugins}):"
    yield Note(plugin, paste=converted.configuration)
    storage = " and libOrthancPostgreSQLStorage.so" if converted.large_objects else ""
    source = printable(converted.source)
    yield Note(
        f'Add libOrthancPostgreSQLIndex.so{storage} to "Plugins", and leave all other options '
        f"as they are. Move {source} to another folder as a backup, so that Orthanc cannot start "
        "on it by accident. Then start Orthanc."
    )
    yield Note("Next, check the new index:", paste=verify)
