"""`config new` writes a configuration with which Orthanc uses the database, and no password unless asked for."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli
from pgorthanc_cli.config import conninfo, jsontext, template
from pgorthanc_cli.config.options import POSTGRESQL_KEYS, version
from pgorthanc_cli.errors import UsageError

SECRET = "x7-Lq0-secret-Wz"
LOCAL = {"host": "localhost", "port": "5432", "user": "orthanc", "dbname": "orthanc"}
REMOTE = {**LOCAL, "host": "db1", "sslmode": "verify-full", "sslrootcert": "/etc/ssl/ca.pem"}


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with libraries that have the names of plugin 10.3."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    for name in ("libOrthancPostgreSQLIndex", "libOrthancPostgreSQLStorage"):
        (folder / f"{name}.so.10.3").write_bytes(b"")
        (folder / f"{name}.so").symlink_to(f"{name}.so.10.3")
    return folder


def created(parameters: dict[str, str], plugins: Path, **choices: Any) -> template.Starting:
    return template.create(
        parameters, template.Choices(plugins=str(plugins), **choices), name=Path("orthanc.json")
    )


def values(made: template.Starting) -> dict[str, Any]:
    content: dict[str, Any] = jsontext.parse(made.text).root.value
    return content


def run(*words: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(cli.main, ["config", *map(str, words)], env=environment)


@pytest.mark.parametrize("parameters", [LOCAL, REMOTE], ids=["local", "remote"])
@pytest.mark.parametrize("storage", [False, True], ids=["filesystem", "postgresql"])
@pytest.mark.parametrize("release", ["4.0", "5.1", "6.2", "7.0", "9.0", "10.3", None])
def test_our_own_check_finds_nothing(
    parameters: dict[str, str], storage: bool, release: str | None, plugins: Path
) -> None:
    made = created(parameters, plugins, postgresql_storage=storage, release=release)
    assert made.problems == ()
    section = values(made)["PostgreSQL"]
    assert (section["EnableIndex"], section["EnableStorage"]) == (True, storage)
    known = version(release or "10.3")
    assert all(version(POSTGRESQL_KEYS[key].since or "0") <= known for key in section)
    assert len(values(made)["Plugins"]) == 1 + storage


def test_it_connects_where_the_options_say(plugins: Path) -> None:
    section = values(created(LOCAL, plugins))["PostgreSQL"]
    assert conninfo.intended(section) == {**LOCAL, "sslmode": "disable"}
    uri = values(created(REMOTE, plugins))["PostgreSQL"]["ConnectionUri"]
    assert uri.startswith("postgresql://orthanc@db1:5432/orthanc?")
    for part in ("sslmode=verify-full", "sslrootcert=%2Fetc%2Fssl%2Fca.pem", "keepalives_idle=30"):
        assert part in uri


@pytest.mark.parametrize("parameters", [LOCAL, REMOTE], ids=["local", "remote"])
def test_the_password_is_written_only_when_asked_for(parameters: dict[str, str], plugins: Path) -> None:
    given = {**parameters, "password": SECRET}
    without = created(given, plugins)
    assert (SECRET in without.text, without.has_password, without.withheld) == (False, False, True)
    assert "PGPASSWORD" in without.text
    with_it = created(given, plugins, show_password=True)
    assert (SECRET in with_it.text, with_it.has_password, with_it.withheld) == (True, True, False)
    from_file = created(given, plugins, passfile="/etc/orthanc/pgpass")
    assert (SECRET in from_file.text, from_file.withheld) == (False, False)
    assert "passfile=%2Fetc%2Forthanc%2Fpgpass" in values(from_file)["PostgreSQL"]["ConnectionUri"]


def test_values_that_the_plugin_would_garble_go_into_a_uri(plugins: Path) -> None:
    made = created({**LOCAL, "dbname": "my ${X} archive"}, plugins)
    assert values(made)["PostgreSQL"]["ConnectionUri"].endswith("/my%20%24%7BX%7D%20archive")


def test_a_folder_with_a_variable_in_its_name_stays_that_folder(plugins: Path) -> None:
    made = created(LOCAL, plugins, storage_directory="/srv/${HOME}")
    assert values(made)["StorageDirectory"] == "/srv/${HOME}"
    assert "${" not in made.text


def test_a_schema_needs_a_plugin_that_knows_it(plugins: Path) -> None:
    assert values(created(LOCAL, plugins, schema="pacs"))["PostgreSQL"]["Schema"] == "pacs"
    with pytest.raises(UsageError, match=r"plugin 9\.0 keeps its index in the schema public, not in pacs"):
        created(LOCAL, plugins, schema="pacs", release="9.0")


def test_the_file_is_private_and_an_existing_one_stays(plugins: Path, tmp_path: Path) -> None:
    file = tmp_path / "orthanc.json"
    words = (
        "new",
        "--host",
        "localhost",
        "-d",
        "orthanc",
        "-U",
        "orthanc",
        "--plugins",
        plugins,
        "--output",
        file,
    )
    result = run(*words, PGORTHANC_PASSWORD=SECRET)
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"pgorthanc init --config {file} --plugin 10.3" in result.stdout
    assert "the password was not written" in result.stderr
    assert SECRET not in file.read_text() + result.output
    checked = run("check", "--offline", "--config", file, "--json")
    assert (checked.exit_code, json.loads(checked.stdout)["problems"]) == (0, [])
    before = file.read_text()
    again = run(*words)
    assert again.exit_code == 1
    assert "exists already and was not changed" in again.stderr
    assert file.read_text() == before


def test_a_link_is_not_followed(plugins: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    result = run("new", "--host", "localhost", "--plugins", plugins, "--output", link)
    assert result.exit_code == 1
    assert not target.exists()


def test_json_holds_the_text_and_what_check_says(tmp_path: Path) -> None:
    result = run(
        "new", "--host", "localhost", "-d", "orthanc", "-U", "orthanc", "--plugins", tmp_path, "--json"
    )
    document = json.loads(result.stdout)
    assert jsontext.parse(document["configuration"]).root.value["Name"] == "Orthanc"
    assert (document["file"], document["has_password"]) == (None, False)
    assert {problem["key"] for problem in document["problems"]} == {"Plugins"}
