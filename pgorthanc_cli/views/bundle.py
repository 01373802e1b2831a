"""The page about a support bundle that was written."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from pgorthanc_cli.doctor import Bundle
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views.page import Note, Page, Table

# File -> the command that shows the same without a limit.
_COMMANDS = {
    "status.json": ("status",),
    "verify.json": ("verify", "schema"),
    "locks.json": ("check-lock",),
    "storage.json": ("storage", "show"),
}


def page(written: Bundle, command_line: Callable[..., str]) -> Page:
    """Return the page about an archive and the files in it.

    Args:
        written: The archive.
        command_line: Completes a command with the connection options.
    """
    shown = printable(str(written.file))
    cut = [
        Note(
            f"{name} was cut: the server took too long."
            + (" To add it, send the output of:" if name in _COMMANDS else ""),
            paste=command_line(*_COMMANDS[name], "--json") if name in _COMMANDS else "",
        )
        for name in written.cut
    ]
    return Page(
        f"Wrote {shown} with {plural(len(written.holds), 'file')}, without passwords and patient data.",
        ("only you can read it (mode 0600)",),
        (Table(tuple((name,) for name in written.holds)),),
        (
            *cut,
            Note(
                "Next, check what is in it, and send it to support:",
                paste=f"tar -xzOf {shlex.quote(shown)} | less",
            ),
        ),
    )
