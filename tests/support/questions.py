"""Programs that ask a question on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from collections.abc import Sequence


def answered(program: Sequence[object], question: bytes, typed: str) -> tuple[int, str, str]:
    """Exit code, stdout, and what the terminal showed, when somebody types at the question."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            list(map(str, program)),
            stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        screen = b""
        with contextlib.suppress(OSError):  # EIO: the terminal's other end is closed
            while chunk := os.read(ours, 1000):
                is_asked = question not in screen
                screen += chunk
                if is_asked and question in screen:
                    os.write(ours, typed.encode())
        assert process.stdout
        with process.stdout:
            answer = process.stdout.read()
        return process.wait(timeout=20), answer, screen.decode()
    finally:
        os.close(ours)
