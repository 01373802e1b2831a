"""Every command and statement that `replication` prints is executed as it is printed, and solves what it is about."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication import mark, standby
from pgorthanc_cli.replication.password import PASSFILE
from pgorthanc_cli.server import embedded, hba_file
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.processes import server_processes
from tests.replication.site import PASSWORD, Site, crash, pgorthanc, stop
from tests.replication.test_promote import cut_off, found, promote, written
from tests.replication.test_split_brain import repointed, second_standby, takes_writes
from tests.support.proxy import proxy
from tests.support.real_servers import free_port, wait_until

NewSite = Callable[..., Site]
Fence = replication.Fence
ADDRESS, OLD_ADDRESS = "ADDRESS", "ADDRESS-OF-THE-OLD-PRIMARY"
SUPERUSER = {"PGPASSWORD": "of:postgres"}


def paste(line: str, folder: Path | None = None, **environment: str) -> str:
    """Run a line in a shell that knows `pgorthanc`; what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", line], cwd=folder, env={**os.environ, "PATH": path, **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def lines(text: str, start: str = "pgorthanc ") -> list[str]:
    """The lines that stand alone, to be pasted."""
    return re.findall(rf"^ {{4,}}({start}.*)$", text, re.MULTILINE)


def hint(error: pytest.ExceptionInfo[PgOrthancError]) -> str:
    return str(error.value.hint)


def with_password(site: Site) -> None:
    """The superuser can log in by TCP, as an administrator on another machine."""
    site.primary.sql("ALTER ROLE postgres PASSWORD 'of:postgres'")


def roles(site: Site) -> list[str]:
    servers = replication.status([site.administrator, site.standby_administrator()]).servers
    return [server.role for server in servers]


# plan, primary, standby


def test_the_commands_of_the_pages_lead_to_a_pair(site: Site) -> None:
    """From a server that was never replicated, with nothing but what each page prints next."""
    here = site.scratch
    plan = pgorthanc("replication", "plan", "--uri", site.administrator.dsn)
    [with_address] = lines(plan.stdout)
    [primary, _] = lines(paste(with_address.replace(ADDRESS, "127.0.0.1"), here))
    [command] = lines(paste(primary, here))
    command = command.replace("host=PRIMARY", "host=127.0.0.1").replace("DIR", str(site.folder))
    page = paste(f"{command} --listen-port {site.port}", here)
    status, service = lines(page)
    site.primary.sql("GRANT pg_read_all_stats TO orthanc")
    site.wait_until_level()
    assert paste(status, PGPASSWORD=PASSWORD).startswith("Replication works: ")
    unit = paste(service, PGPASSWORD=PASSWORD)
    assert unit.startswith("# /etc/systemd/system/pgorthanc_standby.service; ")


def test_a_primary_on_this_machine_is_not_that_of_another_one(site: Site) -> None:
    """To the standby, a loopback address is its own machine."""
    with_password(site)
    words = (
        "--host",
        "127.0.0.1",
        "--port",
        str(site.primary.port),
        "-U",
        "postgres",
        "--passfile",
        site.passfile,
    )
    site.primary.set("listen_addresses", "127.0.0.1")
    for address, name in (("10.1.2.3", "PRIMARY"), ("127.0.0.1", "127.0.0.1")):
        done = pgorthanc("replication", "primary", *words, "--allow", address, "--json", **SUPERUSER)
        assert f"--from 'host={name} port=" in done.stdout
        steps = pgorthanc(
            "replication", "plan", *words[:6], "--allow", address, "--print", "steps", **SUPERUSER
        )  # fmt: skip
        assert f"-d 'host={name} port=" in steps.stdout


