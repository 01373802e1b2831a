"""`config set --rename` changes the name of one option and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli

SECRET = "x7-Lq0-secret-Wz"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "orthanc.json"


def rename(file: Path, old: str, new: str, *options: str) -> Result:
    words = ["config", "set", "--rename", old, new, "--config", str(file), *options]
    return CliRunner().invoke(cli.main, words)


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        ('{"PostgreSQL": { "EnableIndx" : true /* why */ } // x\n}', "PostgreSQL.EnableIndx", "PostgreSQL.EnableIndex",
         '{"PostgreSQL": { "EnableIndex" : true /* why */ } // x\n}'),
        ('{"PostgreSQL":{"EnableIndx":${B:-true},"Port":1}}', "EnableIndx", "EnableIndex",
         '{"PostgreSQL":{"EnableIndex":${B:-true},"Port":1}}'),
        ('{\n  // the name\n  "Nme" : "x",\n}', "Nme", "Name", '{\n  // the name\n  "Name" : "x",\n}'),
        ('{"Postgresql":{"Port":1}}', "Postgresql", "PostgreSQL", '{"PostgreSQL":{"Port":1}}'),
        (r'{"PostgreSQL":{"H\u006fsst":"h"}}', "Hosst", "Host", '{"PostgreSQL":{"Host":"h"}}'),
    ],
)  # fmt: skip
def test_only_the_name_changes(before: str, old: str, new: str, after: str, file: Path) -> None:
    file.write_text(before)
    result = rename(file, old, new)
    assert result.exit_code == 0, result.output
    assert file.read_text() == after
    [backup] = file.parent.glob("*.bak")
    assert backup.read_text() == before


@pytest.mark.parametrize(
    ("content", "old", "new", "code", "said"),
    [
        ('{"PostgreSQL":{"Hst":"a","Host":"b"}}', "Hst", "Host", 1, "PostgreSQL.Host is set already"),
        ('{"PostgreSQL":{"Hst":1}}', "Hst", "Host", 2, '"Host" is an integer (1), wanted a string'),
        ('{"PostgreSQL":{}}', "Hst", "Host", 2, "has no option Hst in the section"),
        ('{"Lck":true,"PostgreSQL":{}}', "Lck", "PostgreSQL.Lock", 2, "has no option Lck in the section"),
        ('{"PostgreSQL":{"Hst":"a"}}', "Hst", "Hostt", 2, 'did you mean "Host"?'),
        ('{"PostgreSQL":{"Hst":"a","Hst":"b"}}', "Hst", "Host", 1, "cannot be changed without changing"),
        ('{"PostgreSQL":{${H}}}', "Hst", "Host", 1, "comes from an environment variable"),
        ('{"PostgreSQL":[]}', "Hst", "Host", 2, "has no option Hst in the section"),
    ],
)
def test_what_is_refused_changes_nothing(
    content: str, old: str, new: str, code: int, said: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("H", '"Hst":"a"')
    file.write_text(content)
    result = rename(file, old, new)
    assert (result.exit_code, file.read_text()) == (code, content), result.output
    assert said in result.stderr
    assert list(file.parent.glob("*.bak")) == []


def test_a_folder_of_files_and_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"Name":"x"}')
    (tmp_path / "b.json").write_text('{"PostgreSQL":{"Pasword":"' + SECRET + '"}}')
    words = ("PostgreSQL.Pasword", "PostgreSQL.Password", "--json")
    planned = json.loads(rename(tmp_path, *words, "--dry-run").stdout)
    assert (planned["changed"], planned["file"]) == (False, str(tmp_path / "b.json"))
    done = rename(tmp_path, *words)
    assert json.loads(done.stdout)["renamed_to"] == "PostgreSQL.Password"
    assert SECRET not in done.output
    assert SECRET in (tmp_path / "b.json").read_text()


def test_two_names_are_needed(file: Path) -> None:
    file.write_text("{}")
    result = CliRunner().invoke(cli.main, ["config", "set", "--rename", "A", "--config", str(file)])
    assert result.exit_code == 2
    assert "--rename needs two names" in result.stderr
