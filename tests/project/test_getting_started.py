"""docs/getting-started.md: its lines in their order, on a real server without any role or database."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import commandlines, samples
from tests.support.real_servers import Server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "getting-started.md").read_text("utf-8")
_NOT_TESTED = re.compile(r"<!-- not in the test: .*? -->\n```sh\n.*?```", re.DOTALL)
FOLDERS = (
    "/opt",
    "/usr/local/bin",
    "/var/lib/postgresql",
    "/var/lib/orthanc",
    "/etc/orthanc",
    "/srv/incoming",
)
# Tests have one account, and it is neither postgres nor orthanc.
PRELUDE = 'set -e; sudo() { if [ "$1" = -u ]; then shift 2; fi; "$@"; }\n'


@pytest.fixture
def server() -> Iterator[Server]:
    """An empty server with the accounts of Debian's: the administrator by the socket, others by password."""
    server = Server(
        "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
        "fsync=on\npassword_encryption='scram-sha-256'\n",
    )
    try:
        yield server.create().start()
    finally:
        server.remove()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine on which Orthanc has been installed."""
    for folder in FOLDERS:
        (tmp_path / folder[1:]).mkdir(parents=True)
    plugins = tmp_path / "usr" / "share" / "orthanc" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "libOrthancPostgreSQLIndex.so.4.0").touch()
    (plugins / "libOrthancPostgreSQLIndex.so").symlink_to("libOrthancPostgreSQLIndex.so.4.0")
    storage = tmp_path / "var" / "lib" / "orthanc" / "db-v6"
    storage.mkdir()
    (tmp_path / "etc" / "orthanc" / "orthanc.json").write_text(
        f'{{"StorageDirectory": "{storage}", "Plugins": ["{plugins}"]}}'
    )
    for number in (1, 2, 3):
        (tmp_path / "srv" / "incoming" / f"{number}.dcm").write_bytes(samples.instance(number=number))
    return tmp_path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The tracked files: an installation writes into the folder."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, names.decode().split("\0")):
        target = tmp_path / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return tmp_path / "clone"


def script(root: Path) -> str:
    lines = "".join(commandlines.blocks(_NOT_TESTED.sub("", PAGE), "sh"))
    for folder in FOLDERS:
        lines = re.sub(rf"(?<!\S){folder}(?=[/\s])", f"{root}{folder}", lines)
    return PRELUDE + lines.replace("-g orthanc ", "")


@pytest.mark.once
def test_every_line_works_in_this_order(server: Server, machine: Path, clone: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{machine}/usr/local/bin:{os.environ['PATH']}",
        "PGHOST": str(server.folder), "PGPORT": str(server.port), "PGUSER": "postgres",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", script(machine)], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (counted,) = re.findall(r"^  Content .* (\d+) instances$", done.stdout, re.MULTILINE)
    assert counted == "3"
    password = (machine / "var" / "lib" / "postgresql" / "orthanc.password").read_text().strip()
    assert password
    assert password not in done.stdout + done.stderr


def test_only_what_needs_orthanc_or_debian_is_left_out() -> None:
    left_out = "".join(_NOT_TESTED.findall(PAGE))
    assert [words[0] for words in commandlines.in_shell("".join(commandlines.blocks(left_out, "sh")))] == [
        "check-lock"
    ]
