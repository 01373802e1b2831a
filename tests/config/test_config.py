"""Orthanc's configuration files, and the precedence of the sources of a connection."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import config, db
from pgorthanc_cli.config import ConfigurationError, OrthancConfiguration
from pgorthanc_cli.config.options import POSTGRESQL_KEYS
from pgorthanc_cli.errors import PgOrthancError, UsageError

SECRET = "s3cr p@ss/'\\\"é%"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file: text as it is, anything else as JSON."""

    def make(content: str | bytes | dict[str, Any], name: str = "orthanc.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def resolve(environ: dict[str, str] | None = None, **options: Any) -> config.Resolved:
    return config.resolve(application="pgorthanc test", environ=environ or {}, **options)


def parameters(found: config.Resolved) -> dict[str, str]:
    return db.parse_dsn(found.target.dsn)


def origins(found: config.Resolved) -> dict[str, str]:
    return {s.name: s.origin for s in found.provenance}


# Orthanc's files


def test_comments_and_trailing_commas(write: Write) -> None:
    path = write(
        b"\xef\xbb\xbf"
        + b"""{
        // a comment, "with" { quotes
        "StorageDirectory" : "a//b /* kept */,}", /* gone
        "StorageCompression" : true */
        "DefaultEncoding" : "utf8", // "x"
        "ExtraMainDicomTags" : { "Patient" : ["PatientAge", "0010,1020",], },
        }"""
    )
    found = config.load(path)
    assert found.root["StorageDirectory"] == "a//b /* kept */,}"
    assert not found.storage_compression
    assert found.default_encoding == "Utf8"
    assert found.extra_main_dicom_tags == {"Patient": ("PatientAge", "0010,1020")}


@pytest.mark.parametrize(
    ("text", "environ", "wanted"),
    [
        ('{"Port": ${P}}', {"P": "5433"}, 5433),
        ('{"Port": ${P:-5434}}', {}, 5434),
        ('{"Port": ${P:-5434}}', {"P": "5435"}, 5435),
        ('{"Host": "${H:-db-1.example}"}', {}, "db-1.example"),
        ('{"Host": "a${H}c"}', {"H": "b"}, "abc"),
        ('{"Host": "${H}"}', {"H": ""}, ""),
        ('{"Host": "${H:-}"}', {}, ""),
        ('{"Host": "${H:-"x y"}"}', {}, "x y"),
        ('{"Host": "${H:-http://x//y}"}', {}, "http://x//y"),
        ('{"Host": "${H}"}', {"H": "${NOT_AGAIN}"}, "${NOT_AGAIN}"),
        ('{/* ${GONE} */ "Host": "$H" // ${GONE}\n}', {}, "$H"),
    ],
)
def test_variables(write: Write, text: str, environ: dict[str, str], wanted: object) -> None:
    path = write('{"PostgreSQL": ' + text + "}")
    assert next(iter(config.load(path, environ).root["PostgreSQL"].values())) == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n  "A": 1\n  "B": 2\n}', r"line 3, column 3: not valid JSON"),
        ('{"A": [1,,]}', "line 1, column 1"),
        ('{"A": NaN}', "line 1, column 7: not valid JSON: a value is expected here"),
        ("[1]", "found a JSON list, wanted an object"),
        ("", "line 1, column 1"),
        ('{\n\n "A": "${UNSET_X}"}', r"line 3: the environment variable UNSET_X is not set"),
        (b'{\n"A": "\xff"}', "line 2, column 6: not valid JSON: the string is not valid Unicode"),
        ({"PostgreSQL": []}, '"PostgreSQL" is a list, wanted an object'),
        ({"PostgreSQL": {"Port": "5432"}}, "\"Port\" is a string ('5432'), wanted an integer"),
        ({"PostgreSQL": {"Port": True}}, '"Port" is true or false (True), wanted an integer'),
        ({"PostgreSQL": {"Port": 1.5}}, '"Port" is a number with a fraction (1.5), wanted an integer'),
        ({"PostgreSQL": {"Port": 65535}}, '"Port" is 65535, wanted 1 to 65534'),
        ({"PostgreSQL": {"Port": 0}}, "wanted 1 to 65534"),
        ({"PostgreSQL": {"Lock": "true"}}, "\"Lock\" is a string ('true'), wanted true or false"),
        ({"PostgreSQL": {"Host": None}}, '"Host" is null (None), wanted a string'),
        ({"PostgreSQL": {"Password": 12345}}, '"Password" is an integer, wanted a string'),
        ({"PostgreSQL": {"IndexConnectionsCount": 0}}, "wanted 1 to"),
        ({"PostgreSQL": {"MaximumConnectionRetries": -1}}, "wanted 0 to"),
        ({"PostgreSQL": {"TransactionMode": "Snapshot"}}, "wanted one of ReadCommitted, Serializable"),
        ({"OverwriteInstances": "Sometimes"}, "wanted one of Never, Always, IfChanged"),
        ({"OverwriteInstances": 1}, "wanted true or false or a string"),
        ({"DefaultEncoding": "Klingon"}, '"DefaultEncoding" is "Klingon", wanted one of Ascii'),
        ({"OverwriteInstances": "always"}, "wanted one of Never, Always, IfChanged"),
        ({"ExtraMainDicomTags": {"Study": "x"}}, "wanted a list of tag names"),
    ],
)
def test_bad_file(write: Write, content: str | bytes | dict[str, Any], message: str) -> None:
    path = write(content)
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        config.load(path, {})
    assert str(path) in str(caught.value)
    assert "12345" not in str(caught.value)


