"""What is said about a configuration, that nothing is said about a good one, and that no secret is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, db
from pgorthanc_cli.config import ConfigurationError, check, conninfo, deployment, documents, image, plugins
from pgorthanc_cli.config.deployment import Deployment
from pgorthanc_cli.config.options import POSTGRESQL_KEYS, keys_of_variable, variable_of
from pgorthanc_cli.errors import UsageError

SECRET = "x7-Lq0-secret-Wz"
GOOD = {
    "EnableIndex": True, "Lock": False, "Schema": "pacs", "ApplicationName": "Orthanc-1",
    "Host": "localhost", "Port": 5433, "Database": "archive", "Username": "orthanc", "Password": SECRET,
}  # fmt: skip
GOOD_URI = f"postgresql://orthanc:{SECRET}@db.example/archive?sslmode=verify-full&keepalives_idle=30"
Examine = Callable[..., check.Checked]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGORTHANC_CONFIG", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(section: dict[str, Any], **root: Any) -> Path:
        path = tmp_path / "orthanc.json"
        path.write_text(json.dumps({**root, "PostgreSQL": section}, indent=1))
        path.chmod(0o600)
        return path

    return make


@pytest.fixture
def examine(write: Callable[..., Path], tmp_path: Path) -> Examine:
    """Checks a section, and root options beside it, without a database."""

    def make(
        section: dict[str, Any], *, release: str | None = None, containers: int = 1, **root: Any
    ) -> check.Checked:
        document = documents.read(write(section, **root), {})
        in_image = "Plugins" not in root  # so that no problem has to do with them
        found = Deployment.of(document, tmp_path, release=release, containers=containers, in_image=in_image)
        return check.check(found)

    return make


def test_a_good_configuration_has_no_problem(examine: Examine) -> None:
    for section in (GOOD, {"EnableIndex": True, "ConnectionUri": GOOD_URI}):
        found = examine(section, Name="Here", DicomWeb={"Enable": True}, StorageCompression=False)
        assert found.problems == ()
        assert found.status == "OK"


@pytest.mark.parametrize(
    ("change", "root", "key", "severity", "words"),
    [
        # words
        ({"Hosst": "h"}, {}, "PostgreSQL.Hosst", "warning", 'did you mean "Host"?'),
        ({"enablessl": True}, {}, "PostgreSQL.enablessl", "warning", 'did you mean "EnableSsl"?'),
        ({"Application_Name": "x"}, {}, "PostgreSQL.Application_Name", "warning", 'mean "ApplicationName"?'),
        ({"Zzz": 3}, {}, "PostgreSQL.Zzz", "warning", "the plugin does not know"),
        ({}, {"StorageCompresion": True}, "StorageCompresion", "warning", '"StorageCompression"?'),
        ({}, {"Postgresql": {}}, "Postgresql", "warning", 'did you mean "PostgreSQL"?'),
        ({}, {"EnableIndex": True}, "EnableIndex", "warning", 'outside of section "PostgreSQL"'),
        # types and ranges
        ({"Port": "5432"}, {}, "PostgreSQL.Port", "error", "a string ('5432'), wanted an integer"),
        ({"Password": 4711471147114711}, {}, "PostgreSQL.Password", "error", "an integer, wanted a string"),
        ({"IndexConnectionsCount": 0}, {}, "PostgreSQL.IndexConnectionsCount", "error", "wanted 1 to"),
        ({}, {"StorageCompression": "true"}, "StorageCompression", "error", "wanted true or false"),
        # switches and conflicts
        ({"EnableIndex": False}, {}, "PostgreSQL.EnableIndex", "warning", "SQLite"),
        ({"ConnectionUri": GOOD_URI}, {}, "PostgreSQL.ConnectionUri", "warning", 'ignores "Host", "Port"'),
        ({"Lock": True}, {"ReadOnly": True}, "PostgreSQL.Lock", "error", "does not start"),
        ({"Lock": True, "UseDynamicConnectionPool": True}, {}, "PostgreSQL.Lock", "warning", "the lock goes"),
        # what the plugin garbles
        ({"Username": ""}, {}, "PostgreSQL.Username", "error", "user = host=localhost"),
        ({"Host": ""}, {}, "PostgreSQL.Host", "error", '"Host" is empty and swallows what follows'),
        ({"Database": "my archive"}, {}, "PostgreSQL.Database", "error", "holds a space"),
        ({"Password": "a b" + SECRET}, {}, "PostgreSQL.Password", "error", "libpq cannot read them"),
        ({"Password": "a\\" + SECRET}, {}, "PostgreSQL.Password", "error", "libpq understands another password"),
        ({"Password": f"'{SECRET}'"}, {}, "PostgreSQL.Password", "error", "a quote at its start"),
        ({"Password": f"x user={SECRET}"}, {}, "PostgreSQL.Password", "error", "another user"),
        ({"Host": "'x", "Password": f"y'{SECRET}"}, {}, "PostgreSQL.Host", "error", "a quote at its start"),
        # the server and the password
        ({"Database": ""}, {}, "PostgreSQL.Database", "warning", "libpq takes the one named like the role"),
        ({"Host": "10.0.0.1"}, {}, "PostgreSQL.EnableSsl", "warning", "unencrypted"),
        ({"Host": "10.0.0.1", "EnableSsl": True}, {}, "PostgreSQL.EnableSsl", "info", "does not verify the server"),
        ({"Host": "10.0.0.1", "EnableSsl": True}, {}, "PostgreSQL.ConnectionUri", "info", "keep-alive"),
        ({"Password": "postgres"}, {}, "PostgreSQL.Password", "warning", "well-known"),
        ({"Password": "Archive"}, {}, "PostgreSQL.Password", "warning", "a name that the connection shows"),
        ({"Password": "x7-Lq"}, {}, "PostgreSQL.Password", "warning", "less than 8 characters"),
        # the schema
        ({"Schema": "my-pacs"}, {}, "PostgreSQL.Schema", "error", "PostgreSQL requires quotes around it"),
        ({"Schema": "PACS"}, {}, "PostgreSQL.Schema", "warning", "looks for pacs"),
    ],
)  # fmt: skip
def test_problems(
    examine: Examine, change: dict[str, Any], root: dict[str, Any], key: str, severity: str, words: str
) -> None:
    found = examine({**GOOD, **change}, **root)
    assert [p for p in found.problems if p.key == key and p.severity == severity and words in p.message], (
        found
    )
    assert (found.wrong == ()) == (severity == "info")
    shown = repr(found)
    for secret in (SECRET, "4711471147114711", "x7-Lq"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("uri", "severity", "words"),
    [
        (f"postgresql://u:{SECRET}@x@h:5432/d", "error", "an @ too many"),
        (f"postgresql://u:{SECRET}/x@h:5432/d", "error", "an @ too many"),
        (f"postgresql://u:50%{SECRET}@h/d", "error", "two hexadecimal digits"),
        (f"postgresql://u:{SECRET}@h:54x2/d", "error", "no number"),
        (f"postgresql://u:{SECRET}@h/d?nope=1", "error", "invalid URI query parameter"),
        (f"host=h user=u password=a {SECRET}", "error", "is no connection string"),
        ("", "error", "is empty"),
        (f"postgresql://u:{SECRET}@/d", "warning", "names no host"),
        (f"postgresql://u:{SECRET}@h", "warning", "names no database"),
        ("postgresql://h/d", "warning", "names no role"),
        (f"postgresql://u:{SECRET}@h/d?sslmode=prefer", "warning", "unencrypted"),
        ("postgresql://u:%70ostgres@h/d?sslmode=verify-full", "warning", "well-known"),
    ],
)
def test_connection_uri(examine: Examine, uri: str, severity: str, words: str) -> None:
    found = examine({"EnableIndex": True, "ConnectionUri": uri})
    assert [p for p in found.problems if p.severity == severity and words in p.message], found
    assert SECRET not in repr(found)


def test_several_orthancs(examine: Examine) -> None:
    section = {**GOOD, "TransactionMode": "Serializable", "Lock": True}
    said = {problem.key: problem.severity for problem in examine(section, containers=3).problems}
    assert said == {"PostgreSQL.Lock": "error", "PostgreSQL.TransactionMode": "warning"}


@pytest.mark.parametrize(
    ("release", "unknown"),
    [
        ("3.2", {"IndexConnectionsCount", "TransactionMode", "Schema", "ApplicationName"}),
        ("6.2", {"Schema", "ApplicationName"}),
        ("9.0", {"Schema", "ApplicationName"}),
        ("10.0", set()),
    ],
)
def test_options_that_the_release_does_not_know(examine: Examine, release: str, unknown: set[str]) -> None:
    section = {**GOOD, "IndexConnectionsCount": 5, "TransactionMode": "ReadCommitted"}
    found = examine(section, release=release)
    assert {problem.key.partition(".")[2] for problem in found.problems} == unknown
    assert unknown.isdisjoint(found.effective)


def test_the_effective_options_have_the_defaults_of_the_release(examine: Examine) -> None:
    for release, connections in (("6.2", 1), ("7.0", 50)):
        effective = examine({**GOOD}, release=release).effective
        assert (effective["IndexConnectionsCount"], effective["Password"]) == (connections, db.MASK)
    uri = examine({"EnableIndex": True, "ConnectionUri": GOOD_URI}).effective
    assert db.parse_dsn(str(uri["ConnectionUri"])) == db.parse_dsn(GOOD_URI.replace(SECRET, db.MASK))
    assert "Host" not in uri


def test_a_password_that_everybody_can_read(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(GOOD)
    path.chmod(0o644)
    found = check.check(Deployment.of(documents.read(path, {}), tmp_path, in_image=True))
    [problem] = found.problems
    assert (problem.severity, problem.command) == ("warning", f"chmod o-r {path}")


# Plugins


def install(folder: Path, name: str, release: str) -> Path:
    """Put a library into a folder as Debian does: a link, with the release in the name of the file."""
    library = folder / f"{name}.so.{release}"
    library.write_bytes(b"")
    link = folder / f"{name}.so"
    link.symlink_to(library)
    return link


def test_the_release_is_in_the_name_of_the_library(tmp_path: Path) -> None:
    library = tmp_path / "libOrthancPostgreSQLIndex.so.10.3"
    library.write_bytes(b"x from revision 5 to revision 6\0x from revision 6 to revision 10 (\0")
    link = tmp_path / "libOrthancPostgreSQLIndex.so"
    link.symlink_to(library)
    assert plugins.read(link) == plugins.Plugin(link, "libOrthancPostgreSQLIndex", "10.3", 10)


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01", b"no library"])
def test_other_files_have_no_release(tmp_path: Path, content: bytes) -> None:
    index = tmp_path / "libOrthancPostgreSQLIndex.so"
    index.write_bytes(content)
    assert plugins.read(index) == plugins.Plugin(index, "libOrthancPostgreSQLIndex")
    versioned = tmp_path / "libOrthancPostgreSQLIndex.so.4.0"
    versioned.write_bytes(content)
    assert plugins.read(versioned).release == "4.0"


def test_plugins_are_resolved(examine: Examine, tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    (folder / "deeper").mkdir(parents=True)
    for name, release in (("Index", "7.2"), ("Storage", "8.0")):
        install(folder, f"libOrthancPostgreSQL{name}", release)
    (folder / "libOrthancAwsS3Storage.so").write_bytes(b"")
    (folder / "readme.txt").write_bytes(b"")
    found = examine(
        {**GOOD, "EnableStorage": True}, Plugins=["plugins", "gone.so"], AwsS3Storage={"BucketName": "b"}
    )
    assert found.plugin == "7.2"
    assert len(found.plugins) == 3
    said = {(problem.key, problem.severity) for problem in found.problems}
    assert {("Plugins", "error"), ("Plugins", "warning"), ("PostgreSQL.EnableStorage", "error")} <= said
    messages = " ".join(problem.message for problem in found.problems)
    for words in (
        "there is no gone.so",
        "different releases: 7.2, 8.0",
        "libOrthancAwsS3Storage; only one",
        "new in 10.0",
    ):
        assert words in messages


def test_a_plugin_that_is_not_loaded(examine: Examine, write: Callable[..., Path], tmp_path: Path) -> None:
    [problem] = check.check(Deployment.of(documents.read(write(GOOD), {}), tmp_path)).problems
    assert 'there are no "Plugins"' in problem.message
    (tmp_path / "other.so").write_bytes(b"")
    [problem] = examine(GOOD, Plugins=["other.so"]).problems
    assert "does not load libOrthancPostgreSQLIndex.so" in problem.message


# The container image


def test_the_image_merges_files_secrets_and_variables(tmp_path: Path) -> None:
    conf, secrets = tmp_path / "conf", tmp_path / "secrets"
    conf.mkdir()
    secrets.mkdir()
    (conf / "a.json").write_text('{"PostgreSQL": {"Host": "file", "Port": 1}, "Name": "file"}')
    (conf / "b.json").write_text('{"PostgreSQL": {"Database": "file"}}')
    (secrets / "s.json").write_text('{"PostgreSQL": {"Port": 2, "Username": "secret file"}}')
    (secrets / "ORTHANC__POSTGRESQL__PASSWORD").write_text(f"{SECRET}\n")
    (secrets / "other").write_text("x")
    environ = {
        "ORTHANC_JSON": '{"PostgreSQL": {"Username": "json"}, "StableAge": 5}',
        "ORTHANC__POSTGRESQL__PORT": "3",
        "ORTHANC__POSTGRESQL__PASSWORD": "12345678",
        "ORTHANC__STORE_MD5_FOR_ATTACHMENTS": "false",
        "ORTHANC__POSTGRESQL__ENABLEINDEX": "true",
        "HOME": "/root",
    }
    found = image.read(conf, environ, secrets)
    assert found.values["PostgreSQL"] == {
        "Host": "file", "Port": 3, "Database": "file", "Username": "json", "Password": SECRET,
        "Enableindex": True, "EnableIndex": True, "Lock": False,
    }  # fmt: skip
    assert (found.values["Name"], found.values["StableAge"], found.values["StoreMD5ForAttachments"]) == (
        "file",
        5,
        False,
    )
    assert found.location("PostgreSQL", "Host") == f"{conf / 'a.json'}, line 1"
    assert found.location("PostgreSQL", "Port") == "ORTHANC__POSTGRESQL__PORT"
    assert found.location("PostgreSQL", "Username") == "ORTHANC_JSON, line 1"
    assert found.location("PostgreSQL", "Password") == str(secrets / "ORTHANC__POSTGRESQL__PASSWORD")
    problems = check.check(Deployment.of(found, tmp_path)).problems
    [misspelt] = [problem for problem in problems if problem.key == "PostgreSQL.Enableindex"]
    assert misspelt.hint == "name the variable ORTHANC__POSTGRESQL__ENABLE_INDEX"
    assert [problem for problem in problems if "reads like JSON" in problem.message]
    assert SECRET not in repr(problems)


def test_the_default_password_of_the_image_is_told(tmp_path: Path) -> None:
    found = image.read(None, {"ORTHANC__POSTGRESQL__HOST": "db"}, tmp_path)
    problems = check.check(Deployment.of(found, tmp_path)).problems
    [weak] = [problem for problem in problems if "well-known" in problem.message]
    assert weak.place == "default of the image orthancteam/orthanc"


@pytest.mark.parametrize("name", POSTGRESQL_KEYS)
def test_names_of_variables_lead_back(name: str) -> None:
    assert keys_of_variable(variable_of("PostgreSQL", name)) == ("PostgreSQL", name)


def test_variables_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# x\nORTHANC__NAME=a=b c\n\nJUST_A_NAME\n")
    assert image.variables(tmp_path / "env") == {"ORTHANC__NAME": "a=b c"}
    with pytest.raises(ConfigurationError, match="cannot be read"):
        image.variables(tmp_path / "gone")


# What is shown, and URIs


def test_show_names_every_origin_and_no_secret(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(
        {**GOOD, "ConnectionUri": GOOD_URI, "Pasword": SECRET, "conectionuri": SECRET},
        RegisteredUsers={"alice": SECRET},
        OrthancPeers={"a": ["http://x/", "bob", SECRET]},
        AwsS3Storage={"SecretKey": SECRET, "Region": "eu"},
        AzureBlobStorage={"ConnectionString": SECRET},
        Postgresql={"Pasword": SECRET},
        Name="here",
    )
    found = deployment.show(Deployment.of(documents.read(path, {}), tmp_path), everything=True)
    options = {option.key: option for option in found.options}
    assert SECRET not in repr(found)
    assert options["PostgreSQL.Port"].origin.endswith("orthanc.json, line 29; not read")
    assert options["PostgreSQL.IndexConnectionsCount"] == deployment.Option(
        "PostgreSQL.IndexConnectionsCount", 50, "default"
    )
    assert options["AwsS3Storage"].value == {"SecretKey": db.MASK, "Region": "eu"}
    assert options["Name"].value == "here"


@pytest.mark.parametrize(
    "parameters",
    [
        {
            "host": "h",
            "port": "5433",
            "dbname": "d",
            "user": "u",
            "password": "p@/%:?#é '\\",
            "sslmode": "require",
        },
        {"host": "/run/pg sql", "dbname": "o'r&t=1", "user": "a@b"},
        {"host": "::1", "port": "1", "dbname": "d"},
        {"host": "a,b", "port": "1,2", "dbname": "d", "target_session_attrs": "read-write"},
        {"user": "u"},
        {"password": "p", "host": "h"},
        {"service": "s"},
        {"hostaddr": "10.0.0.1", "host": "h", "options": "-c jit=off"},
    ],
)
def test_a_uri_says_what_the_parameters_say(parameters: dict[str, str]) -> None:
    assert db.parse_dsn(conninfo.uri(parameters, show_password=True)) == parameters
    masked = conninfo.uri({**parameters, "sslpassword": SECRET})
    assert SECRET not in masked
    assert db.parse_dsn(masked).get("password") == (db.MASK if "password" in parameters else None)


def test_fields_of_a_uri_and_what_they_cannot_say() -> None:
    given = db.parse_dsn(GOOD_URI)
    section, problems = conninfo.fields(given)
    assert section == {
        "Host": "db.example", "Database": "archive", "Username": "orthanc", "Password": SECRET, "EnableSsl": True,
    }  # fmt: skip
    assert {problem.message for problem in problems} == {
        "sslmode=verify-full becomes require", "the fields have no place for keepalives_idle",
    }  # fmt: skip


# The commands


@pytest.fixture
def loaded(tmp_path: Path) -> Path:
    """The library of an index plugin."""
    return install(tmp_path, "libOrthancPostgreSQLIndex", "10.3")


def test_check_looks_at_the_database_that_the_configuration_names(
    write: Callable[..., Path], fresh: db.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGORTHANC_HOST", "nowhere.invalid")  # not that of the tool
    path = write({"EnableIndex": True, "Lock": False, "ConnectionUri": fresh.dsn, "IndexConnectionsCount": 5})
    result = CliRunner().invoke(
        cli.main, ["config", "check", "--config", str(path), "--plugin", "9.0", "--json"]
    )
    document = json.loads(result.stdout)
    assert {"problems", "effective"} <= set(document)
    [problem] = [p for p in document["problems"] if p["severity"] == "error"]
    assert set(problem) >= {"key", "severity", "message", "hint"}
    assert "needs revision 6, and schema public is at revision 10" in problem["message"]
    assert result.exit_code == 6


def test_a_uri_that_libpq_refuses_is_one_problem_among_others(write: Callable[..., Path]) -> None:
    path = write({"EnableIndex": True, "ConnectionUri": "postgresql://h/d?nope=1", "Lok": True})
    result = CliRunner().invoke(cli.main, ["config", "check", "--config", str(path), "--json"])
    problems = {problem["key"]: problem["message"] for problem in json.loads(result.stdout)["problems"]}
    assert 'invalid URI query parameter: "nope"' in problems["PostgreSQL.ConnectionUri"]
    assert 'did you mean "Lock"?' in problems["PostgreSQL.Lok"]
    assert result.exit_code == 6


def test_the_name_of_a_variable_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text('{"Name": "' + "${" * 100_000 + '}"}')
    result = CliRunner().invoke(cli.main, ["status", "--config", str(path)])
    assert "is not set" in result.stderr
    assert len(result.stderr) < 1000


@pytest.mark.parametrize(
    ("change", "code", "line"), [({}, 0, "OK"), ({"Hosst": 1}, 1, "WARNING"), ({"Port": ""}, 2, "CRITICAL")]
)
def test_check_for_monitoring(
    write: Callable[..., Path], loaded: Path, change: dict[str, Any], code: int, line: str
) -> None:
    path = write({**GOOD, **change}, Plugins=[str(loaded)])
    words = ["config", "check", "--offline", "--nagios", "--config", str(path)]
    result = CliRunner().invoke(cli.main, words)
    assert (result.exit_code, len(result.stdout.splitlines())) == (code, 1)
    assert f" {line} - " in result.stdout


def test_variables_of_the_image_that_nobody_reads(
    write: Callable[..., Path], loaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTHANC__POSTGRESQL__HOST", "db")
    words = ["config", "check", "--offline", "--json", "--config", str(write(GOOD, Plugins=[str(loaded)]))]
    [problem] = json.loads(CliRunner().invoke(cli.main, words).stdout)["problems"]
    assert "ORTHANC__POSTGRESQL__HOST is set" in problem["message"]
    [problem] = json.loads(CliRunner().invoke(cli.main, [*words, "--container"]).stdout)["problems"][:1]
    assert problem["severity"] == "warning"


def test_uri_and_back(write: Callable[..., Path]) -> None:
    path = str(write({**GOOD, "Password": "p@ss w/rd"}))
    shown = CliRunner().invoke(cli.main, ["config", "uri", "--config", path])
    assert shown.stdout == "postgresql://orthanc:***@localhost:5433/archive?sslmode=disable\n"
    full = CliRunner().invoke(cli.main, ["config", "uri", "--config", path, "--show-password"]).stdout.strip()
    assert full == "postgresql://orthanc:p%40ss%20w%2Frd@localhost:5433/archive?sslmode=disable"
    back = CliRunner().invoke(cli.main, ["config", "uri", "--uri", full, "--fields"])
    assert json.loads(back.stdout)["PostgreSQL"]["Password"] == db.MASK
    assert back.exit_code == 6  # the fields cannot carry a space
    assert "holds a space" in back.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check"], "no configuration is named"),
        (["check", "--env-file", "/dev/null"], "only the image reads variables"),
        (["check", "--plugin", "new", "--container"], "is no release of the plugin"),
        (["uri", "--embedded", "x"], "pgorthanc server start"),
        (["set", "Port", "1"], "no configuration is named"),
    ],
)
def test_wrong_usage(words: list[str], said: str) -> None:
    result = CliRunner().invoke(cli.main, ["config", *words])
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_a_release_must_be_a_number(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no release"):
        Deployment.of(documents.Document(), tmp_path, release="10")
