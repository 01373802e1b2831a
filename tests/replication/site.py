"""Two real servers of one site: a primary with an index of Orthanc, and its standby."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks, replication
from pgorthanc_cli.replication.basebackup import wait_for_replay
from pgorthanc_cli.replication.standby import SOCKET_FOLDER
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.processes import is_server_process
from tests.support.real_servers import Server, free_port, wait_until

PASSWORD = "orthanc:secret"
HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
SETTINGS = "wal_log_hints=on\nmax_wal_size=128MB\nautovacuum=off\nwal_receiver_status_interval=1\n"


class Site:
    """`primary` is a server of its own; the standby lies in `folder`, once `standby()` has made it."""

    def __init__(
        self, scratch: Path, template: Path, hba: str = HBA, settings: str = "", major: int | None = None
    ) -> None:
        self.scratch = scratch
        self.primary = Server(hba, SETTINGS + settings, major)
        subprocess.run(["/bin/cp", "-a", template, self.primary.data], check=True)
        self.primary.configure()
        self.primary.start()
        self.folder = self.primary.folder / "standby"
        self.port = free_port()
        self.passfile = scratch / "replication.pgpass"

    def remove(self) -> None:
        stop(self.folder)
        stop(self.primary.data)
        # pytest shows this only of a test that has failed, whose logs would be gone.
        for log in sorted(self.primary.folder.rglob("log")):
            if log.is_file():
                print(f"The end of {log}:", *log.read_text(errors="replace").splitlines()[-60:], sep="\n")
        self.primary.remove()

    def copy(self, scratch: Path) -> Site:
        """The same pair again, with folders and ports of its own; this one is stopped."""
        made = Site(scratch, self.primary.data, hba=(self.primary.data / "pg_hba.conf").read_text())
        shutil.copy2(self.passfile, made.passfile)
        subprocess.run(["/bin/cp", "-a", self.folder, made.folder], check=True)
        standby = open_cluster(made.folder)
        given = db.parse_dsn(standby.setting("primary_conninfo"))
        conninfo = make_dsn(**{**given, "port": str(made.primary.port)})
        standby.set({"port": str(made.port), "primary_conninfo": conninfo})
        standby.start()
        made.wait_until_level()
        return made

    def stop(self) -> None:
        """Both servers, the primary first, which sends all it has."""
        for folder in (self.primary.data, self.folder):
            open_cluster(folder).stop()

    def keep_configuration_elsewhere(self, settings: str = "") -> None:
        """As Debian does, in a folder of its own."""
        elsewhere = self.primary.folder / "etc"
        elsewhere.mkdir()
        self.primary.account.own(elsewhere)
        open_cluster(self.primary.data).stop()
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            (self.primary.data / name).rename(elsewhere / name)
        with open(elsewhere / "postgresql.conf", "a") as file:
            file.write(
                f"hba_file='{elsewhere}/pg_hba.conf'\nident_file='{elsewhere}/pg_ident.conf'\n{settings}"
            )
        self.primary.start(f"-c config_file={elsewhere}/postgresql.conf")

    # Logins

    @property
    def administrator(self) -> db.Target:
        return db.Target(f"host={self.primary.folder} port={self.primary.port} user=postgres dbname=orthanc")

    @property
    def login(self) -> db.Target:
        """The replication login on the primary."""
        return db.Target(self.source(self.primary.port))

    def source(self, port: int) -> str:
        return make_dsn(host="127.0.0.1", port=str(port), user=replication.ROLE, passfile=str(self.passfile))

    def orthanc(self, *ports: int) -> db.Target:
        """Orthanc's login, on whichever of the servers takes writes if there are several."""
        more = {"target_session_attrs": "read-write"} if len(ports) > 1 else {}
        return db.Target(
            make_dsn(
                host=",".join(["127.0.0.1"] * len(ports)),
                port=",".join(map(str, ports)),
                user="orthanc",
                dbname="orthanc",
                password=PASSWORD,
                **more,
            )
        )

    @property
    def both(self) -> db.Target:
        return self.orthanc(self.primary.port, self.port)

    def standby_administrator(self) -> db.Target:
        """The superuser of the standby, by the primary's pg_hba.conf that it has got."""
        return db.Target(f"host={self.folder}/{SOCKET_FOLDER} port={self.port} user=postgres dbname=orthanc")

    # Steps

    def prepared(self, **options: Any) -> replication.Prepared:
        requirements = replication.Requirements(**{"allow": ("127.0.0.1",), **options})
        return replication.prepare(self.administrator, requirements, passfile=self.passfile)

    def standby(self, folder: Path | None = None, **options: Any) -> replication.Standby:
        return replication.create(
            folder or self.folder,
            self.login,
            replication.StandbyOptions(**{"port": self.port, **options}),
            database=self.orthanc(self.primary.port),
        )

    def wait_until_level(self) -> None:
        """Wait until the standby streams, and has replayed what the primary has written."""
        wait_until(
            lambda: (
                self.primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
            )
        )
        lsn = self.primary.sql("SELECT pg_current_wal_lsn()")
        wait_for_replay(self.standby_administrator(), lsn, 20.0)


def make_template(major: int | None) -> Server:
    """A server that is stopped, with Orthanc's role and an empty index: a copy of it costs less than making another."""
    made = Server(HBA, "", major)
    words = ("-U", "postgres", "-A", "trust", "-N", "--locale=C", "-E", "UTF8", "--wal-segsize=1")
    made.run("initdb", "-D", str(made.data), *words)
    made.configure()
    made.start()
    made.sql(f"CREATE ROLE orthanc LOGIN PASSWORD '{PASSWORD}'", "CREATE DATABASE orthanc OWNER orthanc")
    login = f"{made.place} user=orthanc".replace("dbname=postgres", "dbname=orthanc").replace(
        "user=postgres", ""
    )
    with db.session(db.Target(login)) as conn:
        initialize.init(conn, schema="public", require_idle=locks.require_idle)
    open_cluster(made.data).stop()
    return made


def stop(folder: Path) -> None:
    """End the server of a folder at once, if there is one."""
    if (folder / "postmaster.pid").exists():
        cluster = open_cluster(folder)
        if cluster.pid():
            cluster.run("pg_ctl", "stop", "-m", "immediate", "-D", ".")
        (folder / "postmaster.pid").unlink(missing_ok=True)


def crash(folder: Path) -> None:
    """SIGKILL for the server of a folder and all of its processes; what they leave behind stays."""
    pid = open_cluster(folder).pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _kill_children(folder) and not Path(f"/proc/{pid}").exists())


def _kill_children(folder: Path) -> list[int]:
    """The server's other processes, which must not send anything after its death."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(PermissionError):
            if entry.name.isdecimal() and is_server_process(entry.name, folder):
                found.append(int(entry.name))
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def pgorthanc(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgorthanc_cli", *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def answer(*words: str | Path, **environment: str) -> dict[str, Any]:
    """What a command that must succeed says in JSON."""
    done = pgorthanc(*words, "--json", **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ids(target: db.Target) -> set[str]:
    """The instances of an index."""
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        cur.execute("SELECT publicid FROM index.resources WHERE resourcetype = 3")
        return {name for (name,) in cur.fetchall()}
