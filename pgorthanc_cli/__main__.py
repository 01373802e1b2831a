"""`python -m pgorthanc_cli` is `pgorthanc`; little is imported before Ctrl-C is answered properly."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def run() -> None:
    """Run the command line of this process."""
    try:
        from pgorthanc_cli.cli import main

        main(prog_name="pgorthanc")
    except KeyboardInterrupt:  # while modules were imported, or a second time while the first was answered
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    run()
