"""`replication plan` and `replication primary`: what is missing, what is done, and that nothing is opened wider."""

from __future__ import annotations

import shlex
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.replication.plan import PlanItem
from pgorthanc_cli.server import embedded, hba_file
from tests.replication.site import HBA, Site, answer, pgorthanc, stop
from tests.support.real_servers import free_port

NewSite = Callable[..., Site]
ROLE = replication.ROLE


def planned(site: Site, **options: object) -> replication.PrimaryPlan:
    with db.session(site.administrator, autocommit=True, readonly=True, need_schema=False) as conn:
        return replication.plan(conn, replication.Requirements(**{"allow": ("127.0.0.1",), **options}))  # type: ignore[arg-type]


def items(plan: replication.PrimaryPlan, state: str) -> dict[str, PlanItem]:
    return {item.name: item for item in plan.items if item.state == state}


# What is missing


def test_a_server_that_was_never_replicated(site: Site) -> None:
    site.primary.set("max_slot_wal_keep_size", "-1")
    plan = planned(site)
    assert not plan.ready
    assert not plan.restart
    assert set(items(plan, "missing")) == {
        "max_slot_wal_keep_size", "fsync", f"role {ROLE}", "pg_hba.conf for 127.0.0.1/32", "slot pgorthanc_standby"
    }  # fmt: skip
    assert plan.data_bytes
    assert plan.data_bytes > 20_000_000
    assert plan.free_bytes


def test_settings_that_need_a_restart(new_site: NewSite) -> None:
    site = new_site(
        settings="wal_level=minimal\nmax_wal_senders=0\nmax_replication_slots=0\nwal_log_hints=off\n"
    )
    plan = planned(site, allow=("10.1.2.3",))
    missing = items(plan, "missing")
    assert plan.restart
    assert {name for name, item in missing.items() if item.needs == "restart"} == {
        "wal_level", "max_wal_senders", "max_replication_slots", "listen_addresses"
    }  # fmt: skip
    assert items(plan, "advice")["wal_log_hints"].needs == "restart"
    prepared = site.prepared()
    assert not prepared.ready
    assert set(prepared.restart) >= {"wal_level", "max_wal_senders", "max_replication_slots"}
    assert not any("slot" in done for done in prepared.changed if not done.startswith("max_"))
    site.primary.stop()
    site.primary.start()
    assert site.prepared().ready
    assert planned(site).ready


def test_lines_that_let_everybody_in_are_named_and_stay(new_site: NewSite) -> None:
    site = new_site(hba=HBA + "host replication all 0.0.0.0/0 trust\n")
    plan = planned(site)
    assert items(plan, "advice")["pg_hba.conf line 3"].found == "host replication all 0.0.0.0/0 trust"
    # The line that trusts decides for the standby, too; so ours has to come first.
    assert items(plan, "missing")["pg_hba.conf for 127.0.0.1/32"].found.startswith("line 3")
    site.prepared()
    assert "pg_hba.conf for 127.0.0.1/32" not in items(planned(site), "missing")
    assert "pg_hba.conf line 4" in items(planned(site), "advice")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": ("0.0.0.0/0",)}, "every machine"),
        ({"allow": ("::/0",)}, "every machine"),
        ({"allow": ("10.1.2.3/8",)}, "host bits"),
        ({"allow": ("standby.example",)}, "does not appear"),
        ({"slot": "Standby-1"}, "no name of a replication slot"),
        ({"limit": "much"}, "wanted a size"),
    ],
)
def test_what_makes_no_sense_or_opens_too_much_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replication.Requirements(**options).check()  # type: ignore[arg-type]


def test_a_login_without_rights_sees_less_and_changes_nothing(site: Site) -> None:
    orthanc = site.orthanc(site.primary.port)
    with db.session(orthanc, autocommit=True, readonly=True, need_schema=False) as conn:
        plan = replication.plan(conn, replication.Requirements(allow=("127.0.0.1",)))
    assert {item.name for item in plan.items if item.state == "hidden"} == {
        "pg_hba.conf for 127.0.0.1/32",
        "disk",
    }
    with pytest.raises(PgOrthancError, match="is not a superuser") as refused:
        replication.prepare(orthanc, replication.Requirements(allow=("127.0.0.1",)), passfile=site.passfile)
    assert "--print steps" in str(refused.value.hint)
    assert not site.passfile.exists()


