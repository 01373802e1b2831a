"""The page about a doctor's examination, and its metrics for Prometheus."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator

from pgorthanc_cli.constants import NAGIOS
from pgorthanc_cli.doctor import Check, Health
from pgorthanc_cli.text import plural, printable, shortened
from pgorthanc_cli.views import metrics
from pgorthanc_cli.views.metrics import Sample
from pgorthanc_cli.views.page import Note, Page, Status

_STATUSES: dict[str, Status] = {
    "OK": "ok", "WARNING": "warning", "CRITICAL": "problem", "UNKNOWN": "unknown",
}  # fmt: skip
_ORDER = ("CRITICAL", "WARNING", "UNKNOWN")
_NAMED = 5  # checks in the headline


def page(health: Health, command_line: Callable[..., str], *, verbose: bool = False) -> Page:
    """Return the page: problems first; checks that passed by name, or each with its message.

    Args:
        health: The examination.
        command_line: Returns a command to paste, see `Call.command_line`.
        verbose: Also show what the checks that passed have found.
    """
    bad = sorted(
        (check for check in health.checks if check.status != "OK"),
        key=lambda check: _ORDER.index(check.status),
    )
    findings = [_finding(check, command_line) for check in bad]
    passed = [check for check in health.checks if check.status == "OK"]
    if verbose:
        findings += [Note(f"{check.name}: {check.message}", "ok") for check in passed]
    elif passed:
        findings.append(Note(f"passed: {', '.join(check.name for check in passed)}", "ok"))
    where = tuple(_where(health, verbose=verbose))
    return Page(_headline(health), where, tuple(findings), status=_STATUSES[health.status])


def _headline(health: Health) -> str:
    total, unknown = len(health.checks), health.count("UNKNOWN")
    if not health.endpoint:
        return "The server cannot be reached."
    if unknown == total:
        return "No check could be run."
    parts = []
    for status, noun in (("CRITICAL", "problem"), ("WARNING", "warning")):
        names = [check.name for check in health.checks if check.status == status]
        if names:
            parts.append(f"{plural(len(names), noun)}: {shortened(names, _NAMED, ', ')}.")
    passed = f"{health.count('OK')} of {plural(total, 'check')} passed"
    if not (parts or unknown):
        passed = f"All {plural(total, 'check')} passed" if total > 1 else "The check passed"
    elif unknown:
        passed += f", {unknown} could not be run"
    return " ".join([*(parts or ["No problems."] * bool(unknown)), f"{passed}."])


def _where(health: Health, *, verbose: bool) -> Iterator[str]:
    if health.endpoint:
        yield str(health.endpoint)
        yield from health.endpoint.login
    else:
        yield printable(health.server)
    if "revision" in health.figures:
        yield f"revision {health.figures['revision']:.0f}"
    if verbose:
        yield f"checked at {health.checked_at:%Y-%m-%d %H:%M} UTC"


def _finding(check: Check, command_line: Callable[..., str]) -> Note:
    details = (check.hint,) if check.hint else ()
    paste = check.statements
    if check.command:  # it does what the statements do, and more carefully
        paste = command_line(*shlex.split(check.command))
    return Note(f"{check.name}: {check.message}", _STATUSES[check.status], details, paste)


def prometheus(health: Health) -> str:
    """Return the states of the checks, and their figures, for Prometheus."""
    target = {"target": health.server}
    samples: dict[str, list[Sample]] = {
        "check_status": [
            Sample({**target, "check": check.name}, NAGIOS[check.status]) for check in health.checks
        ]
    }
    for figure, value in health.figures.items():
        # Base units are written out: https://prometheus.io/docs/practices/naming/
        name = figure.removesuffix("_s") + "_seconds" if figure.endswith("_s") else figure
        samples[name] = [Sample(target, float(value))]
    return metrics.text(samples, {"check_status": "0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN"})
