"""The move of a role between md5 and SCRAM: proved by a login, put back if that fails, and no secret is told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import authentication, db
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from tests.support import auth_servers
from tests.support.auth_servers import HBA, MAJORS, PASSWORD, admin, load, target
from tests.support.real_servers import Server, wait_until


@pytest.fixture(scope="module", params=MAJORS)
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    with auth_servers.server(request.param) as cluster:
        yield cluster


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """As at the beginning; nothing of the developer's own settings."""
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    load(running, HBA)
    for kind, roles in {"scram-sha-256": ["scram", "mixed"], "md5": ["md5", "wrong"]}.items():
        for role in roles:
            store = f"ALTER ROLE {role}_role {auth_servers.password()}"
            running.sql(f"SET password_encryption = '{kind}'", store, f"ALTER ROLE {role}_role RESET ALL")
    return running


def state(server: Server) -> tuple[str, str, str]:
    """All that a move may change."""
    roles = server.sql(
        "SELECT string_agg(rolname || ' ' || coalesce(rolpassword, ''), ',' ORDER BY oid) FROM pg_authid"
    )
    settings = server.sql("SELECT string_agg(s::text, ',' ORDER BY setrole) FROM pg_db_role_setting s")
    return roles, settings, (server.data / "pg_hba.conf").read_text()


def lines(server: Server) -> list[str]:
    return (server.data / "pg_hba.conf").read_text().splitlines()


def kind(server: Server, role: str) -> str:
    stored = server.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{role}_role'")
    return "md5" if stored.startswith("md5") else stored.partition("$")[0].lower()


def login(server: Server, role: str) -> db.Target:
    return target(server, role, password=PASSWORD)


def test_to_md5_and_back(server: Server) -> None:
    before = HBA.splitlines()
    done = authentication.fix(login(server, "scram"), "md5", admin=admin(server))

    assert (done.stored_before, done.stored) == ("scram-sha-256", "md5")
    assert (done.method_before, done.method) == ("scram-sha-256", "md5")
    assert kind(server, "scram") == "md5"
    assert [now for was, now in zip(before, lines(server), strict=True) if was != now] == [
        before[4].replace("scram-sha-256", "md5")
    ]
    assert done.backup
    assert Path(done.backup).read_text() == HBA
    assert done.hba_line == f"{server.data}/pg_hba.conf:5: {lines(server)[4]}"
    report = authentication.check(login(server, "scram"))
    assert (report.works_everywhere, report.password_encryption) == (True, "md5")

    server.sql("ALTER ROLE wrong_role PASSWORD NULL")  # no other role with md5 on that line
    back = authentication.fix(login(server, "scram"), "scram", admin=admin(server))
    assert (back.method, kind(server, "scram")) == ("scram-sha-256", "scram-sha-256")
    assert lines(server) == before


def test_a_line_of_a_file_that_is_included(server: Server) -> None:
    if server.programs.version < (16, 0):
        return  # include came with 16
    server.write("more.conf", HBA)
    load(server, "include more.conf\n")
    done = authentication.fix(login(server, "scram"), "md5", admin=admin(server))
    assert (
        done.hba_line == f"{server.data}/more.conf:5: {HBA.splitlines()[4].replace('scram-sha-256', 'md5')}"
    )
    assert lines(server) == ["include more.conf"]


def test_a_line_that_serves_already_is_left(server: Server) -> None:
    done = authentication.fix(login(server, "mixed"), "md5", admin=admin(server))
    assert (done.hba_line, done.backup, done.method) == (None, None, "md5")
    assert lines(server) == HBA.splitlines()


def test_a_line_that_others_with_md5_need_stays(server: Server) -> None:
    done = authentication.fix(login(server, "mixed"), "md5", admin=admin(server))
    done = authentication.fix(login(server, "mixed"), "scram", admin=admin(server))
    assert (done.method, done.hba_line) == ("scram-sha-256", None)
    assert done.notes[0].startswith("line 4 of pg_hba.conf stays at md5")
    assert "(md5_role)" in done.notes[0]
    authentication.check(login(server, "md5"))


