"""`replication status`: what is wrong is named, and what a monitoring system gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks, replication
from pgorthanc_cli.errors import ConnectError, PartialFailure
from pgorthanc_cli.schema import initialize
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.wal import format_lsn, parse_lsn
from pgorthanc_cli.text import size
from pgorthanc_cli.views import replication as views
from tests.replication.site import Site, pgorthanc
from tests.support.real_servers import free_port, wait_until
from tests.support.schemas import FILL, run


def seen(site: Site, **limits: int) -> replication.ReplicationStatus:
    targets = [site.administrator, site.standby_administrator()]
    return replication.status(targets, replication.Limits(**limits))


def problems(found: replication.ReplicationStatus) -> str:
    return "\n".join(found.problems)


@contextmanager
def stopped_sender(site: Site) -> Iterator[None]:
    """The standby gets nothing, and the primary does not know why."""
    pid = int(site.primary.sql("SELECT pid FROM pg_stat_replication"))
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_both_sides_of_a_pair_that_works(pair: Site) -> None:
    found = seen(pair)
    assert (found.verdict, found.problems, found.synchronous) == ("OK", (), "none")
    primary, standby = found.servers
    assert (primary.role, standby.role, standby.receiver) == ("primary", "standby", "streaming")
    assert (primary.timeline, standby.timeline) == (1, 1)
    assert (standby.lag_bytes, standby.lag_s) == (0, 0)
    assert standby.follows == f"127.0.0.1:{pair.primary.port}"
    assert standby.read_only_orthanc == "yes, with plugin 10.0 to 10.3"
    [follower] = found.standbys
    assert (follower.name, follower.state, follower.sync) == ("pgorthanc_standby", "streaming", "async")
    [slot] = found.slots
    assert (slot.name, slot.in_use, slot.state) == ("pgorthanc_standby", True, "reserved")
    assert slot.left_bytes
    assert found.free_bytes


def test_one_login_for_all_hosts_of_a_uri(pair: Site) -> None:
    """Orthanc's own role sees enough to judge the lag; what is hidden from it is named."""
    targets = replication.hosts(pair.both)
    assert ["target_session_attrs" in db.parse_dsn(target.dsn) for target in targets] == [False, False]
    found = replication.status(targets)
    assert [server.role for server in found.servers] == ["primary", "standby"]
    assert found.servers[1].lag_bytes == 0
    [grant] = re.findall(r"GRANT [^;]*;", problems(found))
    assert grant == 'GRANT pg_read_all_stats TO "orthanc";'
    pair.primary.sql(grant)
    wait_until(lambda: replication.status(targets).verdict == "OK")


def test_lag(pair: Site) -> None:
    with stopped_sender(pair):
        pair.primary.sql("CREATE TABLE late AS SELECT generate_series(1, 10000) AS n")
        found = seen(pair, warning_bytes=1000, critical_bytes=10**9)
        assert found.verdict == "WARNING"
        lag = found.servers[1].lag_bytes
        assert lag
        assert lag > 300_000
        assert f"is {size(lag)} of WAL behind" in problems(found)
        worse = seen(pair, warning_bytes=1000, critical_bytes=2000)
        assert worse.verdict == "CRITICAL"
        assert worse.servers[1].read_only_orthanc.startswith("no: it is too far behind")
    wait_until(lambda: seen(pair, warning_bytes=1000).verdict == "OK")


def test_a_standby_that_stays_away(pair: Site) -> None:
    open_cluster(pair.folder).stop()
    wait_until(lambda: pair.primary.sql("SELECT bool_or(active) FROM pg_replication_slots") == "False")
    found = seen(pair)
    assert found.verdict == "CRITICAL"
    assert found.servers[1].role == "unreachable"
    assert "no standby streams from" in problems(found)
    assert "slot pgorthanc_standby is not in use, and holds back" in problems(found)


def test_commits_that_hang(pair: Site) -> None:
    pair.prepared(synchronous=True)
    assert seen(pair).synchronous == 'FIRST 1 ("pgorthanc_standby")'
    assert [follower.sync for follower in seen(pair).standbys] == ["sync"]
    open_cluster(pair.folder).stop()
    wait_until(lambda: "commits hang" in problems(seen(pair)))
    [found] = [problem for problem in seen(pair).findings if "commits hang" in problem.text]
    pair.primary.sql(*found.statement.splitlines())
    wait_until(lambda: "commits hang" not in problems(seen(pair)))
    pair.primary.sql("CREATE TABLE committed ()")


