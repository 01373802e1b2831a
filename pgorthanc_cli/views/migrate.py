"""The report of a conversion: all findings, as one JSON document or HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from pgorthanc_cli.migrate import Converted
from pgorthanc_cli.views import html

Finding = dict[str, "str | None"]


def json_report(converted: Converted, findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the facts of a run and all findings, piece by piece: there may be millions."""
    yield json.dumps(_facts(converted), indent=1, default=str)[:-2] + ',\n "findings": ['
    for number, finding in enumerate(findings):
        yield (",\n  " if number else "\n  ") + json.dumps(finding, ensure_ascii=False)
    yield "\n ]\n}\n"


def html_report(converted: Converted, findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the same as a page."""
    facts = ((name, str(value)) for name, value in _facts(converted).items())
    rows = ([text or "" for text in finding.values()] for finding in findings)
    body = (
        [
            "<header><h1>From SQLite to PostgreSQL</h1></header>",
            html.section("Result", html.definitions(facts)),
        ],
        html.table(("kind", "table", "resource", "what"), rows),
    )
    yield from html.document("From SQLite to PostgreSQL", (piece for part in body for piece in part))


def _facts(converted: Converted) -> dict[str, Any]:
    return {k: v for k, v in asdict(converted).items() if k not in ("repaired", "skipped")}
