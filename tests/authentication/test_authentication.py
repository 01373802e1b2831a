"""What a server asks of a login: every method, TLS, rights, and the verdict for the releases of the plugin."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from psycopg2.extensions import make_dsn

from pgorthanc_cli import authentication, cli, db
from pgorthanc_cli.db.scram import verifier_matches
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from tests.support import auth_servers
from tests.support.auth_servers import HBA, PASSWORD, SERVERS, admin, load, target
from tests.support.real_servers import Server


@pytest.fixture(autouse=True)
def no_libpq_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's own settings and certificates."""
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One of each release of PostgreSQL, and some that speak another language."""
    given = {"language": request.param} if isinstance(request.param, str) else {"major": request.param}
    with auth_servers.server(**given) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("role", "method", "stored", "login", "line", "old_plugin", "new_plugin"),
    [
        ("trust", "trust", "none", "works", 2, True, True),
        ("password", "password", "scram-sha-256", "works", 3, True, True),
        ("md5", "md5", "md5", "works", 4, True, True),
        ("mixed", "scram-sha-256", "scram-sha-256", "works", 4, False, True),
        ("scram", "scram-sha-256", "scram-sha-256", "works", 5, False, True),
        ("wrong", "scram-sha-256", "md5", "refused", 5, False, False),
        ("late", "scram-sha-256", "scram-sha-256", "refused", 5, False, False),
        ("none", "scram-sha-256", "none", "refused", 5, False, False),
        ("reject", "reject", "none", "refused", 6, False, False),
        ("noline", "no line", "none", "refused", None, False, False),
    ],
)
def test_every_method(
    server: Server,
    role: str,
    method: str,
    stored: str,
    login: str,
    line: int | None,
    old_plugin: bool,
    new_plugin: bool,
) -> None:
    report = authentication.check(target(server, role, password=PASSWORD), admin=admin(server))

    assert (report.method, report.stored, report.login) == (method, stored, login)
    assert (report.before_tls, report.after_tls, report.tls.offered) == (method, None, False)
    assert [(plugin.release, plugin.works) for plugin in report.plugins] == [
        ("up to 3.2", old_plugin),
        ("3.3 and later", new_plugin),
    ]
    place = f"{server.data}/pg_hba.conf:{line}: host all "
    assert report.hba_line is None if line is None else (report.hba_line or "").startswith(place)
    assert report.valid_until == ("2020-02-02T02:02:02Z" if role == "late" else "never")
    assert report.password_encryption == "scram-sha-256"
    assert bool(report.refusal) == (login == "refused")
    assert "drop" not in " ".join((*report.remedies, *report.notes)).lower().replace("nothing is dropped", "")
    assert PASSWORD not in repr(report)


@pytest.mark.parametrize(
    ("role", "first"),
    [
        ("md5", "md5 is weak"),
        ("trust", "every client that reaches the server can log in without a password"),
        ("password", "the client sends the password itself"),
        (
            "wrong",
            "pg_hba.conf requires SCRAM, but the stored password is md5: it has to be set again",
        ),
        ("late", "the password has expired (2020-02-02T02:02:02Z); as administrator: ALTER ROLE"),
        ("none", "the role has no password; as administrator, in psql: \\password"),
        ("reject", "the administrator adds or changes the line"),
        (
            "missing",
            'role "missing_role" does not exist; as administrator, in psql: CREATE ROLE "missing_role" LOGIN',
        ),
    ],
)
def test_the_first_remedy(server: Server, role: str, first: str) -> None:
    report = authentication.check(target(server, role, password=PASSWORD), admin=admin(server))
    assert report.remedies[0].startswith(first)


def test_the_remedies_for_an_old_plugin_are_in_order(server: Server) -> None:
    report = authentication.check(target(server, "scram", password=PASSWORD), plugin="3.2")
    upgrade, move = report.remedies
    assert upgrade.startswith("upgrade the plugin")
    assert "--fix md5" in move
    assert "authentication method 10 not supported" in report.plugins[0].why
    assert authentication.check(target(server, "scram", password=PASSWORD), plugin="10.3").remedies == ()


def test_an_old_plugin_that_nobody_uses_is_a_note(server: Server) -> None:
    report = authentication.check(target(server, "scram", password=PASSWORD))
    assert (report.plugin, report.works_for_plugin, report.remedies) == ("latest", True, ())
    assert any(note.startswith("plugins up to 3.2 cannot log in this way") for note in report.notes)


@pytest.mark.parametrize("role", ["scram", "md5", "missing"])
def test_a_wrong_password_works_in_no_way(server: Server, role: str) -> None:
    before = (server.folder / "log").stat().st_size
    report = authentication.check(target(server, role, password="wr0ng"))
    assert (report.login, report.works_for_plugin) == ("refused", False)
    assert [mode.sslmode for mode in report.sslmodes if mode.works] == []
    assert all(mode.detail for mode in report.sslmodes)
    told = " ".join((*report.remedies, *report.notes))
    assert "check the password of role" in told
    assert "md5" not in told.replace('"md5_role"', "")
    assert (server.folder / "log").read_bytes()[before:].count(b"FATAL") <= 2  # libpq's try, and ours


def test_a_line_for_another_password_is_told_from_a_wrong_one(server: Server) -> None:
    """The stored password is md5: plain text would do, if there were TLS with SCRAM."""
    report = authentication.check(target(server, "wrong", password=PASSWORD), admin=admin(server))
    assert [mode.works for mode in report.sslmodes] == [False] * 6


def test_without_rights_it_tells_what_is_hidden(server: Server) -> None:
    report = authentication.check(target(server, "scram", password=PASSWORD))
    assert report.stored == "scram-sha-256"  # the login has proved it
    assert report.hba_line is None
    assert report.notes[-1] == "pg_hba.conf is hidden from role scram_role: it takes a superuser (--admin)"
    hidden = authentication.check(target(server, "password", password=PASSWORD))
    assert hidden.stored is None
    assert hidden.notes[0].startswith("the kind of the stored password is hidden from role password_role")


@pytest.mark.parametrize(
    ("role", "method"), [("scram", "scram-sha-256"), ("md5", "md5"), ("password", "password")]
)
def test_without_a_password_it_tells_the_method(server: Server, role: str, method: str) -> None:
    before = (server.folder / "log").stat().st_size
    report = authentication.check(target(server, role))
    assert (report.method, report.login, report.refusal) == (method, "password needed", "")
    assert report.notes[0].startswith("without a login nothing is known")
    assert [mode.works for mode in report.sslmodes] == [True, True, True, False, False, False]
    said = (server.folder / "log").read_bytes()[before:].decode()
    assert "FATAL" not in said  # nothing that counts as a failed login


def test_nothing_is_changed(server: Server) -> None:
    def everything() -> tuple[str, str, bytes, list[str]]:
        roles = server.sql("SELECT string_agg(a::text, ',' ORDER BY oid) FROM pg_authid a")
        settings = server.sql("SELECT string_agg(s::text, ',') FROM pg_db_role_setting s")
        return roles, settings, (server.data / "pg_hba.conf").read_bytes(), sorted(os.listdir(server.data))

    before = everything()
    for role in ("scram", "wrong", "trust", "reject"):
        authentication.check(target(server, role, password=PASSWORD), admin=admin(server))
        authentication.plan(target(server, role, password=PASSWORD), "md5", admin=admin(server))
    assert everything() == before


def test_a_socket_has_no_tls(server: Server) -> None:
    report = authentication.check(db.Target(server.place))
    assert (report.method, report.login, report.tls.offered, report.sslmodes) == ("trust", "works", False, ())
    assert (report.hba_line or "").endswith("pg_hba.conf:1: local all all trust")


def test_peer_is_told_from_trust(server: Server) -> None:
    path = server.data / "pg_hba.conf"
    content = path.read_text()
    account = str(server.account)
    server.sql(f'CREATE ROLE "{account}_too" LOGIN')
    server.write("pg_ident.conf", f"too {pwd.getpwuid(os.geteuid()).pw_name} {account}_too\n")
    load(server, f"local all {account}_too peer map=too\n" + content)
    try:
        me = db.Target(make_dsn(server.place, user=f"{account}_too"))
        report = authentication.check(me, admin=admin(server))
        assert (report.method, report.login) == ("peer", "works")
        assert [plugin.works for plugin in report.plugins] == [None, None]
        alone = authentication.check(me).method
        assert alone == ("peer" if server.programs.version >= (16, 0) else "trust or peer")
        other = authentication.check(db.Target(make_dsn(server.place, user="md5_role")))
        assert other.method == ("trust" if server.programs.version >= (16, 0) else "trust or peer")
    finally:
        load(server, content)
        server.sql(f'DROP ROLE "{account}_too"')


def test_several_servers(server: Server) -> None:
    several = target(server, "scram", host="127.0.0.1,127.0.0.2", port=f"{server.port},{server.port}")
    with pytest.raises(UsageError, match="the connection names several servers"):
        authentication.check(several)


def test_who_answers_is_not_who_knows(server: Server) -> None:
    """As with a pooler: the administrator's session is on another server."""
    with auth_servers.server(server.programs.version[0]) as other:
        asked = target(server, "password", password=PASSWORD)
        load(other, HBA.replace("trust_role all trust", "trust_role,password_role all md5"))
        report = authentication.check(asked, admin=admin(other))
        assert "does not explain why password is asked" in report.notes[0]
        with pytest.raises(
            PgOrthancError, match=r"who answers asks for password, which is not what .*:2: host"
        ):
            authentication.fix(asked, "scram", admin=admin(other))


