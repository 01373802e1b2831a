"""Peak memory of an import, all its processes together, does not depend on the number of files.

memory.py [--size BYTES] [--storage filesystem|postgresql] [COUNT ...]        default: 1000 20000
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from common import peak_bytes

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.server import embedded

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.ctseries import write


def peak(folder: Path, arguments: argparse.Namespace, files: int, jobs: int) -> int:
    """Return the peak of one import into a new index, in bytes."""
    source = folder / f"files-{files}"
    if not source.exists():
        write(source, files, arguments.size)
    name = f"{files}-{jobs}"
    area = ["--storage", "postgresql"]
    if arguments.storage == "filesystem":
        area = ["--storage-dir", str(folder / f"area-{name}")]
    with embedded.attach(folder / f"server-{name}") as target:
        with db.session(target) as conn:
            initialize.init(conn, schema=target.schema, require_idle=locks.require_idle, with_storage=True)
        tool = [sys.executable, "-m", "pgorthanc_cli", "import", "--uri", target.dsn, "--json", "--quiet"]
        peak_of_import, _ = peak_bytes([*tool, *area, "--jobs", str(jobs), str(source)])
    return peak_of_import


def main(arguments: argparse.Namespace) -> None:
    """Print a line for each number of files and jobs, with the ratio to the first number."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # noqa: S103 - PostgreSQL runs as another user when this runs as root
        for jobs in (1, 2, 4):
            sizes = [peak(Path(name), arguments, count, jobs) for count in arguments.counts]
            for count, size in zip(arguments.counts, sizes, strict=True):
                print(
                    f"--jobs {jobs}  {count:7} files  {size / 1e6:7.1f} MB  {size / sizes[0]:5.2f} x",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("counts", type=int, nargs="*", default=[1000, 20000], metavar="COUNT")
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--storage", choices=("filesystem", "postgresql"), default="filesystem")
    main(parser.parse_args())
