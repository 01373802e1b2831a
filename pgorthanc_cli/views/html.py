"""HTML pages that stand alone: the style is inside, there are no scripts and nothing is loaded.

Pages come in pieces, as a report may list millions of findings. Every text is escaped
unless it is `Markup`.
"""

from __future__ import annotations

import html
import pkgutil
from collections.abc import Iterable, Iterator, Sequence

# What is not `Markup` is text of patients, servers and file names. The policy is a second
# line of defence: a browser runs and loads nothing even if something was not escaped.
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style></head>
<body><main>
"""


class Markup(str):
    """HTML whose texts are escaped already."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Return a value as HTML: `Markup` as it is, integers with thousands separators."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(f"{value:,}" if isinstance(value, int) else str(value)))


def document(title: str, body: Iterable[str]) -> Iterator[str]:
    """Yield a whole page. `body` is HTML: its texts must have gone through `escape`."""
    style = (pkgutil.get_data("pgorthanc_cli.views", "page.css") or b"").decode()
    yield _HEAD.format(title=escape(title), style=style)
    for piece in body:
        yield f"{piece}\n"
    yield "</main></body></html>\n"


def section(title: str, content: str) -> Markup:
    """Return a part of a page under its heading; nothing if it has no content."""
    return Markup(f"<section><h2>{escape(title)}</h2>{content}</section>" if content else "")


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, classes: Sequence[str] = ()
) -> Iterator[Markup]:
    """Yield a table row by row; nothing if it has no rows.

    Args:
        head: Titles of the columns; empty for a table without a head.
        rows: The cells: text, numbers or `Markup`.
        classes: CSS class of each column. Numbers are aligned without one.
    """
    empty = True
    for row in rows:
        if empty:
            yield Markup("<table>")
            if head:
                yield _row("th", head, classes)
            empty = False
        yield _row("td", row, classes)
    if not empty:
        yield Markup("</table>")


def _row(tag: str, cells: Sequence[object], classes: Sequence[str]) -> Markup:
    written = []
    for number, cell in enumerate(cells):
        css_class = classes[number] if number < len(classes) else ""
        if isinstance(cell, int):
            css_class = "number" if cell else "number none"
        attribute = f' class="{css_class}"' if css_class else ""
        written.append(f"<{tag}{attribute}>{escape(cell)}</{tag}>")
    return Markup(f"<tr>{''.join(written)}</tr>\n")


def definitions(facts: Iterable[tuple[object, object]]) -> Markup:
    """Return names and their values as a list of definitions; nothing without any."""
    entries = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    return Markup(f"<dl>{entries}</dl>" if entries else "")
