"""The Dockerfile: its rules, and its steps in a folder instead of an image."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from pgorthanc_cli import __version__
from tests.deploy.places import DEPLOY
from tests.project.test_packaging import wheel

__all__ = ["wheel"]  # a fixture


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and what follows each."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined.splitlines()]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for step in steps():
        if step[0] == "FROM":
            found.append([])
        found[-1].append(step)
    return found


def test_base_images_are_pinned() -> None:
    images = [rest.split()[0] for name, rest in steps() if name == "FROM"]
    assert images == ["python:3.12-slim-bookworm"] * 2


def test_only_the_wheel_enters_the_image() -> None:
    build, final = stages()
    assert [rest for name, rest in build if name == "COPY"] == ["dist/pgorthanc-*-py3-none-any.whl /tmp/"]
    assert [rest for name, rest in final if name == "COPY"] == ["--from=build /opt/pgorthanc /opt/pgorthanc"]
    assert all(name != "ADD" for name, _ in steps())
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert [line for line in ignored if not line.startswith("#")] == ["*", "!dist/*.whl"]


def test_the_user_is_not_root() -> None:
    _, final = stages()
    names = [name for name, _ in final]
    (user,) = (rest for name, rest in final if name == "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert user.split(":")[0] in dict(final)["RUN"]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


def test_the_entry_point_is_the_program() -> None:
    _, final = stages()
    instructions = dict(final)
    assert json.loads(instructions["ENTRYPOINT"]) == ["pgorthanc"]
    assert json.loads(instructions["CMD"]) == ["--help"]
    assert instructions["ENV"].startswith("PATH=/opt/pgorthanc/bin:")


def test_the_commands_above_it_build_this_version() -> None:
    assert (
        f"docker build -f deploy/Dockerfile -t pgorthanc:{__version__} ."
        in (DEPLOY / "Dockerfile").read_text()
    )


@pytest.mark.once
def test_the_steps_of_the_build_stage_work(wheel: Path, tmp_path: Path) -> None:
    """COPY and RUN, with the folders of the image below a folder of the test."""
    (tmp_path / "tmp").mkdir()
    build, _ = stages()
    for name, rest in build:
        here = re.sub(r"/(opt|tmp)/", rf"{tmp_path}/\1/", rest)  # at once: `tmp_path` may be below /tmp
        if name == "COPY":
            source, folder = here.split()
            assert wheel.match(source.partition("/")[2])
            (Path(folder) / wheel.name).write_bytes(wheel.read_bytes())
        elif name == "RUN":
            subprocess.run(["sh", "-ec", here], check=True, capture_output=True)
    program = tmp_path / "opt" / "pgorthanc" / "bin" / "pgorthanc"
    done = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    assert __version__ in done.stdout