def test_changes_of_the_file_that_are_not_loaded(server: Server) -> None:
    path = server.data / "pg_hba.conf"
    content = path.read_bytes()
    try:
        path.write_bytes(content + b"local all nobody trust\n")
        os.utime(path, (2e9, 2e9))
        report = authentication.check(target(server, "scram", password=PASSWORD), admin=admin(server))
    finally:
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))
    assert any("changed after the server loaded it" in note for note in report.notes)


def test_the_administrator_is_refused(server: Server) -> None:
    with pytest.raises(
        ConnectError,
        match=r"the administrator's login, --admin: the server refuses this client: .*pg_hba.conf",
    ):
        authentication.check(target(server, "scram", password=PASSWORD), admin=target(server, "reject"))


def test_the_release_is_none(server: Server) -> None:
    with pytest.raises(UsageError, match="--plugin is 'new'"):
        authentication.check(target(server, "scram"), plugin="new")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"R\0\0\0\x08\0", b"R\xff\xff\xff\xff"]
)
def test_what_answers_is_no_server(answer: bytes) -> None:
    def serve() -> None:
        while True:
            try:
                with listening.accept()[0] as client:
                    client.recv(1000)
                    client.sendall(answer)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        where = db.Target(f"host=127.0.0.1 port={listening.getsockname()[1]} user=x dbname=x")
        with pytest.raises(ConnectError, match=r"the server 127\.0\.0\.1:\d+ cannot be reached: "):
            authentication.check(where)
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["md5", "scram-sha-256"])
@pytest.mark.parametrize(
    "password", [PASSWORD, "plain", "non\u00a0breaking", "soft\u00adhyphen", "Ⅳ", "\u0007bell"]
)
def test_a_password_is_recognised_by_what_the_server_stores(server: Server, kind: str, password: str) -> None:
    stored = server.sql(
        f"SET password_encryption = '{kind}'",
        "DROP ROLE IF EXISTS some_role",
        "CREATE ROLE some_role PASSWORD '{}'".format(password.replace("'", "''")),
        "SELECT rolpassword FROM pg_authid WHERE rolname = 'some_role'",
    )
    assert verifier_matches(stored, "some_role", password)
    assert not verifier_matches(stored, "some_role", password + "x")


