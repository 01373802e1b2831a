"""What `keepalive-test` shows, and that the statements on its screen do what it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from tests.support.idling import FAST, at
from tests.support.proxy import proxy
from tests.support.real_servers import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    cluster = Server("local all all trust\nhost all all 127.0.0.1/32 trust\n", "")
    try:
        cluster.create()
        yield cluster.start()
    finally:
        cluster.remove()


def test_the_statements_on_the_screen_make_the_server_send_packets(server: Server) -> None:
    words = [sys.executable, "-m", "pgorthanc_cli", "keepalive-test", "--quiet"]
    with proxy(server.port, 1.6, "drop") as box:
        dsn = at(box.port, **FAST).dsn
        more = ["--uri", dsn, "--ages", "1s,2.5s", "--answer", "1s"]
        run = subprocess.run([*words, *more], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (6, "")
    headline = run.stdout.partition("\n")[0]
    assert (
        headline
        == f"Idle connections to 127.0.0.1:{box.port} are dropped after 1 s to 2.5 s, without notice."
    )
    statements = [line.strip() for line in run.stdout.splitlines() if line.startswith("    ALTER ROLE ")]
    assert len(statements) >= 3
    with closing(psycopg2.connect(at(server.port).dsn)) as conn, conn, conn.cursor() as cur:
        for statement in statements:
            cur.execute(statement)
    try:
        with closing(psycopg2.connect(at(server.port).dsn)) as conn, conn.cursor() as cur:
            cur.execute("SHOW tcp_keepalives_idle")
            assert cur.fetchone() == ("1",)
    finally:
        for statement in statements:
            role, _, setting = statement.partition(" SET ")
            server.sql(f"{role} RESET {setting.split(' ')[0]}")


def test_the_screen_when_all_live(server: Server) -> None:
    words = [
        sys.executable,
        "-m",
        "pgorthanc_cli",
        "keepalive-test",
        "--ages",
        "0.1s",
        "--uri",
        at(server.port).dsn,
    ]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0
    headline, where, *_ = run.stdout.splitlines()
    assert headline.endswith(" stay alive for 0.1 s at least.")
    assert where.startswith("role ")
    assert "FAIL" not in run.stdout
