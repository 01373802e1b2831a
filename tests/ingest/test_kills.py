"""Whatever is killed, and whenever: after a rerun the archive is that of an undisturbed run, and nothing is left over.

PGORTHANC_FAULT_RUNS says how often each fault happens, at another moment each time.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from tests.ingest.test_bookkeeping import check
from tests.support import samples, servers
from tests.support.importing import SMALL_BATCHES, check_area, dumped, run
from tests.support.real_servers import Server, wait_until
from tests.support.schemas import init

pytestmark = pytest.mark.once
RUNS = int(os.environ.get("PGORTHANC_FAULT_RUNS", "3"))
COUNT = 400


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    private_server = Server("local all all trust\n", "").create().start()
    yield private_server
    private_server.remove()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    samples.folder(folder, COUNT, patients=4, per_series=10)
    return folder


@pytest.fixture(scope="module")
def whole(server: Server, files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run leaves; and the database template that all runs start from."""
    server.sql("CREATE DATABASE template")
    template = db.Target(make_dsn(server.place, dbname="template"))
    init(template)
    undisturbed = new(server, "undisturbed")
    run(undisturbed, [files], tmp_path_factory.mktemp("undisturbed"))
    return dumped(undisturbed)


def new(server: Server, name: str, tablespace: str = "pg_default") -> db.Target:
    server.sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        f"DROP DATABASE IF EXISTS {name}",
        f"CREATE DATABASE {name} TEMPLATE template TABLESPACE {tablespace}",
    )
    return db.Target(make_dsn(server.place, dbname=name))


class Import:
    """The program at work in a process of its own, and how far it has come."""

    def __init__(self, target: db.Target, files: Path, area: Path | None) -> None:
        self.target = target
        where = ["--storage-dir", str(area)] if area else ["--storage", "postgresql"]
        self.process = subprocess.Popen(
            [
                *SMALL_BATCHES,
                "--json",
                "-q",
                "--uri",
                target.dsn,
                *where,
                str(files),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, instances: int) -> None:
        """Until so many are committed, or it has ended."""
        conn = psycopg2.connect(self.target.dsn, application_name="tests")
        conn.autocommit = True
        try:
            with conn.cursor() as cur:
                wait_until(lambda: self.process.poll() is not None or self._count(cur) >= instances)
        finally:
            conn.close()

    def _count(self, cur: Any) -> int:
        cur.execute("SELECT count(*) FROM attachedfiles")
        return int(cur.fetchone()[0])

    def workers(self) -> list[int]:
        """Processes of the pool, not the tracker of its resources."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [
            int(pid)
            for pid in children
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def backends(self) -> list[int]:
        conn = psycopg2.connect(self.target.dsn, application_name="tests")
        with conn.cursor() as cur:
            cur.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            pids = [pid for (pid,) in cur.fetchall()]
        conn.close()
        return pids

    def end(self) -> int:
        """The instances that it says it has imported; 0 if it could not say."""
        out, err = self.process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return int(json.loads(out)["imported"]) if out else 0


def kill_worker(work: Import, server: Server, random: Random) -> None:
    workers = work.workers()
    if workers:
        os.kill(random.choice(workers), signal.SIGKILL)


def kill_parent(work: Import, server: Server, random: Random) -> None:
    work.process.kill()


def interrupt(work: Import, server: Server, random: Random) -> None:
    work.process.send_signal(signal.SIGTERM)


def kill_backend(work: Import, server: Server, random: Random) -> None:
    """The server starts all its sessions anew then."""
    backends = work.backends()
    if backends:
        os.kill(random.choice(backends), signal.SIGKILL)


def stop_server(work: Import, server: Server, random: Random) -> None:
    server.stop()
    work.process.wait(60)
    server.start()


FAULTS = (kill_worker, kill_parent, interrupt, kill_backend, stop_server)


@pytest.mark.parametrize("large_objects", [False, True], ids=["filesystem", "large objects"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_rerun_completes_what_a_fault_interrupts(
    server: Server,
    files: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    fault: Callable[[Import, Server, Random], None],
    large_objects: bool,
) -> None:
    random = Random(f"{fault.__name__} {large_objects}")
    for number in range(RUNS):
        area = None if large_objects else tmp_path / f"area{number}"
        target = new(server, "disturbed")
        work = Import(target, files, area)
        work.wait_for(random.choice((0, 1, random.randrange(COUNT))))
        fault(work, server, random)
        work.process.wait(60)
        wait_until(functools.partial(answers, target))
        complete(target, files, area, whole, at_least=work.end())


def complete(
    target: db.Target, files: Path, area: Path | None, whole: dict[str, Any], at_least: int = 0
) -> None:
    """Run it again: nothing is missing, left over, or counted twice."""
    report = run(target, [files], area, concurrent=True)  # a killed session may hold lock 42 a moment longer
    assert report.known >= at_least
    assert report.imported + report.known == COUNT
    assert dumped(target) == whole
    check(target)
    if area:
        check_area(target, area)
    else:
        with db.session(target) as conn, conn.cursor() as cur:
            cur.execute(
                "SELECT (SELECT count(*) FROM storagearea), (SELECT count(*) FROM pg_largeobject_metadata)"
            )
            assert cur.fetchone() == (COUNT, COUNT)


def answers(target: db.Target) -> bool:
    try:
        psycopg2.connect(target.dsn).close()
    except psycopg2.OperationalError:
        return False
    return True


# --- full disks ----------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=False
    )
    if done.returncode:
        pytest.skip("needs the right to mount a file system; continuous integration has it")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_disk_of_the_storage_is_full(
    server: Server, files: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    random = Random(1)
    for number in range(RUNS):
        with small_disk(tmp_path / f"disk{number}", 16) as disk:
            target = new(server, "disturbed")
            work = Import(target, files, disk / "area")
            work.wait_for(random.randrange(COUNT // 2))
            servers.fill(disk / "ballast")
            stored = work.end()
            (disk / "ballast").unlink()
            complete(target, files, disk / "area", whole, at_least=stored)


def test_the_disk_of_the_database_is_full(
    server: Server, files: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    random = Random(2)
    with small_disk(server.folder / "small", 64) as disk:
        data = disk / "tablespace"
        data.mkdir(mode=0o700)
        server.account.own(data)
        server.sql(f"CREATE TABLESPACE small LOCATION '{data}'")
        for number in range(RUNS):
            area = tmp_path / f"area{number}"
            target = new(server, "small", tablespace="small")
            work = Import(target, files, area)
            work.wait_for(random.randrange(COUNT // 2))
            servers.fill(disk / "ballast")
            stored = work.end()
            (disk / "ballast").unlink()
            complete(target, files, area, whole, at_least=stored)
        server.sql("DROP DATABASE small", "DROP TABLESPACE small")


def test_two_runs_after_a_kill_settle_it_once(
    server: Server, files: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    """The second is refused, or finds everything done."""
    target = new(server, "disturbed")
    work = Import(target, files, tmp_path / "area")
    work.wait_for(COUNT // 3)
    work.process.kill()
    work.end()
    again = [Import(target, files, tmp_path / "area") for _ in range(2)]
    imported = [each.end() for each in again]
    assert max(imported) > 0
    complete(target, files, tmp_path / "area", whole, at_least=sum(imported))


def test_the_reason_of_a_stop_is_told(
    server: Server, files: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    target = new(server, "disturbed")
    (tmp_path / "area").touch()
    with pytest.raises(PgOrthancError, match="cannot be written to"):
        run(target, [files], tmp_path / "area")