# The command


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli.main, ["check-auth", *words])


@pytest.mark.parametrize(
    ("role", "words", "code", "status"),
    [
        ("trust", [], 0, "OK"),
        ("md5", [], 0, "OK"),
        ("scram", [], 0, "OK"),
        ("scram", ["--plugin", "3.2"], 6, "WARNING"),
        ("scram", ["--plugin", "10.3"], 0, "OK"),
        ("wrong", [], 3, "CRITICAL"),
        ("reject", [], 3, "CRITICAL"),
    ],
)
def test_the_command(server: Server, role: str, words: list[str], code: int, status: str) -> None:
    words = ["--uri", target(server, role, password=PASSWORD).dsn, "--admin", server.place, *words]
    run = invoke(*words, "--json")

    assert run.exit_code == code, run.output
    document = json.loads(run.stdout)
    assert {"method", "tls", "stored", "password_encryption", "hba_line", "plugins", "remedies"} <= set(
        document
    )
    assert {"release", "works", "why"} == set(document["plugins"][0])
    monitored = invoke(*words, "--nagios")
    assert monitored.stdout.startswith(f"CHECK-AUTH {status} - role {role}_role")
    assert monitored.exit_code == ["OK", "WARNING", "CRITICAL"].index(status)
    assert PASSWORD not in run.output + monitored.output


