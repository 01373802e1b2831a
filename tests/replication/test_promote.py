"""`replication promote`: only when the old primary is known to be gone, and nothing is lost without a word."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.replication import probe
from pgorthanc_cli.replication.promote import connection_uri
from pgorthanc_cli.server.cluster import STANDBY_SIGNAL
from pgorthanc_cli.server.private import open_cluster
from tests.replication.site import Site, answer, crash, make_template, pgorthanc
from tests.support.proxy import Proxy, proxy
from tests.support.questions import answered
from tests.support.real_servers import wait_until

Fence = replication.Fence
DOWN = Fence(gone=True)
BOTH_WAYS = pytest.mark.parametrize("by_folder", [False, pytest.param(True, marks=pytest.mark.once)])


def promote(site: Site, fence: Fence, **options: object) -> replication.Promoted:
    with replication.by_sql(site.standby_administrator()) as candidate:
        return replication.promote(candidate, fence, **options)  # type: ignore[arg-type]


def written(site: Site, number: int) -> None:
    """So many transactions on the primary."""
    with db.session(site.administrator, autocommit=True) as conn, conn.cursor() as cur:
        for n in range(number):
            cur.execute("INSERT INTO globalproperties VALUES (%s, 'x')", (1000 + n,))


def found(target: db.Target) -> int:
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM index.globalproperties WHERE property >= 1000")
        return int(cur.fetchall()[0][0])


def promoted(site: Site, fence: Fence, *, by_folder: bool) -> replication.Promoted:
    """In one way or the other."""
    return (
        replication.promote(replication.by_folder(site.folder), fence) if by_folder else promote(site, fence)
    )


# The old primary


@BOTH_WAYS
def test_a_primary_that_lives_is_never_replaced(pair: Site, by_folder: bool) -> None:
    with pytest.raises(PgOrthancError, match=f"127.0.0.1:{pair.primary.port} still answers") as refused:
        promoted(pair, DOWN, by_folder=by_folder)
    assert "--fence" in str(refused.value.hint)
    assert replication.status([pair.standby_administrator()]).servers[0].receiver == "streaming"


@BOTH_WAYS
def test_fenced_nothing_is_lost_and_it_never_takes_writes_again(pair: Site, by_folder: bool) -> None:
    """A planned switch: the old primary runs until it is stopped, and sends all it has."""
    written(pair, 200)
    done = promoted(pair, Fence(pair.primary.data), by_folder=by_folder)
    assert (done.lost_bytes, done.lost_commits) == (0, 0)
    assert (done.timeline_before, done.timeline) == (1, 2)
    assert done.slots == ("pgorthanc_standby",)
    assert "fenced, its port is closed" in done.old_primary
    assert found(pair.orthanc(pair.port)) == 200
    pair.primary.start()
    with pytest.raises(ConnectError, match="is a standby"), db.session(pair.administrator):
        pass


@contextmanager
def cut_off(site: Site) -> Iterator[None]:
    """What is committed in the block never reaches the standby, and the primary is dead afterwards."""
    os.kill(int(site.primary.sql("SELECT pid FROM pg_stat_replication")), signal.SIGSTOP)
    yield
    crash(site.primary.data)


def test_what_only_the_old_primary_has_is_counted_first(pair: Site) -> None:
    written(pair, 10)
    pair.wait_until_level()
    with cut_off(pair), db.session(pair.administrator, autocommit=True) as conn, conn.cursor() as cur:
        for n in range(7):
            cur.execute("INSERT INTO globalproperties VALUES (%s, 'lost')", (2000 + n,))
    with pytest.raises(
        PgOrthancError, match=r"has 7 commits \([\d,]+ bytes of WAL\) that the standby never got"
    ):
        promote(pair, Fence(pair.primary.data))
    done = promote(pair, Fence(pair.primary.data, accept_loss=True))
    assert done.lost_commits == 7
    assert done.lost_bytes
    assert 7 * 100 < done.lost_bytes < 100_000
    assert found(pair.orthanc(pair.port)) == 10


@pytest.mark.once
def test_the_folder_of_something_else_is_refused_and_goes_on(
    pair: Site, new_site: Callable[..., Site]
) -> None:
    stranger = make_template(None)
    try:
        with pytest.raises(UsageError, match="is the folder of another server"):
            promote(pair, Fence(stranger.data))
    finally:
        stranger.remove()
    copy = new_site()
    with pytest.raises(UsageError, match=r"it is a copy of the old primary"):
        promote(pair, Fence(copy.primary.data))
    with pytest.raises(UsageError, match="is the folder of a standby"):
        promote(pair, Fence(pair.folder))
    assert open_cluster(copy.primary.data).pid()
    assert not (copy.primary.data / STANDBY_SIGNAL).exists()
    assert replication.status([pair.standby_administrator()]).servers[0].receiver == "streaming"


def test_silence_is_no_proof(pair: Site) -> None:
    """Something takes connections on the old port, and says nothing: a broken network looks like that."""
    crash(pair.primary.data)
    with listener(pair.primary.port):
        with pytest.raises(PgOrthancError, match="it is silent, but it may be alive") as refused:
            promote(pair, Fence())
        assert "--old-primary-is-down" in str(refused.value.hint)
        done = promote(pair, DOWN)
    assert done.old_primary == f"127.0.0.1:{pair.primary.port}: confirmed to be down, it is silent"
    assert done.lost_bytes is None


def test_the_name_of_the_old_primary_is_the_proof_on_a_terminal(pair: Site) -> None:
    crash(pair.primary.data)
    words = [sys.executable, "-m", "pgorthanc_cli", "replication", "promote", "--pgdata", pair.folder]
    code, answer, screen = answered(words, b"Type its name to promote", "yes\n")
    assert (code, answer) == (1, "")
    assert "nothing proves that the old primary is dead" in screen
    assert screen.rstrip().endswith("Cancelled. Nothing was changed.")
    code, answer, screen = answered(words, b"Type its name to promote", f"127.0.0.1:{pair.primary.port}\n")
    assert code == 0, screen
    assert answer.startswith(f"Promoted 127.0.0.1:{pair.port} to primary (timeline 2).")


@contextmanager
def listener(port: int) -> Iterator[None]:
    """It accepts, and hangs up without a word: so the test need not wait for the time-out."""
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(0.1)
        end = threading.Event()

        def serve() -> None:
            while not end.is_set():
                try:
                    server.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def test_probe(pair: Site) -> None:
    assert probe.probe("127.0.0.1", pair.primary.port) == probe.ANSWERS
    assert probe.probe(str(pair.primary.folder), pair.primary.port) == probe.ANSWERS
    pair.primary.stop()
    assert probe.probe("127.0.0.1", pair.primary.port) == probe.REFUSES
    assert probe.probe(str(pair.primary.folder), pair.primary.port) == probe.REFUSES
    assert list(probe.endpoints("host=a,b port=1,2")) == [("a", 1), ("b", 2)]
    assert list(probe.endpoints("host=a,b port=1")) == [("a", 1), ("b", 1)]


# The standby


@BOTH_WAYS
def test_promoted_twice(pair: Site, by_folder: bool) -> None:
    pair.primary.stop()
    promote(pair, DOWN)
    with pytest.raises(UsageError, match=r"is a primary already \(timeline 2\)") as refused:
        promoted(pair, DOWN, by_folder=by_folder)
    assert "rejoin" in str(refused.value.hint)


@contextmanager
def frozen(middle: Proxy) -> Iterator[None]:
    """From now on nothing is forwarded any more, and nobody is told."""
    middle.idle_s = 0
    wait_until(lambda: all(link.dead for link in middle._links))
    yield


def test_a_way_that_freezes_ends_with_the_time(pair: Site) -> None:
    """The connection stays open, and its keep-alive probes are answered: only we can end the wait."""
    pair.primary.sql("ALTER ROLE postgres PASSWORD 'of:postgres'")
    pair.wait_until_level()
    crash(pair.primary.data)
    with proxy(pair.port, 1000, "drop") as middle:
        through = db.Target(
            make_dsn(
                host="127.0.0.1", port=middle.port, user="postgres", dbname="orthanc", password="of:postgres"
            )
        )
        began = time.monotonic()
        with (
            pytest.raises(ConnectError, match="has not answered within 1 s; nothing was promoted"),
            replication.by_sql(through) as candidate,
            frozen(middle),
        ):
            replication.promote(candidate, DOWN, wait_s=1)
        with pytest.raises(ConnectError, match="timeout"), replication.by_sql(through, wait_s=1):
            pass
        assert time.monotonic() - began < 15
    assert replication.status([pair.standby_administrator()]).servers[0].role == "standby"


def test_a_way_that_freezes_during_the_promotion_leaves_a_doubt(
    pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost; the fenced folder goes on to name the standby, and the message says what to look at."""
    pair.primary.sql("ALTER ROLE postgres PASSWORD 'of:postgres'")
    pair.wait_until_level()
    with proxy(pair.port, 1000, "drop") as middle:
        dsn = make_dsn(
            host="127.0.0.1", port=middle.port, user="postgres", password="of:postgres", dbname="orthanc"
        )
        with replication.by_sql(db.Target(dsn)) as candidate:
            go_on = candidate.promote

            def frozen_first(within_s: float) -> None:
                with frozen(middle):
                    go_on(within_s)

            monkeypatch.setattr(candidate, "promote", frozen_first)
            with pytest.raises(PgOrthancError, match="may go on, or be done") as refused:
                replication.promote(candidate, Fence(pair.primary.data), wait_s=10)
    assert "do not promote another standby" in str(refused.value.hint)
    assert '"promoting": true' in (pair.primary.data / "pgorthanc.fenced").read_text()


