"""Every command and statement that `replication plan`, `primary`, `standby` and `status` print is executed."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pgorthanc_cli import replication
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.replication import standby
from pgorthanc_cli.replication.password import PASSFILE
from pgorthanc_cli.server import hba_file
from pgorthanc_cli.server.private import open_cluster
from tests.replication.pasting import SUPERUSER, hint, lines, paste, with_password
from tests.replication.site import PASSWORD, Site, pgorthanc, stop
from tests.support.real_servers import wait_until

NewSite = Callable[..., Site]
Fence = replication.Fence
ADDRESS, OLD_ADDRESS = "ADDRESS", "ADDRESS-OF-THE-OLD-PRIMARY"


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
    monkeypatch.setattr(standby, "STREAMING_TIMEOUT_S", 1.0)
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