def test_the_primary_is_gone(pair: Site) -> None:
    pair.primary.stop()
    wait_until(lambda: replication.status([pair.standby_administrator()]).servers[0].receiver == "none")
    found = seen(pair)
    assert found.verdict == "CRITICAL"
    assert "receives nothing" in problems(found)
    assert found.servers[1].read_only_orthanc.startswith("no: it receives nothing")


def test_two_primaries(pair: Site) -> None:
    open_cluster(pair.folder).run("pg_ctl", "promote", "-w", "-D", ".")
    found = seen(pair)
    assert found.verdict == "CRITICAL"
    assert "two primaries" in problems(found)
    assert found.split is not None
    assert (found.split.timeline, [branch.newest for branch in found.split.branches]) == (1, [None, None])
    assert parse_lsn(found.split.lsn) <= min(parse_lsn(server.lsn) for server in found.servers)


def test_which_of_two_primaries_was_written_to_last(pair: Site) -> None:
    """The old one has only its own records since; Orthanc used the new one."""
    newest = "(SELECT max(internalid) FROM resources)"
    run(pair.administrator, *FILL, f"INSERT INTO metadata VALUES ({newest}, 2, '20200102T030405', 0)")
    wait_until(lambda: seen(pair).servers[1].lag_bytes == 0)
    open_cluster(pair.folder).run("pg_ctl", "promote", "-w", "-D", ".")
    run(pair.standby_administrator(), "UPDATE metadata SET value = '20210102T030405' WHERE type = 2")
    found = seen(pair)
    assert found.split is not None
    old, new = found.split.branches
    assert (old.place, new.place) == tuple(server.place for server in found.servers)
    assert (old.newest and old.newest.year, new.newest and new.newest.year) == (2020, 2021)
    assert new.written_bytes
    [first, second] = [str(block) for block in views.status_page(found).blocks][-2:]
    assert f"They parted at {found.split.lsn} on timeline 1." in first
    assert f"{new.place} stored an instance last: {new.place} " in second


def test_two_primaries_for_a_login_that_may_not_see_the_history(pair: Site) -> None:
    open_cluster(pair.folder).run("pg_ctl", "promote", "-w", "-D", ".")
    found = replication.status(replication.hosts(pair.both))
    assert "two primaries" in problems(found)
    assert found.split is not None
    assert (found.split.timeline, found.split.lsn) == (None, "")


@pytest.mark.once
def test_a_standby_that_does_not_replay(pair: Site) -> None:
    with (
        db.session(pair.standby_administrator(), readonly=True, autocommit=True) as conn,
        conn.cursor() as cur,
    ):
        cur.execute("SELECT pg_wal_replay_pause()")
        assert "pg_wal_replay_resume()" in problems(seen(pair))
        cur.execute("SELECT pg_wal_replay_resume()")


def paused(site: Site) -> None:
    """The standby receives, and does not replay; the primary has written 12 MB since."""
    with db.session(site.standby_administrator(), readonly=True, autocommit=True) as conn:
        db.value(conn, "SELECT pg_wal_replay_pause()")
    site.primary.sql("CREATE TABLE late AS SELECT generate_series(1, 200000) AS n")
    unreplayed = "SELECT flush_lsn - replay_lsn > 5000000 FROM pg_stat_replication"
    wait_until(lambda: site.primary.sql(unreplayed) == "True")


def test_a_standby_that_does_not_replay_is_seen_at_its_primary(pair: Site) -> None:
    """It streams, and is far from the limits in bytes and seconds."""
    paused(pair)
    found = replication.status([pair.administrator])
    assert found.verdict == "WARNING"
    [follower] = found.standbys
    assert (follower.state, follower.stuck) == ("streaming", True)
    assert re.search(r"\(127.0.0.1\) has received [\d.]+ MB of WAL that it does not replay", problems(found))
    [statement] = re.findall(r"SELECT [^;]*;", problems(found))
    with db.session(pair.standby_administrator(), readonly=True, autocommit=True) as conn:
        db.value(conn, statement)
    wait_until(lambda: replication.status([pair.administrator]).verdict == "OK")


