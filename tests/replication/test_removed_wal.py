"""`replication rejoin` where the new primary has removed WAL that the old one needs, and where it has not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import db, replication
from pgorthanc_cli.replication import upstream
from pgorthanc_cli.server.cluster import Cluster
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.wal import parse_lsn
from tests.replication.site import Site, crash
from tests.replication.test_promote import promote
from tests.replication.test_rejoin import leftovers, level, parted, rejoin
from tests.support.real_servers import Server, wait_until

Fence = replication.Fence
REMOVED = re.compile(
    r"127\.0\.0\.1:\d+ has already removed WAL that the old data need, beginning at 0/[0-9A-F]+"
)
SWITCH = ("SELECT pg_logical_emit_message(false, '', 'x')", "SELECT pg_switch_wal()", "CHECKPOINT")
NO_SLOT = "SELECT pg_drop_replication_slot('pgorthanc_standby')"


def on_new_primary(site: Site, *statements: str) -> str:
    """Run statements as administrator; return the first value of the last one."""
    with db.session(site.standby_administrator(), autocommit=True) as conn, conn.cursor() as cur:
        for statement in statements:
            cur.execute(statement)
        return str(cur.fetchone()[0]) if cur.description else ""  # type: ignore[index]


def segments(folder: Path) -> set[str]:
    """Return the numbers of the segments in a data folder, without the timelines."""
    names = [path.name for path in (folder / "pg_wal").iterdir()]
    return {name[8:] for name in names if re.fullmatch("[0-9A-F]{24}", name)}


def end_without_loss(site: Site, *, cleanly: bool) -> None:
    """The old primary ends, and the standby, which has all of it, is promoted."""
    if cleanly:
        promote(site, Fence(site.primary.data))
        return
    site.wait_until_level()
    crash(site.primary.data)
    promote(site, Fence(gone=True))


def streams_alone(site: Site) -> bool:
    """Return whether the new primary sends to the old one, and to no other client."""
    return on_new_primary(site, "SELECT count(*) FROM pg_stat_replication") == "1" and level(site)


# Nothing was lost


@pytest.mark.parametrize("cleanly", [False, True])
def test_what_cannot_catch_up_is_copied(pair: Site, cleanly: bool) -> None:
    end_without_loss(pair, cleanly=cleanly)
    newest = max(segments(pair.folder))
    on_new_primary(pair, NO_SLOT, *SWITCH, *SWITCH)
    assert min(segments(pair.folder)) > newest
    before = (pair.primary.data / "postgresql.auto.conf").read_text()
    done = rejoin(pair)
    assert (done.method, done.lost_bytes, done.lost_commits) == ("copy", 0, 0)
    assert REMOVED.fullmatch(done.why), done.why
    assert (Path(done.kept) / "postgresql.auto.conf").read_text() == before
    assert (Path(done.kept) / "standby.signal").exists() == cleanly  # that of the fence
    wait_until(lambda: streams_alone(pair))
    assert leftovers(pair.primary.data) == []


@pytest.mark.parametrize("cleanly", [False, True])
def test_what_can_catch_up_just_follows(pair: Site, cleanly: bool) -> None:
    """Promotion has created a slot, which keeps the WAL."""
    end_without_loss(pair, cleanly=cleanly)
    on_new_primary(pair, *SWITCH, *SWITCH)
    done = rejoin(pair)
    assert (done.method, done.why, done.kept) == ("follow", "none", "none")
    wait_until(lambda: streams_alone(pair))
    open_cluster(pair.primary.data).stop()
    assert rejoin(pair).method == "follow"  # as the standby that it has become


# Commits were lost


def test_what_could_not_catch_up_is_not_even_rewound(pair: Site) -> None:
    parted(pair)
    on_new_primary(pair, NO_SLOT, *SWITCH, *SWITCH)
    done = rejoin(pair, administrator=pair.standby_administrator(), discard=True, start=False)
    assert (done.method, done.lost_commits) == ("copy", 5)
    assert REMOVED.fullmatch(done.why), done.why
    assert rejoin(pair).method == "follow"  # as the copy that was not started yet
    wait_until(lambda: streams_alone(pair))


@pytest.mark.parametrize("in_time", [False, True])
def test_what_can_catch_up_is_rewound(pair: Site, in_time: bool) -> None:
    """And follows from then on, if it is started before its slot is dropped."""
    parted(pair)
    on_new_primary(pair, *SWITCH, *SWITCH)
    done = rejoin(pair, administrator=pair.standby_administrator(), discard=True, start=False)
    assert (done.method, done.lost_commits, done.why) == ("rewind", 5, "none")
    if not in_time:
        on_new_primary(pair, NO_SLOT, *SWITCH, *SWITCH)
    assert rejoin(pair).method == ("follow" if in_time else "copy")
    wait_until(lambda: streams_alone(pair))


def parted_segments_after_a_checkpoint(site: Site) -> None:
    """The new primary has the segment where they parted, but not that of the last checkpoint before."""
    site.primary.set("wal_keep_size", "64MB")  # pg_rewind reads it there
    site.primary.sql("CHECKPOINT")
    checkpoint = max(segments(site.folder))
    site.primary.sql(*SWITCH[:2], *SWITCH[:2], *SWITCH[:2])
    site.wait_until_level()
    parted(site)
    on_new_primary(site, NO_SLOT, "CHECKPOINT")
    assert min(segments(site.folder)) > checkpoint
    assert checkpoint in segments(site.primary.data)


def test_a_rewind_begins_with_its_own_wal(pair: Site) -> None:
    """pg_rewind of PostgreSQL 15.20, 16.14 and 18.6 keeps what the new primary has no more."""
    parted_segments_after_a_checkpoint(pair)
    done = rejoin(pair, administrator=pair.standby_administrator(), discard=True)
    assert (done.method, done.lost_commits, done.why) == ("rewind", 5, "none")
    wait_until(lambda: streams_alone(pair))


def test_a_rewind_that_has_removed_its_own_wal_ends_in_a_copy(
    pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older minor releases of pg_rewind do."""
    parted_segments_after_a_checkpoint(pair)
    run = Cluster.run

    def run_as_before(self: Cluster, name: str, *arguments: str) -> object:
        done = run(self, name, *arguments)
        if name == "pg_rewind":
            for number in segments(self.path) - segments(pair.folder):
                for file in (self.path / "pg_wal").glob(f"????????{number}"):
                    file.unlink()
        return done

    monkeypatch.setattr(Cluster, "run", run_as_before)
    done = rejoin(pair, administrator=pair.standby_administrator(), discard=True)
    assert (done.method, done.lost_commits) == ("copy", 5)
    assert REMOVED.fullmatch(done.why), done.why
    wait_until(lambda: streams_alone(pair))


