"""The page about a support bundle that was written."""

from __future__ import annotations

import shlex
from pathlib import Path

from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views.page import Note, Page, Table


def page(file: Path, names: tuple[str, ...]) -> Page:
    """Return the page about an archive and the files in it."""
    shown = printable(str(file))
    return Page(
        f"Wrote {shown} with {plural(len(names), 'file')}, without passwords and patient data.",
        ("only you can read it (mode 0600)",),
        (Table(tuple((name,) for name in names)),),
        (
            Note(
                "Next, check what is in it, and send it to support:",
                paste=f"tar -xzOf {shlex.quote(shown)} | less",
            ),
        ),
    )
