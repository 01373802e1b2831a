"""What we understand of a configuration is what the real Orthanc, and its plugin with libpq, understand."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.config import ConfigurationError, conninfo, documents, plugins, startup
from pgorthanc_cli.config.deployment import Deployment
from pgorthanc_cli.config.orthanc import validate
from pgorthanc_cli.errors import UsageError
from tests.interop.configurations import Case, broken_and_odd, folders, generated, variables
from tests.interop.orthanc import Program

pytestmark = pytest.mark.interop

# Orthanc runs this before it opens any port, and ends. Lua has no null and one kind of number and table.
SCRIPT = """
local function hex(text) return (text:gsub(".", function(c) return string.format("%02x", c:byte()) end)) end
local function show(value)
  if type(value) == "table" then
    local parts = {}
    for key, member in pairs(value) do
      parts[#parts + 1] = string.format('"%s":%s', hex(tostring(key):gsub("%.0$", "")), show(member))
    end
    return "{" .. table.concat(parts, ",") .. "}"
  end
  if type(value) == "string" then return '"' .. hex(value) .. '"' end
  if type(value) == "number" then return value - value == 0 and string.format("%.17g", value) or "null" end
  return tostring(value)
end
function Initialize()
  io.stdout:write("@@" .. show(GetOrthancConfiguration()) .. "@@")
  io.stdout:flush()
  os.exit(0)
end
"""
OWN = ("LuaScripts", "HttpServerEnabled", "DicomServerEnabled", "StorageDirectory")
CASES = [*broken_and_odd(), *variables(), *folders(), *generated(random.Random(5), 150)]


def ask(program: Program, case: Case, folder: Path) -> object:
    """The configuration as Orthanc has it, or `refused`."""
    home = folder / "conf"
    home.mkdir(parents=True)
    for name, content in case.files.items():
        place = home / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
    script = folder / "show.lua"
    script.write_text(SCRIPT)
    own: list[object] = [[str(script)], False, False, str(folder / "storage")]
    (home / "zz-own.json").write_text(json.dumps(dict(zip(OWN, own, strict=True))))
    told = Program(program.label, program.command, program.plugins, {**program.environment, **case.environ})
    with told.run(str(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        output, _ = process.communicate(timeout=60)
    found = re.search(rb"@@(.*)@@", output, re.DOTALL)
    if not found:
        return "refused"
    return {name: value for name, value in _decoded(json.loads(found[1])).items() if name not in OWN}


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {bytes.fromhex(key).decode(): _decoded(member) for key, member in value.items()}
    return bytes.fromhex(value).decode(errors="replace") if isinstance(value, str) else value


def understand(case: Case, folder: Path) -> tuple[object, list[documents.Problem]]:
    """The same as we have it."""
    try:
        found = documents.read(folder / "conf", {**os.environ, **case.environ})
    except ConfigurationError:
        return "refused", []
    return _as_in_lua({k: v for k, v in found.values.items() if k not in OWN}), found.problems


def _as_in_lua(value: Any) -> Any:
    members = dict(enumerate(value, 1)) if isinstance(value, list) else value
    if isinstance(members, dict):
        return {str(key): _as_in_lua(member) for key, member in members.items() if member is not None}
    return float(value) if type(value) is int else value


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)


def test_orthanc_reads_it_as_we_do(program: Program, tmp_path: Path) -> None:
    def compare(numbered: tuple[int, Case]) -> str | None:
        number, case = numbered
        folder = tmp_path / str(number)
        theirs = ask(program, case, folder)
        ours, problems = understand(case, folder)
        if theirs == ours:
            return None
        newer_only = any("control character" in problem.message for problem in problems)
        if (theirs == "refused" and newer_only) or (ours == "refused" and case.stricter):
            return None
        return f"{case.name} {case.files}: Orthanc {theirs}, we {ours}"

    with ThreadPoolExecutor(2) as pool:
        assert [said for said in pool.map(compare, enumerate(CASES)) if said] == []


# The section "PostgreSQL": what reaches the server


@dataclass
class Door:
    """A port that asks whoever knocks for the password, as a server does, and notes what it is told."""

    port: int
    heard: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def door() -> Iterator[Door]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = Door(listening.getsockname()[1])
        thread = threading.Thread(target=_answer, args=(listening, found))
        thread.start()
        try:
            yield found
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def _answer(listening: socket.socket, found: Door) -> None:
    with suppress(OSError):  # the door is closed
        while True:
            knocking, _ = listening.accept()
            with knocking, suppress(ConnectionError, struct.error):
                knocking.settimeout(10)
                found.heard.append(_login(knocking))


def _login(knocking: socket.socket) -> dict[str, str]:
    """PostgreSQL's frontend/backend protocol: StartupMessage, AuthenticationCleartextPassword, PasswordMessage."""
    encryption = (80877103, 80877104)  # SSLRequest, GSSENCRequest
    heard = {}
    while True:
        [length] = struct.unpack("!i", knocking.recv(4, socket.MSG_WAITALL))
        body = knocking.recv(length - 4, socket.MSG_WAITALL)
        if struct.unpack("!i", body[:4])[0] not in encryption:
            break
        heard["tls"] = "asked for"
        knocking.sendall(b"N")
        if not (knocking.recv(1, socket.MSG_PEEK)):
            return heard
    words = [word.decode() for word in body[4:].split(b"\0")]
    heard |= {name: value for name, value in zip(words[::2], words[1::2], strict=False) if name}
    knocking.sendall(b"R" + struct.pack("!ii", 8, 3))
    kind, length = struct.unpack("!ci", knocking.recv(5, socket.MSG_WAITALL) or b"X\0\0\0\4")
    if kind == b"p":
        heard["password"] = knocking.recv(length - 4, socket.MSG_WAITALL)[:-1].decode()
    return heard


def knock(program: Program, section: dict[str, Any], folder: Path) -> list[dict[str, str]] | None:
    """What the plugin tells a server; None if Orthanc does not start with that section, [] if it goes elsewhere."""
    folder.mkdir()
    with door() as found:
        written = {k: found.port if v == "PORT" else v for k, v in section.items()}
        section.update(written)
        configuration = {
            "PostgreSQL": {**written, "EnableIndex": True},
            "Plugins": [program.plugins[0]], "StorageDirectory": str(folder / "storage"),
            "HttpServerEnabled": False, "DicomServerEnabled": False,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        with program.run(
            str(folder / "orthanc.json"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            _, log = process.communicate(timeout=60)
    refused = re.search(rb"The configuration option|Parameter out of range|Native exception", log)
    return None if refused else found.heard


PLAIN: dict[str, Any] = {
    "Host": "127.0.0.1", "Port": "PORT", "Database": "d", "Username": "u", "Password": "p",
    "MaximumConnectionRetries": 0, "ConnectionRetryInterval": 0, "Lock": False,
}  # fmt: skip
PASSWORDS = (
    "p'q", "'pq'", "'p q'", "a\\b", "a\\\\b", "a b", "a\\ b", 'p"q', " lead", "trail ", "tab\tx", "é", "%40", "p=q",
    "", "'abc", "\\", "p dbname=x", "p user=x", "p port=1", "p sslmode=require", "\\'", "$x", "a#b@c:d/e?f&g",
)  # fmt: skip
TEXTS = ("", " ", "a b", "x user=y", "'", "\\", "a\\b")
SECTIONS: list[dict[str, Any]] = [
    {},
    *({"Password": password} for password in PASSWORDS),
    *({key: text} for key in ("Username", "Host", "Database") for text in TEXTS),
    {"Host": "127.0.0.1 user=x"},
    {"Database": "d application_name=x"},
    {"EnableSsl": True},
    {"EnableSsl": False},
    {"Database": "", "Password": ""},
    {"Username": "", "Host": "", "Password": ""},
]  # fmt: skip
WRONG: tuple[tuple[str, object], ...] = (
    ("Port", "5432"), ("Port", 5432.5), ("Port", 65535), ("Port", 0), ("Port", -1), ("Port", True), ("Port", None),
    ("Lock", "false"), ("Lock", 0), ("Lock", None), ("Password", 12345), ("Database", None), ("Username", False),
    ("Host", 1), ("EnableSsl", "true"), ("IndexConnectionsCount", 0), ("IndexConnectionsCount", "3"),
    ("IndexConnectionsCount", 1.0), ("MaximumConnectionRetries", -1), ("ConnectionRetryInterval", "1"),
    ("ConnectionUri", 5), ("Database", ["x"]), ("Host", {}),
)  # fmt: skip


def expected(section: dict[str, Any], port: int) -> dict[str, str] | None:
    """What we say libpq makes of the section; None if it goes elsewhere, or nowhere."""
    try:
        given = db.parse_dsn(conninfo.joined(section))
    except UsageError:
        return None
    if given.get("host") != "127.0.0.1" or given.get("port") != str(port):
        return None
    if given["sslmode"] == "require":
        return {"tls": "asked for"}  # and refused there
    user = given.get("user", "")
    told = {"user": user, "database": given.get("dbname") or user, "password": given.get("password")}
    told["application_name"] = given.get("application_name")
    return {name: value for name, value in told.items() if value}


def test_libpq_gets_what_we_say(program: Program, tmp_path: Path) -> None:
    def compare(numbered: tuple[int, dict[str, Any]]) -> str | None:
        number, change = numbered
        section = {**PLAIN, **change}
        heard = knock(program, section, tmp_path / str(number))
        wanted = expected(section, section["Port"])
        got = {k: v for k, v in heard[0].items() if k != "client_encoding"} if heard else None
        return None if got == wanted else f"{change}: the plugin {got}, we {wanted}"

    with ThreadPoolExecutor(2) as pool:
        assert [said for said in pool.map(compare, enumerate(SECTIONS)) if said] == []


def test_we_report_just_what_is_mangled(program: Program, tmp_path: Path) -> None:
    """A password arrives as it is written exactly if nothing is said about it."""
    for number, password in enumerate(PASSWORDS[:12]):
        section = {**PLAIN, "Password": password}
        heard = knock(program, section, tmp_path / str(number))
        arrived = bool(heard) and heard[0].get("password") == password  # type: ignore[index]
        problems = list(conninfo.mangled(section, lambda _: ""))
        assert arrived == (problems == []), password


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_values_that_the_plugin_refuses(program: Program, tmp_path: Path, key: str, value: object) -> None:
    section = {**PLAIN, key: value}
    assert knock(program, section, tmp_path / "run") is None
    with pytest.raises(ConfigurationError, match=key):
        validate(documents.Paths.of(tmp_path), documents.Document({"PostgreSQL": section}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("StorageCompression", "true"), ("StoreDicom", 1), ("SyncStorageArea", "x"), ("IndexDirectory", 5),
        ("StoreMD5ForAttachments", "no"), ("DatabaseServerIdentifier", 5), ("OverwriteInstances", "Sometimes"),
        ("OverwriteInstances", "always"), ("DefaultEncoding", "Klingon"), ("DefaultEncoding", "latin1"),
        ("ExtraMainDicomTags", {"Image": []}), ("ExtraMainDicomTags", {}), ("OverwriteInstances", True),
        ("Plugins", "x"),
    ],
)  # fmt: skip
def test_root_values(program: Program, tmp_path: Path, key: str, value: object) -> None:
    case = Case(key, {"a.json": json.dumps({key: value}).encode()})
    refused = ask(program, case, tmp_path / "run") == "refused"
    try:
        validate(documents.Paths.of(tmp_path), documents.Document({key: value}))
    except ConfigurationError:
        assert refused
    else:
        assert not refused


@pytest.mark.parametrize(
    "root",
    [
        {"OverwriteInstances": "IfChanged", "StoreMD5ForAttachments": False}, {"OverwriteInstances": "IfChanged"},
        {"PatientLevelEnabled": False, "MaximumPatientCount": 5}, {"PatientLevelEnabled": False},
        {"PatientLevelEnabled": False, "MaximumStorageSize": 5}, {"PatientLevelEnabled": "x"},
        *({name: value} for name in ("DicomParserThreadsCount", "TranscoderThreadsCount") for value in (0, 1, "x")),
        *({name: value} for name in ("DicomParserCacheSize", "TranscoderMemoryCapacity") for value in (0, -1)),
        {"SequentialDicomReaderWindowSize": 0}, {"SequentialDicomReaderWindowCapacity": 0},
        {"SequentialDicomReaderThreadsCount": 0},
        *({"ExtraMainDicomTags": {"Study": [tag]}} for tag in ("EthnicGroup", "ReasonForStudy", "0010,2160")),
        *({"ExtraMainDicomTags": {"Study": [tag]}} for tag in ("PatientAge", "0010-1010", "00101010")),
    ],
    ids=str,
)  # fmt: skip
def test_what_stops_orthanc_is_said(program: Program, tmp_path: Path, root: dict[str, Any]) -> None:
    if int(program.version().split(".")[1]) < 13:
        root = {}  # it knows none of these options, so it starts with anything
    case = Case("start", {"a.json": json.dumps(root).encode()})
    refused = ask(program, case, tmp_path / "run") == "refused"
    document = documents.Document(root)
    said = [p for p in starting_problems(document, tmp_path) if p.severity != "info"]
    assert refused is bool(said), said


def starting_problems(document: documents.Document, folder: Path) -> list[documents.Problem]:
    found = Deployment.of(document, folder)
    return [problem for rule in startup.RULES for problem in rule(found)]


def test_the_release_is_in_the_name_of_the_libraries(program: Program) -> None:
    for entry in program.plugins:
        found = plugins.read(Path(entry))
        assert found.release == program.plugin_version()
        assert found.is_index or found.is_storage
