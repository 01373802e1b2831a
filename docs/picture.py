"""Draws the README's picture, a real run of the demo as a terminal shows it: picture.py OUT.svg."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pydicom.data
from rich.console import Console
from rich.text import Text

FILES = Path(pydicom.data.__path__[0]) / "test_files" / "dicomdirtests"
STEPS = (
    "init --embedded archive",
    "import --embedded archive --storage-dir storage dicomdirtests",
    "status --embedded archive",
)


def main(out: str) -> None:
    """Run the steps in a new folder and export what they print."""
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "100"}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - PostgreSQL runs as another user when this runs as root
        (Path(folder) / "dicomdirtests").symlink_to(FILES)
        for step in STEPS:
            console.print(Text.assemble(("$ ", "bold green"), f"pgorthanc {step}"))
            words = [sys.executable, "-m", "pgorthanc_cli", *step.split()]
            run = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
            console.print(Text.from_ansi(run.stdout + run.stderr))
    console.save_svg(out, title="pgorthanc")


if __name__ == "__main__":
    main(sys.argv[1])
