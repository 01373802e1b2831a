"""`config diff` knows what Orthancs that share a database must have in common, and what not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli, render
from pgorthanc_cli.config.compare import Compared, Difference
from pgorthanc_cli.views import compare as view

SECRET, OTHER = "x7-Lq0-secret-Wz", "k2-other-secret-Pp"
SECTION = {
    "EnableIndex": True, "Lock": False, "Host": "db1", "Database": "orthanc", "Username": "orthanc",
    "Password": SECRET,
}  # fmt: skip
BASE: dict[str, Any] = {"Name": "one", "StorageDirectory": "/srv/dicom", "PostgreSQL": SECTION}


def with_option(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    if section:
        return {**BASE, section: {**BASE.get(section, {}), name: value}}
    return {**BASE, key: value}


def diff(tmp_path: Path, a: dict[str, Any], b: dict[str, Any], *options: str) -> Result:
    for name, content in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "orthanc.json").write_text(json.dumps(content, indent=1))
    return CliRunner().invoke(
        cli.main, ["config", "diff", str(tmp_path / "a"), str(tmp_path / "b"), *options]
    )


def verdicts(result: Result) -> dict[str, str]:
    return {each["key"]: each["verdict"] for each in json.loads(result.stdout)["differences"]}


@pytest.mark.parametrize(
    ("key", "value", "reported"),
    [
        ("PostgreSQL.EnableIndex", False, None),
        ("PostgreSQL.EnableStorage", True, None),
        ("PostgreSQL.Schema", "other", None),
        ("PostgreSQL.Lock", True, None),
        ("PostgreSQL.Host", "db2", "database"),
        ("PostgreSQL.Port", 5433, "database"),
        ("PostgreSQL.Database", "other", "database"),
        ("PostgreSQL.ConnectionUri", "postgresql://orthanc@db1/other", "database"),
        ("StorageDirectory", "/srv/other", None),
        ("OverwriteInstances", "IfChanged", None),
        ("DefaultEncoding", "Utf8", None),
        ("ExtraMainDicomTags", {"Study": ["0008,1010"]}, None),
        ("MaximumStorageSize", 1000, None),
        ("UserMetadata", {"x": 1024}, None),
        ("AwsS3Storage", {"BucketName": "x"}, None),
    ],
)
def test_what_must_be_the_same(key: str, value: Any, reported: str | None, tmp_path: Path) -> None:
    result = diff(tmp_path, BASE, with_option(key, value), "--json")
    assert (result.exit_code, verdicts(result)) == (6, {reported or key: "must agree"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Name", "two"), ("DicomAet", "TWO"), ("HttpPort", 8043), ("DicomPort", 4243), ("RegisteredUsers", {"a": "b"}),
        ("DatabaseServerIdentifier", "two"), ("DicomThreadsCount", 8), ("ReadOnly", True), ("HttpTimeout", 5),
        ("PostgreSQL.Username", "reader"), ("PostgreSQL.Password", OTHER),
        ("PostgreSQL.IndexConnectionsCount", 5), ("PostgreSQL.ApplicationName", "two"),
    ],
)  # fmt: skip
def test_what_may_differ(key: str, value: Any, tmp_path: Path) -> None:
    result = diff(tmp_path, BASE, with_option(key, value), "--json")
    assert (result.exit_code, verdicts(result)) == (0, {key: "may differ"})
    assert SECRET not in result.output
    assert OTHER not in result.output


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OverwriteInstances", False),
        ("DefaultEncoding", "Latin1"),
        ("ExtraMainDicomTags", {}),
        ("MaximumStorageSize", 0),
        ("PostgreSQL.Port", 5432),
        ("PostgreSQL.Schema", "Public"),
        ("PostgreSQL.ConnectionUri", f"postgresql://orthanc:{SECRET}@DB1:5432/orthanc"),
    ],
)
def test_a_default_that_is_written_down_is_no_difference(key: str, value: Any, tmp_path: Path) -> None:
    result = diff(tmp_path, BASE, with_option(key, value), "--json")
    assert (result.exit_code, verdicts(result)) == (0, {})


def test_what_must_differ(tmp_path: Path) -> None:
    same = {**BASE, "DatabaseServerIdentifier": "one"}
    result = diff(tmp_path, same, same, "--json")
    assert (result.exit_code, verdicts(result)) == (6, {"DatabaseServerIdentifier": "must differ"})


def test_two_locks_are_a_note(tmp_path: Path) -> None:
    locked = with_option("PostgreSQL.Lock", True)
    result = diff(tmp_path, locked, locked, "--json")
    assert (result.exit_code, verdicts(result)) == (0, {"PostgreSQL.Lock": "note"})


def test_other_options_should_be_the_same(tmp_path: Path) -> None:
    result = diff(
        tmp_path, BASE, {**BASE, "StorageCompression": True, "Worklists": {"Enable": True}}, "--json"
    )
    assert (result.exit_code, set(verdicts(result).values())) == (0, {"should agree"})


def test_relative_folders_are_different_folders(tmp_path: Path) -> None:
    relative = {name: value for name, value in BASE.items() if name != "StorageDirectory"}
    assert verdicts(diff(tmp_path, relative, relative, "--json")) == {"StorageDirectory": "must agree"}


def test_files_in_postgresql_need_no_common_folder(tmp_path: Path) -> None:
    stored = with_option("PostgreSQL.EnableStorage", True)
    assert verdicts(diff(tmp_path, stored, {**stored, "StorageDirectory": "/srv/other"}, "--json")) == {}


def test_releases_of_the_plugin_that_need_different_revisions(tmp_path: Path) -> None:
    both: list[dict[str, Any]] = []
    for release in ("9.0", "10.3"):
        library = tmp_path / release / f"libOrthancPostgreSQLIndex.so.{release}"
        library.parent.mkdir()
        library.write_bytes(b"")
        both.append({**BASE, "Plugins": [str(library)]})
    result = diff(tmp_path, both[0], both[1], "--json")
    assert result.exit_code == 6
    assert verdicts(result)["release of the PostgreSQL plugin"] == "must agree"


def test_people_read_the_consequence_first(tmp_path: Path) -> None:
    other = {**with_option("PostgreSQL.EnableIndex", False), "Name": "two", "DicomAet": "TWO"}
    result = diff(tmp_path, BASE, other)
    assert result.exit_code == 6
    assert result.stdout == (
        "These two Orthancs must not share a database: 1 option is wrong.\n"
        f"A: {tmp_path}/a - B: {tmp_path}/b\n"
        "\n"
        "FAIL Each of them would use an index of its own, with other studies.\n"
        "     PostgreSQL.EnableIndex must be the same:\n"
        f"     A: true  ({tmp_path}/a/orthanc.json, line 5)\n"
        f"     B: false  ({tmp_path}/b/orthanc.json, line 5)\n"
        "\n"
        "Also different, which is fine: Name, DicomAet\n"
    )


def test_a_narrow_terminal_gets_short_lines_and_symbols(tmp_path: Path) -> None:
    limits = "The one with the lower limit deletes, or refuses, studies that the other one would keep."
    long_value = {"Study": ["0008,1010"] * 20}
    result = Compared(
        "a",
        "b\x1b",
        (
            Difference("must agree", limits, "MaximumStorageSize", 0, 1000, "", "b.json, line 3"),
            Difference(
                "should agree", "They may differ.", "Worklists", None, long_value, "", "b.json, line 4"
            ),
        ),
    )
    text = render.text(view.page(result), render.Medium(60, symbols=True))
    assert max(map(len, text.splitlines())) <= 60
    assert "✗ The one with the lower limit deletes, or refuses," in text
    assert "A: 0  (the default)\n" in text
    assert "A: not set\n" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("uri", [f"postgresql://u:ab@{SECRET}@h/d", f"postgresql://u:ab/{SECRET}@h/d"])
def test_a_password_that_a_uri_garbles_is_not_shown(uri: str, tmp_path: Path) -> None:
    result = diff(tmp_path, BASE, with_option("PostgreSQL.ConnectionUri", uri))
    assert result.exit_code == 6
    assert SECRET not in result.output


def test_a_variable_that_is_not_set_is_a_warning(tmp_path: Path) -> None:
    result = diff(tmp_path, BASE, {**BASE, "DefaultEncoding": "${PGORTHANC_TEST_UNSET}"})
    assert "the environment variable PGORTHANC_TEST_UNSET is not set" in result.stderr