def test_a_role_that_was_locked_out_gets_in(server: Server) -> None:
    assert authentication.check(login(server, "wrong")).login == "refused"
    done = authentication.fix(login(server, "wrong"), "scram", admin=admin(server))
    assert (done.stored_before, done.stored, done.method, done.hba_line) == (
        "md5",
        "scram-sha-256",
        "scram-sha-256",
        None,
    )
    assert authentication.check(login(server, "wrong")).login == "works"


def test_a_superuser_moves_itself(server: Server) -> None:
    assert authentication.fix(login(server, "admin"), "md5").stored == "md5"
    assert authentication.fix(login(server, "admin"), "scram").stored == "scram-sha-256"


@pytest.mark.parametrize(
    ("role", "wanted", "more"),
    [
        ("scram", "md5", {"require_auth": "scram-sha-256"}),
        ("mixed", "md5", {"require_auth": "scram-sha-256"}),
        ("md5", "scram", {"require_auth": "md5"}),
        ("late", "md5", {}),
    ],
)
def test_everything_is_put_back_if_the_login_fails(
    server: Server, role: str, wanted: str, more: dict[str, str]
) -> None:
    server.sql(f"ALTER ROLE {role}_role SET password_encryption = 'md5'")
    before = state(server)
    with pytest.raises(
        ConnectError, match=r"the login failed after the change: .*; everything was put back"
    ) as caught:
        authentication.fix(target(server, role, password=PASSWORD, **more), wanted, admin=admin(server))
    assert caught.value.exit_code == 3
    assert state(server) == before
    asked = authentication.check(login(server, role)).method
    assert asked == ("md5" if role == "md5" else "scram-sha-256")


@pytest.mark.parametrize(
    ("role", "more", "message"),
    [
        (
            "scram",
            {"password": "other"},
            "the password given is not that of role scram_role; nothing was changed",
        ),
        ("scram", {}, "the password of the role has to be set again, and none is given"),
        ("trust", {"password": "x"}, "has the method trust, wanted md5 or scram-sha-256"),
        ("password", {"password": PASSWORD}, "has the method password, wanted md5 or scram-sha-256"),
        ("reject", {"password": "x"}, "has the method reject"),
        ("noline", {"password": "x"}, "no line of pg_hba.conf can be changed for role noline_role"),
    ],
)
def test_refusals_change_nothing(server: Server, role: str, more: dict[str, str], message: str) -> None:
    before = state(server)
    with pytest.raises(PgOrthancError, match=message) as caught:
        authentication.fix(target(server, role, **more), "md5", admin=admin(server))
    assert caught.value.hint
    assert state(server) == before


def test_it_takes_a_superuser(server: Server) -> None:
    before = state(server)
    with pytest.raises(PgOrthancError, match="takes a superuser's login") as caught:
        authentication.fix(login(server, "scram"), "md5")
    assert (
        caught.value.hint
        == "name it with --admin; or do the steps by hand: pgorthanc check-auth --fix md5 --print-sql"
    )
    assert state(server) == before


def test_changes_of_somebody_else_are_not_loaded(server: Server) -> None:
    path = server.data / "pg_hba.conf"
    path.write_text(HBA + "host all all all trust\n")
    os.utime(path, (2e9, 2e9))
    with pytest.raises(PgOrthancError, match="was changed, and is not loaded yet"):
        authentication.fix(login(server, "scram"), "md5", admin=admin(server))
    path.write_text(HBA + "nonsense\n")
    os.utime(path, (1e9, 1e9))
    with pytest.raises(PgOrthancError, match="has errors: line "):
        authentication.fix(login(server, "scram"), "md5", admin=admin(server))


def test_an_odd_name(server: Server) -> None:
    name = 'or"th anc'
    server.sql('CREATE ROLE "or""th anc" LOGIN ' + auth_servers.password())
    load(server, HBA + 'host all "or""th anc" all scram-sha-256\n')
    odd = db.Target(make_dsn(login(server, "x").dsn, user=name))
    try:
        assert authentication.fix(odd, "md5", admin=admin(server)).method == "md5"
        steps = authentication.manual_steps(authentication.plan(odd, "scram", admin=admin(server)))
        assert '\\password "or""th anc"' in steps
    finally:
        server.sql('DROP ROLE "or""th anc"')


def test_the_steps_open_no_line_that_is_closed(server: Server) -> None:
    steps = authentication.manual_steps(
        authentication.plan(login(server, "reject"), "scram", admin=admin(server))
    )
    [line] = [step for step in steps if "needs a line" in step]
    assert ", above line 6, which says reject, that is for role reject_role," in line