def test_folder_is_merged(write: Write, tmp_path: Path) -> None:
    write({"PostgreSQL": {"Host": "db1"}}, "conf/b.json")
    write({"StorageDirectory": "attachments", "IndexDirectory": "/index"}, "conf/a.JSON")
    write("not JSON", "conf/readme.txt")
    (tmp_path / "conf" / "deeper.json").mkdir()
    found = config.load(tmp_path / "conf")
    assert found.postgresql("Host") == "db1"
    assert found.storage_directory == tmp_path / "conf" / "attachments"
    assert found.index_directory == Path("/index")


def test_folder_with_a_section_twice(write: Write) -> None:
    write({"PostgreSQL": {"Host": "db1"}}, "conf/a.json")
    folder = write({"PostgreSQL": {}}, "conf/b.json").parent
    message = 'section "PostgreSQL" is defined in 2 different configuration files: a.json and b.json'
    with pytest.raises(ConfigurationError, match=message):
        config.load(folder)


def test_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no \*\.json file"):
        config.load(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.json: cannot be read: No such file"):
        config.load(tmp_path / "nothing.json")


def test_warnings(write: Write) -> None:
    path = write(
        '{"PostgreSQL": {"ConnectionUri": "dbname=x", "Host": "dead", "Enablessl": true, "Foo": 1, "Foo": 2},'
        ' "storagedirectory": "x", "ExtraMainDicomTags": {"Image": [], "Study": ["PatientAge"]}}'
    )
    assert config.load(path).extra_main_dicom_tags == {"Study": ("PatientAge",)}
    warnings = "\n".join(config.load(path).warnings)
    assert 'a level "Image", which Orthanc ignores' in warnings
    assert 'does not know "Enablessl" in section "PostgreSQL"; did you mean "EnableSsl"?' in warnings
    assert 'does not know "Foo" in section "PostgreSQL"\n' in warnings
    assert 'does not know "storagedirectory"; did you mean "StorageDirectory"?' in warnings
    assert "defined twice, the last one counts: Foo" in warnings
    assert '"ConnectionUri" is given, so the plugin ignores "Host"' in warnings


def test_defaults() -> None:
    found = OrthancConfiguration()
    assert (found.overwrite_instances, found.default_encoding, found.schema) == ("never", "Latin1", "public")
    assert (found.store_md5, found.store_dicom, found.sync_storage_area) == (True, True, True)
    assert (found.storage_compression, found.enable_storage, found.ingest_transcoding) == (False, False, None)
    assert (found.extra_main_dicom_tags, found.database_server_identifier) == ({}, None)
    assert found.storage_directory == Path.cwd() / "OrthancStorage" == found.index_directory


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (True, "always"),
        (False, "never"),
        ("Always", "always"),
        ("Never", "never"),
        ("IfChanged", "if_changed"),
    ],
)
def test_overwrite_instances(write: Write, value: object, wanted: str) -> None:
    assert config.load(write({"OverwriteInstances": value})).overwrite_instances == wanted


def test_defaults_by_plugin_generation() -> None:
    found = OrthancConfiguration()
    assert [found.postgresql("IndexConnectionsCount", v) for v in ("6.2", "7.0", "10.3")] == [1, 50, 50]
    assert [found.postgresql("TransactionMode", v) for v in ("6.2", "7.0")] == [
        "Serializable",
        "ReadCommitted",
    ]
    assert len(POSTGRESQL_KEYS) == 20


# The connection of a configuration


