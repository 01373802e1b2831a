"""What was repaired and what was skipped: counted, some of it held, all of it written to a report."""

from __future__ import annotations

import html
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from pgorthanc_cli import files
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.migrate.model import Finding, Outcome
from pgorthanc_cli.text import printable

LISTED = 1_000
"""So many of each kind are in a result; the rest is only in the report."""

_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em; max-width: 70em }}
table {{ border-collapse: collapse }} td, th {{ text-align: left; padding: .2em .8em; border-bottom: 1px solid #ccc }}
</style>
<h1>{title}</h1>
<table>{facts}</table>
<table><tr><th>kind<th>table<th>resource<th>what</tr>
"""


class Findings:
    """Collects what workers found; the bulk is in a file of the scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.held: dict[str, list[Finding]] = {"repaired": [], "skipped": []}
        self._file = folder / "findings.jsonl"
        self._file.write_bytes(b"")

    def add(self, outcome: Outcome) -> None:
        """Take in what one piece of work found."""
        self._add("repaired", outcome.repaired)
        self._add("skipped", outcome.skipped)

    def _add(self, kind: str, found: Iterable[Finding]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            for finding in found:
                self.counts[kind] += 1
                if len(self.held[kind]) < LISTED:
                    self.held[kind].append(finding)
                stream.write(json.dumps({"kind": kind, **asdict(finding)}) + "\n")

    def all(self) -> Iterator[dict[str, str | None]]:
        """Everything, as written down."""
        with self._file.open(encoding="utf-8") as stream:
            yield from map(json.loads, stream)


def check_report(path: Path | None) -> None:
    """Find out before the work whether a report can be written.

    Raises:
        UsageError: Neither .json nor .html, or the folder cannot be written to.
    """
    if path is None:
        return
    if path.suffix not in (".json", ".html"):
        raise UsageError(f"--report {path}: wanted a name that ends in .json or .html")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "it is a folder" if path.is_dir() else f"{path.parent} does not exist or is not writable"
        raise UsageError(
            f"--report {printable(str(path))} cannot be written: {printable(reason)}",
            "choose a file in a folder that you may write to",
        )


def write_report(path: Path, facts: dict[str, object], findings: Findings) -> None:
    """Everything that was found, and the facts of the run, as one document.

    Raises:
        PgOrthancError: The file cannot be written.
    """
    with files.replacing(path) as stream:
        pieces = _json(facts, findings) if path.suffix == ".json" else _html(facts, findings)
        stream.writelines(piece.encode("utf-8", "backslashreplace") for piece in pieces)


def _json(facts: dict[str, object], findings: Findings) -> Iterator[str]:
    yield json.dumps(facts, indent=1, default=str)[:-2] + ',\n "findings": ['
    for number, finding in enumerate(findings.all()):
        yield (",\n  " if number else "\n  ") + json.dumps(finding, ensure_ascii=False)
    yield "\n ]\n}\n"


def _html(facts: dict[str, object], findings: Findings) -> Iterator[str]:
    rows = (f"<tr><th>{html.escape(str(k))}<td>{html.escape(str(v))}</tr>" for k, v in facts.items())
    yield _PAGE.format(title="From SQLite to PostgreSQL", facts="".join(rows))
    for finding in findings.all():
        yield "<tr>" + "".join(f"<td>{html.escape(str(v or ''))}" for v in finding.values()) + "</tr>\n"
    yield "</table></html>\n"