# The question


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that takes logins for replication through its socket."""
    made = Server(
        "local all all trust\nlocal replication all trust\n", "autovacuum=off\nrestore_command='false'\n"
    )
    made.create().start()
    yield made
    made.remove()


def source_of(server: Server) -> upstream.Upstream:
    return upstream.connect(db.Target(server.place))


def segment_of(lsn: int) -> int:
    return lsn - lsn % (16 << 20)


def no_walsender(server: Server) -> bool:
    return server.sql("SELECT count(*) FROM pg_stat_replication") == "0"


def test_a_server_has_its_wal_until_a_checkpoint_removes_it(server: Server) -> None:
    begin = segment_of(parse_lsn(server.sql("SELECT pg_current_wal_lsn()")))
    assert upstream.has_wal(source_of(server), begin)
    server.sql("SELECT pg_switch_wal()")
    end = parse_lsn(server.sql("SELECT pg_current_wal_lsn()"))
    assert upstream.has_wal(source_of(server), begin)
    assert upstream.has_wal(source_of(server), segment_of(end))  # nothing was written there yet
    server.sql("CHECKPOINT")
    assert not upstream.has_wal(source_of(server), begin)
    assert upstream.has_wal(source_of(server), segment_of(end))
    wait_until(lambda: no_walsender(server))


def test_a_server_that_sends_nothing_is_given_up(server: Server) -> None:
    server.sql("SELECT pg_switch_wal()")
    end = server.sql("SELECT pg_current_wal_lsn()")
    with db.replication_session(db.Target(server.place)) as conn, pytest.raises(TimeoutError):
        upstream._await_wal(conn, f"START_REPLICATION PHYSICAL {end} TIMELINE 1", 0.2)
    wait_until(lambda: no_walsender(server))


@pytest.mark.parametrize("at_a_boundary", [False, True])
def test_wal_of_an_older_timeline(server: Server, at_a_boundary: bool) -> None:
    """It ends in a segment of the new one, or where the first of these begins."""
    server.sql("SELECT pg_switch_wal()")
    if not at_a_boundary:
        server.sql("CREATE TABLE t()")
    crash(server.data)
    server.write("recovery.signal", "")
    server.start()
    wait_until(lambda: server.sql("SELECT pg_is_in_recovery()") == "False")
    source = source_of(server)
    fork = upstream.fork_lsn(source, 1)
    assert (source.identity.timeline, upstream.fork_lsn(source, 2)) == (2, None)
    assert fork
    assert (fork % (16 << 20) == 0) == at_a_boundary
    begin = segment_of(fork)
    assert upstream.has_wal(source, begin)
    server.sql("SELECT pg_switch_wal()", "CHECKPOINT")
    assert not upstream.has_wal(source_of(server), begin)
    wait_until(lambda: no_walsender(server))