def test_the_statements_of_a_plan(new_site: NewSite) -> None:
    """Each by psql, as it stands on the page; \\password asks for the password."""
    site = new_site(
        settings="wal_level=minimal\nmax_wal_senders=0\nmax_replication_slots=0\nwal_log_hints=off\n"
    )
    site.primary.set("max_slot_wal_keep_size", "-1")
    words = ("replication", "plan", "--uri", site.administrator.dsn, "--allow", "127.0.0.1")
    page = pgorthanc(*words).stdout
    psql = [str(site.primary.programs.bin / "psql"), "-v", "ON_ERROR_STOP=1", site.administrator.dsn]
    later = []
    for line in lines(page, r"(?:[A-Z]+ |\\|host)"):
        if line.startswith("host"):
            hba_file.insert(site.primary.data / "pg_hba.conf", line, before=1)
        elif line.startswith("\\password"):
            # Without a terminal, psql reads the answers from stdin.
            subprocess.run(
                [*psql, "-c", line], input="by:hand\nby:hand\n", text=True, check=True, start_new_session=True
            )
        elif "create_physical" in line:
            later.append(line)  # not with wal_level minimal
        else:
            subprocess.run([*psql, "-c", line], check=True, capture_output=True)
    site.primary.stop()
    site.primary.start()
    for line in later:
        site.primary.sql(line)
    assert (
        pgorthanc(*words)
        .stdout.splitlines()[0]
        .endswith(f":{site.primary.port} is ready for a standby at 127.0.0.1, with 1 recommendation.")
    )  # TLS needs a certificate
    site.passfile.write_text(f"*:*:*:{replication.ROLE}:by\\:hand\n")
    site.passfile.chmod(0o600)
    assert site.standby().streaming


def test_the_address_of_a_server_for_other_machines(site: Site) -> None:
    words = ("replication", "plan", "--uri", site.administrator.dsn, "--allow", "10.1.2.3")
    [statement] = lines(pgorthanc(*words).stdout, "ALTER SYSTEM SET listen_addresses")
    site.primary.sql(statement.replace("ADDRESS-OF-THIS-SERVER", "127.0.0.2"))
    restart(site)
    assert "listen_addresses is" not in pgorthanc(*words).stdout


def restart(site: Site) -> None:
    """Without the test's own listen_addresses, which is no setting of ALTER SYSTEM."""
    site.primary.stop()
    site.primary.start()


def test_the_printed_steps_do_not_keep_a_server_from_its_start(site: Site) -> None:
    """`ssl = on` without a certificate does; so that statement is a comment."""
    words = (
        "replication",
        "plan",
        "--uri",
        site.administrator.dsn,
        "--allow",
        "127.0.0.1",
        "--print",
        "steps",
    )
    printed = pgorthanc(*words).stdout
    assert re.search(r"^-- ALTER SYSTEM SET ssl = 'on';", printed, re.MULTILINE)
    sql = printed.partition("\\password")[0]
    subprocess.run(
        [site.primary.programs.bin / "psql", "-v", "ON_ERROR_STOP=1", site.administrator.dsn],
        input=sql, text=True, check=True, capture_output=True,
    )  # fmt: skip
    restart(site)
    assert site.primary.sql("SHOW ssl") == "off"


def test_a_login_that_is_no_superuser_prints_the_steps_for_one(site: Site) -> None:
    orthanc = site.orthanc(site.primary.port)
    uri = ("--uri", orthanc.dsn)
    wanted = ("--allow", "127.0.0.1", "--slot", "hall_2")
    refused = pgorthanc("replication", "primary", *wanted, *uri, "--passfile", site.passfile)
    [line] = lines(refused.stderr)
    assert PASSWORD not in line
    printed = paste(line, PGPASSWORD=PASSWORD)
    assert "SELECT pg_create_physical_replication_slot('hall_2', true);" in printed
    assert f"host replication {replication.ROLE} 127.0.0.1/32 scram-sha-256" in printed


def test_a_primary_that_was_not_prepared(site: Site) -> None:
    """The command of the refusal, run on the machine of the primary."""
    site.passfile.write_text(f"*:*:*:{replication.ROLE}:guess\n")
    site.passfile.chmod(0o600)
    words = (
        "replication", "standby", "--pgdata", site.folder, "--from", site.login.dsn, "--listen-port", str(site.port)
    )  # fmt: skip
    refused = pgorthanc(*words)
    [line] = lines(refused.stderr)
    environment = {"PGHOST": str(site.primary.folder), "PGPORT": str(site.primary.port), "PGUSER": "postgres"}
    paste(line.replace(ADDRESS, "127.0.0.1"), site.scratch, **environment)
    done = pgorthanc(*words)
    assert done.returncode == 0, done.stderr


