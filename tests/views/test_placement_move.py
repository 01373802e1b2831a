"""The pages of `storage move` in the states that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.placement import Failed, Moved
from pgorthanc_cli.views import placement_move as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "placement_move"
MOVE = "pgorthanc storage move --to filesystem --storage-dir /data --config /etc/orthanc"
CHANGES = ("PostgreSQL.EnableStorage false", "StorageDirectory /data")
COMMANDS = views.Commands(
    switch=f"{MOVE} --phase switch",
    clean=f"{MOVE} --phase clean",
    again=MOVE,
    verify="pgorthanc verify storage --storage-dir /data --list studies --config /etc/orthanc",
    verify_source="pgorthanc verify storage --storage postgresql --list studies --config /etc/orthanc",
    configure=tuple(f"pgorthanc config set {change} --config /etc/orthanc" for change in CHANGES),
    settings=CHANGES,
)
COPY = Moved(
    source="postgresql", target="filesystem", source_folder=None, target_folder=Path("/data"), phase="copy",
    attachments=36_120_411, copied=36_119_207, bytes=18_200_000_000_000, already_there=1_204, removed=0,
    left=0, unknown=0, freed_bytes=0, vacuumed=None, failed=(), complete=True, elapsed_s=111_840.2,
    endpoint=db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18"),
)  # fmt: skip
SWITCH = replace(COPY, phase="switch", copied=412, bytes=200_000_000, already_there=0, elapsed_s=7.1)
CLEAN = replace(
    COPY, phase="clean", copied=0, already_there=0, removed=36_120_411, vacuumed=True, freed_bytes=21 * 10**12
)
FAILED = tuple(Failed(f"{n:08x}-9b38-4f60-be1b-18a25d1707c0", "there is no large object") for n in range(25))


def check(state: str, moved: Moved, commands: views.Commands = COMMANDS) -> None:
    golden.check_view(GOLDEN, state, views.page(moved, commands))


def test_copy() -> None:
    check("copy", COPY)
    check("copy-nothing", replace(COPY, copied=0, bytes=0, already_there=36_120_411))
    check("copy-interrupted", replace(COPY, complete=False))
    check("copy-failed", replace(COPY, complete=False, failed=FAILED[:2]))
    check("copy-many-failed", replace(COPY, complete=False, failed=FAILED))
    back = replace(
        COPY, source="filesystem", target="postgresql", source_folder=Path("/data"), target_folder=None
    )
    check("copy-to-large-objects", back)


def test_a_part() -> None:
    part = replace(COPY, attachments=40, copied=40, bytes=20_000_000, already_there=0, partial=True)
    trial = replace(COMMANDS, switch="", everything=MOVE)
    check("copy-part", part, trial)
    check("copy-part-nothing", replace(part, attachments=0, copied=0, bytes=0), trial)
    nothing = replace(part, attachments=0, copied=0, bytes=0, partial=False)
    assert views.page(nothing, COMMANDS).headline == "Nothing to do: the index has no attachments."
    again = replace(part, copied=0, bytes=0, already_there=40)
    assert "all selected attachments are already in /data" in views.page(again, trial).headline


def test_switch() -> None:
    check("switch", SWITCH)
    check("switch-without-configuration", SWITCH, replace(COMMANDS, configure=()))
    check("switch-unknown", replace(SWITCH, unknown=3))
    check("switch-failed", replace(SWITCH, complete=False, failed=FAILED[:1]))
    check("switch-interrupted", replace(SWITCH, complete=False))


def test_clean() -> None:
    check("clean", CLEAN)
    check("clean-nothing", replace(CLEAN, removed=0, bytes=0, freed_bytes=0))
    check("clean-not-all", replace(CLEAN, left=7, vacuumed=False, freed_bytes=0))
    check("clean-not-freed", replace(CLEAN, freed_bytes=0))
    check("clean-failed", replace(CLEAN, complete=False, failed=FAILED[:1]))
    check("clean-interrupted", replace(CLEAN, complete=False, removed=10_000, freed_bytes=0))


def test_the_advanced_storage() -> None:
    """Rows change: the way back is another one, and the configuration may stay."""
    between = replace(
        SWITCH, source="advanced-storage", target="advanced-storage", source_folder=Path("/old"), kept=2
    )
    check("switch-between-storages", between, replace(COMMANDS, configure=(), settings=()))
    out = replace(CLEAN, source="advanced-storage", source_folder=Path("/old"), kept=1, vacuumed=None)
    check("clean-adopted", out)
