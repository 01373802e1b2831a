"""The command line that is printed to be run next."""

from __future__ import annotations

import click
import pytest

from pgorthanc_cli.commands import Call, import_


@pytest.mark.parametrize(
    ("given", "added", "without", "expected"),
    [
        ("import -d o in", (), (), "import -d o in"),
        ("import -n in", (), ("-n", "--dry-run"), "import in"),
        ("import --dry-run in", (), ("-n", "--dry-run"), "import in"),
        ("import -qn -v in", (), ("-n", "--dry-run"), "import -q -v in"),
        ("import -j2 -dpgn in", (), ("-n", "--dry-run"), "import -j2 -dpgn in"),
        ("import in -- -n", (), ("-n", "--dry-run"), "import in -- -n"),
        ("import in -", (), ("-n", "--dry-run"), "import in -"),
        ("import in", ("--overwrite", "always"), (), "import --overwrite always in"),
        ("import --overwrite never in", ("--overwrite", "always"), (), "import --overwrite always in"),
        ("import in --overwrite=never", ("--overwrite", "always"), (), "import --overwrite always in"),
        ("import --dry-run in", ("--dry-run",), (), "import --dry-run in"),
        ("import --uri postgresql://db1?password=x in", (), (), "import --uri host=db1 in"),
    ],
)
def test_a_command_line(given: str, added: tuple[str, ...], without: tuple[str, ...], expected: str) -> None:
    call = Call("import", {}, as_json=False, quiet=False, verbose=False)
    with click.Context(import_.command, obj=given.split()):
        assert call.again(*added, without=without) == f"pgorthanc {expected}"
