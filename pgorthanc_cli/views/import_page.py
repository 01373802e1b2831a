"""The page about an import: what came in, from where, how fast, and what was refused.

Patients, files, and folders below the ones that the user named are on it only if `names`
is set: paths, too, often contain the names of patients.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from pgorthanc_cli import __version__, db, files
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.files import PRIVATE
from pgorthanc_cli.index import Overwrite
from pgorthanc_cli.ingest import Batch, ImportPlan, Settings
from pgorthanc_cli.text import duration, printable, size
from pgorthanc_cli.views import charts, html
from pgorthanc_cli.views.html import Markup, escape
from pgorthanc_cli.views.import_statistics import OTHERS, UNREAD, ImportStatistics, Row

# People read the page while the import runs.
RENEW_S = 60.0
_MAX_TABLE_ROWS = 40
_MAX_YEARS = 60  # more are drawn without the gaps between them


class ImportPage:
    """The page of an import, written to a file now and then, and at the end."""

    def __init__(
        self,
        path: Path,
        roots: Iterable[str],
        facts: Mapping[str, str],
        *,
        names: bool,
        renew_s: float = RENEW_S,
    ) -> None:
        """Check that the file can be written, and start the clock.

        Raises:
            UsageError: The file cannot be written.
        """
        self.path = path
        self.facts = facts
        self.statistics = ImportStatistics(roots, names=names)
        self._mode = _create(path, private=names)
        self._renew_s = renew_s
        self._written = time.monotonic()

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.statistics.add(batch)
        if time.monotonic() - self._written > self._renew_s:
            self.write("At work.")
            self._written = time.monotonic()

    def write(self, ending: str) -> None:
        """Replace the file; `ending` says how the import ended.

        Raises:
            PgOrthancError: The file cannot be written any more.
        """
        content = page(self.statistics, title="Import into Orthanc", ending=ending, facts=self.facts)
        files.replace(self.path, content, mode=self._mode)


@contextmanager
def page_writer(
    path: Path | None,
    roots: Iterable[str],
    facts: Mapping[str, str],
    interrupted: Callable[[], bool],
    *,
    names: bool,
) -> Iterator[Callable[[Batch], None]]:
    """Yield a function that takes batches; write the page however the block ends."""
    if path is None:
        yield lambda batch: None
        return
    page_file = ImportPage(path, roots, facts, names=names)
    ending = "Ended by an unexpected error."
    try:
        yield page_file.add
        ending = "Interrupted, and to be run again." if interrupted() else "Complete."
    except PgOrthancError as error:
        ending = f"Ended by an error: {error.message}."
        raise
    finally:
        page_file.write(ending)


def _create(path: Path, *, private: bool) -> int:
    """Create the file before the work; return its mode, private if it has names."""
    # The umask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    mode = PRIVATE if private else 0o666 & ~mask
    # Not truncated: if the import cannot start, an earlier page stays.
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, mode))
    except OSError as error:
        raise _unwritable("report", path, "--html", error) from None
    return mode


def _unwritable(what: str, path: Path, option: str, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write the {what} to {printable(str(path))}: {error.strerror or error}",
        f"name another file with {option}",
    )


@contextmanager
def refusal_list(path: Path | None) -> Iterator[Callable[[Batch], None]]:
    """Yield a function that lists the refused files of batches: path, tab, reason.

    Each batch is written when it is reported. Paths and reasons are escaped as by
    `text.printable`, and only the owner can read the file.
    """
    if path is None:
        yield lambda batch: None
        return
    with _open_private(path) as stream:

        def add(batch: Batch) -> None:
            lines = [f"{printable(r.path)}\t{printable(r.reason)}\n" for r in batch.refusals]
            try:
                stream.writelines(lines)
                stream.flush()
            except OSError as error:
                raise _unwritable("list of refused files", path, "--refused", error) from None

        yield add


@contextmanager
def _open_private(path: Path) -> Iterator[TextIO]:
    """Open a file that only its owner can read, emptied; or a device, a pipe, stdout."""
    if str(path) == "-":
        yield sys.stdout
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, PRIVATE)
            os.ftruncate(descriptor, 0)
    except OSError as error:
        raise _unwritable("list of refused files", path, "--refused", error) from None
    with open(descriptor, "w", encoding="utf-8") as stream:
        yield stream


# --- content ----------------------------------------------------------------------------


def facts(
    target: db.Target, plan: ImportPlan, settings: Settings, schedule: str | None = None
) -> dict[str, str]:
    """Return what the page says about how the import was done.

    Args:
        target: The database.
        plan: Which files, and when.
        settings: How they were imported.
        schedule: The hours, as the user gave them.
    """
    storage = "large objects of the database"
    if settings.adopt:
        storage = "their own folders (adopted" + (", owned by Orthanc)" if settings.adopt.owned else ")")
    elif settings.storage_dir:
        storage = str(settings.storage_dir.absolute())
    overwrite = {
        Overwrite.NEVER: "stays",
        Overwrite.ALWAYS: "is replaced",
        Overwrite.IF_CHANGED: "is replaced if changed",
    }[settings.overwrite]
    version = ".".join(map(str, settings.profile.orthanc_version))
    rates = []
    if plan.limits.max_files_per_s:
        rates.append(f"{plan.limits.max_files_per_s:g} files/s")
    if plan.limits.max_bytes_per_s:
        rates.append(f"{size(plan.limits.max_bytes_per_s)}/s")
    values = {
        "database": str(target),
        "files in": storage,
        "rows as written by": f"Orthanc {version}",
        "what is stored already": overwrite,
        "mode": "a rehearsal: nothing was written" if settings.dry_run else "",
        "beside others": "yes" if settings.concurrent else "",
        "shard": f"{plan.shard.number}/{plan.shard.count}" if plan.shard else "",
        "dask": plan.scheduler or "",
        "schedule": schedule or "",
        "at most": " and ".join(rates),
    }
    return {name: value for name, value in values.items() if value}


def page(statistics: ImportStatistics, *, title: str, ending: str, facts: Mapping[str, str]) -> str:
    """Return the page about an import.

    Args:
        statistics: What to show.
        title: The heading.
        ending: How the import ended, in a word or a sentence.
        facts: What was imported into what, and how: names and values.
    """
    started = statistics.started
    ended = started + timedelta(seconds=statistics.elapsed_s)
    same_day = ended.date() == started.date()
    until = f"{ended:%H:%M}" if same_day else f"{ended:%A, %-d %B, %H:%M}"
    named = "This page names patients." if statistics.names else "No patient is named on this page."
    body = [
        f"<header><h1>{escape(title)}</h1><p>{escape(ending)} "
        f"{started:%A, %-d %B %Y, %H:%M} to {until}</p></header>",
        _tiles(statistics),
        html.section("Over time", _over_time(statistics)),
        html.section("Modalities", _modalities(statistics)),
        html.section("Years of the studies", _years(statistics)),
        html.section("Folders", _folders(statistics)),
        html.section("Refused files", _refusals(statistics)),
        html.section("Patients", _patients(statistics)),
        html.section("This run", html.definitions(facts.items())),
        f"<footer>pgorthanc {escape(__version__)}, {ended:%Y-%m-%d %H:%M %Z}. {named}"
        " Sizes are decimal: 1 GB is a thousand million bytes.</footer>",
    ]
    return "".join(html.document(title, (part for part in body if part)))


def _tiles(statistics: ImportStatistics) -> str:
    total, elapsed_s = statistics.total, max(statistics.elapsed_s, 0.001)
    rate = _rate((total.imported + total.known + total.refused) / elapsed_s)
    tiles = [
        ("imported", f"{total.imported:,}", "instances new in the archive"),
        ("known", f"{total.known:,}", "instances that were there already"),
        ("refused", f"{total.refused:,}", "files that are not in the archive"),
        ("size", size(total.size_bytes), "of what was imported"),
        ("time", duration(elapsed_s), f"{rate} files each second"),
    ]
    for position, name, count, text in (
        (3, "patients", statistics.patient_count, "of whom there were files"),
        (2, "differing", statistics.differing, "of the known, stored with other content"),
        (2, "restored", statistics.restored, "of the known, missing content put back"),
        (1, "overwritten", statistics.overwritten, "of the imported, in place of others"),
    ):
        if count:
            tiles.insert(position, (name, f"{count:,}", text))
    boxes = [
        f'<div class="tile {name}{" none" if value == "0" else ""}">'
        f"<b>{escape(value)}</b><span>{name}</span><small>{escape(text)}</small></div>"
        for name, value, text in tiles
    ]
    return f'<section class="tiles">{"".join(boxes)}</section>'


def _over_time(statistics: ImportStatistics) -> str:
    timeline = statistics.timeline
    if len(timeline.files) < 2:
        return ""
    widths = [timeline.width_s] * len(timeline.files)
    # The last span is not over yet.
    last_s = statistics.elapsed_s - timeline.width_s * (len(widths) - 1)
    widths[-1] = max(last_s, timeline.width_s / 2)
    file_rates = [n / width for n, width in zip(timeline.files, widths, strict=True)]
    byte_rates = [n / width for n, width in zip(timeline.bytes, widths, strict=True)]
    width_s, started = timeline.width_s, statistics.started
    file_curve = charts.over_time(file_rates, width_s, started, kind="files", label=_rate)
    byte_curve = charts.over_time(
        byte_rates, width_s, started, kind="data", label=lambda v: size(v) if v else "0"
    )
    return f"<h3>Files each second</h3>{file_curve}<h3>Data each second</h3>{byte_curve}"


def _modalities(statistics: ImportStatistics) -> str:
    rows = _largest_first(statistics.modalities)
    counts = [row.imported for _, row in rows]
    return _table(
        ("Modality", "Instances", "Size", ""),
        [
            (
                name or "not specified",
                row.imported,
                size(row.size_bytes),
                _share(row.imported, counts),
            )
            for name, row in rows
        ],
        classes=("", "number", "number", "share"),
    )


def _share(count: int, counts: Sequence[int]) -> Markup:
    """Return a bar as long as the share of a row, and the percentage."""
    width = 100 * count / max(max(counts), 1)
    percent = 100 * count / max(sum(counts), 1)
    text = f"{percent:.0f} %" if percent >= 1 or not count else "< 1 %"
    return Markup(f'<i style="width:{width:.2f}%"></i>{escape(text)}')


def _years(statistics: ImportStatistics) -> str:
    imported = {}
    without_date = 0
    for year, row in statistics.years.items():
        if year.isdigit():
            imported[int(year)] = row.imported
        else:
            without_date += row.imported
    if not imported:
        return ""
    first, last = min(imported), max(imported)
    years: Iterable[int] = range(first, last + 1)
    if last - first >= _MAX_YEARS:
        years = sorted(imported)
    bars = [(str(year), imported.get(year, 0)) for year in years]
    chart = charts.columns(bars, kind="years", label=lambda v: f"{v:,.0f}")
    if not without_date:
        return chart
    return f"{chart}<p>{without_date:,} instances do not tell the date of their study.</p>"


def _folders(statistics: ImportStatistics) -> str:
    return _table(
        ("Folder", "Imported", "Known", "Refused", "Size"),
        [
            (name, row.imported, row.known, row.refused, size(row.size_bytes))
            for name, row in _largest_first(statistics.folders)
        ],
        classes=("", "number", "number", "number", "number"),
    )


def _refusals(statistics: ImportStatistics) -> str:
    reasons = list(statistics.reasons)
    head, classes = ("Reason", "Files"), ("", "number")
    if not statistics.names:
        return _table(head, [(r.text, r.count) for r in reasons], classes=classes)
    rows = [(r.text, r.count, "\n".join(map(printable, r.examples))) for r in reasons]
    return _table((*head, "For example"), rows, classes=classes)


def _patients(statistics: ImportStatistics) -> str:
    if not statistics.names:
        return ""
    return _table(
        ("Patient", "Orthanc's identifier", "Instances"),
        [
            (name or "without a name", public_id, count)
            for (name, public_id), count in statistics.patients.most_common()
        ],
        classes=("", "", "number"),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], *, classes: Sequence[str]) -> str:
    """Return a table of the first rows, and how many more there are."""
    table = "".join(html.table(head, rows[:_MAX_TABLE_ROWS], classes=classes))
    more = len(rows) - _MAX_TABLE_ROWS
    return f"{table}<p>and {more:,} more</p>" if more > 0 else table


def _largest_first(rows: Mapping[str, Row]) -> list[tuple[str, Row]]:
    """Sort rows by their files; those that stand for many come last."""

    def order(item: tuple[str, Row]) -> tuple[bool, int, str]:
        name, row = item
        return name in (OTHERS, UNREAD), -(row.imported + row.known + row.refused), name

    return sorted(rows.items(), key=order)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"