def test_lag_is_seen_at_the_primary_by_bytes_and_by_age(pair: Site) -> None:
    paused(pair)
    few = replication.Limits(warning_bytes=1000, critical_bytes=10**9, warning_s=10**6, critical_s=10**6)
    assert re.search(r"WARNING: the standby .* is [\d.]+ MB of WAL behind", problems(at_primary(pair, few)))
    old = replication.Limits(warning_s=0.5, critical_s=1.0)
    wait_until(lambda: "s behind" in problems(at_primary(pair, old)))
    assert at_primary(pair, old).verdict == "CRITICAL"


def at_primary(site: Site, limits: replication.Limits) -> replication.ReplicationStatus:
    return replication.status([site.administrator], limits)


@pytest.mark.parametrize(("free", "verdict"), [(0, "CRITICAL"), (5 * 10**8, "WARNING"), (10**10, "OK")])
def test_a_disk_that_is_full_or_nearly(
    pair: Site, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str
) -> None:
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr("pgorthanc_cli.replication.state.shutil.disk_usage", lambda path: usage)
    found = replication.status([pair.administrator])
    assert found.verdict == verdict
    assert (f"has {size(free)} free on the disk of {pair.primary.data}" in problems(found)) == (
        verdict != "OK"
    )


def test_cancelled_finds(pair: Site) -> None:
    """A find that began before rows were removed on the primary is cancelled, unless hot_standby_feedback is on."""
    orthanc, standby = pair.orthanc(pair.primary.port), pair.standby_administrator()
    with db.session(orthanc) as conn, conn.cursor() as cur:
        cur.execute("INSERT INTO globalproperties SELECT 1000 + n, 'x' FROM generate_series(1, 1000) AS n")
        conn.commit()
    open_cluster(pair.folder).set({"max_standby_streaming_delay": "0"})
    open_cluster(pair.folder).run("pg_ctl", "reload", "-D", ".")
    with db.session(standby, readonly=True) as conn, conn.cursor() as cur:
        wait_until(lambda: shown(standby, "max_standby_streaming_delay") == "0")
        cur.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cur.execute("SELECT count(*) FROM index.globalproperties")
        with db.session(orthanc, autocommit=True) as primary, primary.cursor() as other:
            other.execute("DELETE FROM globalproperties WHERE property > 1000")
            other.execute("VACUUM globalproperties")
        wait_until(lambda: bool(seen(pair).servers[1].conflicts))
    [found] = [problem for problem in seen(pair).findings if "has cancelled 1 query, " in problem.text]
    assert found.places == (seen(pair).servers[1].place,)
    for statement in found.statement.splitlines():
        open_cluster(pair.folder).run("psql", "-c", statement, standby.dsn)
    wait_until(lambda: "has cancelled" not in problems(seen(pair)))


def shown(target: db.Target, name: str) -> str:
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        cur.execute(f"SHOW {name}")
        return str(cur.fetchall()[0][0])