def test_discrete_fields(write: Write) -> None:
    section = {"Host": "db 1", "Port": 5433, "Database": "o'rt", "Username": "u", "Password": SECRET}
    found = resolve(config=write({"PostgreSQL": {**section, "Schema": "PACS", "ApplicationName": "Orthanc"}}))
    assert parameters(found) == {
        "host": "db 1", "port": "5433", "dbname": "o'rt", "user": "u", "password": SECRET, "sslmode": "disable",
    }  # fmt: skip
    assert found.target.schema == "pacs"
    assert (found.target.retries, found.target.retry_interval_s) == (10, 5.0)


def test_discrete_fields_have_the_defaults_of_the_plugin(write: Write) -> None:
    section = {"Database": "orthanc", "EnableSsl": True, "Username": "", "MaximumConnectionRetries": 3}
    found = resolve(config=write({"PostgreSQL": {**section, "ConnectionRetryInterval": 1}}))
    assert parameters(found) == {
        "host": "localhost",
        "port": "5432",
        "dbname": "orthanc",
        "sslmode": "require",
    }
    assert origins(found)["port"].endswith("orthanc.json: default of Port")
    assert (found.target.retries, found.target.retry_interval_s) == (3, 1.0)


def test_connection_uri_makes_discrete_fields_dead(write: Write) -> None:
    dead = {"Host": "x", "Port": 1, "Database": "x", "Username": "x", "Password": "x", "EnableSsl": True}
    section = {**dead, "ConnectionUri": "postgresql://h/d?application_name=Orthanc", "Schema": "S"}
    found = resolve(config=write({"PostgreSQL": section}))
    assert parameters(found) == {"host": "h", "dbname": "d"}
    assert found.target.schema == "s"


def test_section_without_connection_leaves_it_to_libpq(write: Write) -> None:
    found = resolve({"PGHOST": "from-libpq"}, config=write({"PostgreSQL": {"EnableIndex": True}}))
    assert parameters(found) == {}
    assert origins(found)["host"] == "PGHOST, read by libpq"


# Precedence


@pytest.mark.parametrize("field", ["host", "port", "dbname", "username", "sslmode", "schema"])
@pytest.mark.parametrize("highest", ["option", "variable", "configuration", "libpq"])
def test_precedence_of_single_fields(write: Write, field: str, highest: str) -> None:
    libpq_name = {"username": "user"}.get(field, field)
    values = {"port": ["1", "2", "3", "4"], "sslmode": ["allow", "verify-ca", "require", "prefer"]}
    option, variable, configured, environment = values.get(field, ["a", "b", "c", "d"])
    levels = ["option", "variable", "configuration", "libpq"]
    active = set(levels[levels.index(highest) :])
    keys = {"dbname": "Database", "sslmode": "EnableSsl"}
    raw: object = {"port": 3, "sslmode": True}.get(field, configured)
    environ = {f"PG{libpq_name.upper().replace('DBNAME', 'DATABASE')}": environment}
    options: dict[str, Any] = {}
    if "variable" in active:
        environ[f"PGORTHANC_{field.upper()}"] = variable
    if "option" in active:
        options[field] = option
    if "configuration" in active:
        options["config"] = write({"PostgreSQL": {keys.get(field, field.capitalize()): raw}})
    found = resolve(environ, **options)
    wanted = {"option": option, "variable": variable, "configuration": configured, "libpq": None}[highest]
    got = found.target.schema if field == "schema" else parameters(found).get(libpq_name)
    assert got == ("public" if field == "schema" and wanted is None else wanted)
    origin = origins(found)[libpq_name]
    assert origin.startswith(
        {"option": f"--{field}", "variable": f"PGORTHANC_{field.upper()}", "configuration": str(options.get("config")),
         "libpq": "default" if field == "schema" else "PG"}[highest]
    )  # fmt: skip


URI = "postgresql://u:pw@h1:1,h2:2/d?sslmode=verify-full&target_session_attrs=read-write&channel_binding=require"


