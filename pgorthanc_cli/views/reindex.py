"""The page of `reindex`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pgorthanc_cli.reindex import Change, Checked, Estimate, Reindexed, Repaired
from pgorthanc_cli.text import duration, plural, printable, size
from pgorthanc_cli.views.page import Block, Facts, Note, Page, Table

LISTED = 10  # unreadable files, and studies in a command


@dataclass(frozen=True)
class Commands:
    """What to run next.

    Attributes:
        for_real: The same command that writes.
        again: The same command.
        verify: What says more about files that could not be read.
    """

    for_real: str = ""
    again: str = ""
    verify: str = ""


def expectation(estimate: Estimate) -> str:
    """Return what a run will read, and how long that takes."""
    text = f"reads {plural(estimate.files, 'file')}"
    if estimate.seconds is not None:
        text += f" ({size(estimate.bytes)}), about {duration(max(estimate.seconds, 1))}"
    return text


def page(result: Reindexed, commands: Commands, *, verbose: bool = False) -> Page:
    """Return the page of a run; `verbose` shows all changes, not those of tags only."""
    blocks: list[Block] = list(_changes(result, verbose=verbose))
    if result.unreadable:
        blocks.append(_unreadable(result, verbose=verbose))
    if result.done_before:
        blocks.append(
            Note(f"{plural(result.done_before, 'patient')} done by earlier runs, as the journal says.")
        )
    if result.housekeeper in _HOUSEKEEPER:
        blocks.append(Note(_HOUSEKEEPER[result.housekeeper]))
    status = "warning" if result.unreadable or not result.complete else "ok"
    return Page(
        _headline(result),
        _where(result),
        tuple(blocks),
        tuple(_steps(result, commands)),
        status,  # type: ignore[arg-type]
    )


def check_page(result: Checked, again: str) -> Page:
    """Return the page of a check; `again` is the command that reindexes."""
    rows = tuple(
        (each.level, f"{each.resources:,}", f"{each.other_signature:,}", f"{each.without_signature:,}")
        for each in result.levels
    )
    blocks: list[Block] = [
        Table(rows, ("level", "in the index", "other tags", "no record of tags"), (1, 2, 3))
    ]
    if result.missing:
        blocks.append(
            Facts(
                tuple((each.level, f"{each.name} missing in {each.resources:,}") for each in result.missing)
            )
        )
    if not result.outdated:
        return Page(
            "All resources have the configured tags.", (str(result.endpoint),), tuple(blocks), (), "ok"
        )
    study = next(each for each in result.levels if each.level == "study")
    outdated = study.other_signature + study.without_signature
    headline = f"{outdated:,} of {plural(study.resources, 'study', 'studies')} were stored with other tags"
    if not outdated:
        headline = f"{plural(result.outdated, 'resource')} below the studies have other tags"
    step = Note("Next, while Orthanc is running:", paste=again)
    return Page(f"{headline}.", (str(result.endpoint),), tuple(blocks), (step,), "warning")


_REPAIRS = {
    "patients": ("have the tags of their patient", "other tags of the patient than the patient itself"),
    "identifiers": ("have the search values of their tags", "search values that do not match their tags"),
}


def repaired_page(result: Repaired, again: str) -> Page:
    """Return the page of a repair; `again` is the command that repairs."""
    changed = sum(result.rows_changed.values())
    noun = plural(changed, "study", "studies") if result.repair == "patients" else plural(changed, "resource")
    resources = "All studies" if result.repair == "patients" else "All resources"
    right, wrong = _REPAIRS[result.repair]
    headline = f"{resources} {right}." if result.complete else "Nothing had to be repaired yet."
    if changed and result.dry_run:
        headline = f"Dry run, nothing was changed: {noun} {'has' if changed == 1 else 'have'} {wrong}."
    elif changed:
        headline = f"{noun} had {wrong}; repaired."
    if not result.complete:
        headline = f"Interrupted: {headline[:1].lower()}{headline[1:]}"
    shown = tuple((each.level, _change(each)) for each in result.changes)
    steps = (Note("Next, while Orthanc is running:", paste=again),)
    return Page(
        headline,
        (str(result.endpoint),),
        (Facts(shown),) if shown else (),
        steps if (changed and result.dry_run) or not result.complete else (),
        "ok" if result.complete else "warning",
    )


_HOUSEKEEPER = {
    "updated": "Orthanc's Housekeeper has nothing left to do.",
    "up-to-date": "Orthanc's Housekeeper has nothing left to do.",
    "busy": "Orthanc's Housekeeper has not finished a run of its own, and will go on with it.",
    "several": (
        "Several Orthancs have a Housekeeper here, which will do everything again: "
        "name one with DatabaseServerIdentifier in --config."
    ),
    "unknown": "Orthanc's Housekeeper has a record in a format that is not known here; it was left alone.",
}


def _headline(result: Reindexed) -> str:
    changed = sum(result.rows_changed.values())
    studies = plural(result.studies, "study", "studies")
    is_nothing = result.complete and not (result.studies or result.files_read or result.unreadable)
    if is_nothing and not result.done_before:
        nothing = "no study is selected" if result.partial else "the index has no studies"
        return f"Dry run, nothing was changed: {nothing}." if result.dry_run else f"Nothing to do: {nothing}."
    if result.dry_run:
        verb = "differs" if changed == 1 else "differ"
        text = f"{plural(changed, 'resource')} of {studies} {verb} from the stored files"
        text = f"Dry run, nothing was changed: {text if changed else f'{studies} are up to date'}"
    elif changed:
        text = f"Reindexed {studies} in {duration(result.elapsed_s)}; {plural(changed, 'resource')} changed"
    else:
        nothing = "nothing had to be changed" if result.complete else "nothing was changed yet"
        text = f"Reindexed {studies} in {duration(result.elapsed_s)}; {nothing}"
    if result.unreadable:
        text += f", {plural(len(result.unreadable), 'file')} unreadable"
    if not result.complete:
        return f"Interrupted: {text[:1].lower()}{text[1:]}."
    return f"{text}."


def _where(result: Reindexed) -> tuple[str, ...]:
    rate = result.files_read / max(result.elapsed_s, 0.001)
    files = plural(result.files_read, "file")
    if not result.complete:
        files = f"{result.files_read:,} of {plural(result.estimate.files, 'file')}"
    read = f"{files} read ({size(result.bytes_read)})"
    return str(result.endpoint), printable(result.area), read, f"{rate:,.0f}/s"


def _changes(result: Reindexed, *, verbose: bool) -> Iterator[Block]:
    """Yield the numbers of each level, then what differed."""
    rows = [(level, f"{count:,} changed") for level, count in result.rows_changed.items() if count]
    if rows and not result.dry_run:
        yield Facts(tuple(rows))
    shown = [each for each in result.changes if verbose or each.table == "maindicomtags"]
    if shown:
        yield Facts(tuple((each.level, _change(each)) for each in shown))


def _change(change: Change) -> str:
    parts = [
        f"{word} in {count:,}"
        for word, count in (
            ("missing", change.missing),
            ("different", change.different),
            ("extra", change.extra),
        )
        if count
    ]
    table = {"dicomidentifiers": " (identifier)", "attachedfiles": " (attachment)"}.get(change.table, "")
    name = change.name if change.name != "Unknown Tag & Data" else change.key
    return f"{name}{table} {', '.join(parts)}"


def _unreadable(result: Reindexed, *, verbose: bool) -> Note:
    count = len(result.unreadable)
    limit = None if verbose else LISTED
    details = [f"{each.uuid or each.instance}: {each.reason}" for each in result.unreadable[:limit]]
    if count > len(details):
        details.append(f"and {count - len(details):,} more")
    what = "what they decide keeps its rows" if count > 1 else "what it decides keeps its rows"
    return Note(f"{plural(count, 'file')} could not be read; {what}", "problem", tuple(details))


def _steps(result: Reindexed, commands: Commands) -> Iterator[Note]:
    if not result.complete:
        yield Note(
            "To go on, run the same command again; rows that are right are not written again:",
            paste=commands.again,
        )
    elif result.dry_run and any(result.rows_changed.values()):
        # What was read is known now, and not merely estimated.
        expected = expectation(replace(result.estimate, files=result.files_read, bytes=result.bytes_read))
        yield Note(f"Next, while Orthanc is running ({expected}):", paste=commands.for_real)
    if result.unreadable and commands.verify:
        yield Note("Next, find out what is wrong with the files:", paste=commands.verify)
