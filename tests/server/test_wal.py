"""What an old primary has written beyond a position, read from WAL that ends in every possible way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.wal import Loss, format_lsn, written_after
from tests.support.real_servers import Server

SEGMENT_BYTES = 1 << 20


@pytest.fixture(scope="module")
def killed() -> Iterator[Server]:
    """A server with small WAL segments, stopped at once after it has filled a few."""
    server = Server("local all all trust\n", "autovacuum=off\n")
    server.run("initdb", "-D", str(server.data), "-U", "postgres", "-A", "trust", "-N", "--wal-segsize=1")
    server.configure()
    server.start()
    server.sql("CREATE TABLE filler AS SELECT repeat(md5(i::text), 10) FROM generate_series(1, 12000) i")
    server.sql(*["CREATE TABLE small (i INTEGER)", *["INSERT INTO small VALUES (1)"] * 3])
    server.stop()
    yield server
    server.remove()


@pytest.fixture
def server(killed: Server) -> Iterator[Server]:
    """The same server once more, whose segments a test may remove."""
    copy = Server(killed.hba, killed.settings)
    shutil.copytree(killed.data, copy.data)
    for path in (copy.data, *copy.data.rglob("*")):
        copy.account.own(path)
    yield copy
    copy.remove()


def segments(server: Server) -> list[Path]:
    return sorted(path for path in (server.data / "pg_wal").iterdir() if len(path.name) == 24)


def end_of(segment: Path) -> int:
    return (int(segment.name[16:], 16) + 1) * SEGMENT_BYTES


def test_a_record_that_runs_into_a_segment_that_was_never_created(server: Server) -> None:
    """The server was killed before it created the next segment: the record was never whole."""
    *_, third_last, second_last, last = segments(server)
    last.unlink()
    second_last.unlink()
    end = end_of(third_last)
    start = end - 32
    assert written_after(open_cluster(server.data), 1, start) == Loss(end - start, 0)
    assert written_after(open_cluster(server.data), 1, end) == Loss(0, 0)


def test_what_was_committed_before_the_missing_segment_counts(server: Server) -> None:
    first, *later = segments(server)
    whole = written_after(open_cluster(server.data), 1, end_of(first))
    for segment in later[1:]:
        segment.unlink()
    part = written_after(open_cluster(server.data), 1, end_of(first) - SEGMENT_BYTES)
    assert part.bytes == 2 * SEGMENT_BYTES
    assert whole.commits >= 4


def test_a_segment_that_was_removed_is_no_end(server: Server) -> None:
    """Newer segments are there, so what it held cannot be known."""
    first, second, *_ = segments(server)
    second.unlink()
    with pytest.raises(PgOrthancError, match=f'could not find file "{second.name}"'):
        written_after(open_cluster(server.data), 1, end_of(first) - 32)


def test_wal_that_ends_before_the_position_is_that_of_another_server(server: Server) -> None:
    """An older copy of the old primary: it cannot tell what that one has committed."""
    beyond = end_of(segments(server)[-1]) + SEGMENT_BYTES // 2
    with pytest.raises(PgOrthancError, match=f"has committed since {format_lsn(beyond)}"):
        written_after(open_cluster(server.data), 1, beyond)


def test_a_segment_that_was_created_in_advance_holds_nothing(server: Server) -> None:
    """It is full of zeros, and in memory the newest file of a folder is listed first."""
    first, *_, last = segments(server)
    expected = written_after(open_cluster(server.data), 1, end_of(first) - 32)
    server.write(f"pg_wal/{int(last.name, 16) + 1:024X}", bytes(SEGMENT_BYTES))
    assert written_after(open_cluster(server.data), 1, end_of(first) - 32) == expected
