"""The real Orthanc starts with what `config new` writes, and stores a file where it says."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, db
from tests.interop.archive import Archive
from tests.interop.orthanc import Program, Rest
from tests.support import samples
from tests.support.real_servers import free_port, wait_until

pytestmark = pytest.mark.interop


def pgorthanc(*words: str | Path, **environment: str) -> None:
    result = CliRunner().invoke(cli.main, [*map(str, words)], env=environment)
    assert result.exit_code == 0, result.output


@contextmanager
def started(program: Program, file: Path, log: Path) -> Iterator[Rest]:
    """An Orthanc that reads the very file, comments included."""
    port = free_port()
    for key, value in (("HttpPort", port), ("DicomPort", free_port())):
        pgorthanc("config", "set", key, str(value), "--config", file)
    rest = Rest(f"http://127.0.0.1:{port}")
    with log.open("wb") as output:
        process = program.run(str(file), stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: process.poll() is not None or rest.answers(), timeout_s=60)
        assert process.poll() is None, log.read_text(errors="replace")
        yield rest
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode == 0, log.read_text(errors="replace")


@pytest.mark.parametrize("storage", ["filesystem", "postgresql"])
@pytest.mark.parametrize("password", ["environment", "passfile", "written"])
def test_orthanc_starts_and_stores(
    storage: str, password: str, program: Program, new_archive: Callable[..., Archive], tmp_path: Path
) -> None:
    archive = new_archive()
    dsn = db.parse_dsn(archive.target.dsn)
    secret = dsn.pop("password")
    file, area, passfile = tmp_path / "orthanc.json", tmp_path / "area", tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:{dsn['user']}:{secret}\n")
    passfile.chmod(0o600)
    options = {"environment": (), "passfile": ("--passfile", passfile), "written": ("--show-password",)}
    environment = {} if password == "passfile" else {"PGPASSWORD": secret}
    pgorthanc(
        "config", "new", "--host", dsn["host"], "--port", dsn["port"], "--dbname", dsn["dbname"],
        "--username", dsn["user"], "--storage", storage, "--storage-dir", area,
        "--plugins", Path(program.plugins[0]).parent, "--output", file, *options[password], **environment,
    )  # fmt: skip
    assert (secret in file.read_text()) == (password == "written")
    known = {} if password == "written" else environment
    pgorthanc("init", "--config", file, "--plugin", program.plugin_version(), **known)
    pgorthanc("config", "check", "--config", file, **known)
    if password == "environment":
        program = replace(program, environment={**program.environment, **known})
    with started(program, file, tmp_path / "log") as rest:
        assert rest.upload(Path(samples.REAL).read_bytes()) is not None
        assert "libOrthancPostgreSQLIndex" in rest.get("/system")["DatabaseBackendPlugin"]
    with db.session(archive.target, readonly=True) as conn:
        stored = db.value(conn, "SELECT count(*) FROM index.attachedfiles")
    assert stored
    assert any(names for _, _, names in os.walk(area)) == (storage == "filesystem")
