"""The standby to promote, reached by SQL or by its folder, with a time limit."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from psycopg2 import errors
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.replication import mark, upstream
from pgorthanc_cli.replication.fence import StandbyState
from pgorthanc_cli.replication.password import PASSFILE
from pgorthanc_cli.replication.probe import Endpoint, format_endpoint
from pgorthanc_cli.replication.survey import address_of, local_address, local_folder
from pgorthanc_cli.server.private import open_cluster

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_CONNECT_TIMEOUT_S = 10.0
# For the steps after a promotion, even if that has taken all of the time.
_FOLLOW_UP_S = 5.0


class Deadline:
    """The time limit of a promotion, for all its steps together."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self._end = time.monotonic() + wait_s

    def remaining_s(self) -> float:
        """Return the seconds that are left, at least 0.1."""
        return max(self._end - time.monotonic(), 0.1)

    def follow_up_s(self) -> float:
        """Return the seconds for the steps after the promotion."""
        return max(self.remaining_s(), _FOLLOW_UP_S)


class Candidate(Protocol):
    """A standby to be promoted. Each step raises TimeoutError if it takes too long.

    Attributes:
        endpoint: Its host and port.
        command: The command line that promotes it.
    """

    endpoint: Endpoint
    command: str

    def state(self, timeout_s: float) -> StandbyState:
        """Return the state of the standby; refuse a primary."""

    def promote(self, timeout_s: float) -> None:
        """Promote it, and wait until it takes writes."""

    def timeline(self, timeout_s: float) -> int:
        """Return the current timeline of the server."""

    def create_slot(self, name: str, timeout_s: float) -> bool:
        """Create a slot; return False if the name exists."""


# By SQL

_SETTINGS = ("primary_conninfo", "primary_slot_name", "data_directory")
# The newest timeline that the standby knows: the control file is as old as the last
# restartpoint, and a history file arrives with the first WAL of its timeline.
_TIMELINE_OF_STANDBY = """
    SELECT greatest((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),
                    (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()),
                    (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver),
                    (SELECT max(('x' || left(name, 8))::bit(32)::int) FROM pg_catalog.pg_ls_waldir()
                     WHERE name ~ '^[0-9A-F]{8}[.]history$'))"""
# After a restart the first is NULL until the standby streams; greatest() ignores NULL.
_RECEIVED = """
    SELECT coalesce(greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()), '0/0')
           - '0/0'::pg_catalog.pg_lsn"""
_TIMELINE_OF_PRIMARY = """
    SELECT ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int"""


