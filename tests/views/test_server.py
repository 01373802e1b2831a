"""`server start`, `stop` and `status`: what a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pgorthanc_cli.server.embedded import RunningServer, ServerStatus, StoppedServer
from pgorthanc_cli.views import server as views
from pgorthanc_cli.views.page import Page
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "server"
FOLDER = "/srv/orthanc-pg"
LOGIN = {"Host": "127.0.0.1", "Port": 5432, "Username": "orthanc", "Password": "***"}
CREATED = RunningServer(
    directory=FOLDER, version="16.4 (Debian 16.4-1)", pid=4711, host="127.0.0.1", port=5432, database="orthanc",
    role="orthanc", password_file=f"{FOLDER}/pgorthanc.password", pgpass_file=f"{FOLDER}/pgorthanc.pgpass",
    dsn="host=127.0.0.1 port=5432 user=orthanc dbname=orthanc password=***", orthanc={"PostgreSQL": LOGIN},
    listen="127.0.0.1", outcome="created",
)  # fmt: skip
RUNNING = ServerStatus(
    FOLDER,
    "running",
    "16.4",
    5432,
    True,
    4711,
    "127.0.0.1",
    2,
    {"orthanc": 12_000_000, "postgres": 7_600_000},
)


def started(running: RunningServer, *, connection: bool = False) -> Page:
    return views.started_page(
        running,
        init=f"pgorthanc init --embedded {FOLDER}",
        stop=f"pgorthanc server stop --embedded {FOLDER}",
        connection=connection,
    )


def state(status: ServerStatus) -> Page:
    return views.status_page(status, start=f"pgorthanc server start --embedded {FOLDER}")


def stopped(*, was_running: bool) -> Page:
    start = f"pgorthanc server start --embedded {FOLDER}"
    return views.stopped_page(StoppedServer(FOLDER, was_running), start=start)


PAGES = {
    "start-created": started(CREATED),
    "start-started": started(replace(CREATED, outcome="started")),
    "start-nothing-to-do": started(replace(CREATED, outcome="unchanged")),
    "start-restarted-on-the-network": started(replace(CREATED, outcome="restarted", listen="*")),
    "start-changed": started(replace(CREATED, outcome="changed", database="pacs"), connection=True),
    "start-with-password": started(
        replace(CREATED, outcome="unchanged", dsn=CREATED.dsn.replace("***", "secret")), connection=True
    ),
    "stop": stopped(was_running=True),
    "stop-nothing-to-do": stopped(was_running=False),
    "status-running": state(RUNNING),
    "status-on-the-network": state(replace(RUNNING, listen="*", sessions=1)),
    "status-for-commands": state(replace(RUNNING, keep=False, listen="", sessions=0)),
    "status-stopped": state(ServerStatus(FOLDER, "stopped", "16", 5432, keep=True)),
    "status-absent": state(ServerStatus(FOLDER, "absent")),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_states(name: str) -> None:
    golden.check_view(GOLDEN, name, PAGES[name])
