"""`replication rejoin`: the old primary comes back as a standby, and keeps what is its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import Interrupted, PgOrthancError, UsageError
from pgorthanc_cli.replication import basebackup
from pgorthanc_cli.replication.mark import MARK
from pgorthanc_cli.server import embedded
from pgorthanc_cli.server.cluster import Cluster
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.wal import parse_lsn
from tests.replication.site import Site, answer, crash, make_template, pgorthanc, stop
from tests.replication.test_promote import cut_off, promote, written
from tests.support.real_servers import free_port, wait_until

Fence = replication.Fence


def rejoin(site: Site, **options: object) -> replication.Rejoined:
    login = db.Target(site.source(site.port))
    return replication.rejoin(site.primary.data, login, **options)  # type: ignore[arg-type]


def parted(site: Site) -> None:
    """Both have gone on by themselves: the old primary with commits that nobody else has."""
    with cut_off(site):
        written(site, 5)
    promote(site, Fence(gone=True))


def level(site: Site) -> bool:
    found = replication.status([site.standby_administrator(), site.administrator])
    return [server.role for server in found.servers] == ["primary", "standby"] and not found.servers[
        1
    ].lag_bytes


def test_after_a_planned_switch_it_just_follows(pair: Site) -> None:
    promote(pair, Fence(pair.primary.data))
    done = rejoin(pair)
    assert (done.method, done.lost_bytes, done.lost_commits, done.kept) == ("follow", 0, 0, "none")
    assert (done.streaming, done.timeline) == (True, 2)
    assert not (pair.primary.data / MARK).exists()  # it is fenced for no standby any more
    wait_until(lambda: level(pair))
    again = answer(
        "replication", "promote", "--uri", pair.administrator.dsn, "--fence", pair.folder
    )  # and back
    assert again["timeline"] == 3
    back = replication.rejoin(pair.folder, pair.login)
    assert (back.method, back.timeline) == ("follow", 3)


def test_rewound_it_keeps_its_own_configuration(pair: Site) -> None:
    own = pair.primary.data / "conf.d"
    own.mkdir()
    (own / "ours.conf").write_text("# ours\n")
    for path in (own, own / "ours.conf"):
        pair.primary.account.own(path)
    before = {name: (pair.primary.data / name).read_text() for name in ("postgresql.conf", "pg_hba.conf")}
    parted(pair)
    (pair.folder / "theirs.conf").write_text("# of the new primary\n")
    done = rejoin(pair, administrator=pair.standby_administrator(), discard=True)
    assert (done.method, done.lost_commits) == ("rewind", 5), done.why
    assert done.lost_bytes > 500
    assert done.forked_at
    wait_until(lambda: level(pair))
    assert (pair.primary.data / "postgresql.conf").read_text() == before["postgresql.conf"]
    assert (pair.primary.data / "pg_hba.conf").read_text().endswith(before["pg_hba.conf"])
    assert (own / "ours.conf").read_text() == "# ours\n"
    assert not (pair.primary.data / "theirs.conf").exists()
    assert leftovers(pair.primary.data) == []


def leftovers(data: Path) -> list[str]:
    return [
        path.name for path in data.parent.iterdir() if "pgorthanc-" in path.name and path.name.startswith(".")
    ]


def test_copied_where_it_cannot_be_rewound(pair: Site) -> None:
    """Without a superuser's login on the new primary; the old data stay beside."""
    before = (pair.primary.data / "postgresql.conf").read_text()
    parted(pair)
    done = rejoin(pair, discard=True)
    assert done.method == "copy"
    assert "needs a superuser" in done.why
    assert done.kept == f"{pair.primary.data}.before-rejoin"
    assert (Path(done.kept) / "PG_VERSION").exists()
    assert (pair.primary.data / "postgresql.conf").read_text() == before
    wait_until(lambda: level(pair))
    assert leftovers(pair.primary.data) == []


