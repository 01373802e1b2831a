"""`python -m pgorthanc_cli` is `pgorthanc`; little is imported before Ctrl-C is answered properly."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from types import TracebackType


def run() -> None:
    """Run the command line of this process."""
    sys.excepthook = _print_exception
    # Modules stay loaded: to look for garbage after every 700 new objects takes a tenth of the start.
    gc.set_threshold(50_000)
    try:
        from pgorthanc_cli.cli import main

        main(prog_name="pgorthanc")
    except KeyboardInterrupt:
        # While modules were imported, or a second time while the first was answered.
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        sys.exit(130)


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception that nothing has caught.

    If the server ends a session during COPY, psycopg2 prints a SystemError from its own code before it
    raises the error, which is shown.
    """
    if not (kind is SystemError and trace is None):
        sys.__excepthook__(kind, error, trace)


if __name__ == "__main__":
    run()