def test_a_login_that_may_not(pair: Site) -> None:
    pair.primary.sql("CREATE ROLE watcher LOGIN")
    pair.wait_until_level()
    pair.primary.stop()
    watcher = db.Target(pair.standby_administrator().dsn.replace("user=postgres", "user=watcher"))
    with (
        pytest.raises(PgOrthancError, match="may not see which server") as refused,
        replication.by_sql(watcher) as candidate,
    ):
        replication.promote(candidate, DOWN)
    assert "--pgdata" in str(refused.value.hint)


def test_a_standby_that_does_not_run(pair: Site) -> None:
    open_cluster(pair.folder).stop()
    with pytest.raises(PgOrthancError, match="does not run"):
        replication.by_folder(pair.folder)


def test_slots_for_other_standbys(pair: Site) -> None:
    pair.primary.stop()
    done = promote(pair, DOWN, slots=("hall_1", "hall_2"))
    assert done.slots == ("hall_1", "hall_2")
    status = replication.status([pair.standby_administrator()])
    assert [(slot.name, slot.in_use) for slot in status.slots] == [("hall_1", False), ("hall_2", False)]
    assert status.slots[0].left_bytes  # the limit is that of the old primary


def test_the_uri_for_orthanc_finds_the_new_primary(pair: Site) -> None:
    pair.primary.stop()
    done = answer(
        "replication", "promote", "--dir", pair.folder, "--uri", pair.orthanc(pair.primary.port).dsn,
        "--old-primary-is-down",
    )  # fmt: skip
    uri = done["connection_uri"]
    assert uri == (
        f"postgresql://orthanc@127.0.0.1:{pair.port},127.0.0.1:{pair.primary.port}/orthanc"
        "?target_session_attrs=read-write"
    )
    with db.session(db.Target(uri).with_password("orthanc:secret")) as conn:
        assert conn.info.port == pair.port
    assert set(done) == {
        "server", "timeline_before", "timeline", "old_primary", "lost_bytes", "lost_commits", "slots",
        "connection_uri", "next", "role",
    }  # fmt: skip


