"""Draws the README's picture, a real run of the demo as a terminal shows it: picture.py OUT.svg."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pydicom.data
from rich.console import Console
from rich.text import Text

FILES = Path(pydicom.data.__path__[0]) / "test_files" / "dicomdirtests" / "98892003"
STEPS = (
    "init --embedded archive",
    "import --embedded archive --storage-dir storage 98892003",
    "status --embedded archive",
)


def on_terminal(command: list[str], folder: str) -> str:
    """What a command prints on a terminal, with its colours."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    screen = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the command has ended
        while block := os.read(ours, 4096):
            screen += block
    os.close(ours)
    process.wait()
    return screen.decode().replace("\r\n", "\n").rpartition("\r\x1b[2K")[2]


def main(out: str) -> None:
    """Run the steps in a new folder and export what they print."""
    console = Console(record=True, width=80, file=open(os.devnull, "w"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - PostgreSQL runs as another user when this runs as root
        (Path(folder) / FILES.name).symlink_to(FILES)
        for step in STEPS:
            console.print(Text.assemble(("$ ", "bold green"), f"pgorthanc {step}"))
            words = [sys.executable, "-m", "pgorthanc_cli", *step.split()]
            console.print(Text.from_ansi(on_terminal(words, folder)))
    picture = console.export_svg(title="pgorthanc")
    # Whoever looks at the page fetches no font from elsewhere: the terminal font of the
    # machine will do.
    Path(out).write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
