"""Peak memory of an import does not depend on the number of files: memory.py [COUNT ...]."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pgorthanc_cli import db, embedded, revision

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import samples

PER_FOLDER = 1000  # the names of one folder are held while it is walked

# Runs a command and tells the largest resident set of it and of its workers, in kB (ru_maxrss on Linux).
WATCH = """
import json, os, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(json.dumps([code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def peak(folder: Path, files: int, jobs: int) -> int:
    """Peak resident set of one import into a new index, in kB; the largest of its processes."""
    source = folder / f"files-{files}"
    if not source.exists():
        for number in range(files // PER_FOLDER):
            samples.folder(source / str(number), PER_FOLDER, 20, 100, first=number * PER_FOLDER)
    with embedded.attach(folder / f"server-{files}-{jobs}") as target:
        with db.session(target) as conn:
            revision.init(conn, schema=target.schema)
        tool = [sys.executable, "-m", "pgorthanc_cli", "import", "--uri", target.dsn, "--json"]
        area = ["--storage-dir", str(folder / f"area-{files}-{jobs}"), "--jobs", str(jobs), str(source)]
        run = subprocess.run(
            [sys.executable, "-c", WATCH, *tool, *area], capture_output=True, text=True, check=True
        )
    code, size = json.loads(run.stdout)
    if code:
        raise SystemExit(f"import ended with {code}: {run.stderr}")
    return int(size)


def main(counts: list[int]) -> None:
    """One line for each number of files and jobs, with the ratio to the first number."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # noqa: S103 - PostgreSQL runs as another user when this runs as root
        for jobs in (1, 2):
            sizes = [peak(Path(name), count, jobs) for count in counts]
            for count, size in zip(counts, sizes, strict=True):
                print(
                    f"--jobs {jobs}  {count:7} files  {size / 1024:7.1f} MiB  {size / sizes[0]:5.2f} x",
                    flush=True,
                )


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [1000, 20000])
