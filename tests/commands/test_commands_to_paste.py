"""Every command that a refusal prints is executed as it is printed; then the refused one succeeds.

What is printed has the connection options of the call, so nothing is added here.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli, db
from pgorthanc_cli.errors import InUseError
from tests.support import samples
from tests.support.schemas import CURRENT, FILL, init, look, run
from tests.upgrade.changing import connected

DUPLICATES = (
    "INSERT INTO resources (resourcetype, publicid) VALUES (0, 'p1'), (0, 'p1')",
    "INSERT INTO patientrecyclingorder (patientid) SELECT internalid FROM resources",
)


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def pasted(result: Result) -> list[str]:
    """The command that stands alone at the end of what was printed, as a shell would split it."""
    printed = result.stderr.rstrip() or result.stdout.rstrip()
    line = printed.splitlines()[-1]
    assert re.match(r" {4,10}pgorthanc ", line), printed
    return shlex.split(line)[1:]


def at(revision: int, *statements: str) -> Callable[[db.Target], None]:
    """An index of this revision, changed by statements."""

    def prepare(target: db.Target) -> None:
        init(target, revision=revision)
        run(target, *statements)

    return prepare


def nothing(target: db.Target) -> None:
    """An empty schema."""


NOT_STORED = at(6, "DROP TABLE storagearea")
REFUSED = {
    "no index: wait": (nothing, "wait --revision 6 --timeout 0", "init --revision 6"),
    "no index: upgrade": (nothing, "upgrade", "init"),
    "no index: verify": (nothing, "verify schema", "init"),
    "no index: import": (nothing, "import --storage postgresql {files}", "init"),
    "too old: wait": (at(4), "wait --revision 6 --timeout 0", "upgrade --to 6"),
    "too new: wait": (at(10), "wait --revision 6 --timeout 0", "downgrade --to 6"),
    "recorded as another: wait": (
        at(10, "UPDATE globalproperties SET value = '6' WHERE property = 4"),
        "wait --revision 10 --timeout 0",
        "upgrade --to 10",
    ),
    "too old: init": (at(4), "init --revision 6", "upgrade --to 6"),
    "too new: init": (at(10), "init --revision 6", "downgrade --to 6"),
    "recorded as another: init": (
        at(6, "UPDATE globalproperties SET value = '5' WHERE property = 4"),
        "init --revision 6",
        "upgrade --to 6",
    ),
    "upgrade that leads down": (at(10), "upgrade --to 6", "downgrade --to 6"),
    "downgrade that leads up": (at(4), "downgrade --to 6", "upgrade --to 6"),
    "the last phase first": (at(4), "upgrade --to 6 --phase finish", "upgrade --to 6 --phase switch"),
    "duplicates": (at(1, *DUPLICATES), "upgrade --to 6", "upgrade --to 6 --repair-duplicates"),
    "no storage area": (
        NOT_STORED,
        "import --storage postgresql {files}",
        "init --with-storage --revision 6",
    ),
}
# Where the command of the hint has done all of it.
DONE = {"upgrade that leads down", "downgrade that leads up"}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_prints_the_command_that_helps(empty: db.Target, tmp_path: Path, case: str) -> None:
    prepare, line, helps = REFUSED[case]
    prepare(empty)
    files = samples.folder(tmp_path / "files", 2)[0].parent
    words = [*line.format(files=files).split(), "--uri", empty.dsn]
    refused = call(*words)
    assert refused.exit_code not in (0, 2), refused.output
    command = pasted(refused)
    assert " ".join(command).startswith(f"{helps} --uri ")
    done = call(*command)
    assert done.exit_code == 0, done.output
    if case not in DONE:
        again = call(*words)
        assert again.exit_code == 0, again.output


@pytest.mark.parametrize("options", [["--wait", "60"], ["--terminate", "--yes"]], ids=" ".join)
def test_a_database_in_use(empty: db.Target, options: list[str]) -> None:
    """check-lock shows the session that was named, and each option of the hint leads on."""
    init(empty, revision=6)
    with connected(empty) as orthanc:
        with orthanc.cursor() as cur:
            cur.execute("SELECT pg_advisory_lock(42)")
        refused = call("upgrade", "--uri", empty.dsn)
        assert refused.exit_code == InUseError.exit_code
        assert options[0] in refused.stderr
        shown = call(*pasted(refused))
        assert f"pid {orthanc.info.backend_pid}," in shown.output
        if "--wait" in options:
            orthanc.close()
        assert call("upgrade", *options, "--uri", empty.dsn).exit_code == 0


# Next steps of pages


def commands(result: Result) -> list[str]:
    """The commands of this program that stand alone on a line, in their order."""
    assert result.exit_code in (0, 4, 6), result.output
    return re.findall(r"^ {4,}pgorthanc (.*)$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("first", [("--plan",), ("--phase", "prepare")], ids=" ".join)
def test_an_upgrade_prints_the_next_step(empty: db.Target, first: tuple[str, ...]) -> None:
    """From the plan, or the first phase, to the end."""
    init(empty, revision=1)
    run(empty, "INSERT INTO resources (resourcetype, publicid) VALUES (0, 'p1')")
    printed, calls = commands(call("upgrade", *first, "--uri", empty.dsn)), []
    while printed and printed[0].startswith("upgrade"):
        calls.append(printed[0].partition(" --uri")[0])
        printed = commands(call(*shlex.split(printed[0])))
    assert calls == (
        ["upgrade"] if first == ("--plan",) else ["upgrade --phase switch", "upgrade --phase finish"]
    )
    assert look(empty).revision == CURRENT


def test_a_plan_prints_the_way_back(empty: db.Target) -> None:
    init(empty, revision=1)
    forward, back = commands(call("upgrade", "--plan", "--uri", empty.dsn))
    assert call(*shlex.split(forward)).exit_code == 0
    assert call(*shlex.split(back), "--yes").exit_code == 0
    assert look(empty).revision == 1


def test_status_prints_the_command_that_creates_an_index(empty: db.Target) -> None:
    [line] = commands(call("status", "--uri", empty.dsn, "--schema", "public"))
    assert call(*shlex.split(line)).exit_code == 0
    assert look(empty).revision == CURRENT


def test_status_prints_the_command_that_shows_the_index_of_another_schema(empty: db.Target) -> None:
    run(empty, "CREATE SCHEMA pacs")
    init(db.Target(empty.dsn, schema="pacs"))
    shows, _creates = commands(call("status", "--uri", empty.dsn))
    assert f"index at revision {CURRENT}." in call(*shlex.split(shows)).stdout


def test_status_prints_the_command_that_corrects_the_recorded_revision(empty: db.Target) -> None:
    """And leaves the index at its revision, for the plugin that uses it."""
    init(empty, revision=6)
    run(empty, "UPDATE globalproperties SET value = '5' WHERE property = 4")
    [line] = commands(call("status", "--uri", empty.dsn))
    assert call(*shlex.split(line)).exit_code == 0
    assert (look(empty).revision, look(empty).recorded_revision) == (6, 6)


def test_verify_prints_the_command_that_repairs(fresh: db.Target) -> None:
    run(fresh, *FILL, "DROP INDEX childrenindex2", "DROP TRIGGER incrementchildcount ON resources")
    before = call("verify", "schema", "--uri", fresh.dsn)
    assert before.exit_code == 6
    for line in commands(before):
        if "--apply" in line:
            assert call(*shlex.split(line)).exit_code == 0
    assert call("verify", "schema", "--uri", fresh.dsn).exit_code == 0


def test_a_dry_run_prints_the_command_that_does_it(empty: db.Target, tmp_path: Path) -> None:
    [line] = commands(call("init", "--dry-run", "--revision", "6", "--uri", empty.dsn))
    assert call(*shlex.split(line)).exit_code == 0
    assert look(empty).revision == 6
    files = samples.folder(tmp_path / "a folder", 3)[0].parent
    words = ("--storage-dir", tmp_path / "an area", "--uri", empty.dsn, files)
    [line] = commands(import_(tmp_path, "--dry-run", *words))
    done = import_(tmp_path, *shlex.split(line)[1:])
    assert done.stdout.startswith("Imported 3 files")


def test_an_import_prints_the_commands_for_what_is_left(fresh: db.Target, tmp_path: Path) -> None:
    """A list of the refused files, and the replacement of instances that differ."""
    folder = tmp_path / "files"
    files = samples.folder(folder, 2)
    words = ("--storage-dir", tmp_path / "area", "--uri", fresh.dsn, folder)
    assert import_(tmp_path, *words).exit_code == 0
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for number in range(12):
        (folder / f"{number}.txt").write_text("no image")
    shown = commands(import_(tmp_path, *words))
    for line in shown:
        assert import_(tmp_path, *shlex.split(line)[1:]).exit_code in (0, 6)
    assert [("--refused" in line, "--overwrite if-changed" in line) for line in shown] == [
        (False, True),
        (True, False),
    ]
    assert len((tmp_path / "refused.txt").read_text().splitlines()) == 12


def import_(where: Path, *words: object) -> Result:
    """In a process of its own: `Call.again` takes the words of the command line; and in a folder of the test."""
    done = subprocess.run(
        [sys.executable, "-m", "pgorthanc_cli", "import", *map(str, words)],
        cwd=where, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
    )  # fmt: skip
    runner = CliRunner()
    return Result(runner, done.stdout, done.stderr, done.stdout + done.stderr, None, done.returncode, None)


ROOT = Path(__file__).parents[2]