def test_the_screens_of_plan_and_primary(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready, prepared, nothing to do; the commands that they suggest work as they are."""
    monkeypatch.chdir(site.scratch)
    server = f"{site.primary.folder}:{site.primary.port}"
    uri = ("--uri", site.administrator.dsn)
    first, where, *lines = pgorthanc("replication", "plan", *uri, "--allow", "127.0.0.1").stdout.splitlines()
    assert first == f"{server} is not ready for a standby at 127.0.0.1: 5 requirements are missing."
    assert where.startswith("role postgres - PostgreSQL ")
    assert f"FAIL role {ROLE} does not exist" in lines
    assert f"       host replication {ROLE} 127.0.0.1/32 scram-sha-256" in lines
    assert "No restart is needed." in lines
    [primary, steps] = [line.split("pgorthanc ")[1] for line in lines if line.startswith("    pgorthanc ")]
    assert pgorthanc(*shlex.split(steps)).stdout.startswith("-- 1. On the primary ")
    prepared = pgorthanc(*shlex.split(primary))
    assert prepared.stdout.startswith(f"Prepared {server} for a standby: 5 changes.\n")
    assert f"\nok   role {ROLE} can log in for replication (tried)\n" in prepared.stdout
    assert prepared.stdout.splitlines()[-1].startswith(
        "    pgorthanc replication standby --pgdata DIR --from "
    )
    again = pgorthanc(*shlex.split(primary))
    assert again.stdout.startswith(f"Nothing to do: {server} is ready for a standby.\n")
    assert (prepared.returncode, again.returncode) == (0, 0)


# What is done


def test_nothing_is_opened_wider_than_asked(site: Site) -> None:
    before = (site.primary.data / "pg_hba.conf").read_text()
    prepared = site.prepared(allow=("127.0.0.1", "10.1.2.0/24"))
    assert prepared.login == "works"
    assert prepared.left == (
        "listen_addresses is 127.0.0.1; needed: the address of this server that the standby reaches",
    )
    lines = (site.primary.data / "pg_hba.conf").read_text()
    assert lines == (
        f"host replication {ROLE} 127.0.0.1/32 scram-sha-256\nhost replication {ROLE} 10.1.2.0/24 scram-sha-256\n"
        + before
    )
    assert Path(prepared.backup).read_text() == before
    assert (
        site.primary.sql(
            f"""SELECT format('%s', (rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolreplication, rolcanlogin,
                rolpassword LIKE 'SCRAM-SHA-256$%%')) FROM pg_authid WHERE rolname = '{ROLE}'"""
        )
        == "(f,f,f,f,t,t,t)"
    )
    assert stat.S_IMODE(site.passfile.stat().st_mode) == 0o600
    password = site.passfile.read_text().rpartition(":")[2].strip()
    assert len(password) >= 32
    assert password not in str(prepared)
    assert password not in (site.primary.folder / "log").read_text()
    assert site.primary.sql("SHOW max_slot_wal_keep_size") == "10GB"


def test_a_second_run_only_looks(site: Site) -> None:
    site.prepared()
    password = site.passfile.read_text()
    again = site.prepared()
    assert (again.changed, again.backup, again.ready, again.login) == ((), "none", True, "works")
    assert site.passfile.read_text() == password


@pytest.mark.once
def test_the_password_is_kept_lost_and_replaced(site: Site) -> None:
    site.prepared()
    old = site.passfile.read_text()
    site.passfile.unlink()
    with pytest.raises(PgOrthancError, match="does not hold its password") as refused:
        site.prepared()
    assert "--new-password" in str(refused.value.hint)
    prepared = replication.prepare(
        site.administrator,
        replication.Requirements(allow=("127.0.0.1",)),
        passfile=site.passfile,
        new_password=True,
    )
    assert prepared.login == "works"
    assert site.passfile.read_text() != old
    site.passfile.write_text(old)
    with pytest.raises(PgOrthancError, match="cannot log in"):
        site.prepared()


def test_a_role_with_too_many_rights_is_refused(site: Site) -> None:
    site.primary.sql(f"CREATE ROLE {ROLE} LOGIN REPLICATION CREATEDB SUPERUSER")
    assert items(planned(site), "missing")[f"role {ROLE}"].statement.endswith("NOSUPERUSER NOCREATEDB")
    with pytest.raises(PgOrthancError, match="more rights than replication needs: SUPERUSER, CREATEDB"):
        site.prepared()


def test_a_broken_pg_hba_is_left_as_it_was(site: Site) -> None:
    broken = HBA + "host all nonsense\n"
    site.primary.write("pg_hba.conf", broken)
    with pytest.raises(PgOrthancError, match="does not understand"):
        site.prepared()
    assert (site.primary.data / "pg_hba.conf").read_text() == broken


def test_a_server_on_another_machine_gets_its_line_printed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that no process of our session works in is not the server's: here, because it is hidden."""
    monkeypatch.setattr("pgorthanc_cli.replication.survey.is_server_process", lambda pid, folder: False)
    prepared = site.prepared()
    assert not prepared.ready
    assert prepared.left[0].endswith(f"pg_hba.conf: host replication {ROLE} 127.0.0.1/32 scram-sha-256")
    assert "lacks the line" in prepared.login
    assert (site.primary.data / "pg_hba.conf").read_text() == HBA


@pytest.mark.once
def test_synchronous_waits_until_the_standby_streams(site: Site) -> None:
    """Before, every commit would hang."""
    site.prepared(synchronous=True)
    assert site.primary.sql("SHOW synchronous_standby_names") == ""
    site.standby()
    site.prepared(synchronous=True)
    assert site.primary.sql("SHOW synchronous_standby_names") == 'FIRST 1 ("pgorthanc_standby")'
    site.primary.sql("CREATE TABLE committed ()")
    assert site.primary.sql("SELECT sync_state FROM pg_stat_replication") == "sync"


@pytest.mark.once
def test_a_server_of_ours_is_restarted_if_asked(tmp_path: Path) -> None:
    """All by the command line: `server start`, `replication primary --restart`, and a standby of it."""
    server = embedded.start(tmp_path / "server", port=free_port())
    passfile = tmp_path / "replication.pgpass"
    where = ("--embedded", server.directory, "--allow", "127.0.0.1", "--passfile", passfile)
    try:
        first = answer("replication", "primary", *where)
        assert (first["restart"], first["ready"], first["login"]) == (["wal_log_hints"], True, "works")
        again = answer("replication", "primary", *where, "--restart")
        assert again["changed"] == ["restarted"]
        assert answer("replication", "plan", *where[:4])["ready"]
        folder = tmp_path / "standby"
        dsn = make_dsn(host="127.0.0.1", port=server.port, user=ROLE, passfile=str(passfile))
        made = answer(
            "replication", "standby", "--dir", folder, "--from", dsn, "--listen-port", str(free_port())
        )
        assert (made["streaming"], made["difference"]) == (True, "not compared")
        assert not {path.name for path in folder.glob("pgorthanc.*")} - {"pgorthanc.replication.pgpass"}
    finally:
        stop(tmp_path / "standby")
        embedded.stop(Path(server.directory))


# By hand


@pytest.mark.once
def test_the_printed_steps_are_all_that_is_needed(site: Site, tmp_path: Path) -> None:
    """The SQL is run with psql as it is printed, the lines of pg_hba.conf are inserted, the base backup is made."""
    printed = pgorthanc(
        "replication", "plan", "--uri", site.administrator.dsn, "--allow", "127.0.0.1", "--print", "steps"
    ).stdout
    assert "trust" not in printed
    statements = [
        line for line in printed.splitlines() if line.partition(" ")[0] in ("ALTER", "CREATE", "SELECT")
    ]
    psql = site.primary.programs.bin / "psql"
    without_certificate = [line for line in statements if "SET ssl " not in line]
    script = "\n".join(
        [*without_certificate, f"ALTER ROLE {ROLE} PASSWORD 'by:hand';", "SELECT pg_reload_conf();"]
    )
    subprocess.run(
        [psql, "-v", "ON_ERROR_STOP=1", site.administrator.dsn], input=script, text=True, check=True
    )
    [line] = [line for line in printed.splitlines() if line.startswith("host replication")]
    hba_file.insert(site.primary.data / "pg_hba.conf", line, before=1)
    site.primary.sql("SELECT pg_reload_conf()")
    site.passfile.write_text(f"*:*:*:{ROLE}:by\\:hand\n")
    site.passfile.chmod(0o600)
    assert planned(site).ready
    [backup] = [line for line in printed.splitlines() if line.startswith("pg_basebackup")]
    login = (
        f"host=PRIMARY port={site.primary.port} user={ROLE} passfile=/var/lib/postgresql/replication.pgpass"
    )
    folder = tmp_path / "by-hand"
    command = backup.replace(login, site.login.dsn).replace("-D DIR", f"-D {folder}")
    assert site.login.dsn in command
    subprocess.run(f"{site.primary.programs.bin}/{command}", shell=True, check=True, capture_output=True)  # noqa: S602
    assert (folder / "standby.signal").exists()


@pytest.mark.parametrize(("form", "said"), [("compose", "image: postgres:"), ("systemd", "ExecStart=")])
def test_printed_files_hold_no_password(site: Site, form: str, said: str) -> None:
    site.prepared()
    printed = pgorthanc("replication", "plan", "--uri", site.administrator.dsn, "--print", form).stdout
    assert said in printed
    assert site.passfile.read_text().rpartition(":")[2].strip() not in printed
    for wide in ("trust", "0.0.0.0/0", "POSTGRES_PASSWORD", "SUPERUSER"):
        assert wide not in printed


def test_a_standby_is_no_primary(pair: Site) -> None:
    with pytest.raises(ConnectError, match="is a standby itself"):
        planned_on(pair.standby_administrator())
    done = pgorthanc(
        "replication", "primary", "--uri", pair.standby_administrator().dsn, "--allow", "127.0.0.1", "--passfile",
        pair.scratch / "x",
    )  # fmt: skip
    assert done.returncode == ConnectError.exit_code
    assert f"127.0.0.1:{pair.primary.port}" in done.stderr  # the primary, by name


def planned_on(target: db.Target) -> replication.PrimaryPlan:
    with db.session(replace(target), autocommit=True, readonly=True, need_schema=False) as conn:
        return replication.plan(conn, replication.Requirements())
