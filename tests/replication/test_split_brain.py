"""No two primaries: a closed port proves nothing, and a fenced folder has one successor only."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication import fence, mark
from pgorthanc_cli.replication.standby import SOCKET_FOLDER
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.processes import server_processes
from tests.replication.site import Site, answer, crash, pgorthanc, stop
from tests.replication.test_promote import DOWN, promote, written
from tests.support.proxy import proxy
from tests.support.real_servers import free_port, wait_until

Fence = replication.Fence


def takes_writes(folder: Path) -> bool:
    """Whether a server runs there that is no standby."""
    cluster = open_cluster(folder)
    if not cluster.pid():
        return False
    port, socket_folder = cluster.endpoint()
    dsn = make_dsn(host=socket_folder, port=port, user="postgres", dbname="postgres")
    with db.session(db.Target(dsn), readonly=True, need_schema=False) as conn:
        return not db.value(conn, "SELECT pg_is_in_recovery()")


def repointed(folder: Path, port: int, *, to: int, slot: str) -> None:
    """A stopped standby listens on that port, and follows that one from now on."""
    standby = open_cluster(folder)
    given = db.parse_dsn(standby.setting("primary_conninfo"))
    conninfo = make_dsn(**{**given, "port": str(to), "application_name": slot})
    standby.set({"port": str(port), "primary_conninfo": conninfo, "primary_slot_name": slot})
    standby.start()


@contextmanager
def second_standby(pair: Site, stopped_pair: Site) -> Iterator[tuple[Path, int]]:
    """Another standby of the same primary, which streams: its folder and port."""
    folder, port = pair.primary.folder / "second", free_port()
    pair.primary.sql("SELECT pg_create_physical_replication_slot('second', true)")
    subprocess.run(["/bin/cp", "-a", stopped_pair.folder, folder], check=True)
    try:
        repointed(folder, port, to=pair.primary.port, slot="second")
        streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        wait_until(lambda: pair.primary.sql(streams) == "2")
        yield folder, port
    finally:
        stop(folder)


# Death has to be proved


def test_a_closed_port_proves_nothing(pair: Site) -> None:
    """The forwarder that the standby follows through is gone; the primary lives, and takes writes."""
    open_cluster(pair.folder).stop()
    with proxy(pair.primary.port, 1000, "close") as forwarder:
        repointed(pair.folder, pair.port, to=forwarder.port, slot="pgorthanc_standby")
        pair.wait_until_level()
    with pytest.raises(
        UsageError, match=f"the server in {pair.primary.data} on this machine is a primary of"
    ):
        promote(pair, Fence())
    with pytest.raises(UsageError, match="is a primary of the same database, and alive"):
        replication.promote(replication.by_folder(pair.folder), DOWN)  # the operator is wrong
    assert takes_writes(pair.primary.data)
    assert not takes_writes(pair.folder)


def test_a_closed_port_of_a_dead_primary_needs_a_word_or_a_fence(pair: Site) -> None:
    crash(pair.primary.data)
    for words in (["--dir", pair.folder], ["--uri", pair.standby_administrator().dsn]):
        done = pgorthanc("replication", "promote", *words)
        assert done.returncode == PgOrthancError.exit_code
        assert "nothing proves that the old primary is dead" in done.stderr
        assert "its port is closed" in done.stderr
    with pytest.raises(PgOrthancError) as refused:
        replication.promote(replication.by_folder(pair.folder), Fence())
    [command] = [s for s in str(refused.value.hint).split(": ") if "--fence" in s]
    line = command.partition(";")[0].replace("FOLDER-OF-THE-OLD-PRIMARY", str(pair.primary.data))
    assert line.startswith("pgorthanc replication promote --pgdata ")
    promoted = answer(*shlex.split(line)[1:])  # the hint is right
    assert promoted["lost_commits"] == 0
    assert takes_writes(pair.folder)


@pytest.mark.once
@pytest.mark.parametrize("word", ["--old-primary-is-down", "--old-is-gone"])
def test_the_operator_confirms(pair: Site, word: str) -> None:
    crash(pair.primary.data)
    done = answer("replication", "promote", "--uri", pair.standby_administrator().dsn, word)
    assert "confirmed to be down" in done["old_primary"]
    assert "--old-is-gone" not in pgorthanc("replication", "promote", "--help").stdout


def test_a_standby_that_names_no_primary_proves_nothing(pair: Site) -> None:
    """One that is fed by an archive."""
    open_cluster(pair.folder).stop()
    open_cluster(pair.folder).set({"primary_conninfo": ""})
    open_cluster(pair.folder).start()
    crash(pair.primary.data)
    with pytest.raises(PgOrthancError, match="names no server that it follows"):
        promote(pair, Fence())
    assert promote(pair, DOWN).timeline == 2


@pytest.mark.once
def test_a_process_that_outlives_its_postmaster_is_not_dead(
    pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can still commit."""
    monkeypatch.setattr(fence, "END_TIMEOUT_S", 0.3)
    with db.session(pair.administrator, need_schema=False) as conn:
        backend = conn.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            postmaster = open_cluster(pair.primary.data).pid()
            assert postmaster
            os.kill(postmaster, signal.SIGKILL)
            wait_until(lambda: server_processes(pair.primary.data) == [backend])
            with pytest.raises(PgOrthancError, match=f"are still alive: {backend}") as refused:
                promote(pair, Fence(pair.primary.data))
            assert f"kill -QUIT {backend}" in str(refused.value.hint)
        finally:
            os.kill(backend, signal.SIGKILL)
            os.kill(backend, signal.SIGCONT)
    wait_until(lambda: not server_processes(pair.primary.data))
    assert promote(pair, Fence(pair.primary.data)).timeline == 2


