"""`replication standby` when the network breaks in the middle: what stays on the primary is named, and Ctrl-C works."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import Interrupted, PgOrthancError, UsageError
from pgorthanc_cli.replication import basebackup
from tests.replication.site import Site, pgorthanc
from tests.support.real_servers import wait_until

QUICK_BYTES = 4 << 20  # an empty cluster has more than five times as many


class Way:
    """Forwards 127.0.0.1:`port` to a server, each direction by itself, until it freezes or is cut.

    If it is `slow`, a copy has not come to its end when the first bytes of it are reported.
    """

    slow = False

    def __init__(self, server: int) -> None:
        self._server = server
        self._ends: list[socket.socket] = []
        self._goes = threading.Event()
        self._goes.set()
        self._is_cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._server))
                self._ends += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        sent = 0
        with suppress(OSError):
            while data := source.recv(65536):
                self._goes.wait()
                sink.sendall(data)
                sent += len(data)
                if self.slow and sent > QUICK_BYTES:
                    self._is_cut.wait(0.05)
            sink.shutdown(socket.SHUT_WR)

    def freeze(self) -> None:
        """Nothing is forwarded any more, and nobody is told."""
        self._goes.clear()

    def cut(self) -> None:
        """All connections end, and no new one is taken."""
        self._is_cut.set()
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def middle(site: Site) -> Iterator[Way]:
    """The way to a prepared primary."""
    site.prepared()
    made = Way(site.primary.port)
    yield made
    made.cut()


def login(site: Site, middle: Way) -> db.Target:
    return db.Target(make_dsn(site.login.dsn, port=str(middle.port)))


def slots(site: Site) -> str:
    return site.primary.sql("SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots")


def failing(site: Site, middle: Way, slot: str, act: Callable[[], None]) -> PgOrthancError:
    """Make a standby through the middle box, and act when the first bytes have come."""
    options = replication.StandbyOptions(slot=slot, port=site.port)
    with pytest.raises(PgOrthancError) as failure:
        replication.create(site.folder, login(site, middle), options, report=lambda _: act())
    assert not site.folder.exists()
    return failure.value


def test_a_cut_names_the_slot_and_the_statement_that_drops_it(site: Site, middle: Way) -> None:
    middle.slow = True
    error = failing(site, middle, "hall_2", middle.cut)
    assert "child process" not in error.message
    assert re.search("server closed the connection|Connection reset|could not", error.message), error.message
    assert f"the slot hall_2 of 127.0.0.1:{middle.port} stays: it could not be dropped" in error.message
    assert slots(site) == "hall_2 pgorthanc_standby"
    [drop] = re.findall(r"SELECT pg_drop_replication_slot\('hall_2'\);", str(error.hint))
    in_use = "SELECT bool_or(active) FROM pg_replication_slots"
    wait_until(lambda: site.primary.sql(in_use) == "False")
    site.primary.sql(drop)
    assert slots(site) == "pgorthanc_standby"


def test_a_failure_with_a_primary_that_can_be_reached_drops_the_slot(
    site: Site, middle: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy was stopped; the primary may take a moment to see that its slot is free."""

    def no_space() -> None:
        raise PgOrthancError("no space", "make room")

    error = failing(site, middle, "hall_2", no_space)
    assert (error.message, error.hint) == ("no space", "make room")
    assert slots(site) == "pgorthanc_standby"
    error = failing(site, middle, "pgorthanc_standby", no_space)
    assert "the slot pgorthanc_standby of" in error.message
    assert "stays, as it was before" in error.message
    assert "SELECT pg_drop_replication_slot('pgorthanc_standby');" in str(error.hint)

    def interrupt() -> None:
        raise KeyboardInterrupt

    error = failing(site, middle, "hall_2", interrupt)
    assert isinstance(error, Interrupted)
    assert "the slot hall_2 of" in error.message
    assert "was dropped again" in error.message
    assert slots(site) == "pgorthanc_standby"


def test_ctrl_c_ends_a_copy_from_a_frozen_network_within_seconds(site: Site, middle: Way) -> None:
    words = ["--dir", str(site.folder), "--from", login(site, middle).dsn, "--slot", "hall_2"]
    command = [sys.executable, "-m", "pgorthanc_cli", "replication", "standby", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        copies = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pg_basebackup'"
        wait_until(lambda: site.primary.sql(copies) != "0", timeout_s=60)
        middle.freeze()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - began < 15
    assert process.returncode == Interrupted.exit_code, said
    assert "the slot hall_2 of" in said
    assert "pg_drop_replication_slot('hall_2')" in said
    assert not site.folder.exists()


def test_the_last_complaint_is_that_of_pg_basebackup_itself() -> None:
    said = (
        "pg_basebackup: error: could not receive data from WAL stream: SSL SYSCALL error: EOF detected\n"
        "pg_basebackup: error: child process exited with exit code 1\n"
        'pg_basebackup: removing contents of data directory "/x"\n'
    )
    assert basebackup._reason(said, 1).startswith("could not receive data from WAL stream")
    assert basebackup._reason("pg_basebackup: error: child process exited with exit code 1\n", 1) == (
        "child process exited with exit code 1"
    )
    assert "ended with -9" in basebackup._reason("", -9)


@pytest.mark.parametrize("command", ["standby", "rejoin"])
def test_a_port_that_would_be_ignored_is_refused(site: Site, command: str) -> None:
    words = ("--dir", site.folder, "--from", site.login.dsn, "--port", "5433")
    done = pgorthanc("replication", command, *words, PGHOST="", PGDATABASE="")
    assert done.returncode == UsageError.exit_code
    assert "--port would be ignored" in done.stderr
    assert "--listen-port" in done.stderr
    assert not site.folder.exists()
