"""`keepalive-test` from another network namespace, with a router in between that forgets idle connections."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.middlebox import CLIENT, SERVER, MiddleBox, middle_box
from tests.support.real_servers import Server, wait_until

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path("/dev/net/tun").exists() or shutil.which("ip") is None,
        reason="needs root, /dev/net/tun and ip (apt-get install iproute2)",
    ),
]
IDLE_S = 2.5


@pytest.fixture(scope="module")
def box() -> Iterator[MiddleBox]:
    with middle_box(IDLE_S) as box:
        yield box


@pytest.fixture(scope="module")
def server(box: MiddleBox) -> Iterator[Server]:
    cluster = Server(
        f"local all all trust\nhost all all {CLIENT}/32 trust\n", f"listen_addresses = '{SERVER}'\n"
    )
    try:
        yield cluster.create().start()
    finally:
        cluster.remove()


def keepalive_test(
    box: MiddleBox, server: Server, parameters: str, *words: str
) -> tuple[int, dict[str, Any]]:
    """Exit code and report."""
    dsn = f"host={SERVER} port={server.port} user=postgres dbname=postgres {parameters}"
    command = box.command(
        sys.executable, "-m", "pgorthanc_cli", "keepalive-test", "--uri", dsn, "--json", "-q"
    )
    run = subprocess.run([*command, "--answer", "1s", *words], capture_output=True, text=True)
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout)


def test_probes_keep_the_router_from_forgetting(box: MiddleBox, server: Server) -> None:
    code, result = keepalive_test(box, server, "keepalives_idle=1 keepalives_interval=1", "--ages", "1s,5s")
    assert code == 6
    assert [(age["age_s"], age["probes"], age["outcome"]) for age in result["ages"]] == [
        (1, "none", "alive"), (1, "client", "alive"), (1, "server", "alive"),
        (5, "none", "dropped"), (5, "client", "alive"), (5, "server", "alive"),
    ]  # fmt: skip
    assert result["limit_s"] == [1, 5]
    assert result["passed"] == ["client", "server"]
    kept = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgorthanc keepalive-test'"
    wait_until(lambda: server.sql(kept) == "0")  # the server heard nothing of the end either


def test_probes_that_come_too_late_notice_the_loss_and_faster_ones_prevent_it(
    box: MiddleBox, server: Server
) -> None:
    late = "keepalives_idle=3 keepalives_interval=1 keepalives_count=1"
    code, result = keepalive_test(box, server, late, "--ages", "2s,5.5s", "--confirm")
    assert code == 6
    silent, client, server_side = (age for age in result["ages"] if age["age_s"] == 5.5)
    assert (silent["outcome"], silent["noticed_s"] >= 1) == ("dropped", True)
    assert (client["outcome"], client["noticed_s"]) == ("dropped", 0)
    assert 3.5 < client["idle_s"] < 5.4
    assert server_side["outcome"] == "dropped"  # the word that it is gone was lost, too
    assert "given up by this machine's kernel" in client["detail"]
    assert result["parameters"]["keepalives_idle"] == 1
    assert result["confirmed"] is True
