"""Every command that a refusal prints is executed as it is printed; then the refused one succeeds.

What is printed has the connection options of the call, so nothing is added here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pgorthanc_cli import cli, db
from pgorthanc_cli.errors import InUseError
from tests.support import samples
from tests.support.schemas import init, run
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
