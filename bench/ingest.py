"""Import compared with the real Orthanc, in one run on one server: rates, and CPU seconds per 1,000 instances.

    ingest.py [--files N] [--size BYTES] [--storage filesystem|postgresql] [--clients 1,2,4,8] [--stored N,N] [--short]

A private PostgreSQL server with default settings (fsync on) on this machine. The same CT-like files (40 elements,
100 per patient) go to Orthanc over HTTP, with each number of clients, and through `pgorthanc import`, into a new
database each. Needs the real Orthanc (see tests/interop). The plain import is run as often as Orthanc (--passes):
compare the best of each side. The limits are the same bytes and rows with nothing else done. Rates include
the start of the program. With --stored the import is measured again into an index that holds so many already; with
--short there is only Orthanc, the plain import at the newest revision, and its limit.

What deletes many files comes last, and each database has a name of its own: ext4 looks past recently freed inodes for
up to five minutes, and a program that creates files then takes two to three times the kernel's CPU time. For the same
reason wait five minutes after a large `rm -r`, or after the end of another benchmark, before you start one.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

sys.path.insert(0, str(Path(__file__).parent.parent))
from pgorthanc_cli import db, locks, storage
from pgorthanc_cli.schema import catalog, initialize, steps
from pgorthanc_cli.server import embedded
from pgorthanc_cli.storage import durable
from tests.interop import orthanc
from tests.support import filler
from tests.support.ctseries import write

_TICKS = os.sysconf("SC_CLK_TCK")
_databases = itertools.count(1)
_TABLES = ("resources", "maindicomtags", "dicomidentifiers", "metadata", "attachedfiles", "changes")


@dataclass(frozen=True)
class Server:
    """The PostgreSQL server: its administrator's connection and DSN, and its process."""

    admin: Connection
    dsn: str
    pid: int

    def create(self, name: str, number: int | None = None, owner: str = "") -> db.Target:
        """Create a database of a role (ours), with an index at that revision, or empty."""
        with self.admin.cursor() as cur:
            name = f"{name}_{next(_databases)}"  # none is dropped: see the first lines
            cur.execute(f"CREATE DATABASE {name}" + (f" OWNER {owner}" if owner else ""))
            cur.execute("CHECKPOINT")
        target = db.Target(make_dsn(self.dsn, dbname=name, **({"user": owner} if owner else {})))
        if number is not None:
            with db.session(target) as conn:
                initialize.init(conn, schema="public", require_idle=locks.require_idle, revision=number)
        return target

    def cpu_s(self) -> float:
        return cpu_s(lambda pid, parent: self.pid in (pid, parent), ended=self.pid)