def test_a_role_with_more_rights_stays_and_another_one_is_made(site: Site) -> None:
    site.primary.sql(f"CREATE ROLE {replication.ROLE} LOGIN REPLICATION CREATEDB")
    with pytest.raises(PgOrthancError) as refused:
        site.prepared()
    [option] = re.findall("--[a-z]+", hint(refused))
    words = ("replication", "primary", "--uri", site.administrator.dsn, "--allow", "127.0.0.1")
    done = pgorthanc(*words, "--passfile", site.passfile, option, "another")
    assert done.returncode == 0, done.stderr


def test_a_standby_that_does_not_stream_is_restarted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password file is spoilt."""
    site.prepared()
    monkeypatch.setattr(standby, "standby_pgpass_line", lambda role, password: "*:*:*:nobody:wrong\n")
    monkeypatch.setattr(standby, "_STREAMING_TIMEOUT_S", 1.0)
    with pytest.raises(PgOrthancError, match="does not stream from") as refused:
        site.standby()
    (site.folder / PASSFILE).write_text(site.passfile.read_text())
    [line] = re.findall("start it again: (.*?); ", hint(refused))
    paste(line)
    site.wait_until_level()


def test_a_standby_that_was_not_started(site: Site) -> None:
    """By the command of the page; or by the one of the unit for systemd."""
    site.prepared()
    words = ("--from", site.login.dsn, "--listen-port", str(site.port), "--no-start")
    page = pgorthanc("replication", "standby", "--pgdata", site.folder, *words).stdout
    [start] = lines(page, "(?:runuser|/)")
    [status] = lines(page)
    paste(start)
    site.wait_until_level()
    shown = pgorthanc(*shlex.split(status)[1:], PGPASSWORD=PASSWORD).stdout
    assert f"127.0.0.1:{site.port}  standby" in shown
    unit = pgorthanc("replication", "plan", "--uri", site.administrator.dsn, "--print", "systemd").stdout
    [program] = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    cluster = open_cluster(site.folder)
    cluster.stop()
    command = [*cluster.account.prefix, *shlex.split(program.replace("DIR", str(site.folder)))]
    if not Path(command[-3]).exists():
        pytest.skip("needs the system's PostgreSQL")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            site.wait_until_level()
        finally:
            cluster.stop()
        assert server.wait(20) == 0


# status


def test_a_slot_without_a_limit(pair: Site) -> None:
    pair.primary.set("max_slot_wal_keep_size", "-1")
    follow(pair, "max_slot_wal_keep_size is unlimited")
    assert pair.primary.sql("SHOW max_slot_wal_keep_size") == "10GB"


def follow(site: Site, text: str) -> None:
    """Run the statements that stand below a problem of the primary; then it is gone."""

    def statements() -> str:
        state = replication.status([site.administrator])
        return next((problem.statement for problem in state.findings if text in problem.text), "")

    site.primary.sql(*statements().splitlines())
    wait_until(lambda: not statements())


def test_a_lost_slot_is_dropped_and_the_standby_copied_again(pair: Site) -> None:
    open_cluster(pair.folder).stop()
    pair.primary.set("max_slot_wal_keep_size", "1MB")
    for _ in range(3):
        pair.primary.sql(
            "CREATE TABLE filler AS SELECT generate_series(1, 100000) AS n", "CHECKPOINT", "DROP TABLE filler"
        )
    follow(pair, "slot pgorthanc_standby is lost")
    second = pair.primary.folder / "second"
    try:
        assert pair.standby(second).streaming
        wait_until(lambda: replication.status([pair.administrator]).verdict == "OK")
    finally:
        stop(second)


def test_a_slot_that_is_not_in_use(pair: Site) -> None:
    """Its standby is started; or there is none, and the slot goes."""
    pair.primary.sql("SELECT pg_create_physical_replication_slot('gone', true)")
    open_cluster(pair.folder).stop()
    in_use = "SELECT bool_or(active) FROM pg_replication_slots"
    wait_until(lambda: pair.primary.sql(in_use) == "False")
    problems = [
        each for each in replication.status([pair.administrator]).findings if "is not in use" in each.text
    ]
    assert len(problems) == 2
    [function] = {name for each in problems for name in re.findall(r"(\w+)\(\)", each.remedy)}
    pair.primary.sql(f"SELECT {function}('gone')")
    open_cluster(pair.folder).start()
    wait_until(lambda: replication.status([pair.administrator]).verdict == "OK")


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
