"""The page of `verify storage`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pgorthanc_cli.scrub import Copies, Finding, Indexed, Moved, Orphans, Repaired, StorageReport
from pgorthanc_cli.scrub.model import HARMLESS, KINDS, NORMAL, Left
from pgorthanc_cli.text import duration, plural, printable, size
from pgorthanc_cli.views import metrics
from pgorthanc_cli.views.metrics import Sample
from pgorthanc_cli.views.page import Block, Note, Page, Status, Table

LISTED = 20  # findings of a kind that are shown one by one


_MEANINGS = {
    "storage_damaged": "Attachments with a finding that the last run has not repaired",
    "storage_complete": "1 if the last run has checked everything that was due",
    "storage_oldest_check_timestamp_seconds": "When the attachment was checked whose check is longest ago",
    "storage_findings": "Findings that the last run has left, by kind",
}


@dataclass(frozen=True)
class Commands:
    """What to run next.

    Attributes:
        again: The same command.
        studies: The same command that also lists the affected studies.
        restore: The same command that moves the orphans back.
        repair: The same command without --dry-run.
        has_journal: Whether the same command goes on where this one ended.
    """

    again: str = ""
    studies: str = ""
    restore: str = ""
    repair: str = ""
    has_journal: bool = False


def page(report: StorageReport, commands: Commands, *, verbose: bool = False) -> Page:
    """Return the page of a check; `verbose` lists each finding."""
    blocks: list[Block] = list(_counts(report, verbose=verbose))
    if report.studies:
        blocks.append(Table(tuple((study,) for study in report.studies), ("affected studies",)))
    if report.repaired:
        blocks += _repaired(report.repaired)
    if report.indexed:
        blocks += _indexed(report.indexed)
    if report.quarantined:
        blocks += _moved(report.quarantined)
    blocks += _remarks(report)
    return Page(
        _headline(report), _where(report), tuple(blocks), tuple(_steps(report, commands)), _status(report)
    )


def _status(report: StorageReport) -> Status:
    if any(kind not in HARMLESS for kind in report.remaining):
        return "problem"
    restart = report.repaired and report.repaired.files and report.repaired.restart_orthanc
    if report.has_problems or not report.complete or restart:
        return "warning"
    return "ok"


def _headline(report: StorageReport) -> str:
    others = _sum(report.counts, harmless=False) - report.damaged
    damaged, orphans = report.damaged, _sum(report.counts, harmless=True)
    of = f"{report.checked:,} of {report.attachments:,}" if not report.complete else f"{report.attachments:,}"
    noun = "attachment" if report.attachments == 1 else "attachments"
    noun = f"selected {noun}" if report.partial else noun
    if damaged:
        text = _damaged(report, of, noun)
    elif report.complete and not report.attachments:
        text = (
            "Nothing to check: no attachment is selected."
            if report.partial
            else "The index has no attachments."
        )
    elif report.complete and report.checked < report.attachments:
        text = f"No damage found. {report.checked:,} of {report.attachments:,} {noun} were due for a check."
    elif report.complete and not report.without_md5:
        text = f"{'All ' if report.attachments > 1 else ''}{of} {noun} {_intact(report)}."
    else:
        text = f"No damage found in {of} {noun}."
    if others:
        text += f" {plural(others, 'other problem')}."
    if orphans:
        left = _sum(report.remaining, harmless=True)
        now = "" if left == orphans else f", {left:,} left" if left else ", none left"
        text += f" {plural(orphans, 'orphan')}{now}."
    if report.budget_used:
        return f"{text} The time is used up."
    return text if report.complete else f"Interrupted: {text[:1].lower()}{text[1:]}"


def _damaged(report: StorageReport, of: str, noun: str) -> str:
    damaged, still = report.damaged, report.damaged_still
    one, verbs = damaged == 1, ("is", "are") if still else ("was", "were")
    text = f"{damaged:,} of {report.attachments:,} {noun} {verbs[not one]} damaged"
    if not report.complete:
        text = f"{plural(damaged, 'problem')} found in {of} {noun}"
    elif report.affected_studies:
        text += f", in {plural(report.affected_studies, 'study', 'studies')}"
    if not still:
        text += f"; {'it is' if one else 'all are'} repaired"
    elif still < damaged:
        text += f"; {damaged - still:,} {'is' if damaged - still == 1 else 'are'} repaired"
    return f"{text}."


def _intact(report: StorageReport) -> str:
    verb = "is" if report.attachments == 1 else "are"
    return {
        "exists": f"{verb} in the storage area",
        "size": f"{'has' if verb == 'is' else 'have'} the right size",
    }.get(report.depth, f"{verb} intact")


def _sum(counts: Mapping[str, int], *, harmless: bool) -> int:
    return sum(
        count for kind, count in counts.items() if (kind in HARMLESS) is harmless and kind not in NORMAL
    )


def _where(report: StorageReport) -> tuple[str, ...]:
    endpoint = report.endpoint
    parts = [str(endpoint), printable(report.area), f"depth {report.depth}", duration(report.elapsed_s)]
    if report.rate_mb_per_s:
        parts.append(f"{size(report.rate_mb_per_s * 1e6)}/s")
    return tuple(parts)


def _counts(report: StorageReport, *, verbose: bool) -> Iterator[Note]:
    """Yield a finding for each kind, and how many attachments are intact."""
    for kind, count in report.counts.items():
        status: Status = "problem" if kind not in HARMLESS else "" if kind in NORMAL else "warning"
        done = ""
        if kind not in report.remaining and status:
            done = " (no longer in the area)" if kind in HARMLESS else " (repaired)"
            status = "ok"
        findings = [each for each in report.findings if each.kind == kind]
        details = [_line(each, report.area) for each in (findings if verbose else findings[:LISTED])]
        if count > len(details):
            details.append(f"and {count - len(details):,} more (-v or --json lists them)")
        yield Note(f"{count:,} {kind}: {KINDS[kind]}{done}", status, tuple(details))
    if report.counts and report.checked > report.damaged_still:
        yield Note(f"{plural(report.checked - report.damaged_still, 'attachment')} {_rest(report)}", "ok")


def _line(finding: Finding, area: str) -> str:
    """Return file (relative to the area), resource and detail of a finding."""
    path = (finding.path or finding.uuid or "").removeprefix(f"{area}/")
    parts = [printable(path)]
    if finding.public_id:
        parts.append(f"{finding.level} {finding.public_id}")
    if finding.detail != KINDS[finding.kind]:
        parts.append(printable(finding.detail))
    return " · ".join(part for part in parts if part)


def _rest(report: StorageReport) -> str:
    return {"exists": "in the storage area", "size": "of the right size"}.get(report.depth, "intact")


def _remarks(report: StorageReport) -> Iterator[Note]:
    if report.partial and report.attachments:
        yield Note("Only what --study or --since selects was checked; orphans were not looked for.")
    if report.undecided:
        yield Note(
            f"{plural(report.undecided, 'file')} without a row may still get one: a transaction is open",
            "unknown",
            ("Neither a finding nor an orphan yet; the next run decides.",),
        )
    if report.without_md5:
        yield Note(
            f"{plural(report.without_md5, 'attachment')} could be compared by size only",
            "unknown",
            ("The index has no MD5 of them: StoreMD5ForAttachments is or was false.",),
        )
    left_out = sum(report.counts.values()) - len(report.findings)
    if left_out:
        yield Note(f"{plural(left_out, 'finding')} of these are counted, but not listed.")


def moved_page(moved: Moved) -> Page:
    """Return the page of orphans that were moved back."""
    files = plural(moved.files, "file")
    headline = f"Moved {files} back." if moved.files else "Nothing to do: no file is left to be moved back."
    where = (f"from {printable(moved.folder)}", f"to {printable(moved.area)}", size(moved.bytes))
    return Page(headline, where, tuple(_left(moved)), status="warning" if moved.left else "ok")


def _moved(moved: Moved) -> Iterator[Note]:
    figures = f"{plural(moved.files, 'orphan')} ({size(moved.bytes)})"
    if moved.dry_run and moved.files:
        yield Note(f"Nothing was changed: {figures} can be moved to {printable(moved.folder)}.")
    elif moved.files:
        yield Note(f"Moved {figures} to {printable(moved.folder)}.")
    yield from _left(moved)


def _left(moved: Moved) -> Iterator[Note]:
    if moved.left:
        yield Note(f"{plural(len(moved.left), 'file')} stayed where it was:", "warning", _reasons(moved.left))


def _reasons(left: Sequence[Left]) -> tuple[str, ...]:
    details = tuple(f"{each.uuid} · {printable(each.reason)}" for each in left[:LISTED])
    if len(left) > LISTED:
        details += (f"and {len(left) - LISTED:,} more (--json lists them)",)
    return details


def copies_page(copies: Copies, plan: Repaired) -> Page:
    """Return what is to be confirmed: which attachments would be replaced by copies."""
    uuids = tuple(row.uuid for row in copies.rows[:LISTED])
    if len(copies.rows) > LISTED:
        uuids += (f"and {len(copies.rows) - LISTED:,} more",)
    damaged = plural(len(copies.rows) + len(copies.left), "damaged attachment")
    have = "has an intact copy" if plan.files == 1 else "have intact copies"
    blocks = [Note("They would be replaced by copies of the same MD5:", details=uuids)]
    return Page(
        f"{plan.files:,} of {damaged} {have}.",
        (f"from {printable(plan.folder)}", f"to {printable(plan.area)}", size(plan.bytes)),
        (*blocks, *_not_repaired(plan)),
    )


def orphans_page(orphans: Orphans, plan: Indexed) -> Page:
    """Return what is to be confirmed: which orphans would be imported."""
    uuids = tuple(f"{orphan.uuid} · instance {orphan.instance}" for orphan in orphans.files[:LISTED])
    if len(orphans.files) > LISTED:
        uuids += (f"and {len(orphans.files) - LISTED:,} more",)
    hold = "orphan holds an instance" if plan.files == 1 else "orphans hold instances"
    warning = Note(
        "They may be of instances that were deleted",
        "warning",
        ("An Orthanc that is killed while it deletes leaves files without a row.",),
    )
    return Page(
        f"{plan.files:,} {hold} that the index does not have.",
        (f"in {printable(plan.area)}", size(plan.bytes)),
        (Note("They would be imported:", details=uuids), warning, *_not_indexed(plan)),
    )


def _indexed(indexed: Indexed) -> Iterator[Note]:
    """Yield which orphans were imported, or would be."""
    figures = f"{plural(indexed.files, 'orphan')} ({size(indexed.bytes)})"
    if indexed.dry_run and indexed.files:
        yield Note(f"Nothing was changed: {figures} can be imported.")
    elif indexed.files:
        yield Note(f"Imported {figures}.", "ok")
    yield from _not_indexed(indexed)


def _not_indexed(indexed: Indexed) -> Iterator[Note]:
    if indexed.left:
        verb = "cannot be" if indexed.dry_run else "could not be"
        text = f"{plural(len(indexed.left), 'orphan')} {verb} imported:"
        yield Note(text, "warning", _reasons(indexed.left))


def _repaired(repaired: Repaired) -> Iterator[Note]:
    """Yield what was replaced by copies, or would be."""
    figures = f"{plural(repaired.files, 'attachment')} ({size(repaired.bytes)})"
    folder = printable(repaired.folder)
    if repaired.dry_run and repaired.files:
        yield Note(f"Nothing was changed: {figures} can be repaired from {folder}.")
    elif repaired.files:
        yield Note(f"Repaired {figures} from {folder}, and checked again.", "ok")
        if repaired.restart_orthanc:
            yield Note(
                "Restart Orthanc: it may have damaged content of them in its cache",
                "warning",
                ("Until then it refuses to send those files, or shows wrong tags.",),
            )
    yield from _not_repaired(repaired)


def _not_repaired(repaired: Repaired) -> Iterator[Note]:
    if repaired.left:
        verb = "cannot be" if repaired.dry_run else "could not be"
        text = f"{plural(len(repaired.left), 'attachment')} {verb} repaired from there:"
        yield Note(text, "warning", _reasons(repaired.left))


def _steps(report: StorageReport, commands: Commands) -> Iterator[Note]:
    repaired = report.repaired
    if not report.complete and commands.again:
        goes_on = commands.has_journal or report.budget_used
        yield Note("Next, continue:" if goes_on else "Next, check everything:", paste=commands.again)
    elif repaired and repaired.dry_run and repaired.files:
        yield Note("Next, repair them:", paste=commands.repair)
    elif report.indexed and report.indexed.dry_run and report.indexed.files:
        yield Note("Next, import them:", paste=commands.repair)
    elif report.quarantined and report.quarantined.dry_run and report.quarantined.files:
        yield Note("Next, move them aside:", paste=commands.repair)
    elif _is_lost(report) and report.studies is None and commands.studies:
        yield Note(
            "Next, list the affected studies, to send them again from the modality or PACS:",
            paste=commands.studies,
        )
    moved = report.quarantined
    if moved and moved.files and not moved.dry_run and commands.restore:
        yield Note("To move the orphans back:", paste=commands.restore)


def _is_lost(report: StorageReport) -> bool:
    """Return whether studies have damages that were not repaired."""
    return report.affected_studies > 0 and report.damaged_still > 0


def summary(report: StorageReport) -> str:
    """Return the line for a monitoring system: what was found, by kind, and how old the oldest check is."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.remaining.items())
    return f"{_headline(report)}{f' ({kinds})' if kinds else ''}"


