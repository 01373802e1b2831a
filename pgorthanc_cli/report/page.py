"""The page itself: HTML and style, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from html import escape
from importlib.resources import files

from pgorthanc_cli import __version__
from pgorthanc_cli.report import picture
from pgorthanc_cli.report.gathered import OTHERS, UNREAD, Gathered, Sum

_ROWS = 40  # of a table; the rest is one row
_YEARS = 60  # more are drawn without the gaps between them
_TEXTS = (
    "Modality",
    "Folder",
    "Reason",
    "For example",
    "Patient",
    "Orthanc's identifier",
)  # columns of words


def page(gathered: Gathered, *, title: str, ending: str, facts: Mapping[str, str]) -> str:
    """The page about a run.

    Args:
        gathered: What to show.
        title: The heading.
        ending: How the run ended, in a word or a sentence.
        facts: What was imported into what, and how: names and values.
    """
    ended = gathered.started + timedelta(seconds=gathered.elapsed_s)
    body = [
        f"<header><h1>{escape(title)}</h1><p>{escape(ending)} "
        f"{gathered.started:%A, %-d %B %Y, %H:%M} to {_until(gathered)}</p></header>",
        _tiles(gathered),
        _section("Over time", _over_time(gathered)),
        _section("Modalities", _modalities(gathered)),
        _section("Years of the studies", _years(gathered)),
        _section("Folders", _folders(gathered)),
        _section("Refused files", _refusals(gathered)),
        _section("Patients", _patients(gathered)),
        _section("This run", _facts(facts)),
        f"<footer>pgorthanc {escape(__version__)}, {ended:%Y-%m-%d %H:%M %Z}. "
        + ("This page names patients." if gathered.names else "No patient is named on this page.")
        + " Sizes are decimal: 1 GB is a thousand million bytes.</footer>",
    ]
    style = files("pgorthanc_cli.views").joinpath("page.css").read_text("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def _until(gathered: Gathered) -> str:
    ended = gathered.started + timedelta(seconds=gathered.elapsed_s)
    same_day = ended.date() == gathered.started.date()
    return f"{ended:%H:%M}" if same_day else f"{ended:%A, %-d %B, %H:%M}"


def _tiles(gathered: Gathered) -> str:
    total, elapsed = gathered.total, max(gathered.elapsed_s, 0.001)
    tiles = [
        ("imported", f"{total.imported:,}", "instances new in the archive"),
        ("known", f"{total.known:,}", "instances that were there already"),
        ("refused", f"{total.refused:,}", "files that are not in the archive"),
        ("size", size(total.size_bytes), "of what was imported"),
        ("time", duration(elapsed), f"{_rate(_all(gathered) / elapsed)} files each second"),
    ]
    if gathered.patient_count:
        tiles.insert(3, ("patients", f"{gathered.patient_count:,}", "of whom there were files"))
    if gathered.differing:
        tiles.insert(2, ("differing", f"{gathered.differing:,}", "of the known, stored with other content"))
    if gathered.restored:
        tiles.insert(2, ("restored", f"{gathered.restored:,}", "of the known, missing content put back"))
    if gathered.overwritten:
        tiles.insert(1, ("overwritten", f"{gathered.overwritten:,}", "of the imported, in place of others"))
    return (
        '<section class="tiles">'
        + "".join(
            f'<div class="tile {name}{" none" if value == "0" else ""}"><b>{escape(value)}</b>'
            f"<span>{name}</span><small>{escape(words)}</small></div>"
            for name, value, words in tiles
        )
        + "</section>"
    )


def _over_time(gathered: Gathered) -> str:
    line = gathered.timeline
    if len(line.files) < 2:
        return ""
    widths = [line.width_s] * len(line.files)
    widths[-1] = max(gathered.elapsed_s - line.width_s * (len(widths) - 1), line.width_s / 2)
    rates = [n / width for n, width in zip(line.files, widths, strict=True)]
    bytes_rates = [n / width for n, width in zip(line.bytes, widths, strict=True)]
    return (
        "<h3>Files each second</h3>"
        + picture.over_time(rates, line.width_s, gathered.started, kind="files", show=_rate)
        + "<h3>Data each second</h3>"
        + picture.over_time(
            bytes_rates, line.width_s, gathered.started, kind="data", show=lambda v: size(v) if v else "0"
        )
    )


def _modalities(gathered: Gathered) -> str:
    rows = _ordered(gathered.modalities)
    return _table(
        ("Modality", "Instances", "Size"),
        ((name or "not told", each.imported, size(each.size_bytes)) for name, each in rows),
        bars=[each.imported for _, each in rows],
    )


def _years(gathered: Gathered) -> str:
    told = {int(year): each.imported for year, each in gathered.years.items() if year.isdigit()}
    if not told:
        return ""
    if max(told) - min(told) < _YEARS:
        bars = [(str(year), told.get(year, 0)) for year in range(min(told), max(told) + 1)]
    else:
        bars = [(str(year), told[year]) for year in sorted(told)]
    untold = sum(each.imported for year, each in gathered.years.items() if not year.isdigit())
    note = f"<p>{untold:,} instances do not tell the date of their study.</p>" if untold else ""
    return picture.columns(bars, kind="years", show=lambda v: f"{v:,.0f}") + note


def _folders(gathered: Gathered) -> str:
    rows = _ordered(gathered.folders)
    return _table(
        ("Folder", "Imported", "Known", "Refused", "Size"),
        ((name, each.imported, each.known, each.refused, size(each.size_bytes)) for name, each in rows),
    )


def _refusals(gathered: Gathered) -> str:
    ordered = sorted(gathered.reasons.values(), key=lambda reason: (reason.text == OTHERS, -reason.count))
    if not gathered.names:
        return _table(("Reason", "Files"), ((reason.text, reason.count) for reason in ordered))
    rows = ((reason.text, reason.count, "\n".join(reason.examples)) for reason in ordered)
    return _table(("Reason", "Files", "For example"), rows)


def _patients(gathered: Gathered) -> str:
    if not gathered.names:
        return ""
    return _table(
        ("Patient", "Orthanc's identifier", "Instances"),
        (
            (name or "without a name", public_id, n)
            for (name, public_id), n in gathered.patients.most_common()
        ),
    )


def _facts(facts: Mapping[str, str]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
        if facts
        else ""
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str | int]], *, bars: Sequence[int] | None = None
) -> str:
    """A table whose numbers stand to the right; with `bars`, each row shows its share, too."""
    written = []
    more = 0
    for n, row in enumerate(rows):
        if n >= _ROWS:
            more += 1
            continue
        cells = "".join(_cell(value) for value in row)
        if bars:
            cells += (
                f'<td class="share"><i style="width:{100 * bars[n] / max(max(bars), 1):.2f}%"></i>'
                f"{_percent(bars[n], sum(bars))}</td>"
            )
        written.append(f"<tr>{cells}</tr>")
    if not written:
        return ""
    names = "".join(f"<th{'' if name in _TEXTS else ' class=number'}>{escape(name)}</th>" for name in heads)
    rest = f"<p>and {more:,} more</p>" if more else ""
    head = f"<thead><tr>{names}{'<th></th>' if bars else ''}</tr></thead>"
    return f"<table>{head}<tbody>{''.join(written)}</tbody></table>{rest}"


def _cell(value: str | int) -> str:
    if isinstance(value, int):
        return f"<td class=number>{value:,}</td>" if value else '<td class="number none">0</td>'
    number = value[:1].isdigit() and value.endswith("B")
    return f"<td{' class=number' if number else ''}>{escape(value)}</td>"


def _ordered(rows: Mapping[str, Sum]) -> list[tuple[str, Sum]]:
    """The largest first; what stands for many at the end."""
    return sorted(
        rows.items(),
        key=lambda pair: (
            pair[0] in (OTHERS, UNREAD),
            -(pair[1].imported + pair[1].known + pair[1].refused),
            pair[0],
        ),
    )


def _all(gathered: Gathered) -> int:
    return gathered.total.imported + gathered.total.known + gathered.total.refused


def _percent(part: int, whole: int) -> str:
    share = 100 * part / max(whole, 1)
    return f"{share:.0f} %" if share >= 1 or not part else "< 1 %"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{f'{count:,.1f}'.removesuffix('.0') if count < 100 else f'{count:,.0f}'} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