class _SqlCandidate:
    """A login that may promote: a superuser, or a role with EXECUTE on pg_promote."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        # Functions and operators that others may have planted in the database do not run
        # with our rights.
        self._value(_CONNECT_TIMEOUT_S, "SET search_path TO pg_catalog")
        info = conn.info
        host = info.host or "localhost"
        options = {"--host": host, "--port": str(info.port), "--username": info.user, "--dbname": info.dbname}
        login = " ".join(f"{option} {shlex.quote(value)}" for option, value in options.items())
        self.command = f"pgorthanc replication promote {login}"
        if host.startswith("/"):
            listens = self._value(_CONNECT_TIMEOUT_S, "SHOW listen_addresses")
            host = local_address(listens or "localhost")
        self.endpoint = (host, info.port)

    def _value(self, timeout_s: float, query: str, *arguments: object) -> Any:
        # Not closed: that is an error while a statement is running.
        cur = self._conn.cursor()
        cur.execute(query, arguments or None)
        db.wait_for_answer(self._conn, timeout_s)
        row = cur.fetchone() if cur.description else None
        return row[0] if row else None

    def state(self, timeout_s: float) -> StandbyState:
        if not self._value(timeout_s, "SELECT pg_catalog.pg_is_in_recovery()"):
            raise _primary_error(self.endpoint, self.timeline(timeout_s))
        query = "SELECT json_object_agg(name, setting) FROM pg_catalog.pg_settings WHERE name = ANY (%s)"
        settings = self._value(timeout_s, query, list(_SETTINGS)) or {}
        # pg_settings hides it from roles without pg_read_all_settings, because it may
        # hold a password.
        if "primary_conninfo" not in settings:
            raise PgOrthancError(
                f"role {self._conn.info.user} may not see which server the standby follows",
                "log in as a superuser with --username, or name the folder of the standby with --pgdata",
            )
        folder = settings.get("data_directory", "")
        local = local_folder(self._conn, folder)
        system = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
        return StandbyState(
            system_identifier=self._value(timeout_s, system),
            timeline=int(self._value(timeout_s, _TIMELINE_OF_STANDBY)),
            received=int(self._value(timeout_s, _RECEIVED)),
            conninfo=settings["primary_conninfo"] or "",
            slot=settings.get("primary_slot_name") or "",
            # Folder and machine as `by_folder` names them: a mark must recognize the
            # standby either way.
            folder=str(local.resolve()) if local else folder,
            machine=socket.gethostname() if local else self.endpoint[0],
            mark=self._mark(timeout_s),
        )

    def _mark(self, timeout_s: float) -> str:
        """Return the mark in its folder, empty if the login may not read it."""
        # SQL_ASCII takes any bytes: a damaged mark is not an error of the server.
        query = (
            "SELECT pg_catalog.convert_from(pg_catalog.pg_read_binary_file(%s, 0, 10000, true), 'SQL_ASCII')"
        )
        try:
            return self._value(timeout_s, query, mark.MARK) or ""
        except errors.InsufficientPrivilege:
            return ""

    def promote(self, timeout_s: float) -> None:
        try:
            # pg_promote refuses to wait for 0 seconds.
            seconds = max(int(timeout_s), 1)
            promoted = self._value(timeout_s, "SELECT pg_catalog.pg_promote(true, %s)", seconds)
        except errors.InsufficientPrivilege:
            raise PgOrthancError(
                f"role {self._conn.info.user} may not promote the standby",
                "log in as a superuser with --username, or name the folder of the standby with --pgdata",
            ) from None
        # The server goes on with it, but did not finish in time.
        if not promoted:
            raise TimeoutError

    def timeline(self, timeout_s: float) -> int:
        standby = self._value(timeout_s, "SELECT pg_catalog.pg_is_in_recovery()")
        return int(self._value(timeout_s, _TIMELINE_OF_STANDBY if standby else _TIMELINE_OF_PRIMARY))

    def create_slot(self, name: str, timeout_s: float) -> bool:
        query = "SELECT true FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
        if self._value(timeout_s, query, name):
            return False
        # true: it holds back WAL from now on, and not only from its first use.
        self._value(timeout_s, "SELECT pg_catalog.pg_create_physical_replication_slot(%s, true)", name)
        return True


@contextmanager
def by_sql(target: db.Target, *, wait_s: float = _CONNECT_TIMEOUT_S) -> Iterator[Candidate]:
    """Yield a standby that is reached by SQL, without ever waiting for a frozen network.

    Raises:
        ConnectError: There is no login within `wait_s` seconds.
    """
    # Asynchronous: libpq's blocking calls would wait for a frozen server for as long as
    # TCP does.
    conn = db.connect_async(replace(target, retries=0), timeout_s=min(wait_s, _CONNECT_TIMEOUT_S))
    try:
        with db.translate_errors(conn):
            try:
                candidate = _SqlCandidate(conn)
            except TimeoutError as error:
                raise ConnectError(
                    f"the server at {conn.info.host}:{conn.info.port} takes the login, and does not answer: {error}",
                    "check the server and the network; nothing was promoted",
                ) from None
            yield candidate
    finally:
        conn.close()


# By the folder


class _FolderCandidate:
    """A standby's folder; its replication login reports what it has received."""

    def __init__(self, directory: Path) -> None:
        self._cluster = open_cluster(directory)
        if self._cluster.pid() is None:
            raise PgOrthancError(
                f"the server in {self._cluster.path} does not run",
                f"start it: {self._cluster.command_line('start')}",
            )
        self.endpoint = address_of(self._cluster)
        self.command = f"pgorthanc replication promote --pgdata {shlex.quote(str(self._cluster.path))}"

    def state(self, timeout_s: float) -> StandbyState:
        control = self._cluster.control()
        if not control.is_standby:
            raise _primary_error(self.endpoint, self.timeline(timeout_s))
        path, machine = str(self._cluster.path), socket.gethostname()
        if fenced := mark.read(self._cluster.path):
            # An old primary, which may follow none: then there is no role for a login.
            return StandbyState(control.system_identifier, control.timeline, 0, "", "", path, machine, fenced)
        conninfo = self._cluster.setting("primary_conninfo")
        with self._session(timeout_s, conninfo) as conn:
            identity = upstream.identify(conn, timeout_s)
        return StandbyState(
            system_identifier=control.system_identifier,
            timeline=identity.timeline,
            received=identity.lsn,
            conninfo=conninfo,
            slot=self._cluster.setting("primary_slot_name"),
            folder=path,
            machine=machine,
        )

    @contextmanager
    def _session(self, timeout_s: float, conninfo: str = "") -> Iterator[Connection]:
        role = db.parse_dsn(conninfo or self._cluster.setting("primary_conninfo")).get("user")
        passfile = self._cluster.path / PASSFILE
        port, socket_folder = self._cluster.endpoint()
        login = {"passfile": str(passfile)} if passfile.exists() else {}
        # An empty hostaddr keeps PGHOSTADDR out.
        dsn = make_dsn(
            host=socket_folder, hostaddr="", port=port, user=role or "", dbname="postgres", **login
        )
        try:
            with db.replication_session(db.Target(dsn), timeout_s=min(timeout_s, _CONNECT_TIMEOUT_S)) as conn:
                yield conn
        except ConnectError as error:
            raise type(error)(
                f"the role {role} cannot log in to its own standby: {error.message}",
                "name the standby by --uri as a superuser instead of --pgdata",
            ) from None

    def promote(self, timeout_s: float) -> None:
        self._cluster.run("pg_ctl", "promote", "-w", "-t", str(max(int(timeout_s), 1)), "-D", ".")

    def timeline(self, timeout_s: float) -> int:
        with self._session(timeout_s) as conn:
            return upstream.identify(conn, timeout_s).timeline

    def create_slot(self, name: str, timeout_s: float) -> bool:
        with self._session(timeout_s) as conn:
            return upstream.create_slot(conn, name, timeout_s)


def by_folder(directory: Path) -> Candidate:
    """Return a standby on this machine, reached by its folder without a login.

    Raises:
        PgOrthancError: It does not run.
    """
    return _FolderCandidate(directory)


def _primary_error(endpoint: Endpoint, timeline: int) -> UsageError:
    return UsageError(
        f"the server {format_endpoint(endpoint)} is a primary already (timeline {timeline})",
        "name the standby; if it was promoted before, go on with: pgorthanc replication rejoin",
    )
