"""The ratios that matter, in a few minutes: run it before and after a change.

    quick.py [--files N] [--large N]        default: 3000 files of 8 kB, 400 of 0.5 MB

One line for each ratio, the median of three passes in turn where what is compared takes turns. Other work on the
machine affects rates; CPU seconds less. The real Orthanc takes part if one is installed or named by
PGORTHANC_ORTHANC_ROOTS; without one, import is compared with the limit: the same files read, hashed, written and
synced. What deletes many files comes last (see ingest.py): wait five minutes before the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import commands
import psycopg2
import storage as storage_bench
from ingest import (
    Figures,
    Server,
    again,
    by_import,
    by_orthanc,
    children_s,
    limit,
    measured,
)

from pgorthanc_cli.schema import catalog
from pgorthanc_cli.server import embedded
from tests.interop import orthanc
from tests.support.ctseries import write

PASSES = 3
SMALL, LARGE = 8192, 524_288  # bytes

_lines: list[str] = []


def line(label: str, text: str) -> None:
    """Keep a line of the summary."""
    _lines.append(f"{label:42} {text}")


def middle(passes: Sequence[Figures]) -> Figures:
    """Return the medians."""
    columns = zip(*((each.rate, each.program_s, each.postgresql_s) for each in passes), strict=True)
    return Figures(*map(statistics.median, columns))


def compare(label: str, one: Figures, other: Figures) -> None:
    """Keep the ratios of rates and of CPU seconds."""
    cpu = f"CPU s per 1,000: {one.cpu_s:.3f}, {other.cpu_s:.3f}: {one.cpu_s / other.cpu_s:.2f} x"
    line(label, f"rate {one.rate / other.rate:5.2f} x   {cpu}")


def in_turn(passes: int, *runs: Callable[[], Figures]) -> list[Figures]:
    """Run each so often, in turn, and return their medians."""
    results = [[run() for run in runs] for _ in range(passes)]
    return [middle(column) for column in zip(*results, strict=True)]


class Quick:
    """What the measurements share: the server, and a folder for everything."""

    def __init__(self, server: Server, folder: Path) -> None:
        """Use names that were not used before, so that nothing has to be deleted."""
        self.server = server
        self.folder = folder
        self._areas = 0

    def new(self, files: list[Path], *, owner: str = "", large_objects: bool = False) -> Figures:
        """Import into a new index."""
        target = self.server.create("quick", catalog.newest(), owner=owner)
        label = f"import {owner and f'as {owner}'}"
        return by_import(
            label, self.server, target, files[0].parents[2], len(files), *self.area(large_objects)
        )

    def area(self, large_objects: bool) -> list[str]:
        """Return the options of a new storage area."""
        self._areas += 1
        folder = str(self.folder / f"area{self._areas}")
        return ["--storage", "postgresql"] if large_objects else ["--storage-dir", folder]

    def limit(self, files: list[Path], *, large_objects: bool = False) -> Figures:
        """Measure the raw limit of these files."""
        self._areas += 1
        return limit(self.server, files, None if large_objects else self.folder / f"raw{self._areas}")

    def small(self, files: list[Path]) -> None:
        """Compare imports of small files: with Orthanc or the limit, of an owner, and again."""
        programs = orthanc.programs()[:1]
        # The role of the first runs is a superuser.
        with self.server.admin.cursor() as cur:
            cur.execute("CREATE ROLE ordinary LOGIN NOSUPERUSER")
        raw, new, owner = in_turn(
            PASSES,
            lambda: self.limit(files),
            lambda: self.new(files),
            lambda: self.new(files, owner="ordinary"),
        )
        if programs:
            part = files[:1000]
            real = by_orthanc(programs[0], self.server, self.folder, part, 4, large_objects=False)
            compare(f"import, to Orthanc {programs[0].version()} (4 clients)", new, real)
        compare("import, to read + MD5 + write + sync", new, raw)
        compare("import as owner, to superuser", owner, new)
        self.index(files)
        target, area = self.server.create("quick", catalog.newest()), self.area(large_objects=False)
        first = by_import("import", self.server, target, files[0].parents[2], len(files), *area)
        known, _, replaced = again(self.server, target, files[0].parents[2], len(files), *area)
        compare("import of known files, to new", known, first)
        compare("import --overwrite always, to new", replaced, first)

    def index(self, files: list[Path]) -> None:
        """Measure `reindex`, with an entry of ExtraMainDicomTags that is new."""
        target, area = self.server.create("quick", catalog.newest()), self.area(large_objects=False)
        by_import("import", self.server, target, files[0].parents[2], len(files), *area)
        place = self.folder / "reindex.json"
        extra = {"ExtraMainDicomTags": {"Instance": ["Rows"]}, "StorageDirectory": area[1]}
        place.write_text(json.dumps({**extra, "PostgreSQL": {"ConnectionUri": target.dsn}}))
        words = ["reindex", "--config", str(place), "--uri", target.dsn, "--json", "-q"]
        with measured("reindex", self.server, len(files), children_s) as figures:
            commands.once((*commands.TOOL, *words))
        line("reindex", f"{figures.rate:,.0f}/s   CPU s per 1,000: {figures.cpu_s:.3f}")

    def large(self, files: list[Path]) -> None:
        """Compare imports of large files with their limits."""
        for label, objects in (("files", False), ("large objects", True)):
            raw, new = in_turn(
                PASSES,
                lambda: self.limit(files, large_objects=objects),  # noqa: B023 - called at once
                lambda: self.new(files, large_objects=objects),  # noqa: B023
            )
            compare(f"import of 0.5 MB, {label}, to their limit", new, raw)


def short_commands(target_dsn: str) -> None:
    """Compare `--help` and `status` with a Python that does nothing."""
    words = {"--help": ["--help"], "status": ["status", "--uri", target_dsn]}
    runs = {"pass": (sys.executable, "-c", "pass")} | {
        name: (*commands.TOOL, *more) for name, more in words.items()
    }
    times = {
        name: statistics.median(commands.once(command) for _ in range(7)) for name, command in runs.items()
    }
    for name in words:
        line(
            f"{name}, to python -c pass", f"{1000 * times[name]:.0f} ms: {times[name] / times['pass']:.1f} x"
        )


def hashes(count: int) -> None:
    """Compare `verify storage` with md5sum."""
    with storage_bench.archive("/dev/shm") as (target, area):  # noqa: S108
        storage_bench.fill(target, area, count, SMALL)
        whole, itself = [], []
        for _ in range(PASSES):
            reference = storage_bench.md5sum(area)
            run_s, check_s, _ = storage_bench.verify(target, area, "hash")
            whole.append(reference / run_s)
            itself.append(reference / check_s)
    ratios = f"{statistics.median(whole):.2f} x, without the start {statistics.median(itself):.2f} x"
    line("verify storage --depth hash, to md5sum", ratios)


def main(arguments: argparse.Namespace) -> None:
    """Measure, and print the summary at the end."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # noqa: S103 - PostgreSQL runs as another user when this runs as root
        folder = Path(name)
        small = write(folder / "small", arguments.files, SMALL)
        large = write(folder / "large", arguments.large, LARGE)
        with embedded.attach(folder / "server", superuser=True) as target:
            admin = psycopg2.connect(target.dsn)
            admin.autocommit = True
            status = embedded.status(folder / "server")
            assert status.pid
            server = Server(admin, target.dsn, status.pid)
            quick = Quick(server, folder)
            short_commands(server.create("quick", catalog.newest()).dsn)
            quick.large(large)
            quick.small(small)
            admin.close()
    hashes(10 * arguments.files)
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(
        f"\n{len(small):,} files of 8 kB, {len(large):,} of 0.5 MB; load {load}; "
        f"{time.perf_counter() - started:.0f} s",
        *_lines,
        sep="\n",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--large", type=int, default=400)
    main(parser.parse_args())