def test_an_older_copy_of_the_primary_is_no_proof(pair: Site, tmp_path: Path) -> None:
    copy = pair.primary.folder / "copy"
    open_cluster(pair.primary.data).stop()
    subprocess.run(["/bin/cp", "-a", pair.primary.data, copy], check=True)
    pair.primary.start()
    written(pair, 20)
    pair.wait_until_level()
    crash(pair.primary.data)
    with pytest.raises(UsageError, match=r"ends [\d,]+ bytes before what the standby has received"):
        promote(pair, Fence(copy))
    assert not (copy / mark.MARK).exists()
    assert promote(pair, Fence(pair.primary.data)).timeline == 2


# A fenced folder has one successor


def test_a_second_standby_is_not_promoted_with_the_same_folder(pair: Site, stopped_pair: Site) -> None:
    with second_standby(pair, stopped_pair) as (second, port):
        promote(pair, Fence(pair.primary.data))
        done = pgorthanc("replication", "promote", "--dir", second, "--fence", pair.primary.data)
        assert done.returncode == PgOrthancError.exit_code
        assert "was fenced at 20" in done.stderr
        assert f"for the standby 127.0.0.1:{pair.port} ({pair.folder} on " in done.stderr
        assert f"--host 127.0.0.1 --port {pair.port}" in done.stderr
        assert not takes_writes(second)
        found = json.loads((pair.primary.data / mark.MARK).read_text())
        assert (found["folder"], found["timeline"], found["promoting"]) == (str(pair.folder), 1, True)
        # A primary that was itself promoted: the second standby follows it now.
        open_cluster(second).stop()
        with replication.by_sql(pair.standby_administrator()) as candidate:
            candidate.create_slot("second", 10)
        repointed(second, port, to=pair.port, slot="second")
        (pair.primary.data / mark.MARK).rename(pair.primary.folder / mark.MARK)
        by_folder = replication.by_folder(second)
        wait_until(lambda: by_folder.state(10).timeline == 2)
        with pytest.raises(UsageError, match="is on timeline 1, and the standby on 2"):
            replication.promote(by_folder, Fence(pair.primary.data))
        (pair.primary.folder / mark.MARK).rename(pair.primary.data / mark.MARK)
        # The other direction of the same: the old primary itself comes up, and is to be promoted again.
        open_cluster(pair.primary.data).start()
        with pytest.raises(PgOrthancError, match="the folder of this server, was fenced at"):
            replication.promote(replication.by_folder(pair.primary.data), DOWN)
        with (
            replication.by_sql(pair.administrator) as candidate,
            pytest.raises(PgOrthancError, match="the folder of this server, was fenced at"),
        ):
            replication.promote(candidate, DOWN)
        socket = db.Target(f"host={second}/{SOCKET_FOLDER} port={port} user=postgres dbname=orthanc")
        with replication.by_sql(socket) as candidate:
            last = replication.promote(candidate, Fence(pair.folder))
        assert (last.timeline_before, last.timeline, last.lost_commits) == (2, 3, 0)


