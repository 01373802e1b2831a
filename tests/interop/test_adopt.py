"""Debian's Orthanc cannot read adopted files: its plugin has no key-value stores, and advanced storage is not packaged.

The rows are compared with those of the real plugin by `.ci/checks.py` (golden files of adopt_check.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli
from tests.interop.orthanc import Program
from tests.support import samples

pytestmark = pytest.mark.interop


def test_adopting_for_debians_orthanc_is_refused(program: Program, tmp_path: Path) -> None:
    [path] = samples.folder(tmp_path / "in", 1)
    section = {"Enable": True}
    configuration = {"StorageDirectory": "storage", "AdvancedStorage": section, "Plugins": program.plugins}
    (tmp_path / "orthanc.json").write_text(json.dumps(configuration))
    words = ["import", "--adopt", "--json", "--config", str(tmp_path / "orthanc.json"), str(path)]
    run = CliRunner().invoke(cli.main, words)
    assert run.exit_code == 2
    error = json.loads(run.stderr)
    assert f"PostgreSQL plugin {program.plugin_version()} has no key-value stores" in error["message"]
    assert error["hint"] == "install PostgreSQL plugin 8.0 or later"
