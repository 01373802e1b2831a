"""An import that runs as a process of its own, and what must be true of an archive before and after the next one."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, ingest, storage
from tests.faults.site import Network
from tests.support import indexstate, samples
from tests.support.areas import stored_bytes
from tests.support.importing import check_area, dumped, run
from tests.support.indexdump import attachments
from tests.support.real_servers import wait_until
from tests.support.schemas import rows

APPLICATION = "pgorthanc import"
INSTANCES, REPEATED, REFUSED = 310, 12, 12
# Many small batches give many moments to be struck at.
COMMAND = [sys.executable, "-m", "pgorthanc_cli", "import", "--batch-files", "16"]
_SESSIONS = f"FROM pg_stat_activity WHERE application_name = '{APPLICATION}' AND datname = '{{}}'"


def write_sources(folder: Path) -> Path:
    """What is imported: small and large files, packed ones, repeated ones, and some that are refused."""
    plain = samples.folder(folder / "a", 240, patients=5, per_series=6)
    for number in range(8):
        large = samples.instance("P1", "1.2.1", "1.2.1.900", number, PixelData=bytes(200_000 + 2 * number))
        (folder / "a" / f"00100-{number}.dcm").write_bytes(large)
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        for number in range(60):
            archive.writestr(f"{number}.dcm", samples.instance("P7", "1.2.7", f"1.2.7.{number // 9}", number))
    for number in range(2):
        packed = samples.instance("P8", "1.2.8", "1.2.8.1", number)
        (folder / f"c{number}.dcm.gz").write_bytes(gzip.compress(packed))
    for number in range(REPEATED):
        (folder / f"d{number}.dcm").write_bytes(plain[number * 7].read_bytes())
    for number in range(REFUSED):
        (folder / f"e{number}.dcm").write_bytes(b"no DICOM file")
    return folder


@dataclass(frozen=True)
class Setting:
    """How an import is run; each must end in the same index.

    Attributes:
        large_objects: Where the files go: into the database, or into a folder.
        superuser: Who logs in: only then the importer may switch the triggers off.
    """

    large_objects: bool
    jobs: int
    concurrent: bool
    superuser: bool
    revision: int

    @classmethod
    def drawn(cls, random: Random, number: int) -> Setting:
        """By chance, but for the storage: the two areas take turns."""
        return cls(
            large_objects=number % 2 == 1,
            jobs=random.choice((1, 2, 2)),
            concurrent=random.random() < 0.3,
            superuser=random.random() < 0.7,
            revision=random.choice((1, 10, 10)),
        )


@dataclass(frozen=True)
class Archive:
    """A database, a folder, and imports into them."""

    target: db.Target
    folder: Path | None
    setting: Setting
    sources: Path

    @contextmanager
    def importing(
        self,
        *options: str,
        sources: Sequence[Path] | None = None,
        network: Network | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Iterator[subprocess.Popen[str]]:
        """The program at work on the sources, from the client's side of the network if there is one."""
        place = ["--storage-dir", str(self.folder)] if self.folder else ["--storage", "postgresql"]
        setting = ["--jobs", str(self.setting.jobs), *(["--concurrent"] if self.setting.concurrent else [])]
        command = [*COMMAND, "--quiet", "--json", *place, *setting, *options]
        dsn = self.target.dsn
        if network:
            command = network.command(*command)
            patience = "keepalives_idle=1 keepalives_interval=1 keepalives_count=2 tcp_user_timeout=2000"
            dsn = make_dsn(f"{dsn} {patience}", host=network.server)
        with subprocess.Popen(
            [*command, "--uri", dsn, *map(str, [self.sources] if sources is None else sources)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def stored(self) -> int:
        """How many instances the index holds."""
        [(count,)] = rows(self.target, "SELECT count(*) FROM attachedfiles WHERE filetype = 1")
        return int(count)

    def backends(self) -> list[int]:
        """The processes of the server that work for an import."""
        name = db.parse_dsn(self.target.dsn)["dbname"]
        return [pid for (pid,) in rows(self.target, f"SELECT pid {_SESSIONS.format(name)}")]

    def await_end_of_sessions(self) -> None:
        """The server needs a moment to notice that a client is gone."""
        wait_until(lambda: not self.backends(), timeout_s=60)

    def complete(self) -> ingest.ImportResult:
        """Run it once more, undisturbed."""
        settings = {"concurrent": self.setting.concurrent}
        return run(self.target, [self.sources], self.folder, **settings)

    # --- what must be true ------------------------------------------------------------------------------------

    def check_whole(self) -> None:
        """At any moment: each row has its attachment, complete, and the counters are right."""
        with db.session(self.target) as conn:
            assert indexstate.problems(conn) == []
            named = attachments(conn)
        if self.folder is None:
            check_large_objects(self.target)
            return
        area = storage.FilesystemArea(self.folder)
        for uuid, (size, md5) in named.items():
            stored = stored_bytes(area, uuid)
            assert (len(stored), hashlib.md5(stored).hexdigest()) == (size, md5)

    def check_finished(self, expected: dict[str, Any], *, in_order: bool = True) -> None:
        """After a run that ended: the index of an undisturbed run, and nothing left over.

        Not `in_order`: it does not matter in which order the files were stored.
        """
        self.check_whole()
        actual = dumped(self.target)
        if not in_order:
            actual = {k: sorted(v) for k, v in actual.items()}
            expected = {k: sorted(v) for k, v in expected.items()}
        assert [name for name in expected if actual[name] != expected[name]] == []
        if self.folder is not None:
            check_area(self.target, self.folder)


def check_large_objects(target: db.Target) -> None:
    """Each attachment of the index has its large object, each large object its attachment."""
    stored = "SELECT uuid, length(lo_get(content)), md5(lo_get(content)) FROM storagearea ORDER BY 1"
    named = rows(target, "SELECT uuid, compressedsize, compressedhash FROM attachedfiles ORDER BY 1")
    assert rows(target, stored) == named
    assert rows(target, "SELECT count(*) FROM pg_largeobject_metadata") == [(len(named),)]


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes of an import."""
    pids = []
    for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with suppress(FileNotFoundError):
            if b"resource_tracker" not in Path(f"/proc/{number}/cmdline").read_bytes():
                pids.append(int(number))
    return pids


def undisturbed(target: db.Target, sources: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The index as it must be."""
    report = run(target, sources, folder, jobs=2)
    assert (report.imported, report.known, report.refused) == (INSTANCES, REPEATED, REFUSED)
    return dumped(target)