def test_an_interrupted_rewind_ends_in_a_copy(pair: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pg_rewind has left: the data are half those of the old primary, half those of the new one."""
    before = (pair.primary.data / "postgresql.conf").read_text()
    parted(pair)
    run = Cluster.run

    def interrupted(self: Cluster, name: str, *arguments: str) -> object:
        if name == "pg_rewind":
            (self.path / "postgresql.conf").write_text("# of the new primary\n")
            (self.path / "global" / "pg_control").unlink()
            raise KeyboardInterrupt
        return run(self, name, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Cluster, "run", interrupted)
        with pytest.raises(Interrupted, match="slot pgorthanc_standby of"):
            rejoin(pair, administrator=pair.standby_administrator(), discard=True)
    done = rejoin(pair, administrator=pair.standby_administrator())
    assert (done.method, done.why.partition(",")[0]) == ("copy", "an earlier rejoin was interrupted")
    assert (pair.primary.data / "postgresql.conf").read_text() == before
    wait_until(lambda: level(pair))
    assert leftovers(pair.primary.data) == []


@pytest.mark.once
def test_an_interrupted_copy_leaves_the_old_data(pair: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    parted(pair)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(basebackup, "copy", fail)
        with pytest.raises(Interrupted, match="slot pgorthanc_standby of"):
            rejoin(pair, discard=True)
    assert leftovers(pair.primary.data) == []
    assert rejoin(pair, discard=True).method == "copy"


@pytest.mark.once
def test_a_configuration_outside_of_the_folder_stays_in_use(site: Site) -> None:
    """As with Debian; pg_rewind needs it, and the start."""
    site.keep_configuration_elsewhere("max_connections=57\n")
    site.primary.sql("ALTER ROLE postgres PASSWORD 'of:postgres'")
    site.prepared()
    site.standby(allow=("127.0.0.1",))
    with cut_off(site):
        written(site, 5)
    replication.promote(
        replication.by_folder(site.folder), Fence(gone=True)
    )  # it lets no superuser in without a password
    administrator = db.Target(make_dsn(site.orthanc(site.port).dsn, user="postgres", password="of:postgres"))
    done = rejoin(site, administrator=administrator, discard=True)
    assert (done.method, done.lost_commits) == ("rewind", 5), done.why
    assert site.primary.sql("SHOW max_connections") == "57"
    assert not (site.primary.data / "pg_hba.conf").exists()


def test_a_record_that_was_cut_off_at_the_end_of_its_segment(pair: Site) -> None:
    """PostgreSQL would go on reading in the next segment of the new timeline, and miss this one."""
    segment_bytes = 1 << 20
    # A checkpoint after the promotion must not remove this segment before the old primary is back.
    standby = open_cluster(pair.folder)
    standby.set({"wal_keep_size": "64MB"})
    standby.run("pg_ctl", "reload", "-D", ".")
    with db.session(pair.administrator, autocommit=True) as conn:

        def write_message(size: int) -> int:
            """Write WAL; return its end."""
            db.value(conn, "SELECT pg_logical_emit_message(true, '', repeat('x', %s))", size)
            return parse_lsn(db.value(conn, "SELECT pg_current_wal_insert_lsn()::text"))

        end = write_message(1)
        end = write_message(segment_bytes - end % segment_bytes - 2000)
        assert 0 < segment_bytes - end % segment_bytes < 3000
        pair.wait_until_level()
        with cut_off(pair):
            write_message(4000)
    # As if the machine had lost power before the rest of the record reached the disk.
    name = f"00000001{end >> 32:08X}{(end & 0xFFFFFFFF) // segment_bytes + 1:08X}"
    following = pair.primary.data / "pg_wal" / name
    following.write_bytes(bytes(segment_bytes))
    promote(pair, Fence(gone=True))
    done = rejoin(pair)
    assert (done.method, done.lost_bytes) == ("follow", 0)
    wait_until(lambda: level(pair))


# Refusals


def test_it_must_not_run(pair: Site) -> None:
    parted(pair)
    pair.primary.start()
    with pytest.raises(PgOrthancError, match=r"the server in .* runs") as refused:
        rejoin(pair)
    assert "pg_ctl -D" in str(refused.value.hint)


def test_wrong_order_the_standby_was_not_promoted(pair: Site) -> None:
    crash(pair.primary.data)
    with pytest.raises(UsageError, match="is a standby itself"):
        rejoin(pair)


def test_wrong_way_round(pair: Site) -> None:
    """The new primary is stopped and named as the old one."""
    parted(pair)
    open_cluster(pair.folder).stop()
    pair.primary.start()
    with pytest.raises(UsageError, match=r"newer than 1 of .*it was promoted after it"):
        replication.rejoin(pair.folder, pair.login)


@pytest.mark.once
def test_wrong_folders(pair: Site, tmp_path: Path) -> None:
    parted(pair)
    with pytest.raises(PgOrthancError, match="is no data folder"):
        replication.rejoin(tmp_path, db.Target(pair.source(pair.port)))
    stranger = make_template(None)
    try:
        with pytest.raises(UsageError, match="never was a primary of"):
            replication.rejoin(stranger.data, db.Target(pair.source(pair.port)))
    finally:
        stranger.remove()


@pytest.mark.once
def test_commits_of_its_own_are_not_given_up_unasked(pair: Site) -> None:
    parted(pair)
    before = sorted(path.name for path in pair.primary.data.iterdir())
    dsn = pair.source(pair.port)
    done = pgorthanc("replication", "rejoin", "--dir", pair.primary.data, "--from", dsn)
    assert done.returncode == PgOrthancError.exit_code
    assert "holds 5 committed transactions" in done.stderr
    assert "--discard" in done.stderr
    assert sorted(path.name for path in pair.primary.data.iterdir()) == before
    kept = answer("replication", "rejoin", "--dir", pair.primary.data, "--from", dsn, "--discard")
    assert (kept["method"], kept["lost_commits"], kept["difference"]) == ("copy", 5, "not compared")
    assert set(kept) == {
        "directory", "method", "why", "primary", "slot", "timeline", "forked_at", "lost_bytes", "lost_commits",
        "streaming", "index", "difference", "kept", "address", "start_command",
    }  # fmt: skip


def test_wal_that_is_gone_is_no_proof_that_nothing_was_committed(pair: Site) -> None:
    parted(pair)
    for segment in (pair.primary.data / "pg_wal").glob("0*"):
        segment.unlink()
    with pytest.raises(PgOrthancError, match=r"cannot tell what .* has committed since"):
        rejoin(pair, discard=True)


# A server of ours


@pytest.mark.once
def test_a_server_of_ours_fails_over_and_comes_back(tmp_path: Path) -> None:
    """`server start`, `replication` …: everything by commands, with the port that Orthanc knows."""
    server = embedded.start(tmp_path / "server", port=free_port())
    folder, passfile, port = tmp_path / "standby", tmp_path / "replication.pgpass", free_port()
    orthanc = ("--config", str(configuration(server, tmp_path)))
    try:
        answer("init", *orthanc)
        where = ("--embedded", server.directory, "--allow", "127.0.0.1", "--passfile", passfile, "--restart")
        answer("replication", "primary", *where)

        def source(at: int) -> str:
            return make_dsn(host="127.0.0.1", port=str(at), user=replication.ROLE, passfile=str(passfile))

        there = ("--dir", folder, "--from", source(server.port), "--listen-port", str(port))
        made = answer("replication", "standby", *there, *orthanc)
        assert made["difference"] == "none"
        done = answer("replication", "promote", "--dir", folder, "--fence", server.directory)
        assert done["lost_commits"] == 0
        assert embedded.status(Path(server.directory)).state == "stopped"
        back = answer("replication", "rejoin", "--dir", server.directory, "--from", source(port))
        assert back["method"] == "follow"
        status = embedded.status(Path(server.directory))
        assert (status.state, status.port) == ("running", server.port)
        embedded.stop(Path(server.directory))
        assert (
            embedded.start(Path(server.directory)).port == server.port
        )  # as after the machine was started again
        refused = pgorthanc("init", *orthanc)
        assert (refused.returncode, "is a standby" in refused.stderr) == (3, True)
    finally:
        stop(folder)
        embedded.stop(Path(server.directory))


def configuration(server: embedded.RunningServer, folder: Path) -> Path:
    password = (Path(server.directory) / "pgorthanc.password").read_text().strip()
    file = folder / "orthanc.json"
    file.touch(0o600)
    section = {**server.orthanc["PostgreSQL"], "Password": password, "EnableStorage": True}
    file.write_text(json.dumps({"PostgreSQL": section}))
    return file
