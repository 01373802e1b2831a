"""The real Orthanc: where it is, how it is started and stopped, and its REST API."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.real_servers import free_port, wait_until

ROOTS = "PGORTHANC_ORTHANC_ROOTS"
HOW_TO_GET = (
    "no Orthanc with its PostgreSQL plugin: apt-get install orthanc orthanc-postgresql, or unpack one with "
    f".ci/orthanc-root and name its folder in {ROOTS}"
)
_PLUGINS = ("libOrthancPostgreSQLIndex.so", "libOrthancPostgreSQLStorage.so")


class DoesNotStart(Exception):
    """Orthanc ended by itself; the text is the end of its log."""


@dataclass(frozen=True)
class Program:
    """An Orthanc of Debian's packages, installed or unpacked into a folder."""

    label: str
    command: tuple[str, ...]
    plugins: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self.environment}
        return subprocess.Popen([*self.command, *arguments], env=environment, **options)

    def version(self) -> str:
        with self.run("--version", stdout=subprocess.PIPE) as process:
            assert process.stdout
            return process.stdout.readline().decode().split()[1]

    def plugin_version(self) -> str:
        """From the name of the library."""
        return Path(self.plugins[0]).resolve().name.partition(".so.")[2]


def programs() -> list[Program]:
    """Those unpacked in the folders of PGORTHANC_ORTHANC_ROOTS (separated as in PATH), else the installed one."""
    roots = [Path(name) for name in os.environ.get(ROOTS, "").split(os.pathsep) if name]
    return [_unpacked(root) for root in roots] or _installed()


def _installed() -> list[Program]:
    found = shutil.which("Orthanc", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    plugins = _plugins(Path("/"))
    if not found or not all(map(os.path.exists, plugins)):
        return []
    return [Program("installed", (found,), plugins)]


def _unpacked(root: Path) -> Program:
    """With the dynamic loader, the libraries and the DICOM dictionary of the folder."""
    root = root.resolve(strict=True)
    loader = next(path for top in ("usr/lib", "lib") for path in root.glob(f"{top}/*/ld-linux-*.so.*"))
    machine = loader.parent.name  # as in x86_64-linux-gnu
    libraries = ":".join(f"{root}/{folder}" for folder in (f"usr/lib/{machine}", f"lib/{machine}", "usr/lib"))
    [dictionary] = root.glob("usr/share/*dcmtk*/dicom.dic")
    return Program(
        root.name,
        (str(loader), "--library-path", libraries, str(root / "usr/sbin/Orthanc")),
        _plugins(root),
        {"DCMDICTPATH": f"{dictionary}:{dictionary.with_name('private.dic')}"},
    )


def _plugins(root: Path) -> tuple[str, ...]:
    return tuple(str(root / "usr/share/orthanc/plugins" / name) for name in _PLUGINS)


@dataclass(frozen=True)
class Rest:
    """The REST API of a running Orthanc; `refused` are the bodies that it would not store."""

    url: str
    refused: list[bytes] = field(default_factory=list)

    def send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, method=method)  # noqa: S310 - http of our own
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            error.add_note(f"{method} {path}: {error.read().decode(errors='replace')}")
            raise

    def get(self, path: str) -> Any:
        return json.loads(self.send("GET", path))

    def post(self, path: str, body: bytes | dict[str, Any]) -> Any:
        return json.loads(
            self.send("POST", path, json.dumps(body).encode() if isinstance(body, dict) else body)
        )

    def put(self, path: str, body: str) -> None:
        self.send("PUT", path, body.encode())

    def delete(self, path: str) -> Any:
        return json.loads(self.send("DELETE", path))

    def upload(self, content: bytes) -> str | None:
        """The public id of the stored instance; None if Orthanc refuses the file."""
        try:
            return str(self.post("/instances", content)["ID"])
        except urllib.error.HTTPError as error:
            if error.code not in (400, 404):
                raise
            self.refused.append(content)
            return None

    def find(self, level: str, **query: str) -> set[str]:
        return set(self.post("/tools/find", {"Level": level, "Query": query}))

    def answers(self) -> bool:
        try:
            self.get("/system")
        except OSError:
            return False
        return True


@contextmanager
def running(program: Program, configuration: dict[str, Any], folder: Path) -> Iterator[Rest]:
    """An Orthanc that works for the length of the block; its log must hold no error, but for refused files.

    The configuration is written to `orthanc.json` in the folder, the log to `orthanc.log`.

    Raises:
        DoesNotStart: It ended instead.
    """
    port = free_port()
    place = folder / "orthanc.json"
    place.write_text(json.dumps({**configuration, "HttpPort": port, "Plugins": program.plugins}))
    log = folder / "orthanc.log"
    with log.open("wb") as output:
        process = program.run("--verbose", str(place), stdout=output, stderr=subprocess.STDOUT)
    rest = Rest(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: _ended(process) or rest.answers(), timeout_s=60)
        if process.poll() is not None:
            raise DoesNotStart(_end_of(log))
        yield rest
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            wait_until(lambda: _ended(process) or _knock(port), timeout_s=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, _end_of(log)
    assert rest.refused or _errors(log) == []


def _knock(port: int) -> bool:
    """The HTTP server looks every 2 seconds whether it is to stop, or at once when somebody connects; never true."""
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    return False


def _ended(process: subprocess.Popen[bytes]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.05)
        return True
    return False


def _errors(log: Path) -> list[str]:
    """What went wrong, but for a server that has no trigrams: the plugin tries again whenever it starts.

    A transaction that collides with another writer is tried again, too.
    """
    lines = log.read_text(errors="replace").splitlines()
    again = ("pg_trgm", "the transaction should be retried")
    return [line for line in lines if line.startswith("E") and not any(words in line for words in again)]


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])