def test_the_screen(pair: Site) -> None:
    done = pgorthanc(
        "replication", "promote", "--pgdata", pair.folder, "--fence", pair.primary.data,
        "--uri", pair.orthanc(pair.primary.port).dsn,
    )  # fmt: skip
    first, _, *lines = done.stdout.splitlines()
    old, new = f"127.0.0.1:{pair.primary.port}", f"127.0.0.1:{pair.port}"
    assert first == f"Promoted {new} to primary (timeline 2)."
    assert lines[:3] == [
        f"ok   old primary {old}: fenced, its port is closed",
        "ok   nothing that the old primary has committed is lost",
        "ok   slot pgorthanc_standby was created, for a standby to come",
    ]
    uri = f"postgresql://orthanc@{new},{old}/orthanc?target_session_attrs=read-write"
    assert f'    "ConnectionUri": "{uri}"' in lines
    rejoin = shlex.split(next(line for line in lines if "replication rejoin" in line))
    source = rejoin[-1].replace("NEW-PRIMARY", "127.0.0.1").replace("replication.pgpass", str(pair.passfile))
    done = pgorthanc(*rejoin[1:-3], pair.primary.data, "--from", source)
    assert done.stdout.startswith(f"The old primary in {pair.primary.data} follows {new} as its standby.\n")
    assert f"ok   its data were kept: it had nothing that {new} lacks\n" in done.stdout
    assert (done.returncode, "error:" in done.stderr) == (0, False)


def test_a_uri_of_odd_names() -> None:
    uri = connection_uri(
        {"user": "o@r", "dbname": "a/b", "sslmode": "verify-full"}, [("::1", 5432), ("db", 6000)]
    )
    assert urlsplit(uri).scheme == "postgresql"
    assert parse_dsn(uri) == {
        "user": "o@r", "dbname": "a/b", "sslmode": "verify-full", "host": "::1,db", "port": "5432,6000",
        "target_session_attrs": "read-write",
    }  # fmt: skip


def test_commands_that_write_refuse_a_standby_and_name_the_primary(pair: Site, tmp_path: Path) -> None:
    wait_until(lambda: replication.status([pair.standby_administrator()]).servers[0].receiver == "streaming")
    for words in (["init"], ["upgrade"], ["import", tmp_path, "--storage", "postgresql"]):
        done = pgorthanc(*words, "--uri", pair.standby_administrator().dsn)
        assert done.returncode == ConnectError.exit_code, (words, done.stderr)
        assert f"name the primary, 127.0.0.1:{pair.primary.port}," in done.stderr, words
