"""What stops Orthanc or its plugins when it starts, as far as the configuration tells; and the image's variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, db
from pgorthanc_cli.config import check, documents, image
from pgorthanc_cli.config.deployment import Deployment
from pgorthanc_cli.config.options import STARTING_KEYS
from pgorthanc_cli.errors import UsageError

SECRET = "x7-Lq0-secret-Wz"
INDEX = {
    "EnableIndex": True,
    "Host": "localhost",
    "Port": 5433,
    "Database": "d",
    "Username": "u",
    "Password": SECRET,
}
ADVANCED = {"AdvancedStorage": {"Enable": True}}


def examine(
    root: dict[str, Any], tmp_path: Path, *, libraries: tuple[str, ...] = (), release: str | None = None
) -> list[tuple[str, str, str]]:
    """Severity, key and message of what is said beside remarks."""
    for library in libraries:
        (tmp_path / f"{library}.so").touch()
    path = tmp_path / "orthanc.json"
    plugins = {"Plugins": [f"{library}.so" for library in libraries]} if libraries else {}
    path.write_text(json.dumps({"PostgreSQL": INDEX, **plugins, **root}))
    path.chmod(0o600)
    found = Deployment.of(documents.read(path, {}), tmp_path, release=release, in_image=not libraries)
    return [(p.severity, p.key, p.message) for p in check.check(found).wrong]


def test_the_options_of_1_13_and_of_official_plugins_are_known(tmp_path: Path) -> None:
    assert len(STARTING_KEYS) == 12
    given = {name: key.default if key.default is not None else 1 for name, key in STARTING_KEYS.items()}
    assert examine({**given, "PythonScript": "/x.py", "PythonVerbose": False}, tmp_path) == []


@pytest.mark.parametrize(
    ("root", "key", "words"),
    [
        ({"OverwriteInstances": "IfChanged", "StoreMD5ForAttachments": False}, "OverwriteInstances", "compares MD5"),
        ({"PatientLevelEnabled": False, "MaximumPatientCount": 5}, "MaximumPatientCount", "does not start"),
        ({"PatientLevelEnabled": False, "MaximumStorageSize": 5}, "MaximumStorageSize", "does not start"),
        ({"AuthenticationEnabled": True, "RemoteAccessAllowed": True}, "RegisteredUsers", "1.13.0 and later"),
        ({"RemoteAccessAllowed": True}, "RegisteredUsers", "1.13.0 and later"),
        ({"DicomParserThreadsCount": 0}, "DicomParserThreadsCount", "wanted 1 to"),
        ({"PatientLevelEnabled": "no"}, "PatientLevelEnabled", "wanted true or false"),
        ({"ExtraMainDicomTags": {"Study": ["EthnicGroup"]}}, "ExtraMainDicomTags.Study", "is retired"),
        ({"ExtraMainDicomTags": {"Study": ["StudyComments"]}}, "ExtraMainDicomTags.Study", "the private (0013,0026)"),
        ({**ADVANCED, "OverwriteInstances": "Never"}, "OverwriteInstances", "reads only true or false"),
        ({**ADVANCED, "AwsS3Storage": {"BucketName": "b"}}, "AwsS3Storage", "2 storage plugins are on"),
        (
            {"PostgreSQL": {**INDEX, "EnableStorage": True}, "AzureBlobStorage": {}},
            "PostgreSQL.EnableStorage", "two storage plugins are on",
        ),
    ],
)  # fmt: skip
def test_what_stops_orthanc(root: dict[str, Any], key: str, words: str, tmp_path: Path) -> None:
    [(_, found, message), *more] = sorted(examine(root, tmp_path), key=lambda p: p[1] != key)
    assert (found, words in message) == (key, True), message
    assert more == []


@pytest.mark.parametrize(
    "root",
    [
        {"OverwriteInstances": "IfChanged"},
        {"PatientLevelEnabled": False, "MaximumPatientCount": 0},
        {"AuthenticationEnabled": True, "RemoteAccessAllowed": True, "RegisteredUsers": {}},
        {"RemoteAccessAllowed": True, "AuthenticationEnabled": False},
        {"ExtraMainDicomTags": {"Study": ["0032,4000", "0010-2160", "00101010"]}},
        {"ExtraMainDicomTags": {"Study": ["PatientAge"]}},
        {**ADVANCED, "OverwriteInstances": True},
        {"AdvancedStorage": {"Enable": False}, "AwsS3Storage": {}},
    ],
)
def test_what_does_not(root: dict[str, Any], tmp_path: Path) -> None:
    assert examine(root, tmp_path) == []


def test_plugins_that_are_not_loaded_do_not_count(tmp_path: Path) -> None:
    both = {**ADVANCED, "AwsS3Storage": {}, "OverwriteInstances": "Never"}
    assert examine(both, tmp_path, libraries=("libOrthancPostgreSQLIndex", "libOrthancAwsS3Storage")) == []
    loaded = ("libOrthancPostgreSQLIndex", "libOrthancAwsS3Storage", "libAdvancedStorage")
    assert {key for _, key, _ in examine(both, tmp_path, libraries=loaded)} == {
        "AwsS3Storage",
        "OverwriteInstances",
    }


@pytest.mark.parametrize(
    ("scheme", "overwrite", "severity", "words"),
    [
        ("OrthancDefault", False, None, ""),
        ("{PatientID}/{UUID}{.ext}", False, None, ""),
        ("{split(StudyDate)}/{pad6(InstanceNumber)}/{UUID}", False, None, ""),
        ("{OrthancInstanceID}", False, "error", "does not load"),
        ("{OrthancInstanceID}", True, "warning", "is refused"),
        (
            "{PatientID}/{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}",
            True,
            "warning",
            "is refused",
        ),
        ("{PatientID}/{SOPInstanceUID}", True, "error", "does not load"),
        ("{01(UUID)}/{UUID}", False, "warning", "{01(UUID)}"),
        ("{Modality}/{01(OrthancStudyID)}/{UUID}", False, "warning", "holds {Modality}, which"),
    ],
)
def test_naming_of_files(
    scheme: str, overwrite: bool, severity: str | None, words: str, tmp_path: Path
) -> None:
    root = {"AdvancedStorage": {"Enable": True, "NamingScheme": scheme}, "OverwriteInstances": overwrite}
    found = examine(root, tmp_path)
    if severity is None:
        assert found == []
    else:
        [(how, key, message)] = found
        assert (how, key, words in message) == (severity, "AdvancedStorage.NamingScheme", True), message


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("/srv/in", ""),
        ("/srv/orthanc-in", ""),
        ("in", "look for its files in its own storage"),
        ("/srv/orthanc/in/", 'stores its own files in "/srv/orthanc"'),
        ("/srv/", 'stores its own files in "/srv/orthanc"'),
        ("/mnt/second", 'stores its own files in "/mnt/second/"'),
    ],
)
def test_folders_that_the_indexer_must_not_watch(tmp_path: Path, folder: str, words: str) -> None:
    several = {"Storages": {"2": "/mnt/second/"}, "CurrentWriteStorage": "2"}
    section = {"Enable": True, "MultipleStorages": several, "Indexer": {"Enable": True, "Folders": [folder]}}
    wrong = examine({"AdvancedStorage": section, "StorageDirectory": "/srv/orthanc"}, tmp_path)
    assert [(severity, key) for severity, key, _ in wrong] == [("error", "AdvancedStorage.Indexer")] * bool(
        words
    )
    assert all(words in message for _, _, message in wrong)


@pytest.mark.parametrize(
    ("release", "severity"),
    [("7.2", "warning"), ("8.0", "error"), ("9.0", "error"), ("10.0", None), ("10.3", None)],
)
def test_delayed_deletion(release: str, severity: str | None, tmp_path: Path) -> None:
    root = {"AdvancedStorage": {"Enable": True, "DelayedDeletion": {"Enable": True}}}
    found = [how for how, key, _ in examine(root, tmp_path, release=release) if "DelayedDeletion" in key]
    assert found == ([severity] if severity else [])


# The image


def test_a_variable_that_names_a_secret(tmp_path: Path) -> None:
    (tmp_path / "db.password").write_text(f"{SECRET}\n")
    environ = {"ORTHANC__POSTGRESQL__HOST": "h", "ORTHANC__POSTGRESQL__PASSWORD_SECRET": "db.password"}
    document = image.read(None, environ, tmp_path)
    assert document.values["PostgreSQL"]["Password"] == SECRET
    assert "db.password" in document.location("PostgreSQL", "Password")
    missing = image.read(None, {"ORTHANC__POSTGRESQL__PASSWORD_SECRET": "nosuch"}, tmp_path)
    assert [p.severity for p in missing.problems if "has no such file" in p.message] == ["error"]


def test_the_switch_of_the_plugin(tmp_path: Path) -> None:
    on = image.read(None, {"POSTGRESQL_PLUGIN_ENABLED": "true"}, tmp_path).values["PostgreSQL"]
    assert (on["EnableIndex"], on["Lock"], on["Database"]) == (True, False, "postgres")
    assert "PostgreSQL" not in image.read(None, {"POSTGRESQL_PLUGIN_ENABLED": "false"}, tmp_path).values


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("PG_HOST=h", "PG_HOST is deprecated"),
        (f"PG_PASSWORD={SECRET}", "PG_PASSWORD is deprecated"),
        ("ORTHANC__POSTGRESQL__HOST=${DB_HOST}", "holds ${DB_HOST}"),
        ('ORTHANC_JSON={"Name": "${NAME}"}', "holds ${NAME}"),
    ],
)
def test_mistakes_in_an_env_file(line: str, words: str, tmp_path: Path) -> None:
    env_file = tmp_path / "orthanc.env"
    env_file.write_text(f"POSTGRESQL_PLUGIN_ENABLED=true\nORTHANC__POSTGRESQL__USERNAME=u\n{line}\n")
    result = CliRunner().invoke(
        cli.main,
        ["config", "check", "--offline", "--json", "--container", "--env-file", str(env_file)],
    )
    problems = json.loads(result.stdout)["problems"]
    assert any(words in p["message"] and p["severity"] == "error" for p in problems), problems
    assert SECRET not in result.output


# The URI


@pytest.mark.parametrize(
    ("dsn", "named"),
    [
        (f"postgresql://u:{SECRET}@h/d?foo=bar", True),
        (f"postgresql://u:{SECRET}@h:1/d?sslmode=require&foo=bar&sslrootcert=/x", True),
        ("postgresql://h:5432/d?foo=bar", True),
        ("host=h foo=bar", True),
        ("postgresql://u:pass?foo=1", False),
        (f"host=h password={SECRET} foo=bar", False),
    ],
)
def test_an_unknown_parameter_is_named_unless_it_may_be_a_piece_of_the_password(
    dsn: str, named: bool
) -> None:
    with pytest.raises(UsageError) as refusal:
        db.parse_dsn(dsn)
    assert ('"foo"' in refusal.value.message) is named, refusal.value.message
    assert SECRET not in refusal.value.message
