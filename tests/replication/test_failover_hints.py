"""Every command and statement that `replication promote` and `rejoin` print is executed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication import mark
from pgorthanc_cli.server import embedded
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.processes import server_processes
from tests.replication.pasting import SUPERUSER, hint, lines, paste, with_password
from tests.replication.site import PASSWORD, Site, crash, pgorthanc
from tests.replication.test_promote import cut_off, found, promote, written
from tests.replication.test_split_brain import repointed, second_standby, takes_writes
from tests.support.proxy import proxy
from tests.support.real_servers import free_port, wait_until

NewSite = Callable[..., Site]
Fence = replication.Fence
ADDRESS, OLD_ADDRESS = "ADDRESS", "ADDRESS-OF-THE-OLD-PRIMARY"


def roles(site: Site) -> list[str]:
    servers = replication.status([site.administrator, site.standby_administrator()]).servers
    return [server.role for server in servers]


# promote


def test_a_promotion_prints_the_way_back(new_site: NewSite) -> None:
    """For a role and a slot of its own; the standby is named by its folder, then by its login."""
    site = new_site()
    with_password(site)
    own = {"role": "copier", "slot": "hall_2"}
    site.prepared(**own)
    login = make_dsn(site.login.dsn, user="copier")
    words = ("--from", login, "--listen-port", str(site.port), "--slot", "hall_2")
    assert pgorthanc("replication", "standby", "--pgdata", site.folder, *words).returncode == 0
    site.wait_until_level()
    done = pgorthanc("replication", "promote", "--pgdata", site.folder, "--fence", site.primary.data)
    come_back(site, done.stdout, site.primary.data)
    sent = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'"
    new = site.standby_administrator()
    with db.session(new, autocommit=True, readonly=True) as conn:
        wait_until(lambda: db.value(conn, sent) == 1)
        slots = db.rows(conn, "SELECT slot_name, active FROM pg_replication_slots")
    assert slots == [("hall_2", True)]

    uri = make_dsn(host="127.0.0.1", port=site.primary.port, user="postgres", dbname="orthanc")
    done = pgorthanc("replication", "promote", "--uri", uri, "--fence", site.folder, **SUPERUSER)
    assert lines(done.stdout)[0].endswith(f" --uri '{uri}'")
    come_back(site, done.stdout, site.folder)
    assert roles(site) == ["primary", "standby"]


def come_back(site: Site, page: str, old: Path) -> None:
    """Run the three commands of the page of a promotion, for an old primary on this machine."""
    primary, rejoin, synchronous = lines(page)
    paste(primary.replace(OLD_ADDRESS, "127.0.0.1"), site.scratch, **SUPERUSER)
    paste(rejoin.replace("DIR", str(old)).replace("NEW-PRIMARY", "127.0.0.1"), site.scratch)
    paste(synchronous.replace(OLD_ADDRESS, "127.0.0.1"), site.scratch, **SUPERUSER)


def test_a_primary_that_answers_is_fenced_by_the_command_of_the_refusal(pair: Site) -> None:
    words = ("replication", "promote", "--uri", pair.standby_administrator().dsn)
    refused = pgorthanc(*words, "--old-primary-is-down")
    assert "still answers" in refused.stderr
    [line] = lines(refused.stderr)
    paste(line.replace("FOLDER-OF-THE-OLD-PRIMARY", str(pair.primary.data)))
    assert roles_of(pair.folder) == "primary"


def roles_of(folder: Path) -> str:
    return "primary" if takes_writes(folder) else "standby"


def test_the_operator_says_by_the_command_of_the_refusal_that_it_is_down(pair: Site) -> None:
    crash(pair.primary.data)
    refused = pgorthanc("replication", "promote", "--uri", pair.standby_administrator().dsn)
    [line] = lines(refused.stderr, "pgorthanc .*--old-primary-is-down")
    paste(line)
    assert roles_of(pair.folder) == "primary"


def test_a_primary_behind_a_forwarder(pair: Site) -> None:
    """It lives here: it has to be fenced; its port is another one: it has to be stopped first."""
    open_cluster(pair.folder).stop()
    with proxy(pair.primary.port, 1000, "close") as forwarder:
        repointed(pair.folder, pair.port, to=forwarder.port, slot="pgorthanc_standby")
        pair.wait_until_level()
    with pytest.raises(UsageError, match="is a primary of the same database, and alive") as refused:
        promote(pair, Fence(gone=True))
    [option, folder] = re.findall(r"add (--fence) (\S+):", hint(refused))[0]
    assert option == "--fence"
    with pytest.raises(UsageError, match="reaches it through a forwarder") as copy:
        promote(pair, Fence(Path(folder)))
    paste(hint(copy).rpartition("stop it first: ")[2])
    assert open_cluster(pair.primary.data).pid() is None
    assert promote(pair, Fence(Path(folder), accept_loss=True)).timeline == 2


def test_an_old_primary_is_started_again_and_loses_nothing(pair: Site) -> None:
    written(pair, 10)
    pair.wait_until_level()
    with cut_off(pair), db.session(pair.administrator, autocommit=True) as conn, conn.cursor() as cur:
        for n in range(7):
            cur.execute("INSERT INTO globalproperties VALUES (%s, 'late')", (2000 + n,))
    with pytest.raises(PgOrthancError, match="has 7 commits") as refused:
        promote(pair, Fence(pair.primary.data))
    remove, start, *_ = hint(refused).rpartition("if you can: ")[2].split("; ")
    paste(remove)
    paste(start)
    assert takes_writes(pair.primary.data)
    pair.wait_until_level()
    assert promote(pair, Fence(pair.primary.data)).lost_commits == 0
    assert found(pair.orthanc(pair.port)) == 17


@pytest.mark.once
def test_a_busy_process_that_outlives_its_postmaster_is_ended(pair: Site) -> None:
    """It does not see that its server has died, as it never waits for anything."""
    with busy(pair) as backend:
        postmaster = open_cluster(pair.primary.data).pid()
        assert postmaster
        os.kill(postmaster, signal.SIGKILL)
        wait_until(lambda: server_processes(pair.primary.data) == [backend])
        with pytest.raises(PgOrthancError, match="are still alive") as refused:
            promote(pair, Fence(pair.primary.data))
        [line] = re.findall("end them: (.*?); ", hint(refused))
        paste(line)
        assert promote(pair, Fence(pair.primary.data)).timeline == 2


@contextmanager
def busy(site: Site) -> Iterator[int]:
    """The process of a session of the primary that counts for ever."""
    psql = [str(site.primary.programs.bin / "psql"), site.administrator.dsn]
    session = subprocess.Popen(
        [*psql, "-c", "DO $$ BEGIN LOOP END LOOP; END $$"],
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    try:
        query = "SELECT max(pid) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'"
        wait_until(lambda: site.primary.sql(query) != "None")
        yield int(site.primary.sql(query))
    finally:
        session.kill()
        session.wait()


def test_a_mark_for_a_standby_that_is_never_promoted_is_removed(
    pair: Site, stopped_pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal says how to see whether that standby takes writes, and which file to remove if not."""

    def killed(*_: object) -> None:
        raise SystemExit

    with second_standby(pair, stopped_pair) as (second, _):
        with monkeypatch.context() as patched:
            patched.setattr(mark.Claim, "promoting", killed)
            patched.setattr(mark.Claim, "release", lambda self: None)
            with pytest.raises(SystemExit):
                promote(pair, Fence(pair.primary.data))
        other = replication.by_folder(second)
        with pytest.raises(PgOrthancError, match="its promotion had not begun") as refused:
            replication.promote(other, Fence(pair.primary.data))
        [look] = re.findall("takes writes: (.*?); ", hint(refused))
        login = {"PGUSER": "orthanc", "PGPASSWORD": PASSWORD, "PGDATABASE": "orthanc"}
        shown = pgorthanc(*shlex.split(look)[1:], **login).stdout
        assert f"127.0.0.1:{pair.port}  standby" in shown
        paste(hint(refused).rpartition("never to be promoted: ")[2])
        assert replication.promote(other, Fence(pair.primary.data)).timeline == 2


