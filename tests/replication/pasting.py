"""What a page or a refusal prints, taken out of it and executed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgorthanc_cli.errors import PgOrthancError
from tests.replication.site import Site

SUPERUSER = {"PGPASSWORD": "of:postgres"}


def paste(line: str, folder: Path | None = None, **environment: str) -> str:
    """Run a line in a shell that knows `pgorthanc`; what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", line], cwd=folder, env={**os.environ, "PATH": path, **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def lines(text: str, start: str = "pgorthanc ") -> list[str]:
    """The lines that stand alone, to be pasted."""
    return re.findall(rf"^ {{4,}}({start}.*)$", text, re.MULTILINE)


def hint(error: pytest.ExceptionInfo[PgOrthancError]) -> str:
    return str(error.value.hint)


def with_password(site: Site) -> None:
    """The superuser can log in by TCP, as an administrator on another machine."""
    site.primary.sql("ALTER ROLE postgres PASSWORD 'of:postgres'")
