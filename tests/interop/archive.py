"""An archive: a database, a storage area, an Orthanc and pgorthanc that share one configuration file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pgorthanc_cli import db
from pgorthanc_cli.cli import main
from tests.interop import orthanc
from tests.interop.orthanc import Program, Rest
from tests.support.indexdump import dump


@dataclass(frozen=True)
class Archive:
    """`section` is the PostgreSQL section of Orthanc's configuration, `options` are what else differs from ours."""

    program: Program
    folder: Path
    target: db.Target
    section: dict[str, Any] = field(repr=False)
    options: dict[str, Any]

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def configuration(self, **more: Any) -> dict[str, Any]:
        return {
            "Name": "interop",
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "WebDavEnabled": False,  # it takes 2 seconds to stop
            "StorageDirectory": str(self.storage),
            "IndexDirectory": str(self.folder),
            "StableAge": 3600,  # so that the log of changes does not depend on the speed of the machine
            "SaveJobs": False,
            "PostgreSQL": {**self.section, "EnableIndex": True, "Lock": True, "ConnectionRetryInterval": 1},
            **self.options,
            **more,
        }

    @contextmanager
    def orthanc(self, **more: Any) -> Iterator[Rest]:
        """A running Orthanc; `more` goes into its configuration."""
        with orthanc.running(self.program, self.configuration(**more), self.folder) as rest:
            yield rest

    def log(self) -> str:
        """Of the last Orthanc that worked here."""
        return (self.folder / "orthanc.log").read_text(errors="replace")

    def pgorthanc(self, command: str, *arguments: str | Path) -> Result:
        """A command with Orthanc's own configuration file."""
        place = self.folder / "orthanc.json"
        if not place.exists():
            place.write_text(json.dumps(self.configuration()))
        place.chmod(0o600)
        return CliRunner().invoke(main, [*command.split(), "--config", str(place), *map(str, arguments)])

    def done(self, command: str, *arguments: str | Path) -> dict[str, Any]:
        """What a command that must succeed answers."""
        result = self.pgorthanc(command, "--json", *arguments)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def import_(self, *arguments: str | Path) -> dict[str, Any]:
        return self.done("import", "--orthanc-version", self.program.version(), "--jobs", "1", *arguments)

    def dump(self, **options: bool) -> dict[str, Any]:
        with db.session(self.target) as conn:
            return dump(conn, **options)
