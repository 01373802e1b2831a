"""The pages about a schema that was compared with its revision, or repaired."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pgorthanc_cli.schema.verify import Finding, Repaired, SchemaReport
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views.page import Block, Note, Page, Status


def page(report: SchemaReport, repair: str, *, verbose: bool = False) -> Page:
    """Return the page of a comparison; `repair` is the command that repairs."""
    repairable = sum(bool(finding.repair) for finding in report.mattering)
    steps = []
    if repairable:
        count = plural(repairable, "problem")
        steps.append(Note(f"Next, stop Orthanc and repair {count}:", paste=repair))
    blocks: list[Block] = list(_notes(report.findings, verbose=verbose))
    if not report.findings:
        blocks.append(Note("No differences."))
    status = _status(report.findings)
    headline = _headline(report, report.findings)
    return Page(headline, _where(report), tuple(blocks), tuple(steps), status)


def repaired_page(result: Repaired, *, verbose: bool = False) -> Page:
    """Return the page of a repair."""
    repaired = [Note(f"repaired: {printable(name)}", "ok") for name in result.repaired]
    if repaired:
        count = plural(len(repaired), "difference")
        headline = f"Repaired {count} from revision {result.revision}."
        problems = sum(finding.matters for finding in result.left)
        if problems:
            verb = "remains" if problems == 1 else "remain"
            headline += f" {plural(problems, 'problem')} {verb}."
    elif result.healthy:
        headline = f"Nothing to do: the index matches revision {result.revision}."
    else:
        headline = f"Nothing could be repaired. {_headline(result, result.left)}"
    left = tuple(_notes(result.left, verbose=verbose))
    steps = (Note("Next, start Orthanc."),) if repaired and result.healthy else ()
    return Page(headline, _where(result), (*repaired, *left), steps, _status(result.left))


def _where(result: SchemaReport | Repaired) -> tuple[str, ...]:
    schema = (f"schema {printable(result.schema)}",) if result.schema != "public" else ()
    return (str(result.endpoint), *schema, *result.endpoint.login)


def _status(findings: Sequence[Finding]) -> Status:
    if any(finding.matters for finding in findings):
        return "problem"
    return "warning" if any(finding.blocks for finding in findings) else "ok"


def _headline(result: SchemaReport | Repaired, findings: Sequence[Finding]) -> str:
    problems = sum(finding.matters for finding in findings)
    warnings = sum(finding.blocks and not finding.matters for finding in findings)
    noted = plural(warnings, "warning")
    if problems:
        more = f", {noted}" if warnings else ""
        count = plural(problems, "problem")
        return f"The index does not match revision {result.revision}: {count}{more}."
    more = f", with {noted}" if warnings else ""
    return f"The index matches revision {result.revision}{more}."


def _notes(findings: Sequence[Finding], *, verbose: bool) -> Iterator[Note]:
    """Yield a note for each finding; harmless ones are only counted, unless verbose."""
    harmless = [finding for finding in findings if not (finding.matters or finding.blocks)]
    for finding in findings:
        if finding in harmless and not verbose:
            continue
        status: Status = "problem" if finding.matters else "warning" if finding.blocks else "ok"
        advice, statement = _advice(finding.advice or "")
        details = [_sentence(finding.why)]
        if finding.matters and not finding.repair:
            details.append("This tool does not repair it.")
        details.append(_sentence(advice))
        shown = tuple(printable(detail) for detail in details if detail)
        yield Note(printable(_fact(finding)), status, shown, printable(statement))
    if harmless and not verbose:
        count = plural(len(harmless), "harmless difference")
        yield Note(f"{count} (-v lists them)", "ok")


def _fact(finding: Finding) -> str:
    if finding.found is None:
        return f"{finding.name} is missing"
    counter = re.fullmatch(r"value of counter \d+ \((.+)\)", finding.name)
    if counter and finding.wanted is not None:
        return f"the counter of {counter[1]} is {finding.found}, but the index has {finding.wanted}"
    if finding.wanted is None:
        return f"extra {finding.name}, not part of this revision"
    return f"{finding.name} is '{finding.found}' instead of '{finding.wanted}'"


def _advice(text: str) -> tuple[str, str]:
    """Return an advice, and the SQL statement that it ends with, if any."""
    advice, colon, statement = text.partition(": ")
    return (f"{advice}:", statement) if colon and text.endswith(";") else (text, "")


def _sentence(text: str) -> str:
    """Return a reason or an advice as a sentence; one that introduces a statement stays as it is."""
    end = "" if not text or text[-1] in ".;:" else "."
    return f"{text[:1].upper()}{text[1:]}{end}"
