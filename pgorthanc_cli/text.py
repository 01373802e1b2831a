"""Text for people: what comes from outside made harmless, and figures with their units."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

# Controls, formats (bidirectional overrides, zero-width characters, the byte order mark), lone surrogates and the
# separators of lines and paragraphs: Unicode's categories Cc, Cf, Cs, Zl, Zp.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""Return a text on one line, with control and invisible characters as escape sequences.

    Bytes of a file name that are not UTF-8 (Python's surrogateescape) become ``\xNN``; backslashes are doubled, so
    that two different texts never look the same.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_printable, text))


def shortened(items: Iterable[object], limit: int, separator: str = "; ") -> str:
    """Return the first items as one text, and how many more there are: `a; b; and 3 more`, `a, b and 3 more`."""
    texts = [str(item) for item in items]
    more = len(texts) - limit
    if more <= 0:
        return separator.join(texts)
    last = "; and" if separator == "; " else " and"
    return f"{separator.join(texts[:limit])}{last} {more:,} more"


def printable_lines(text: str) -> str:
    """Return a text as `printable` does, but keep line breaks and backslashes.

    The last line of defence before output; text from outside should be escaped where it is formatted.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\\" else _printable(c) for c in text)


def _printable(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if unicodedata.category(character) not in _HIDDEN:
        return character
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# --- figures ----------------------------------------------------------------------------


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun: `1 study`, `1,204 studies` (`nouns` unless it ends in s)."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {nouns or noun + 's'}"


def size(count: float) -> str:
    """Return a number of bytes with its unit, in powers of 1000: `39.9 kB`, `120 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    digits = f"{count:,.1f}".removesuffix(".0") if count < 100 else f"{count:,.0f}"
    return f"{digits} {unit}"


def duration(seconds: float) -> str:
    """Return a time as `2.4 s`, `26 s`, `3 min 20 s`, `2 h 5 min` or `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def moment(time: datetime, now: datetime) -> str:
    """Return `22:10` of today, else `2026-11-25 22:10 +01:00`; both times have a time zone."""
    local = time.astimezone(now.tzinfo)
    if local.date() == now.date():
        return f"{local:%H:%M}"
    shown = local.isoformat(" ", "minutes")
    return f"{shown[:16]} {shown[16:]}"


def moment_with_offset(time: datetime) -> str:
    """Return `22:10 +01:00` of today, else `2026-11-25 22:10 +01:00`, for messages that are kept."""
    shown = moment(time, datetime.now(time.tzinfo))
    offset = time.isoformat(timespec="minutes")[16:]
    return shown if shown.endswith(offset) else f"{shown} {offset}"


def age(time: datetime, now: datetime) -> str:
    """Return `2 min ago (22:10)`; for a clock that is ahead, only the time."""
    seconds = (now - time).total_seconds()
    shown = moment(time, now)
    return f"{duration(seconds)} ago ({shown})" if seconds >= 0 else shown


def percent(done: float, total: float) -> str:
    """Return `20%`; never more than 100, as files may arrive after they were counted."""
    return f"{min(100 * done // max(total, 1), 100):.0f}%"


def progress_line(
    label: str,
    done: float,
    total: float | None,
    elapsed_s: float,
    *,
    show: Callable[[float], str] = "{:,.0f}".format,
    remarks: Sequence[str] = (),
) -> str:
    """Return how far long work is: `copying  1.2 GB of 4 GB (30%) · 120 MB/s · 10 s`.

    Args:
        label: What is being done.
        done: Units that are done.
        total: Units altogether; None if that is unknown.
        elapsed_s: Seconds since the beginning.
        show: Writes a number of units.
        remarks: What else there is to say.
    """
    rate = done / max(elapsed_s, 0.001)
    amount = show(done) if total is None else f"{show(done)} of {show(total)} ({percent(done, total)})"
    parts = [amount, *remarks, f"{show(rate)}/s", duration(elapsed_s)]
    if total is not None and 0 < done < total:
        parts.append(f"about {duration((total - done) / rate)} left")
    return f"  {label}  {' · '.join(parts)}"
