"""After how long idle connections die: real servers, real faults, a real PgBouncer, and a proxy as middle box."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError
from pgorthanc_cli.keepalive import Age, KeepAlive, Trial, TrialPlan, environment, verdict
from pgorthanc_cli.keepalive.model import Probes
from pgorthanc_cli.progress import Progress
from tests.support.bouncer import bouncer
from tests.support.idling import APPLICATION, FAST, at, fates, plain, run, said, sessions
from tests.support.localized import Localized
from tests.support.proxy import End, Side, proxy
from tests.support.real_servers import LOCALHOST, Server, certificate, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    cluster = Server("local all all trust\nhost all all 127.0.0.1/32 trust\n", "max_connections = 30\n")
    try:
        cluster.create()
        if cluster.has_tls:
            pair = certificate("localhost", names=LOCALHOST)
            cluster.write("server.pem", pair.certificate_pem + pair.key_pem)
            cluster.write(
                "postgresql.auto.conf",
                "ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.pem'\n",
            )
        yield cluster.start()
    finally:
        cluster.remove()


@pytest.fixture
def target(server: Server) -> db.Target:
    return at(server.port)


@pytest.mark.parametrize("sslmode", ["disable", pytest.param("require", marks=pytest.mark.once)])
@pytest.mark.parametrize(
    ("end", "outcome", "at_once"),
    [
        ("reset", "reset", True),
        ("reset late", "reset", False),
        ("close", "closed", True),
        ("drop", "dropped", False),
    ],
)
def test_a_middle_box_ends_idle_connections_and_probes_from_either_side_keep_them(
    server: Server, end: End, outcome: str, at_once: bool, sslmode: str
) -> None:
    if sslmode == "require" and not server.has_tls:
        pytest.skip("needs a PostgreSQL with TLS")
    with proxy(server.port, 1.6, end) as box:
        report = run(at(box.port, sslmode=sslmode, **FAST), 1, 2.5)
    assert fates(report) == {
        (1, "none"): "alive", (1, "client"): "alive", (1, "server"): "alive",
        (2.5, "none"): outcome, (2.5, "client"): "alive", (2.5, "server"): "alive",
    }  # fmt: skip
    (dead,) = (age for age in report.ages if age.died)
    assert (dead.keepalive, dead.cause) == (False, "")
    if at_once:
        assert dead.noticed_s == 0
        assert 1.5 < dead.idle_s < 2.4
    else:
        assert 2.5 <= dead.idle_s < 2.9
        assert dead.noticed_s < 0.5 if outcome == "reset" else dead.noticed_s >= 1
    low, high = report.limit_s
    assert (low, high) == (1, round(min(dead.idle_s, 2.5), 1))
    assert report.passed == ("client", "server")
    assert report.parameters["keepalives_idle"] == 1
    assert "every connection lived" in said(report)
    assert ("waits until the kernel gives up" if end == "drop" else "closed the connection unexp") in said(
        report
    )
    wait_until(lambda: sessions(server) == 0)  # the server would keep a dropped one for hours


def test_what_counts_data_only_is_not_helped_by_probes(server: Server) -> None:
    with proxy(server.port, 2.2, "reset", probes=()) as box:
        report = run(at(box.port, **FAST), 2.1, 3, confirm=True)
    assert set(fates(report).values()) == {"alive", "reset"}
    assert not any(age.outcome == "alive" for age in report.ages if age.age_s == 3)
    assert (report.parameters, report.passed, report.confirmed) == ({}, (), None)
    assert "counts only data" in said(report)


@pytest.mark.parametrize("end", ["reset", "close", "drop"])
def test_a_proxy_that_ends_tcp_itself_is_told_from_probes_that_come_too_late(
    server: Server, end: End
) -> None:
    """A silent connection lives for 2 s, and probes every second do not help: faster ones would not, either."""
    with proxy(server.port, 2.7, end, probes=()) as box:
        report = run(at(box.port, **FAST), 2, 3.5, confirm=True)
    assert report.limit_s[0] == 2
    assert (report.passed, report.confirmation, report.confirmed) == ((), (), None)
    assert (report.parameters, report.connection_uri, report.postgresql_conf, report.sysctl) == (
        {},
        "",
        (),
        (),
    )
    assert "Probes every 1 s do not keep a connection alive, although a silent one lives 2 s" in said(report)
    for word in ("timeout client", "HousekeepingInterval", "IndexConnectionsCount"):
        assert word in said(report)
    for word in ("come too late", "keepalives_idle", "sysctl", "postgresql.conf"):
        assert word not in said(report)


def test_faster_probes_that_fail_as_well_are_not_recommended(server: Server) -> None:
    with proxy(server.port, 1.6, "reset", probes=()) as box:
        report = run(at(box.port), 1, 2.2, confirm=True)
    assert (report.confirmed, report.passed, report.parameters) == (False, (), {})
    assert "were tried, too, and connections died: nothing is recommended" in said(report)


@pytest.mark.parametrize(
    ("tried_s", "faster_s"),
    [(30, None), (59, None), (60, 20), (90, 20)],
    ids=["half", "just", "same", "later"],
)
def test_probes_more_often_than_silence_is_survived_do_not_count(tried_s: int, faster_s: int | None) -> None:
    """As behind a proxy with a limit of 90 s, tried with the ages of a minute and more."""
    tried = KeepAlive.every(tried_s, 10, 3)
    conclusions = verdict.judge(tuple(behind_a_proxy(90.2)), (), tried)
    assert conclusions.limit_s == (60, 90.2)
    assert (conclusions.advised.idle_s if conclusions.advised else None) == faster_s
    assert conclusions.futile == (faster_s is None)
    assert (conclusions.advised_from("client"), conclusions.advised_from("server")) == (None, None)


@pytest.mark.parametrize(
    ("died_s", "fits", "not_so"),
    [
        (90.2, "", "60 s"),
        (60.1, "AWS Classic", "Azure"),
        (240.0, "Azure", "AWS Classic"),
        (350.2, "350 s", "F5"),
    ],
)
def test_known_limits_that_were_survived_do_not_fit(died_s: float, fits: str, not_so: str) -> None:
    ages = tuple(behind_a_proxy(died_s, 30.0, *(age for age in (60.0, 120.0, 300.0) if age < died_s - 0.2)))
    tried = KeepAlive.every(30, 10, 3)
    around = environment.Environment("there", True, '"r"', "none", (), {}, {}, datetime.now(timezone.utc))
    text = "\n".join(verdict.advice(ages, verdict.judge(ages, (), tried), tried, around))
    [known] = [line for line in text.splitlines() if line.startswith("Known limits")] or [""]
    assert fits in known
    assert not_so not in known


def behind_a_proxy(died_s: float, *lived_s: float) -> Iterator[Age]:
    """The fates of connections that a proxy ends after that time, whoever sends probes."""
    ways: tuple[Probes, ...] = ("none", "client", "server")
    for age_s in (*(lived_s or (60.0,)), died_s + 30):
        for probes in ways:
            lives = age_s < died_s
            yield Age(
                age_s=age_s, keepalive=probes != "none", probes=probes, outcome="alive" if lives else "closed",
                idle_s=age_s + 0.1 if lives else died_s, noticed_s=0.0, cause="", detail="",
            )  # fmt: skip


@pytest.mark.parametrize("side", ["client", "server"])
def test_what_counts_packets_of_one_side_needs_probes_from_there(server: Server, side: Side) -> None:
    with proxy(server.port, 1.6, "reset", probes=[side]) as box:
        report = run(at(box.port, **FAST), 2.5)
    assert report.passed == (side,)
    assert bool(report.parameters) == bool(report.sysctl) == (side == "client")
    assert bool(report.postgresql_conf) == (side == "server")


@pytest.mark.parametrize("confirm", [pytest.param(False, marks=pytest.mark.once), True])
def test_probes_that_come_too_late_are_replaced_by_faster_ones(server: Server, confirm: bool) -> None:
    with proxy(server.port, 1.6, "drop") as box:
        report = run(at(box.port), 1, 2.2, confirm=confirm)
    assert report.limit_s == (1, 2.2)
    if confirm:
        assert report.parameters["keepalives_idle"] == 1
        assert (report.confirmed, report.passed) == (True, ("client", "server"))
        assert [(age.age_s, age.probes, age.outcome) for age in report.confirmation] == [
            (2.2, "client", "alive"), (2.2, "server", "alive"),
        ]  # fmt: skip
    else:
        assert (report.confirmed, report.passed) == (None, ())
        assert (report.parameters, report.connection_uri, report.postgresql_conf, report.sysctl) == (
            {},
            "",
            (),
            (),
        )
        assert "come too late" in said(report)
        assert "--confirm" in said(report)


@pytest.mark.parametrize("sslmode", ["disable", pytest.param("require", marks=pytest.mark.once)])
@pytest.mark.parametrize(
    ("setting", "in_transaction"),
    [("idle_session_timeout", False), ("idle_in_transaction_session_timeout", True)],
)
def test_the_servers_own_limits_are_named(
    server: Server, setting: str, in_transaction: bool, sslmode: str
) -> None:
    if sslmode == "require" and not server.has_tls:
        pytest.skip("needs a PostgreSQL with TLS")
    target = at(server.port, options=f"-c {setting}=1500", sslmode=sslmode, **FAST)
    report = run(target, 1, 3, in_transaction=in_transaction)
    for age in report.ages:
        assert (age.outcome, age.cause) == (("alive", "") if age.age_s == 1 else ("closed", setting))
    assert "FATAL: terminating connection due to idle" in report.ages[-1].detail
    assert report.limit_s[0] == 1
    assert report.limit_s[1] == pytest.approx(1.5, abs=0.3)
    assert report.timeouts_s[setting] == 1.5
    assert report.parameters == {}
    assert f'ALTER ROLE "postgres" SET {setting} = 0' in said(report)


@pytest.fixture(scope="module", params=["German", pytest.param("Japanese", marks=pytest.mark.once)])
def foreign(request: pytest.FixtureRequest) -> Iterator[Server]:
    cluster = Localized(request.param, "local all all trust\nhost all all 127.0.0.1/32 trust\n", "")
    try:
        yield cluster.create().start()
    finally:
        cluster.remove()


@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_server_in_another_language_is_understood(foreign: Server, in_transaction: bool) -> None:
    limit = "idle_in_transaction_session_timeout" if in_transaction else "idle_session_timeout"

    def terminate() -> None:
        foreign.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE application_name = '{APPLICATION}' ORDER BY backend_start LIMIT 1"
        )

    report = run(
        at(foreign.port, options=f"-c {limit}=1500"), 3, during=terminate, in_transaction=in_transaction
    )
    assert [age.cause for age in report.ages] == ["terminated", limit, limit]
    assert "administrator command" not in report.ages[0].detail


def test_a_terminated_session_is_no_idle_limit(server: Server, target: db.Target) -> None:
    def terminate() -> None:
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE application_name = '{APPLICATION}' ORDER BY backend_start LIMIT 1"
        )

    report = run(target, 1, during=terminate)
    dead, *others = report.ages
    assert (dead.outcome, dead.cause, dead.noticed_s) == ("closed", "terminated", 0)
    assert [age.outcome for age in others] == ["alive", "alive"]
    assert report.limit_s == (0, None)
    assert "no idle limit" in said(report)


def test_a_killed_process_of_the_server_is_told_from_its_victims(server: Server, target: db.Target) -> None:
    def kill() -> None:
        pid = server.sql(
            f"SELECT min(pid) FROM pg_stat_activity WHERE application_name = '{APPLICATION}' AND state = 'idle'"
        )
        os.kill(int(pid), signal.SIGKILL)

    report = run(target, 2, during=kill)
    wait_until(lambda: reachable(server))
    assert {age.outcome for age in report.ages} == {"closed"}
    assert {age.cause for age in report.ages} <= {"", "crashed", "restarted"}
    assert sum("without a word" in age.detail for age in report.ages) == 1


def reachable(server: Server) -> bool:
    try:
        server.sql("SELECT 1")
    except psycopg2.OperationalError:
        return False
    return True


def test_a_restart_is_no_idle_limit(server: Server, target: db.Target) -> None:
    def restart() -> None:
        server.run(
            "pg_ctl", "restart", "-w", "-m", "fast", "-D", str(server.data), "-l", str(server.folder / "log")
        )

    report = run(target, 30, during=restart)
    assert {(age.outcome, age.cause) for age in report.ages} == {("closed", "restarted")}
    assert report.elapsed_s < 20  # seen when it happened
    assert report.limit_s == (0, None)
    assert "restarted during the test" in said(report)


def test_socket_options_of_both_ends(target: db.Target) -> None:
    report = run(db.Target(make_dsn(target.dsn, keepalives_idle=7, tcp_user_timeout=9000)), 0.1)
    default, server, tried = report.sockets
    kernel = [
        Path(f"/proc/sys/net/ipv4/tcp_keepalive_{name}").read_text() for name in ("time", "intvl", "probes")
    ]
    assert [default.idle_s, default.interval_s, default.count] == [int(value) for value in kernel]
    assert (server.side, server.keepalive, server.idle_s) == ("server", True, default.idle_s)
    assert (tried.keepalive, tried.idle_s, tried.interval_s, tried.count) == (True, 7, 10, 3)
    assert tried.user_timeout_ms == 9000
    assert report.limit_s == (0.1, None)
    assert set(fates(report).values()) == {"alive"}
    with closing(psycopg2.connect(make_dsn(target.dsn, **report.parameters))) as conn:
        assert conn.info.dsn_parameters["keepalives_idle"] == "7"


def test_the_servers_configured_probes_are_told(server: Server) -> None:
    options = "-c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1"
    with proxy(server.port, 1.6, "reset") as box:
        report = run(at(box.port, options=options, **FAST), 2.5)
    assert fates(report)[2.5, "none"] == "reset"
    assert "The server itself sends probes after 1 s already" in said(report)


def test_over_a_unix_socket_keepalive_does_not_apply(server: Server) -> None:
    report = run(db.Target(server.place), 0.1)
    assert [(age.probes, age.outcome) for age in report.ages] == [("none", "alive")]
    assert (report.sockets, report.parameters, report.sysctl) == ((), {}, ())
    assert "UNIX socket: keep-alive does not apply" in said(report)


def test_pgbouncer_in_transaction_mode_ends_idle_clients(server: Server) -> None:
    with bouncer(make_dsn(server.place), "transaction", client_idle_timeout=1) as dsn:
        report = run(db.Target(dsn), 0.5, 5)
    assert report.pooler == "transaction"
    assert [(age.probes, age.outcome, age.cause) for age in report.ages if age.age_s == 5] == [
        ("none", "closed", "PgBouncer's client_idle_timeout"),
        ("client", "closed", "PgBouncer's client_idle_timeout"),
    ]
    assert report.limit_s[0] == 0.5
    assert "client_idle_timeout = 0" in said(report)
    assert "Orthanc needs pool_mode = session" in said(report)
    assert report.postgresql_conf == ()


def test_pgbouncer_in_session_mode_keeps_clients_until_their_session_ends(server: Server) -> None:
    server.sql("CREATE ROLE short_role LOGIN", "ALTER ROLE short_role SET idle_session_timeout = 2500")
    dsn = make_dsn(server.place, user="short_role")
    with bouncer(dsn, "session", client_idle_timeout=1, server_idle_timeout=1) as through:
        report = run(db.Target(through), 2, 4)
    assert report.pooler == "session"
    for age in report.ages:
        assert (age.outcome, age.cause) == (
            ("alive", "") if age.age_s == 2 else ("closed", "idle_session_timeout")
        )


def test_pgbouncer_ends_clients_that_leave_a_transaction_open(server: Server) -> None:
    with bouncer(make_dsn(server.place), "transaction", idle_transaction_timeout=1) as dsn:
        report = run(db.Target(dsn), 5, in_transaction=True)
    assert {age.cause for age in report.ages} == {"PgBouncer's idle_transaction_timeout"}


def test_pgbouncer_that_closes_its_own_idle_sessions_hurts_nobody(server: Server) -> None:
    with bouncer(make_dsn(server.place), "transaction", server_idle_timeout=1) as dsn:
        report = run(db.Target(dsn), 3)
    assert {age.outcome for age in report.ages} == {"alive"}


def test_a_way_between_pgbouncer_and_server_that_forgets_idle_sessions(server: Server) -> None:
    with proxy(server.port, 1.5, "close") as box, bouncer(plain(box.port), "session") as dsn:
        report = run(db.Target(dsn), 1, 3)
    assert {(age.outcome, age.cause) for age in report.ages if age.age_s == 3} == {
        ("closed", "PgBouncer lost the server")
    }
    assert report.limit_s[0] == 1
    assert "tcp_keepidle" in said(report)


def test_words_that_are_not_known_are_shown(server: Server) -> None:
    with bouncer(make_dsn(server.place), "session") as dsn:

        def kill() -> None:
            with closing(psycopg2.connect(make_dsn(dsn, dbname="pgbouncer"))) as console:
                console.autocommit = True
                console.cursor().execute("KILL postgres")
                console.cursor().execute("RESUME postgres")

        report = run(db.Target(dsn), 2, during=kill)
    assert {(age.outcome, age.cause) for age in report.ages} == {("closed", "unnamed")}
    assert "FATAL" in report.ages[0].detail
    assert report.parameters == {}
    assert "-v shows its message" in said(report)


def test_a_full_pool_is_not_taken_for_a_dead_connection(server: Server) -> None:
    with bouncer(make_dsn(server.place), "session", default_pool_size=3) as dsn:
        with pytest.raises(ConnectError, match="connection 4 of 6: the server gives no answer") as caught:
            run(db.Target(dsn), 1, 2, 3)
    assert "fewer --ages" in str(caught.value.hint)


def test_a_server_without_room_is_an_error_and_not_a_fate(server: Server, target: db.Target) -> None:
    with pytest.raises(ConnectError, match=r"connection \d+ of 60: the server has too many") as caught:
        run(target, *(100.0 + n for n in range(20)))
    assert "fewer --ages" in str(caught.value.hint)
    wait_until(lambda: sessions(server) == 0)


def command(target: db.Target, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pgorthanc_cli", "keepalive-test", "--uri", target.dsn, "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_command_says_what_lived_and_what_died_without_the_password(server: Server) -> None:
    with proxy(server.port, 1.6, "drop") as box:
        target = at(box.port, password="planted-secret", **FAST)
        with command(target, "--ages", "1s,2.5s", "--answer", "1s") as process:
            out, err = process.communicate(timeout=60)
    document = json.loads(out)
    assert process.returncode == 6
    assert {"ages", "limit_s", "parameters"} <= set(document)
    assert {"age_s", "keepalive", "outcome", "detail"} <= set(document["ages"][0])
    assert document["limit_s"] == [1, 2.5]
    assert "keepalives_idle=1" in document["connection_uri"]
    assert any("2.5 s, silent: dropped" in line for line in err.splitlines())
    assert "planted-secret" not in out + err


def test_command_when_all_live(target: db.Target) -> None:
    with command(target, "--ages", "0.1s", "-q") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["limit_s"] == [0.1, None]


def test_interrupted_it_tells_what_is_known(server: Server, target: db.Target) -> None:
    with command(target, "--ages", "0.5s,1h") as process:
        assert process.stderr
        told = [process.stderr.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert "6 connections are idle now" in told[0]
    assert process.returncode == 130
    assert [age["outcome"] for age in json.loads(out)["ages"]] == ["alive"] * 3 + ["pending"] * 3
    assert "error" not in err
    wait_until(lambda: sessions(server) == 0)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--ages", "1m", "--up-to", "2m"], "contradict each other"),
        (["--ages", "soon"], "is not a length of time"),
        (["--answer", "0"], "must be above 0"),
    ],
)
def test_wrong_usage(target: db.Target, words: list[str], wrong: str) -> None:
    with command(target, *words) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert wrong in json.loads(err)["message"]


def test_each_connection_is_reported_when_its_outcome_is_known(target: db.Target) -> None:
    events: list[Progress] = []
    trial = Trial(target, TrialPlan((0.1,)))
    trial.run(events.append)
    assert events[0].what == "3 connections are idle now; this takes 0.1 s"
    assert [(event.done, event.total) for event in events] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    ages = trial.result().ages
    assert {event.what for event in events[1:]} == {str(age) for age in ages}
    assert all(isinstance(age, Age) and age.outcome == "alive" for age in ages)
