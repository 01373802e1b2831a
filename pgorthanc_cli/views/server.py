"""The pages about a private PostgreSQL server: started, stopped, and its state."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.server.embedded import RunningServer, ServerStatus, StoppedServer
from pgorthanc_cli.text import plural, printable, size
from pgorthanc_cli.views.page import Block, Facts, Note, Page

_LOCAL = ("127.0.0.1", "::1", "localhost")


def started_page(running: RunningServer, *, init: str, stop: str, connection: bool = False) -> Page:
    """Return the page of a server that runs now.

    Args:
        running: The server.
        init: The command that creates an index in it.
        stop: The command that stops it.
        connection: Also show how to connect, and Orthanc's configuration.
    """
    created = " (created)" if running.outcome == "created" else ""
    where = (
        f"folder {printable(running.directory)}{created}",
        f"database {printable(running.database)}",
        f"role {printable(running.role)}",
    )
    blocks = [
        *_network(running.listen),
        Note(
            f"The password is in {printable(running.password_file)} (mode 0600).",
            details=("The server does not start again by itself after a reboot.",),
        ),
    ]
    if connection:
        blocks += _connection(running)
    steps = [Note("To stop the server:", paste=stop)]
    if running.outcome == "created":
        steps.insert(0, Note("Next, create the index:", paste=init))
    return Page(_started(running), where, tuple(blocks), tuple(steps))


def _started(running: RunningServer) -> str:
    server, place = _postgresql(running.version), _place(running.listen, running.port)
    if running.outcome == "unchanged":
        return f"Nothing to do: {server} is already running on {place}."
    if running.outcome == "changed":
        return f"{server} keeps running on {place}, with the new database, role or password."
    runs = "was restarted and is running" if running.outcome == "restarted" else "is running"
    return f"{server} {runs} on {place}, in the background (pid {running.pid})."


def _network(listen: str | None) -> Iterator[Note]:
    if listen and listen not in _LOCAL:
        yield Note(
            "Connections are not encrypted: anyone in this network can read them.",
            "warning",
            ("Listen on another address than 127.0.0.1 only in a network that you trust.",),
        )


def _connection(running: RunningServer) -> list[Note]:
    masked = db.MASK in running.dsn
    login = make_dsn(host=running.host, port=running.port, user=running.role, dbname=running.database)
    psql = f"PGPASSFILE={shlex.quote(running.pgpass_file)} psql {shlex.quote(login)}"
    replace = " (replace the password first)" if masked else ""
    return [
        Note("To log in:", paste=psql) if masked else Note("Connection string:", paste=running.dsn),
        Note(
            f"Orthanc's configuration for this server{replace}:",
            paste=json.dumps(running.orthanc, indent=2),
        ),
        Note(
            'With "EnableStorage": true, as after `import --storage postgresql`, Orthanc stores DICOM files in '
            "PostgreSQL; with false, in its StorageDirectory."
        ),
    ]


def stopped_page(stopped: StoppedServer, *, start: str) -> Page:
    """Return the page of a server that does not run now; `start` starts it again."""
    folder = printable(stopped.directory)
    headline = (
        f"Stopped the PostgreSQL server in {folder}."
        if stopped.was_running
        else f"Nothing to do: the PostgreSQL server in {folder} is not running."
    )
    return Page(headline, next_steps=(Note("To start it again:", paste=start),))


def status_page(state: ServerStatus, *, start: str) -> Page:
    """Return the page of a folder and its server; `start` starts or creates the server."""
    folder = printable(state.directory)
    if state.state == "absent":
        step = Note("Next, create one:", paste=start)
        return Page(f"{folder} does not contain a pgorthanc server.", next_steps=(step,), status="warning")
    server = _postgresql(state.version)
    if state.state == "stopped":
        step = Note("Next, start it:", paste=start)
        return Page(f"{server} in {folder} is not running.", next_steps=(step,), status="warning")
    place = _place(state.listen, state.port) if state.listen else "a socket, without TCP"
    blocks: list[Block] = [Facts(tuple(_facts(state))), *_network(state.listen)]
    if not state.keep:
        blocks.append(Note("It stops when the last command that uses it with --embedded ends."))
    headline = f"{server} is running on {place} (pid {state.pid})."
    return Page(headline, (f"folder {folder}",), tuple(blocks), status="ok")


def _facts(state: ServerStatus) -> Iterator[tuple[str, str]]:
    sizes = (f"{printable(name)} {size(count)}" for name, count in (state.databases or {}).items())
    yield "Databases", ", ".join(sizes)
    yield "Sessions", f"{plural(state.sessions, 'client')} connected" if state.sessions else "no clients"


def _postgresql(version: str | None) -> str:
    # "15.18 (Debian 15.18-0+deb12u1)"
    return f"PostgreSQL {(version or '').partition(' ')[0]}"


def _place(listen: str | None, port: int | None) -> str:
    return f"all addresses, port {port}" if listen == "*" else f"{printable(listen or '')}:{port}"