def test_a_read_only_orthanc_needs_a_revision_that_knows_it(pair: Site) -> None:
    orthanc = pair.orthanc(pair.primary.port)
    pair.primary.sql("GRANT CREATE ON DATABASE orthanc TO orthanc")
    with db.session(orthanc, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute("CREATE SCHEMA old")
    with db.session(replace(orthanc, schema="old")) as conn:
        initialize.init(conn, schema="old", require_idle=locks.require_idle, revision=1)

    def told(schema: str) -> str:
        standby = replace(pair.standby_administrator(), schema=schema)
        return replication.status([standby]).servers[0].read_only_orthanc

    wait_until(lambda: "revision 1, and ReadOnly needs 3" in told("old"))
    assert "holds no Orthanc index" in told("pg_toast")


# The command


@pytest.mark.parametrize(
    ("stop", "code", "said"), [(False, 0, "OK - all standbys"), (True, 2, "CRITICAL - ")]
)
def test_nagios(pair: Site, stop: bool, code: int, said: str) -> None:
    if stop:
        open_cluster(pair.folder).stop()
    dsn = make_dsn(pair.both.dsn, user="postgres")
    pair.primary.sql("ALTER ROLE postgres PASSWORD 'orthanc:secret'")
    if not stop:
        wait_until(lambda: seen(pair).servers[1].lag_bytes == 0)
    done = pgorthanc("replication", "status", "--uri", dsn, "--nagios")
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout.startswith(f"REPLICATION-STATUS {said}")
    assert done.stdout.count("CRITICAL") == (1 if stop else 0)
    assert "slot pgorthanc_standby" in done.stdout
    assert done.stdout.count("\n") == 1


def test_nobody_answers() -> None:
    dsn = f"host=127.0.0.1,127.0.0.1 port={free_port()},{free_port()} user=nobody dbname=orthanc"
    with pytest.raises(ConnectError, match="cannot reach "):
        replication.status(replication.hosts(db.Target(dsn)))
    done = pgorthanc("replication", "status", "--uri", dsn, "--nagios")
    assert (done.returncode, done.stdout.partition(" - ")[0]) == (2, "REPLICATION CRITICAL")


def screen(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """What a person sees of both servers, by a role that may see all of it."""
    return pgorthanc("replication", "status", "--uri", site.both.dsn, *words)


def test_the_screen_of_each_state(pair: Site) -> None:
    """It works; the standby stops; then there are two primaries."""
    primary, standby = f"127.0.0.1:{pair.primary.port}", f"127.0.0.1:{pair.port}"
    pair.primary.sql("GRANT pg_monitor TO orthanc")
    wait_until(lambda: replication.status(replication.hosts(pair.both)).verdict == "OK")
    done = screen(pair)
    first, _, *lines = done.stdout.splitlines()
    assert first == f"Replication works: standby {standby} is up to date with {primary}."
    assert lines[0].startswith(f"ok   {primary}  primary, PostgreSQL ")
    assert f"\nok   {standby}  standby of {primary}, PostgreSQL " in done.stdout
    assert "     A read-only Orthanc can use it, with plugin 10.0 to 10.3." in lines
    assert (done.returncode, screen(pair, "--quiet").stdout) == (0, "")
    open_cluster(pair.folder).stop()
    done = screen(pair)
    assert done.stdout.startswith(f"CRITICAL: cannot reach {standby}")
    assert f"\nFAIL {standby}  no connection\n" in done.stdout
    assert done.returncode == PartialFailure.exit_code
    assert "error:" not in done.stderr
    open_cluster(pair.folder).start()
    open_cluster(pair.folder).run("pg_ctl", "promote", "-w", "-D", ".")
    done = screen(pair, "--quiet")
    assert done.stdout.startswith(f"CRITICAL: two primaries: {primary} and {standby} accept writes.")
    assert done.stdout.endswith("\n    pgorthanc guide replication\n")
    assert done.returncode == PartialFailure.exit_code
    json_keys = json.loads(screen(pair, "--json").stdout)["findings"][0]
    assert json_keys["places"] == [primary, standby]


def test_json_keys(pair: Site) -> None:
    found = json.loads(pgorthanc("replication", "status", "--uri", pair.administrator.dsn, "--json").stdout)
    assert set(found) == {
        "verdict", "problems", "servers", "standbys", "slots", "synchronous", "free_bytes", "findings", "split", "time"
    }  # fmt: skip


def test_watch(pair: Site) -> None:
    words = ["replication", "status", "--uri", pair.administrator.dsn, "--watch", "--json"]
    command = [sys.executable, "-m", "pgorthanc_cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["servers"][0]["role"] == "primary"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_file_gets_each_new_page_with_its_time(pair: Site) -> None:
    words = ["replication", "status", "--uri", pair.administrator.dsn, "--watch"]
    command = [sys.executable, "-m", "pgorthanc_cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        assert next(lines).startswith("Replication works: ")
        assert datetime.fromisoformat(next(lines).strip()).tzinfo
        open_cluster(pair.folder).stop()
        assert next(line for line in lines if line.startswith("CRITICAL: "))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize("text", ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"])
def test_a_place_in_the_log_is_a_number(text: str) -> None:
    assert format_lsn(parse_lsn(text)) == text