def test_two_promotions_at_once_make_one_primary(pair: Site, stopped_pair: Site) -> None:
    with second_standby(pair, stopped_pair) as (second, _):
        commands = [
            [sys.executable, "-m", "pgorthanc_cli", "replication", "promote", "--dir", str(folder), "--fence",
             str(pair.primary.data)]
            for folder in (pair.folder, second)
        ]  # fmt: skip
        started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
        ends = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
        assert sorted(code for _, code in ends) == [0, 1], ends
        [said] = [said for said, code in ends if code]
        assert "fenc" in said
        assert [takes_writes(folder) for folder in (pair.folder, second)].count(True) == 1


def test_a_crash_between_mark_and_promotion_leaves_it_to_the_same_standby(
    pair: Site, stopped_pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    with second_standby(pair, stopped_pair) as (second, _):
        with monkeypatch.context() as patched:
            patched.setattr(mark.Claim, "promoting", killed)
            patched.setattr(mark.Claim, "release", lambda self: None)
            with pytest.raises(SystemExit):
                promote(pair, Fence(pair.primary.data))
        assert not open_cluster(pair.primary.data).pid()
        open_cluster(pair.primary.data).start()  # a service manager does that; it is a standby now
        other = replication.by_folder(second)
        with pytest.raises(PgOrthancError, match=r"for the standby .*its promotion had not begun") as refused:
            replication.promote(other, Fence(pair.primary.data))
        assert f"rm {pair.primary.data}/pgorthanc.fenced" in str(refused.value.hint)
        same = replication.by_folder(pair.folder)  # the first time by SQL, now by its folder
        assert replication.promote(same, Fence(pair.primary.data)).timeline == 2
        assert not takes_writes(second)


def test_a_refusal_for_lost_commits_leaves_the_choice_to_another_standby(
    pair: Site, stopped_pair: Site
) -> None:
    with second_standby(pair, stopped_pair) as (second, _):
        sender = "SELECT pid FROM pg_stat_replication WHERE application_name = 'pgorthanc_standby'"
        pid = int(pair.primary.sql(sender))
        os.kill(pid, signal.SIGSTOP)
        written(pair, 5)
        sent = "SELECT sent_lsn >= pg_current_wal_lsn() FROM pg_stat_replication WHERE application_name = 'second'"
        wait_until(lambda: pair.primary.sql(sent) == "True")
        crash(pair.primary.data)
        with pytest.raises(PgOrthancError, match="has 5 commits"):
            promote(pair, Fence(pair.primary.data))
        done = replication.promote(replication.by_folder(second), Fence(pair.primary.data))
        assert done.lost_commits == 0
        with pytest.raises(PgOrthancError, match="a second promotion makes two primaries"):
            promote(pair, Fence(pair.primary.data, accept_loss=True))


@pytest.mark.parametrize("content", ["", "{", '{"server": 1}', "link"])
def test_a_damaged_mark_is_a_mark(stopped_pair: Site, tmp_path: Path, content: str) -> None:
    if content == "link":
        (tmp_path / mark.MARK).symlink_to("/etc/passwd")
    else:
        (tmp_path / mark.MARK).write_text(content)
    found = mark.read(tmp_path)
    assert found
    assert "root:" not in found
    assert mark.parse(found) is None
    assert "is damaged" in mark.refusal("x", tmp_path, found).message
