"""The page about the problems of a configuration."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from pgorthanc_cli.config.check import Checked
from pgorthanc_cli.config.documents import Paths, Problem
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views.page import Note, Page, Status

_STATUSES: dict[str, Status] = {"error": "problem", "warning": "warning", "info": ""}
_PLACE = re.compile(r"(.+), line (\d+)")


def page(checked: Checked, config: Paths | None, *, verbose: bool = False) -> Page:
    """Return the page: the consequence, then the problems, the worst first.

    Args:
        checked: What was found.
        config: Its files and folders, for the commands to paste; None in a container.
        verbose: Also show remarks.
    """
    findings = [_finding(problem, config) for problem in checked.wrong]
    remarks = [problem for problem in checked.problems if problem.severity == "info"]
    if verbose:
        findings += [_finding(problem, config) for problem in remarks]
    elif remarks:
        findings.append(Note(f"{plural(len(remarks), 'remark')} (shown with -v)", "ok"))
    statuses = {finding.status for finding in findings}
    worst: Status = "warning" if "warning" in statuses else "ok"
    where = tuple(_where(checked, config))
    status = "problem" if "problem" in statuses else worst
    return Page(_headline(checked), where, tuple(findings), status=status)


def _headline(checked: Checked) -> str:
    parts = []
    for severity in ("error", "warning"):
        count = sum(problem.severity == severity for problem in checked.problems)
        if count:
            parts.append(plural(count, severity))
    if checked.uses_sqlite:
        consequence = "Orthanc would start with an EMPTY archive (SQLite)"
        return f"{consequence}: {', '.join(parts)}." if parts else f"{consequence}."
    if not parts:
        return "The configuration has no problems."
    return f"The configuration has {' and '.join(parts)}."


def _where(checked: Checked, config: Paths | None) -> Iterator[str]:
    if config:
        yield printable(str(config))
    else:
        yield "variables and secrets of the container"
    if checked.plugin:
        yield f"PostgreSQL plugin {checked.plugin}"
    if checked.database:
        yield f"database {printable(checked.database)}"


def _finding(problem: Problem, config: Paths | None) -> Note:
    place = printable(problem.place)
    if match := _PLACE.fullmatch(place):
        place = f"{Path(match[1]).name}:{match[2]}"
    elif place.startswith("/"):
        place = Path(place).name
    label = place or printable(problem.key)
    hint = problem.hint or ""
    details = (f"{hint[:1].upper()}{hint[1:]}{':' if problem.command else '.'}",) if hint else ()
    if hint.endswith("?"):
        details = (hint,)
    text = f"{label}: {problem.message}" if label else problem.message
    return Note(text, _STATUSES[problem.severity], details, _command(problem, config))


def _command(problem: Problem, config: Paths | None) -> str:
    if config and problem.command.startswith("pgorthanc "):
        options = shlex.join(word for path in config.paths for word in ("--config", str(path)))
        return f"{problem.command} {options}"
    return problem.command
