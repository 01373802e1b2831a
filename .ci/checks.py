"""Compare the work with the specification, on a private server: checks.py SPECIFICATION_FOLDER [--quick]."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pgorthanc_cli.server import embedded

_SETS = "{specification}/spec/golden/reconstruct/reconstruct"
CHECKS = (
    ("golden_check.py",),
    ("odd_check.py",),
    ("behaviour_check.py",),
    ("adopt_check.py",),
    ("catalog_check.py",),
    ("catalog_check.py", "--schema", "orthanc", "--quick"),
    # Of the sets that the real Orthanc left: each way to decide, and a tag that goes.
    ("reindex_check.py", "--inputs", "{folder}/inputs", f"{_SETS}_order.json", f"{_SETS}_level_limited.json"),
    ("reindex_check.py", "--inputs", "{folder}/inputs", "--keep-first", f"{_SETS}_sequences.json"),
)
QUICK = (*CHECKS[:3], ("catalog_check.py", "--quick"))


def main(specification: Path, checks: tuple[tuple[str, ...], ...]) -> int:
    """Run the checks; the number of those that failed."""
    failed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        embedded.attach(Path(folder) / "server", superuser=True) as target,
    ):
        Path(folder).chmod(0o755)
        for program, *options in checks:
            print(f"--- {program} {' '.join(options)}", flush=True)
            tool = ["--server", target.dsn, "--pgorthanc", f"{sys.executable} -m pgorthanc_cli"]
            words = [each.format(folder=folder, specification=specification) for each in options]
            command = [sys.executable, str(specification / "checks" / program), *tool, *words]
            failed += subprocess.run(command).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), QUICK if "--quick" in sys.argv[2:] else CHECKS))
