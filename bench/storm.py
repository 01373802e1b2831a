"""`verify storage` in a loop while clients upload, overwrite and delete: nothing is a finding.

storm.py [--seconds S] [--clients N] [--storage filesystem|postgresql] [--compress]

The Orthanc is the last one of PGORTHANC_ORTHANC_ROOTS. Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from psycopg2.extensions import make_dsn

sys.path.insert(0, str(Path(__file__).parent.parent))
from pgorthanc_cli import db
from pgorthanc_cli.server import embedded
from tests.interop.archive import Archive
from tests.interop.orthanc import programs
from tests.interop.storm import storm
from tests.support.real_servers import free_port


def main(arguments: argparse.Namespace) -> int:
    """Run the storm and print what has happened."""
    program = programs()[-1]
    with tempfile.TemporaryDirectory(prefix="pgorthanc-storm-") as name:
        Path(name).chmod(0o755)  # PostgreSQL runs as another user when this runs as root
        server = embedded.start(Path(name) / "server", port=free_port(), show_password=True)
        try:
            section = {**server.orthanc["PostgreSQL"], "EnableStorage": arguments.storage == "postgresql"}
            target = db.Target(make_dsn(server.dsn))
            archive = Archive(program, Path(name), target, section, {})
            options = {"StorageCompression": arguments.compress, "OverwriteInstances": True}
            started = time.monotonic()
            with archive.orthanc(**options) as rest:
                result = storm(
                    archive, rest, Path(name) / "in",
                    clients=arguments.clients, seconds=arguments.seconds, grace_s=arguments.grace,
                )  # fmt: skip
        finally:
            embedded.stop(Path(name) / "server")
    actions = ", ".join(f"{count:,} {action}" for action, count in sorted(result.actions.items()))
    print(
        f"Orthanc {program.version()}, {arguments.storage}, {arguments.clients} clients, "
        f"{time.monotonic() - started:.0f} s: {actions}; {result.runs} checks of {result.checked:,} "
        f"attachments, {result.undecided} files undecided, {len(result.findings)} findings"
    )
    for finding in result.findings:
        print(finding)
    return 1 if result.findings else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--grace", type=float, default=2, help="seconds, as --grace of the command")
    parser.add_argument("--storage", choices=("filesystem", "postgresql"), default="filesystem")
    parser.add_argument("--compress", action="store_true")
    sys.exit(main(parser.parse_args()))