@pytest.mark.parametrize("chief", [True, False])
@pytest.mark.parametrize("wanted", ["md5", "scram"])
def test_the_steps_by_hand(server: Server, wanted: str, chief: bool) -> None:
    before = state(server)
    role = "scram" if wanted == "md5" else "md5"
    planned = authentication.plan(login(server, role), wanted, admin=admin(server) if chief else None)
    steps = authentication.manual_steps(planned)
    assert state(server) == before
    method = authentication.METHODS[wanted]
    assert f"SET password_encryption = '{method}';" in steps
    order = [steps.index(f'\\password "{role}_role"'), steps.index("SELECT pg_reload_conf();")]
    assert order == sorted(order, reverse=wanted == "md5")
    assert any(f"host all {role}_role" in step or f"for role {role}_role" in step for step in steps)


def test_no_secret_is_told_to_anybody(server: Server, tmp_path: Path) -> None:
    """Not on the screen, not in the server's log (log_statement is all), not in the process list."""
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    server.sql("ALTER SYSTEM SET log_min_duration_statement = 0")
    log = server.folder / "log"
    start = log.stat().st_size
    dsn = make_dsn(server.tcp, user="scram_role")
    stored = [server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_role'")]
    said = ""
    for words in (
        ["-v"],
        ["--json"],
        ["--fix", "md5", "--print"],
        ["--fix", "md5", "--yes"],
        ["--fix", "scram", "--yes"],
    ):
        command = [sys.executable, "-m", "pgorthanc_cli", "check-auth", "--uri", dsn, "--admin", server.place]
        command += ["--password-file", str(secret), *words]
        assert PASSWORD not in " ".join(command)
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        said += run.stdout + run.stderr
        assert run.returncode in (0, 6), run.stderr
        stored.append(server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_role'"))
    assert len(set(stored)) == 3
    logged = log.read_bytes()[start:].decode("utf-8", "replace")
    assert "pg_authid" in logged  # statements are logged
    for hidden in ("s3cret", *stored):
        assert hidden not in said
        assert hidden not in logged


def test_pg_stat_statements_sees_no_secret(tmp_path: Path) -> None:
    """The extension shows the text of statements to other roles."""
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    with auth_servers.server() as watched:
        name = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'"
        if watched.sql(name) == "0":
            pytest.skip("the server lacks pg_stat_statements")
        watched.sql("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        watched.stop()
        watched.start()
        watched.sql("CREATE EXTENSION pg_stat_statements")
        dsn = make_dsn(watched.tcp, user="scram_role")
        common = ["--admin", watched.place, "--password-file", str(secret), "--yes"]
        for method in ("md5", "scram"):
            command = [sys.executable, "-m", "pgorthanc_cli", "check-auth", "--uri", dsn, *common]
            subprocess.run([*command, "--fix", method], stdin=subprocess.DEVNULL, check=True)
        statements = watched.sql("SELECT string_agg(query, E'\n') FROM pg_stat_statements")
    assert "pg_authid" in statements
    for hidden in ("s3cret", "SCRAM-SHA-256$", "'md5"):
        assert hidden not in statements


@pytest.fixture
def held(server: Server) -> Iterator[Connection]:
    """Somebody else is changing the role: ours waits for its row, after the line was written."""
    conn = psycopg2.connect(server.place)
    with conn.cursor() as cur:
        cur.execute("ALTER ROLE scram_role CONNECTION LIMIT 7")
    yield conn
    conn.close()


def waiting(server: Server) -> str:
    """The pid of who waits for a lock."""
    return server.sql("SELECT coalesce(min(pid), 0) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


@pytest.mark.parametrize("fault", ["session", "server"])
def test_everything_is_put_back_if_the_session_is_lost(server: Server, held: Connection, fault: str) -> None:
    before = state(server)
    log = server.folder / "log"
    start = log.stat().st_size
    with ThreadPoolExecutor(1) as pool:
        fixing = pool.submit(authentication.fix, login(server, "scram"), "md5", admin=admin(server))
        wait_until(lambda: waiting(server) != "0" or fixing.done())
        assert lines(server)[4].endswith("md5")
        if fault == "session":
            server.sql(f"SELECT pg_terminate_backend({waiting(server)})")
            held.rollback()
        else:
            server.stop()
            server.start()
        failure = fixing.exception(60)
    assert isinstance(failure, ConnectError)
    assert "was lost" in failure.message
    assert failure.message.endswith("; everything was put back as it was")
    logged = log.read_bytes()[start:].decode("utf-8", "replace")
    assert not re.search(r"PASSWORD '(md5[0-9a-f]|SCRAM)", logged)
    assert state(server) == before
    assert authentication.check(login(server, "scram")).method == "scram-sha-256"


def test_everything_is_put_back_at_ctrl_c(server: Server, held: Connection) -> None:
    before = state(server)
    command = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        "check-auth",
        "--fix",
        "md5",
        "--yes",
        "--admin",
        server.place,
    ]
    environment = {**os.environ, "PGORTHANC_URI": login(server, "scram").dsn}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        wait_until(lambda: waiting(server) != "0" or process.poll() is not None)
        assert lines(server)[4].endswith("md5")
        process.send_signal(signal.SIGINT)
        held.rollback()
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (130, "error: interrupted; everything was put back as it was\n")
    assert state(server) == before


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_after_a_kill_the_login_works_and_a_rerun_completes_it(
    server: Server, held: Connection, end: signal.Signals
) -> None:
    command = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        "check-auth",
        "--fix",
        "md5",
        "--yes",
        "--admin",
        server.place,
    ]
    environment = {**os.environ, "PGORTHANC_URI": login(server, "scram").dsn}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        wait_until(lambda: waiting(server) != "0" or process.poll() is not None)
        process.send_signal(end)
        if end == signal.SIGKILL:
            process.wait(timeout=60)
        held.rollback()
        process.communicate(timeout=60)
    wait_until(lambda: waiting(server) == "0")
    assert authentication.check(login(server, "scram")).login == "works"
    if kind(server, "scram") == "md5":  # the statement was complete before the server noticed
        assert lines(server)[4].endswith("md5")
        return
    done = authentication.fix(login(server, "scram"), "md5", admin=admin(server))
    assert (done.stored, done.method) == ("md5", "md5")
    assert authentication.check(login(server, "scram")).login == "works"


def test_without_an_answer_nothing_is_done(server: Server) -> None:
    before = state(server)
    command = [sys.executable, "-m", "pgorthanc_cli", "check-auth", "--fix", "md5", "--admin", server.place]
    environment = {**os.environ, "PGORTHANC_URI": login(server, "scram").dsn}
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    assert run.returncode == UsageError.exit_code
    assert "add --yes" in run.stderr
    assert state(server) == before


def test_the_plan_names_what_is_changed(server: Server) -> None:
    planned = authentication.plan(login(server, "scram"), "md5", admin=admin(server))
    password, line = planned.changes
    assert password == "the same password of role scram_role is stored as md5, now scram-sha-256"
    assert line.startswith(f"the method becomes md5: {server.data}/pg_hba.conf:5: host all ")


def test_a_plan_that_cannot_see_what_is_stored_says_so(server: Server) -> None:
    planned = authentication.plan(login(server, "scram"), "md5")
    assert planned.changes[0] == (
        "the same password of role scram_role is stored as md5, the present kind cannot be seen"
    )


def test_nothing_piles_up_beside_the_file(server: Server) -> None:
    """A killed run leaves a new file; the next one removes it, and keeps one copy of each content."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    left = server.write(f"pg_hba.conf.{ended.pid}.new", "half of a f")
    same = server.write(f"pg_hba.conf.{os.getpid()}.new", "of a run with our number")
    alive = server.write(f"pg_hba.conf.{os.getppid()}.new", "of a run that works")
    foreign = server.write("pg_hba.conf.bak.new", "of the administrator")
    try:
        for _ in range(2):
            authentication.fix(login(server, "scram"), "md5", admin=admin(server))
            store = f"ALTER ROLE scram_role {auth_servers.password()}"
            server.sql("SET password_encryption = 'scram-sha-256'", store)
            load(server, HBA)
        assert [path.exists() for path in (left, same, alive, foreign)] == [False, False, True, True]
        copies = [path.read_bytes() for path in server.data.glob("pg_hba.conf.*.pgorthanc")]
        assert len(copies) == len(set(copies))
    finally:
        alive.unlink()
        foreign.unlink()
