"""Options of commands that read many files: worker processes, and how fast they read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands.type_options import COUNT, FILE_RATE, SIZE_RATE

_Function = TypeVar("_Function", bound=Callable[..., Any])

pace = commands.section("Pace")


def _cores() -> int:
    """Return how many cores this process may use; 8 if there are more, as one disk serves no more."""
    # Linux only; a container may be allowed fewer than the machine has.
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(len(allowed), 8)


def _jobs(option: Callable[..., Callable[[_Function], _Function]]) -> Callable[[_Function], _Function]:
    return option(
        "-j",
        "--jobs",
        type=COUNT,
        default=_cores,
        show_default="number of cores, at most 8",
        metavar="N",
        help="Worker processes.",
    )


jobs, paced_jobs = _jobs(click.option), _jobs(pace)
_MAX_FILES = pace(
    "--max-files",
    "max_files_per_s",
    aliases=["--max-files-per-s"],
    type=FILE_RATE,
    metavar="N/s",
    help="Read no more files each second, such as 500/s.",
)
_MAX_RATE = pace(
    "--max-rate",
    "max_bytes_per_s",
    type=SIZE_RATE,
    metavar="SIZE/s",
    help="Read no more bytes each second, such as 50MB/s.",
)
_SCHEDULE = pace(
    "--schedule", metavar="JSON", help="Work at these hours of the week only: JSON, or a file of it."
)


def limits(function: _Function) -> _Function:
    """Add --max-files, --max-rate and --schedule."""
    limited: _Function = _MAX_FILES(_MAX_RATE(_SCHEDULE(function)))
    return limited
