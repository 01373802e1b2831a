"""What is installed works: the wheel is built, installed in an empty environment, and makes an index there."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pgorthanc_cli import db
from tests.support.schemas import CURRENT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # From a copy of what is tracked: a build must not find what lies around in the checkout.
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.split(
        b"\0"
    )
    source = tmp_path_factory.mktemp("source")
    for name in filter(None, (n.decode() for n in names)):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_has_every_script_and_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"pgorthanc_cli/scripts/{path.name}" for path in (ROOT / "scripts").glob("*.sql")} <= names
    package = ROOT / "pgorthanc_cli"
    ours = (*package.rglob("*.py"), *package.rglob("*.json"), *package.rglob("*.sql"), package / "py.typed")
    assert {str(path.relative_to(ROOT)) for path in ours} <= names
    assert all(name.startswith(("pgorthanc_cli/", "pgorthanc-")) for name in names)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `pgorthanc` of an environment that holds the wheel and nothing of the checkout."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    subprocess.run([environment / "bin" / "pip", "install", "--quiet", str(wheel)], check=True)
    return environment / "bin" / "pgorthanc"


def run(command: Sequence[str | Path], cwd: Path) -> dict[str, object]:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_init_and_status_from_the_wheel(installed: Path, empty: db.Target, tmp_path: Path) -> None:
    created = run([installed, "init", "--uri", empty.dsn, "--json"], tmp_path)
    assert (created["revision"], created["created"]) == (CURRENT, True)
    assert run([installed, "status", "--uri", empty.dsn, "--json"], tmp_path)["revision"] == CURRENT


def test_a_bare_checkout_works(empty: db.Target) -> None:
    """`python -m pgorthanc_cli` in the checkout, with the scripts where they are in the repository."""
    created = run([sys.executable, "-m", "pgorthanc_cli", "init", "--uri", empty.dsn, "--json"], ROOT)
    assert created["created"] is True