def cpu_s(chosen: Callable[[int, int], bool], ended: int = 0) -> float:
    """Return the CPU seconds of processes, chosen by id and parent; of one, also its ended children."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if chosen(int(folder.name), int(fields[1])):
            ticks += sum(map(int, fields[11 : 15 if int(folder.name) == ended else 13]))
    return ticks / _TICKS


@dataclass
class Figures:
    """Instances per second, and CPU seconds per 1,000 of them."""

    rate: float = 0.0
    program_s: float = 0.0
    postgresql_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        return self.program_s + self.postgresql_s


@contextmanager
def measured(label: str, server: Server, count: int, client_s: Callable[[], float]) -> Iterator[Figures]:
    """Measure the block; print the figures, which are complete at its end."""
    os.sync()
    figures = Figures()
    before, client, started = server.cpu_s(), client_s(), time.perf_counter()
    yield figures
    figures.rate = count / (time.perf_counter() - started)
    each = 1000 / count
    figures.program_s = (client_s() - client) * each
    figures.postgresql_s = (server.cpu_s() - before) * each
    print(
        f"  {label:40} {figures.rate:8.0f} /s   CPU s per 1,000: {figures.cpu_s:6.3f}"
        f"  (program {figures.program_s:6.3f}, PostgreSQL {figures.postgresql_s:6.3f})",
        flush=True,
    )


def children_s() -> float:
    """Return the CPU seconds of the ended processes that this one has started."""
    times = os.times()
    return times.children_user + times.children_system


# --- the real Orthanc --------------------------------------------------------------------------------------------


def by_orthanc(
    program: orthanc.Program,
    server: Server,
    folder: Path,
    files: list[Path],
    clients: int,
    large_objects: bool,
) -> Figures:
    """Send the files to a new Orthanc, whole patients to each client."""
    target = server.create("bench_orthanc")
    with db.session(target, need_schema=False) as conn, conn, conn.cursor() as cur:
        cur.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    work = folder / f"orthanc-{clients}"
    work.mkdir()
    given = target.parameters()
    uri = (
        f"postgresql://{given['user']}@/{given['dbname']}?host={given['host']}&port={given.get('port', 5432)}"
    )
    section = {"EnableIndex": True, "EnableStorage": large_objects, "ConnectionUri": uri}
    configuration = {
        "DicomServerEnabled": False, "AuthenticationEnabled": False, "RemoteAccessAllowed": False,
        "StorageDirectory": str(work / "storage"), "IndexDirectory": str(work), "PostgreSQL": section,
    }  # fmt: skip
    mine = os.getpid()
    senders: set[int] = set()

    def program_s() -> float:
        return cpu_s(lambda pid, parent: parent == mine and pid not in senders)

    with orthanc.running(Quiet(**vars(program)), configuration, work) as rest:
        parts = [files[n * len(files) // clients : (n + 1) * len(files) // clients] for n in range(clients)]
        go = multiprocessing.get_context("fork").Barrier(clients + 1)
        processes = [
            multiprocessing.get_context("fork").Process(target=send, args=(rest.url, part, go))
            for part in parts
        ]
        for process in processes:
            process.start()
            senders.add(process.pid or 0)
        label = f"Orthanc {program.version()}, {clients} clients"
        with measured(label, server, len(files), program_s) as figures:
            go.wait()
            for process in processes:
                process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("Orthanc refused a file")
    return figures


class Quiet(orthanc.Program):
    """An Orthanc that writes no verbose log, which would slow it down."""

    def run(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return super().run(*(a for a in arguments if a != "--verbose"), **options)


def send(url: str, files: list[Path], go: Any) -> None:
    """Run one client, with a persistent connection."""
    conn = http.client.HTTPConnection(urlsplit(url).netloc)
    go.wait()
    for file in files:
        conn.request("POST", "/instances", file.read_bytes())
        answer = conn.getresponse()
        if answer.status != 200:
            raise SystemExit(answer.read().decode(errors="replace"))
        answer.read()


# --- pgorthanc -----------------------------------------------------------------------------------------------------


def by_import(
    label: str,
    server: Server,
    target: db.Target,
    folder: Path,
    count: int,
    *options: str,
    counted: str = "imported",
) -> Figures:
    """Import a folder; `counted` is what all of its files must be."""
    tool = [sys.executable, "-m", "pgorthanc_cli", "import", "--uri", target.dsn, "--json", "-q"]
    with measured(label, server, count, children_s) as figures:
        done = subprocess.run([*tool, *options, str(folder)], capture_output=True, text=True)
    if done.returncode or json.loads(done.stdout)[counted] != count:
        raise SystemExit(f"import ended with {done.returncode}: {done.stderr}")
    return figures


def again(server: Server, target: db.Target, folder: Path, count: int, *options: str) -> list[Figures]:
    """Import what is stored already: known, unchanged, and replaced, which deletes the old files."""
    return [
        by_import(f"import again, {label}", server, target, folder, count, *options, *chosen, counted=counted)
        for label, counted, *chosen in (
            ("known, without a journal", "known"),
            ("--overwrite if-changed", "known", "--overwrite", "if-changed"),
            ("--overwrite always", "overwritten", "--overwrite", "always"),
        )
    ]


def filled(server: Server, instances: int) -> db.Target:
    """Create an index at the newest revision with that many instances."""
    target = server.create("bench_filled", 1)
    with db.session(target) as conn:
        filler.fill(conn, instances)
        for step in steps.path(1, catalog.newest()):
            with conn, conn.cursor() as cur:
                cur.execute(steps.text(step.script))
    with db.session(target, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute("VACUUM ANALYZE")
        cur.execute("CHECKPOINT")
    return target


# --- the limits ----------------------------------------------------------------------------------------------------


def copy_files(root: Path, files: list[Path]) -> None:
    """Only read, hash, write and sync, in batches as large as those of the import."""
    area = storage.FilesystemArea(root)
    for start in range(0, len(files), 500):
        batch = files[start : start + 500]
        with durable.SyncGroup(root) as group:
            paths = []
            for uuid, file in zip(storage.new_uuids(len(batch)), batch, strict=True):
                content = file.read_bytes()
                hashlib.md5(content, usedforsecurity=False).hexdigest()
                path = area.path(uuid)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                paths.append(str(path))
            group.sync(paths)


def copy_objects(target: db.Target, files: list[Path]) -> None:
    """Only read, hash and store as large objects, in one connection and in batches."""
    with db.session(target) as conn:
        area = storage.LargeObjectArea(conn)
        for start in range(0, len(files), 32):
            contents = [file.read_bytes() for file in files[start : start + 32]]
            for content in contents:
                hashlib.md5(content, usedforsecurity=False).hexdigest()
            names = storage.new_uuids(len(contents))
            with conn:
                area.put_many((name, 1, [content]) for name, content in zip(names, contents, strict=True))


def limit(server: Server, files: list[Path], root: Path | None) -> Figures:
    """Measure the same bytes without an index: as files below a new folder, or as large objects if None."""
    half, arguments = len(files) // 2, []
    if root:
        root.mkdir()
        label, arguments = "read, MD5, write, sync: 2 processes", [(root, files[:half]), (root, files[half:])]
    else:
        label = "read, MD5, large objects: 1 process"
        target = server.create("bench_objects", catalog.newest())
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=copy_files, args=each) for each in arguments]
    processes = processes or [context.Process(target=copy_objects, args=(target, files))]
    with measured(label, server, len(files), children_s) as figures:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a process of the limit failed")
    return figures


def limit_of_rows(server: Server, source: db.Target, files: list[Path]) -> None:
    """Measure the same rows without triggers and files."""
    rows: dict[str, BytesIO] = {}
    with db.session(source, readonly=True) as conn, conn.cursor() as cur:
        for table in _TABLES:
            cur.copy_expert(f"COPY {table} TO STDOUT", rows.setdefault(table, BytesIO()))
    empty = server.create("bench_raw", catalog.newest())
    started = time.perf_counter()
    with db.session(empty) as conn, conn, conn.cursor() as cur:
        cur.execute("SET LOCAL session_replication_role = replica")
        for table, text in rows.items():
            text.seek(0)
            cur.copy_expert(f"COPY {table} FROM STDIN", text)
    print(
        f"  {'COPY of the same rows, no triggers':34} {len(files) / (time.perf_counter() - started):8.0f} /s"
    )


# -------------------------------------------------------------------------------------------------------------------


def main(arguments: argparse.Namespace) -> None:
    package = Path(storage.__file__).parents[1]
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(package)], check=True)  # as pip does it
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # noqa: S103 - PostgreSQL runs as another user when this runs as root
        folder = Path(name)
        files = write(folder / "in", arguments.files, arguments.size)
        print(f"{len(files)} files of {files[0].stat().st_size:,} bytes, {arguments.storage}")
        with embedded.attach(folder / "server", superuser=True) as target:
            admin = psycopg2.connect(target.dsn)
            admin.autocommit = True
            status = embedded.status(folder / "server")
            assert status.pid
            measure(Server(admin, target.dsn, status.pid), folder, files, arguments)
            admin.close()


def by_owner(server: Server, folder: Path, count: int, passes: int, area: Callable[[str], list[str]]) -> None:
    """Import as the owner of the index: with Orthanc's triggers off, with all on, and (by a grant) with all off."""
    modes: tuple[tuple[str, list[str], str], ...] = (
        ("", [], "REVOKE SET ON PARAMETER session_replication_role FROM orthanc"),
        ("--concurrent", ["--concurrent"], "REVOKE SET ON PARAMETER session_replication_role FROM orthanc"),
        ("who was granted it", [], "GRANT SET ON PARAMETER session_replication_role TO orthanc"),
    )
    with server.admin.cursor() as cur:
        cur.execute("ALTER ROLE orthanc NOSUPERUSER")
    for turn in range(passes):
        for number, (label, options, statement) in enumerate(modes):
            with server.admin.cursor() as cur:
                cur.execute(statement)
            target = server.create("bench_plain", catalog.newest(), owner="orthanc")
            storage_options = area(f"plain{turn}-{number}")
            by_import(
                f"import as the owner {label}",
                server,
                target,
                folder / "in",
                count,
                *storage_options,
                *options,
            )