@pytest.mark.parametrize(
    ("options", "environ", "section", "wanted"),
    [
        # a URI is taken whole
        ({"uri": URI}, {}, {}, {"user": "u", "password": "pw", "host": "h1,h2", "port": "1,2", "dbname": "d",
         "sslmode": "verify-full", "target_session_attrs": "read-write", "channel_binding": "require"}),
        # and leaves nothing of a lower one, or of the configuration: no foreign password, no sslmode=disable
        ({"uri": "dbname=x"}, {"PGORTHANC_URI": URI}, {}, {"dbname": "x"}),
        ({"uri": "dbname=x"}, {}, {"Host": "h", "Password": "pw"}, {"dbname": "x"}),
        ({}, {"PGORTHANC_URI": "dbname=x"}, {"ConnectionUri": URI}, {"dbname": "x"}),
        # single fields of a higher level override parts of it, and those of a lower level fill what it leaves open
        ({"dbname": "x"}, {"PGORTHANC_URI": "postgresql://u@h/d"}, {}, {"user": "u", "host": "h", "dbname": "x"}),
        ({"uri": "host=h"}, {"PGORTHANC_PASSWORD": "pw"}, {}, {"host": "h", "password": "pw"}),
        ({"uri": "host=h"}, {"PGORTHANC_HOST": "i", "PGORTHANC_PORT": "7"}, {}, {"host": "h", "port": "7"}),
        # another host does not inherit the ports and addresses of the overridden ones
        ({"host": "h3"}, {"PGORTHANC_URI": "host=h1,h2 port=1,2 hostaddr=10.0.0.1,10.0.0.2"}, {}, {"host": "h3"}),
        ({"host": "h3"}, {"PGORTHANC_URI": "host=h1 port=7"}, {}, {"host": "h3", "port": "7"}),
        # another role does not get the password of the overridden one
        ({"username": "v"}, {}, {"ConnectionUri": "user=u password=pw host=h"}, {"user": "v", "host": "h"}),
        ({"username": "u"}, {}, {"ConnectionUri": "user=u password=pw"}, {"user": "u", "password": "pw"}),
        # a service says the rest itself
        ({"uri": "service=s"}, {"PGORTHANC_HOST": "h"}, {}, {"service": "s"}),
        ({"uri": "service=s"}, {"PGORTHANC_PASSWORD": "pw"}, {}, {"service": "s", "password": "pw"}),
        ({"host": "h"}, {"PGORTHANC_URI": "service=s"}, {}, {"service": "s", "host": "h"}),
        # empty is not given
        ({"host": "", "uri": ""}, {"PGORTHANC_HOST": "", "PGORTHANC_DBNAME": "d"}, {}, {"dbname": "d"}),
        # percent-encoding, addresses, sockets
        ({"uri": "postgresql://u%40x:p%40%2F%25%3A@[::1]:5433/d%20b"}, {}, {},
         {"user": "u@x", "password": "p@/%:", "host": "::1", "port": "5433", "dbname": "d b"}),
        ({"uri": "postgresql://@/d?host=%2Frun%2Fpg&options=-c%20jit%3Doff"}, {}, {},
         {"host": "/run/pg", "dbname": "d", "options": "-c jit=off"}),
    ],
)  # fmt: skip
def test_uri_and_fields(
    write: Write,
    options: dict[str, str],
    environ: dict[str, str],
    section: dict[str, str],
    wanted: dict[str, str],
) -> None:
    if section:
        environ = {**environ, "PGORTHANC_CONFIG": str(write({"PostgreSQL": section}))}
    assert parameters(resolve(environ, **options)) == wanted


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        ({"uri": "dbname=x", "host": "h", "dbname": "d"}, {}, "--uri and --host, --dbname contradict"),
        ({}, {"PGORTHANC_URI": "dbname=x", "PGORTHANC_PORT": "1"}, "PGORTHANC_URI and PGORTHANC_PORT contradict"),
        ({}, {"PGORTHANC_PASSWORD": SECRET, "PGORTHANC_PASSWORD_FILE": "/f"}, "PGORTHANC_PASSWORD and PGORTHANC_"),
        ({}, {"PGORTHANC_PASSWORD": "x", "PGORTHANC_URI": "password=s3cr"}, "PGORTHANC_URI holds a password"),
        ({}, {"PGORTHANC_PORT": "0x5"}, "PGORTHANC_PORT is '0x5', wanted a port"),
        ({"port": 65536}, {}, "--port is '65536', wanted a port from 1 to 65535"),
        ({}, {"PGORTHANC_SSLMODE": "on"}, "PGORTHANC_SSLMODE is 'on', wanted one of disable"),
        ({"uri": "postgresql://u:s3cr@x@h:5432/d"}, {}, "--uri holds an @ too many"),
        ({"uri": "postgresql://u:s3cr/x@h:5432/d"}, {}, "--uri holds an @ too many"),
        ({"uri": "postgresql://u:12/s3cr@h:5432/d"}, {}, "--uri holds an @ too many"),
        ({"uri": "postgresql://u:s3cr%zz@h/d"}, {}, "--uri is no connection string: invalid percent-encoded token"),
        ({"uri": "host=h password=a s3cr"}, {}, '--uri is no connection string: missing "..."'),
        ({"uri": "postgresql://h/d?nope=1"}, {}, "invalid URI query parameter"),
        ({"password_file": "/nonexistent"}, {}, "--password-file: /nonexistent cannot be read: No such file"),
        ({"config": "/nonexistent"}, {}, "/nonexistent: cannot be read"),
    ],
)  # fmt: skip
def test_contradictions(options: dict[str, Any], environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        resolve(environ, **options)
    assert "s3cr" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.exit_code == 2
    assert caught.value.__cause__ is None


# Passwords


@pytest.mark.parametrize("line", [f"{SECRET}\n", f"{SECRET}\r\nmore", SECRET])
def test_password_file(write: Write, line: str) -> None:
    path = write(line, "password")
    path.chmod(0o600)
    found = resolve({"PGORTHANC_PASSWORD": "other"}, password_file=path)
    assert parameters(found)["password"] == SECRET
    assert found.warnings == ()
    assert origins(found)["password"] == f"--password-file {path}"


def test_password_file_that_others_can_read(write: Write) -> None:
    path = write("x", "pass word")
    path.chmod(0o640)
    (warning,) = resolve({"PGORTHANC_PASSWORD_FILE": str(path)}).warnings
    assert warning.endswith(f"can be read by others; run: chmod 600 '{path}'")


@pytest.mark.parametrize(("content", "message"), [(b"\nx", "is empty"), (b"\xff\xfe", "is not UTF-8")])
def test_bad_password_file(write: Write, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(password_file=write(content, "password"))


def test_password_from_a_descriptor() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe\n")
    os.close(writer)
    try:
        found = resolve(password_file=f"/dev/fd/{reader}")
    finally:
        os.close(reader)
    assert (parameters(found)["password"], found.warnings) == ("through a pipe", ())


def test_password_in_the_uri_option_is_warned_about() -> None:
    assert "process list" in resolve(uri="password=x").warnings[0]
    assert resolve({"PGORTHANC_URI": "password=x"}).warnings == ()


def test_password_is_never_shown(write: Write) -> None:
    path = write({"PostgreSQL": {"Host": "h", "Password": SECRET}})
    for found in (
        resolve(config=path),
        resolve({"PGORTHANC_PASSWORD": SECRET, "PGPASSWORD": SECRET}),
        resolve({"PGPASSWORD": SECRET}),
        resolve({"PGORTHANC_URI": "postgresql://u:s3cr%20x@h/d?sslpassword=s3cr"}),
    ):
        shown = f"{found!r} {found} {found.target} {found.target!r} {[str(s) for s in found.provenance]}"
        assert "s3cr" not in shown
        assert b"s3cr" not in pickle.dumps((found.provenance, found.warnings))
        assert origins(found)["password"]
        assert pickle.loads(pickle.dumps(found.target)) == found.target  # noqa: S301


# The whole answer


def test_provenance_names_everything(write: Write) -> None:
    path = write({"PostgreSQL": {"Schema": "X"}})
    environ = {
        "PGORTHANC_CONFIG": str(path),
        "PGSERVICE": "prod",
        "PGSSLROOTCERT": "/ca",
        "PGORTHANC_DBNAME": "d",
    }
    found = resolve(environ, host="h")
    assert [str(s) for s in found.provenance] == [
        "host = h (from --host)",
        "dbname = d (from PGORTHANC_DBNAME)",
        f"schema = x (from {path}: Schema)",
        f"configuration = {path} (from PGORTHANC_CONFIG)",
        "service = prod (from PGSERVICE, read by libpq)",
        "sslrootcert = /ca (from PGSSLROOTCERT, read by libpq)",
        "password = (not given) (from .pgpass, looked up by libpq)",
    ]


def test_schema_is_exact_outside_of_the_configuration() -> None:
    assert resolve(schema='My "Schema"').target.schema == 'My "Schema"'
    assert resolve({"PGORTHANC_SCHEMA": "User"}).target.schema == "User"


def test_at_another_server(write: Write) -> None:
    path = write({"PostgreSQL": {"Host": "h", "Password": SECRET, "Schema": "x"}, "StorageCompression": True})
    found = resolve(config=path).at("host=/socket password=y", "--embedded")
    assert parameters(found) == {"host": "/socket", "password": "y"}
    assert origins(found) == {
        "host": "--embedded", "password": "--embedded", "schema": f"{path}: Schema", "configuration": "--config",
    }  # fmt: skip
    assert found.target.schema == "x"
    assert found.orthanc is not None
    assert found.orthanc.storage_compression


def test_errors_are_of_one_family() -> None:
    assert issubclass(ConfigurationError, PgOrthancError)
