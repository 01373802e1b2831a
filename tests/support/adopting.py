"""Files to adopt where they lie, and the index and the configuration of the Orthanc that shall read them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pgorthanc_cli import cli, config, scrub
from pgorthanc_cli.db import Target
from pgorthanc_cli.scrub.settings import from_options
from tests.support import samples
from tests.support.schemas import rows

TIME = 1_700_000_004


class Archive:
    """A folder with files to adopt, and the configuration of the Orthanc that shall read them."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.folder = folder
        self.files = samples.folder(folder / "in", 3, per_series=1)
        for path in self.files:
            os.utime(path, (TIME, TIME))
        self.configure()

    def configure(self, section: dict[str, Any] | None = None, **options: Any) -> None:
        """Write Orthanc's configuration."""
        (self.folder / "storage").mkdir(exist_ok=True)
        values = {"AdvancedStorage": {"Enable": True, **(section or {})}, **options}
        values["StorageDirectory"] = "storage"
        (self.folder / "orthanc.json").write_text(json.dumps(values))

    def run(self, *words: object) -> Result:
        """`pgorthanc import --adopt`, in this process."""
        given = ["import", "--adopt", "--uri", self.target.dsn, "--config", self.folder / "orthanc.json"]
        return CliRunner().invoke(cli.main, [*map(str, (*given, "--jobs", "1", "--json", *words))])

    def adopt(self, *words: object) -> dict[str, Any]:
        """The report of `import --adopt`; some files may be refused."""
        result = self.run(*words)
        assert result.exit_code in (0, 6), result.output
        report: dict[str, Any] = json.loads(result.stdout)
        return report

    def refused(self, *words: object) -> str:
        """The only reason why files were refused."""
        reasons = {refusal["reason"] for refusal in self.adopt(*words)["refusals"]}
        assert len(reasons) == 1
        return str(reasons.pop())

    def check(self) -> scrub.StorageReport:
        """`verify storage --depth identity`."""
        orthanc = config.load(self.folder / "orthanc.json")
        return scrub.check(self.target, from_options(orthanc, depth="identity", jobs=1, grace=0.0))

    def custom_data(self) -> list[tuple[int, str | None]]:
        """File type and customdata of all attachments, in the order of the instances."""
        found = rows(self.target, "SELECT filetype, customdata FROM attachedfiles ORDER BY id, filetype")
        return [(kind, None if data is None else bytes(data).decode()) for kind, data in found]

    def stores(self, store: str) -> dict[str, dict[str, Any]]:
        """The key-value rows of a store."""
        query = f"SELECT key, value FROM keyvaluestores WHERE storeid = '{store}'"
        return {key: json.loads(bytes(value)) for key, value in rows(self.target, query)}


def customdata_of(path: Path, *, owned: bool = False) -> str:
    return json.dumps({"o": owned, "p": str(path), "v": 1}, separators=(",", ":"))