def beside_orthanc(
    server: Server,
    folder: Path,
    files: list[Path],
    arguments: argparse.Namespace,
    area: Callable[[str], list[str]],
) -> tuple[db.Target, list[str]]:
    """Measure Orthanc, and the plain import with its limit in turn; return the last database and its storage."""
    large_objects = arguments.storage == "postgresql"
    for program in orthanc.programs()[:1]:
        for clients in arguments.clients:
            by_orthanc(program, server, folder, files, clients, large_objects)
    for number in [catalog.newest()] if arguments.short else [1, catalog.newest()]:
        for turn in range(arguments.passes):
            target = server.create("bench_import", number)
            options = area(f"a{number}-{turn}")
            by_import(f"import, revision {number}", server, target, folder / "in", len(files), *options)
            limit(server, files, None if large_objects else folder / f"raw{number}-{turn}")
    return target, options


def measure(server: Server, folder: Path, files: list[Path], arguments: argparse.Namespace) -> None:
    """Measure what creates files; then what also deletes them."""

    def area(name: str) -> list[str]:
        if arguments.storage == "postgresql":
            return ["--storage", "postgresql"]
        return ["--storage-dir", str(folder / name)]

    newest, storage_options = beside_orthanc(server, folder, files, arguments, area)
    if arguments.short:
        return
    count = len(files)
    if arguments.storage == "filesystem":
        limit_of_rows(server, newest, files)
        linked = server.create("bench_linked", catalog.newest())
        by_import(
            "import --link hardlink", server, linked, folder / "in", count, *area("b"), "--link", "hardlink"
        )
    alone = server.create("bench_alone", catalog.newest())
    by_import("import --jobs 1", server, alone, folder / "in", count, "-j", "1", *area("alone"))
    beside = server.create("bench_concurrent", catalog.newest())
    by_import("import --concurrent", server, beside, folder / "in", count, "--concurrent", *area("beside"))
    by_owner(server, folder, count, arguments.passes, area)
    for stored in arguments.stored:
        target = filled(server, stored)
        by_import(f"import into {stored:,} stored", server, target, folder / "in", count, *area(f"s{stored}"))
    for _ in range(arguments.passes):
        again(server, newest, folder / "in", count, *storage_options)


if __name__ == "__main__":
    numbers = lambda text: [int(word) for word in text.split(",") if word]  # noqa: E731
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--storage", choices=("filesystem", "postgresql"), default="filesystem")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 8])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--stored", type=numbers, default=[])
    main(parser.parse_args())
