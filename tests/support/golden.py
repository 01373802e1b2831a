"""Pages as they look on each medium, compared with files.

After a change of the design, renew the files and read the differences:

    PGORTHANC_RENEW_GOLDEN=1 .venv/bin/python -m pytest tests/views tests/orthanc_log
    git diff
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pgorthanc_cli import render
from pgorthanc_cli.render import Medium
from pgorthanc_cli.views.page import Page

# Of a view: its words and their layout. Colours and marks are those of all pages.
LAYOUTS = {
    "80 columns": Medium(80, symbols=True),
    "60 columns": Medium(60, symbols=True),
    "plain": Medium(),
}


def compare(path: Path, actual: str) -> None:
    """Compare with a golden file, or write it."""
    if os.environ.get("PGORTHANC_RENEW_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(actual, encoding="utf-8")
    assert actual == path.read_text("utf-8"), f"see tests/support/golden.py for how to renew {path.name}"


def texts(page: Page, media: Mapping[str, Medium]) -> str:
    """The page on media that show text; escape characters are made visible."""
    shown = (f"=== {name}\n{render.text(page, medium)}" for name, medium in media.items())
    return "\n".join(shown).replace("\x1b", "␛")


def body(page: Page) -> str:
    """The page as HTML, without the style sheet."""
    return render.html(page).partition("</style></head>\n")[2]


def check_view(folder: Path, state: str, page: Page) -> None:
    """Compare the page of a view, in one state that a person can meet, with `folder/STATE.txt` and `.html`."""
    compare(folder / f"{state}.txt", texts(page, LAYOUTS))
    compare(folder / f"{state}.html", body(page))
