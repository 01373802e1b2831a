"""Options that `import` and `reindex` share: worker processes, and how fast files are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pgorthanc_cli import commands
from pgorthanc_cli.commands.type_options import COUNT, FILE_RATE, SIZE_RATE

_Function = TypeVar("_Function", bound=Callable[..., Any])

pace = commands.section("Pace")
jobs = pace("-j", "--jobs", type=COUNT, default=2, show_default=True, metavar="N", help="Worker processes.")
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