def test_a_standby_that_does_not_run_is_started(pair: Site) -> None:
    open_cluster(pair.folder).stop()
    with pytest.raises(PgOrthancError, match="does not run") as refused:
        replication.by_folder(pair.folder)
    paste(hint(refused).removeprefix("start it: "))
    assert replication.promote(replication.by_folder(pair.folder), Fence(pair.primary.data)).timeline == 2


# rejoin


def test_an_old_primary_that_runs_is_stopped(pair: Site) -> None:
    """And started by the command of the page, if it was left to a service manager."""
    with cut_off(pair):
        written(pair, 5)
    promote(pair, Fence(gone=True))
    pair.primary.start()
    words = ("replication", "rejoin", "--pgdata", pair.primary.data, "--from", pair.source(pair.port))
    refused = pgorthanc(*words)
    [line] = re.findall(r"then stop it: (.*)", " ".join(refused.stderr.split()))
    paste(line)
    refused = pgorthanc(*words)
    [option] = re.findall("--discard", refused.stderr)
    page = pgorthanc(*words, option, "--no-start").stdout
    [start] = lines(page, "(?:runuser|/)")
    paste(start)
    wait_until(lambda: roles(pair) == ["standby", "primary"])


@pytest.mark.once
def test_a_configuration_elsewhere_is_named_by_the_start(site: Site) -> None:
    """As with Debian: pg_ctl alone would not find it."""
    site.keep_configuration_elsewhere()
    site.prepared()
    site.standby(allow=("127.0.0.1",))
    with cut_off(site):
        written(site, 1)
    with pytest.raises(PgOrthancError, match="has 1 commits") as refused:
        replication.promote(replication.by_folder(site.folder), Fence(site.primary.data))
    for line in hint(refused).rpartition("if you can: ")[2].split("; ")[:2]:
        paste(line)
    assert takes_writes(site.primary.data)


@pytest.mark.once
def test_a_private_server(tmp_path: Path) -> None:
    """Its commands are those of `pgorthanc server`."""
    folder = tmp_path / "server"
    server = embedded.start(folder, port=free_port())
    try:
        words = ("--embedded", folder, "--allow", "10.1.2.3")
        [line] = lines(pgorthanc("replication", "plan", *words).stdout, "pgorthanc server start")
        paste(line.replace("ADDRESS-OF-THIS-SERVER", "127.0.0.2"))
        assert "listen_addresses is" not in pgorthanc("replication", "plan", *words).stdout
        paste(open_cluster(folder).command_line("restart"))
        assert embedded.status(folder).port == server.port
    finally:
        embedded.stop(folder)
