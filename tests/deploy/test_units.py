"""The units of systemd: sections and keys that systemd knows, and command lines that the program accepts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.places import DEPLOY
from tests.support import commandlines

UNITS = sorted((DEPLOY / "systemd").glob("pgorthanc-*"))
PROGRAM = "/opt/pgorthanc/bin/pgorthanc"
# Of systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.kill(5) and systemd.timer(5), as far as used.
KEYS = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        "Type", "User", "Group", "StateDirectory", "StateDirectoryMode", "UMask", "ExecStartPre", "ExecStart",
        "SuccessExitStatus", "Restart", "RestartSec", "RestartPreventExitStatus", "TimeoutStartSec", "TimeoutStopSec",
        "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectKernelTunables",
        "ProtectKernelModules", "ProtectControlGroups", "RestrictSUIDSGID", "ReadWritePaths",
    },
    "Timer": {"OnCalendar", "RandomizedDelaySec", "Persistent"},
    "Install": {"WantedBy"},
}  # fmt: skip


def settings(path: Path) -> dict[str, dict[str, str]]:
    """The settings of a unit, by section and key."""
    sections: dict[str, dict[str, str]] = {}
    section = ""
    for line in path.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            sections[section] = {}
        elif line and not line.startswith(("#", ";")):
            key, equals, value = line.partition("=")
            assert equals
            assert key not in sections[section]
            sections[section][key] = value
    return sections


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_sections_and_keys(path: Path) -> None:
    for section, values in settings(path).items():
        assert set(values) <= KEYS[section]
        assert all(values.values())


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_the_parser_accepts_the_command_lines(path: Path) -> None:
    text = path.read_text("utf-8")
    calls = commandlines.in_unit(text)
    assert len(calls) == text.count(PROGRAM)
    assert [commandlines.refusal(words) for words in calls] == [None] * len(calls)


def test_a_timer_has_its_service() -> None:
    names = {path.name for path in UNITS}
    timers = ("pgorthanc-doctor", "pgorthanc-scrub")
    units = {f"{name}.{kind}" for name in timers for kind in ("service", "timer")}
    assert names == {"pgorthanc-import.service", *units}
    # A unit that a timer starts is not started at boot as well.
    for name in timers:
        assert "Install" not in settings(DEPLOY / "systemd" / f"{name}.service")


def test_services_write_only_where_they_say() -> None:
    """With ProtectSystem=strict all else is read-only."""
    for path in UNITS:
        service = settings(path).get("Service")
        if service:
            assert service["User"] == "orthanc"
            assert service["ProtectSystem"] == "strict"
    doctor = settings(DEPLOY / "systemd" / "pgorthanc-doctor.service")["Service"]
    (words,) = commandlines.in_unit(f"ExecStart={doctor['ExecStart']}")
    assert words[words.index("--prometheus") + 1].startswith(doctor["ReadWritePaths"] + "/")
    scrub = settings(DEPLOY / "systemd" / "pgorthanc-scrub.service")["Service"]
    (words,) = commandlines.in_unit(f"ExecStart={scrub['ExecStart']}")
    assert words[words.index("--prometheus") + 1].startswith(scrub["ReadWritePaths"] + "/")
    assert words[words.index("--journal") + 1].startswith(f"/var/lib/{scrub['StateDirectory']}/")
    importing = settings(DEPLOY / "systemd" / "pgorthanc-import.service")["Service"]
    (words,) = commandlines.in_unit(f"ExecStart={importing['ExecStart']}")
    state = f"/var/lib/{importing['StateDirectory']}/"
    assert all(words[words.index(option) + 1].startswith(state) for option in ("--journal", "--refused"))


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Where systemd is installed; the tests above hold elsewhere, too."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    copies = []
    for path in UNITS:
        copy = tmp_path / path.name
        copy.write_text(path.read_text("utf-8").replace(PROGRAM, "/bin/true"))
        copies.append(copy)
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run([analyze, "verify", *copies], capture_output=True, text=True, env=environment)
    ours = [line for line in done.stderr.splitlines() if "pgorthanc-" in line]
    assert (done.returncode, ours) == (0, [])
