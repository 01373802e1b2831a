"""The page at the end of an import: what became of the files, and what to do about refused ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgorthanc_cli.ingest import ImportResult
from pgorthanc_cli.text import duration, plural, printable, shortened, size
from pgorthanc_cli.views.page import Block, Note, Page, Status, Table

LISTED_ONE_BY_ONE = 10  # refused files; more of them are grouped by reason
_REASONS = 10
_PATHS = 2


@dataclass(frozen=True)
class Commands:
    """What to paste: the command of this call, changed; empty if it cannot be repeated.

    Attributes:
        again: The same command.
        for_real: Without --dry-run.
        list_refused: With a file for the refused ones; empty if there is one already.
        overwrite: Replacing the instances that differ.
    """

    again: str = ""
    for_real: str = ""
    list_refused: str = ""
    overwrite: str = ""


def page(
    result: ImportResult,
    paths: Sequence[str],
    commands: Commands,
    *,
    follow: bool = False,
    refused_in: str = "",
    total: int | None = None,
    failed: bool = False,
    adopt: bool = False,
) -> Page:
    """Return the page.

    Args:
        result: The totals.
        paths: What was to be imported.
        commands: The suggested commands.
        follow: The import followed folders: a stop is its normal end.
        refused_in: The file that lists the refused files.
        total: Files to import, if they were counted.
        failed: It was interrupted by an error, which is shown below the page.
        adopt: The files were adopted where they lie.
    """
    done = "adopted" if adopt else "imported"
    blocks: list[Block] = [*_counts(result, done), *_findings(result, commands)]
    if result.refused:
        blocks += _refusals(result, refused_in)
    if result.interrupted and result.stored and not result.dry_run:
        blocks.append(Note(f"The {done} files are complete, and Orthanc can use them."))
    bad = result.refused or result.interrupted or result.differing or result.restored
    status: Status = "warning" if bad else "ok"
    where = tuple(_where(result, paths, follow=follow))
    steps = tuple(_steps(result, commands, follow=follow))
    headline = _headline(result, done, follow=follow)
    if result.interrupted and not result.dry_run:
        headline = _interrupted(result, total, done, failed=failed)
    return Page(headline, where, tuple(blocks), steps, status)


def _interrupted(result: ImportResult, total: int | None, done: str, *, failed: bool) -> str:
    imported = _were(result.stored)
    if total and total > result.stored:
        imported = f"{result.stored:,} of {total:,} files were"
    refused = f"; {_were(result.refused)} refused" if result.refused else ""
    by = " by the error below" if failed else ""
    return f"Interrupted{by}: {imported} {done} in {duration(result.elapsed_s)}{refused}."


def _headline(result: ImportResult, done: str, *, follow: bool) -> str:
    stored, files = result.stored, plural(result.files, "file")
    refused = f"; {_were(result.refused)} refused" if result.refused else ""
    took = duration(result.elapsed_s)
    if result.dry_run:
        what = "Interrupted dry run" if result.interrupted else "Dry run"
        refused = f"; {plural(result.refused, 'file')} would be refused" if result.refused else ""
        return f"{what}, nothing was {done}: {stored:,} of {files} could be {done}{refused}."
    if follow:
        return f"Stopped after {took}: {_were(stored)} {done}{refused}."
    if not result.files:
        return "Nothing to do: there are no files to import."
    if stored:
        of = f" of {result.files:,}" if stored < result.files else ""
        noun = "file" if max(stored, result.files) == 1 else "files"
        return f"{done.capitalize()} {stored:,}{of} {noun} in {took}{refused}."
    if result.refused:
        known = plural(result.known, "file is", "files are")
        already = f"{known} already stored; " if result.known else ""
        return f"Nothing was {done}: {already}{_were(result.refused)} refused."
    if result.known == 1:
        return "Nothing to do: the file is already stored."
    return f"Nothing to do: all {result.known:,} files are already stored."


def _were(count: int) -> str:
    return plural(count, "file was", "files were")


def _where(result: ImportResult, paths: Sequence[str], *, follow: bool) -> Iterator[str]:
    if result.endpoint:
        yield str(result.endpoint)
    yield shortened(map(printable, paths), _PATHS, ", ") or "a list of files"
    # An import that follows folders mostly waits: a rate would say nothing.
    if result.bytes and not follow:
        yield f"{size(result.bytes)}, {result.instances_per_s:,.0f} files/s"


def _counts(result: ImportResult, done: str) -> Iterator[Table]:
    """Yield what became of the files: the counts add up to the files that were read."""
    would = "would be " if result.dry_run else ""
    counts = (
        (result.imported, f"{would}{done}"),
        (
            result.overwritten,
            f"{would}{done} in place of the stored instance (--overwrite or OverwriteInstances)",
        ),
        (result.restored, f"stored already, but without content: {would}put back"),
        (result.known, "skipped, already stored"),
        (result.refused, f"{would}refused"),
    )
    rows = tuple((f"{count:,}", text) for count, text in counts if count)
    if len(rows) > 1 or (rows and not result.imported and not result.known):
        yield Table(rows, numbers=(0,))


def _findings(result: ImportResult, commands: Commands) -> Iterator[Note]:
    if result.differing:
        count = plural(result.differing, "skipped file differs", "skipped files differ")
        yield Note(
            f"{count} from the stored instances, such as {result.differences[0]}",
            "warning",
            ("The stored instances stay as they are. To replace them by these files:",),
            commands.overwrite,
        )
    if result.restored:
        count = plural(result.restored, "instance was", "instances were")
        back = "would be put back" if result.dry_run else "were put back"
        yield Note(
            f"{count} missing in the storage area; the contents {back}",
            "warning",
            (
                "If Orthanc could read these instances before, it uses another storage area: "
                "compare --storage and --storage-dir with its configuration.",
            ),
        )
    if result.uncompared:
        count = plural(result.uncompared, "skipped file", "skipped files")
        yield Note(
            f"{count} could be compared with the stored instances by size only",
            "unknown",
            ("The index has no MD5 of what is stored: StoreMD5ForAttachments is or was false.",),
        )


def _refusals(result: ImportResult, refused_in: str) -> Iterator[Note]:
    """Yield the refused files, or how many there are for each reason."""
    if result.refused <= LISTED_ONE_BY_ONE:
        for refusal in result.refusals:
            yield Note(f"refused: {printable(refusal.path)}: {printable(refusal.reason)}", "warning")
    else:
        for reason in result.reasons[:_REASONS]:
            count = plural(reason.files, "file")
            yield Note(f"{count} refused: {printable(reason.reason)}", "warning")
        more = sum(reason.files for reason in result.reasons[_REASONS:])
        if more:
            yield Note(f"{plural(more, 'file')} refused for other reasons", "warning")
    if refused_in:
        yield Note(f"Each refused file is listed, with its reason, in {printable(refused_in)}.")


def _steps(result: ImportResult, commands: Commands, *, follow: bool) -> Iterator[Note]:
    if (result.interrupted or follow) and commands.again:
        skipped = "" if result.dry_run else " (files already stored are skipped)"
        yield Note(f"Next, continue{skipped}:", paste=commands.again)
        return
    if result.interrupted:
        yield Note("Next, run the same command again with the same list of files.")
        return
    if result.refused > LISTED_ONE_BY_ONE and commands.list_refused:
        yield Note("Next, list the refused files, with the reason for each:", paste=commands.list_refused)
    if result.dry_run and result.stored and commands.for_real:
        yield Note("Next, import them:", paste=commands.for_real)