@pytest.mark.parametrize(
    ("release", "code", "status"), [("3.2", 6, "WARNING"), ("4.0", 0, "OK"), ("", 0, "OK")]
)
def test_the_plugin_of_the_configuration_counts(
    server: Server, tmp_path: Path, release: str, code: int, status: str
) -> None:
    library = tmp_path / f"libOrthancPostgreSQLIndex.so{release and '.'}{release}"
    library.touch()
    section = {"Host": "127.0.0.1", "Port": server.port, "Database": "postgres", "Username": "scram_role"}
    configuration = tmp_path / "orthanc.json"
    configuration.write_text(
        json.dumps({"Plugins": [str(library)], "PostgreSQL": {**section, "Password": PASSWORD}})
    )
    configuration.chmod(0o600)
    run = invoke("--config", str(configuration), "--json")
    assert (run.exit_code, json.loads(run.stdout)["plugin"]) == (code, release or "latest")
    assert invoke("--config", str(configuration), "--nagios").stdout.startswith(f"CHECK-AUTH {status} - ")


def test_the_screen_of_a_login_that_works(server: Server) -> None:
    uri = target(server, "scram", password=PASSWORD).dsn
    run = invoke("--uri", uri, "--admin", server.place)
    assert (run.exit_code, run.stderr.count("error")) == (0, 0)
    headline, where, *_ = run.stdout.splitlines()
    place = f"127.0.0.1:{server.port}"
    assert (
        headline == f"The current plugin can log in to {place} as role scram_role. The password is correct."
    )
    assert where.startswith("scram-sha-256 without TLS - PostgreSQL ")
    assert f"{server.data}/pg_hba.conf:5: host all" in run.stdout
    assert invoke("--uri", uri, "--quiet").output.count("Plugin") == 0


@pytest.mark.parametrize("role", ["scram", "missing"])
def test_the_screen_of_a_wrong_password(server: Server, role: str) -> None:
    """It says so once, and never recommends another method."""
    run = invoke("--uri", target(server, role, password="wr0ng").dsn)
    assert run.exit_code == 3
    assert "error" not in run.stderr
    assert run.stdout.startswith(f"Role {role}_role cannot log in to 127.0.0.1:{server.port}.\n")
    assert f'FAIL Check the password of role "{role}_role"' in run.stdout
    assert run.stdout.count("PostgreSQL: ") == 1
    assert "md5" not in run.stdout
    assert "--fix" not in run.stdout


def test_the_command_on_the_screen_shows_the_steps(server: Server) -> None:
    uri = target(server, "scram", password=PASSWORD).dsn
    run = invoke("--uri", uri, "--plugin", "3.2")
    assert run.exit_code == 6
    assert run.stdout.startswith("Plugin 3.2 cannot log in to ")
    (command,) = re.findall(r"^ +pgorthanc check-auth (.*)", run.stdout, re.MULTILINE)
    assert PASSWORD not in command
    steps = invoke(*shlex.split(command))
    assert steps.exit_code == 0, steps.output
    assert "md5" in steps.stdout


def test_a_statement_on_the_screen_solves_it(server: Server) -> None:
    uri = target(server, "late", password=PASSWORD).dsn
    run = invoke("--uri", uri, "--admin", server.place)
    (statement,) = re.findall(r"^ +(ALTER ROLE .*)", run.stdout, re.MULTILINE)
    try:
        server.sql(statement)
        assert invoke("--uri", uri).exit_code == 0
    finally:
        server.sql("ALTER ROLE late_role VALID UNTIL '2020-02-02 02:02:02Z'")


def test_wrong_usage() -> None:
    assert invoke("--print").exit_code == 2
    assert invoke("--fix", "md5", "--nagios").exit_code == 3
    assert invoke("--host", "127.0.0.1", "--port", "1").exit_code == 3