def figures(report: StorageReport) -> dict[str, int]:
    """Return the figures for a monitoring system."""
    return {
        "attachments": report.attachments,
        "checked": report.checked,
        "damaged": report.damaged_still,
        "findings": sum(report.remaining.values()),
    }


def prometheus(report: StorageReport, target: str, finished_at: float) -> str:
    """Return the result for Prometheus.

    Each kind of finding has a sample, so that an alert ends when the damage is repaired.

    Args:
        report: The result.
        target: The database, named as in the metrics of `doctor`.
        finished_at: Seconds since 1970.
    """
    labels = {"target": target, "area": report.area}
    values = {
        "storage_attachments": report.attachments,
        "storage_checked": report.checked,
        "storage_checked_bytes": report.bytes,
        "storage_damaged": report.damaged_still,
        "storage_complete": int(report.complete),
        "storage_finished_timestamp_seconds": finished_at,
    }
    if report.oldest_unverified:
        values["storage_oldest_check_timestamp_seconds"] = report.oldest_unverified.timestamp()
    samples = {name: [Sample(labels, value)] for name, value in values.items()}
    samples["storage_findings"] = [Sample({**labels, "kind": k}, report.remaining.get(k, 0)) for k in KINDS]
    return metrics.text(samples, _MEANINGS)
