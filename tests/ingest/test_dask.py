"""The same import on a Dask cluster of real processes: the same result, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, ingest
from pgorthanc_cli.errors import ConnectError, PgOrthancError
from pgorthanc_cli.ingest import dask_cluster
from tests.support import samples
from tests.support.importing import check_area, dumped, run
from tests.support.real_servers import wait_until

pytest.importorskip("distributed", reason="needs the extra dask")

QUIET = {**os.environ, "DASK_LOGGING__DISTRIBUTED": "error"}


class Cluster:
    """A scheduler and workers, each a process of its own, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(self.file),
        )
        wait_until(self.file.exists, "the scheduler does not start", timeout_s=60)

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def add_worker(self, **environment: str) -> subprocess.Popen[bytes]:
        worker = self._start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
            "--local-directory", str(self.folder), **environment,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def _start(self, kind: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments],
                stdout=log, stderr=log, env={**QUIET, **environment}, cwd=self.folder,
            )  # fmt: skip

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.stop()


def command(target: db.Target, scheduler: str, area: Path, *paths: Path) -> list[str]:
    return [
        sys.executable, "-m", "pgorthanc_cli", "import", "--json", "--uri", target.dsn, "--dask", scheduler,
        "--storage-dir", str(area), *map(str, paths),
    ]  # fmt: skip


def imported(target: db.Target) -> int:
    with db.session(target) as conn, conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM attachedfiles")
        return int(cur.fetchall()[0][0])


def resources(target: db.Target) -> list[tuple[object, ...]]:
    """Public ids and levels, whatever the order in which they came."""
    with db.session(target) as conn, conn.cursor() as cur:
        cur.execute(
            """SELECT r.resourcetype, r.publicid, p.publicid FROM resources r
               LEFT JOIN resources p ON p.internalid = r.parentid ORDER BY 1, 2"""
        )
        return cur.fetchall()


def test_the_result_is_that_of_one_machine(
    started: Cluster, new_database: Callable[..., db.Target], template: str, tmp_path: Path
) -> None:
    """Both ways to name the scheduler; a rerun finds everything known."""
    samples.folder(tmp_path / "in", 300, patients=20)
    (tmp_path / "in" / "odd.txt").write_text("no DICOM")
    away, here = new_database(template), new_database(template)
    started.add_worker()
    started.add_worker()
    reports = []
    for scheduler in (started.address, str(started.file)):
        done = subprocess.run(
            command(away, scheduler, tmp_path / "area", tmp_path / "in"),
            capture_output=True,
            text=True,
            env=QUIET,
        )
        assert done.returncode == 6, done.stderr
        reports.append(json.loads(done.stdout))
    assert [(r["imported"], r["known"], r["refused"]) for r in reports] == [(300, 0, 1), (0, 300, 1)]
    run(here, [tmp_path / "in"], tmp_path / "here")
    assert resources(away) == resources(here)
    one, other = dumped(away), dumped(here)
    assert sorted(one["maindicomtags"]) == sorted(other["maindicomtags"])
    check_area(away, tmp_path / "area")
    adopted = new_database(template)
    config = tmp_path / "orthanc.json"
    config.write_text(json.dumps({"StorageDirectory": "none", "AdvancedStorage": {"Enable": True}}))
    words = command(adopted, started.address, tmp_path, *sorted((tmp_path / "in").iterdir())[:20])
    place = words.index("--storage-dir")
    words[place : place + 2] = ["--adopt", "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, env=QUIET)
    assert json.loads(done.stdout)["adopted"] == 20, done.stderr
    assert set(resources(adopted)) < set(resources(here))


@pytest.mark.once
def test_a_worker_that_is_killed_costs_only_time(started: Cluster, fresh: db.Target, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", 3000, patients=40)
    workers = [started.add_worker(), started.add_worker()]
    process = subprocess.Popen(
        command(fresh, started.address, tmp_path / "area", tmp_path / "in"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET,
    )  # fmt: skip
    wait_until(lambda: imported(fresh) > 0, "nothing is imported", timeout_s=60)
    workers[0].kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["imported"] + report["known"] == 3000 == imported(fresh)
    settle(fresh, tmp_path)
    check_area(fresh, tmp_path / "area")


@pytest.mark.once
def test_a_scheduler_that_is_killed_ends_the_run_and_a_rerun_completes_it(
    started: Cluster, fresh: db.Target, tmp_path: Path
) -> None:
    samples.folder(tmp_path / "in", 3000, patients=40)
    started.add_worker()
    process = subprocess.Popen(
        command(fresh, started.address, tmp_path / "area", tmp_path / "in"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET,
    )  # fmt: skip
    wait_until(lambda: imported(fresh) > 0, "nothing is imported", timeout_s=60)
    started.scheduler.kill()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, ""), err
    assert "run it again" in json.loads(err)["hint"], err
    started.stop()
    again = run(fresh, [tmp_path / "in"], tmp_path / "area", jobs=2, concurrent=True)
    assert again.imported + again.known == 3000
    assert 0 < again.known < 3000
    check_area(fresh, tmp_path / "area")


def settle(target: db.Target, folder: Path) -> None:
    """An import of nothing removes what dead workers have left."""
    assert run(target, [], folder / "area", concurrent=True).imported == 0


def test_a_signal_ends_it_with_the_counts_right(started: Cluster, fresh: db.Target, tmp_path: Path) -> None:
    samples.folder(tmp_path / "in", 3000, patients=40)
    started.add_worker()
    process = subprocess.Popen(
        command(fresh, started.address, tmp_path / "area", tmp_path / "in"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET,
    )  # fmt: skip
    wait_until(lambda: imported(fresh) > 0, "nothing is imported", timeout_s=60)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert 0 < json.loads(out)["imported"] == imported(fresh)
    check_area(fresh, tmp_path / "area")


# --- clusters that cannot do it -----------------------------------------------------------------------------------


def test_no_scheduler_and_no_worker(started: Cluster, fresh: db.Target, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    for scheduler, message in (
        (nobody, "no Dask scheduler at"),
        (str(tmp_path / "absent.json"), "no Dask scheduler at"),
        (started.address, "has no worker"),
    ):
        with pytest.raises(ConnectError, match=message):
            dask_cluster.import_sources(
                fresh,
                ingest.walk([str(samples.REAL)]),
                ingest.Settings(storage_dir=tmp_path / "area"),
                scheduler=scheduler,
                workers_s=1,
            )


def test_workers_that_reach_another_database_are_refused(
    started: Cluster, new_database: Callable[..., db.Target], template: str, tmp_path: Path, server_dsn: str
) -> None:
    """`localhost` is another machine everywhere; here libpq's PGDATABASE makes the difference."""
    target, other = new_database(template), new_database(template)
    service = tmp_path / "services"
    names = [db.parse_dsn(t.dsn)["dbname"] for t in (target, other)]
    given = {k: v for k, v in db.parse_dsn(server_dsn).items() if k != "dbname"}
    files = []
    for name in names:
        file = service.with_name(f"{name}.conf")
        file.write_text(
            "[orthanc]\n" + "".join(f"{k}={v}\n" for k, v in {**given, "dbname": name}.items() if v)
        )
        files.append(str(file))
    started.add_worker(PGSERVICEFILE=files[1])
    done = subprocess.run(
        command(db.Target("service=orthanc"), started.address, tmp_path / "area", samples.REAL),
        capture_output=True, text=True, env={**QUIET, "PGSERVICEFILE": files[0]},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "a worker reaches another database" in json.loads(done.stderr)["message"]
    assert imported(target) == imported(other) == 0


def test_workers_that_do_not_see_the_storage_folder_are_refused(fresh: db.Target, tmp_path: Path) -> None:
    """What a worker does first in each task: the folder of the others has their token."""
    settings = ingest.Settings(storage_dir=tmp_path)
    job = dask_cluster.Job(fresh, settings, "whatever", tmp_path / ".pgorthanc" / "absent.token")
    with pytest.raises(PgOrthancError, match="does not see the storage folder"):
        dask_cluster._check(job)


def test_a_password_is_not_sent_in_the_clear(server_dsn: str) -> None:
    target = db.Target(make_dsn(server_dsn, password="very secret", sslpassword="too"))
    assert "secret" not in dask_cluster._portable(target, "tcp://host:8786").dsn
    assert "sslpassword" not in dask_cluster._portable(target, "/some/scheduler.json").dsn
    assert dask_cluster._portable(target, "tls://host:8786") == target
