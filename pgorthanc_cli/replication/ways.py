"""How a standby that is to be promoted is reached: by SQL, or by its folder; never for longer than it may take."""

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

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.replication import access, mark, survey, walsender
from pgorthanc_cli.replication.cluster import PASSFILE, Cluster
from pgorthanc_cli.replication.fence import Before

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_CONNECTS_WITHIN_S = 10.0
_AFTERWARDS_S = 5.0  # what follows a promotion gets as much even if that has taken all of the time


class Deadline:
    """The end of the time that a promotion may take, all its steps together."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self._end = time.monotonic() + wait_s

    def left_s(self) -> float:
        """Seconds until then, at least a moment."""
        return max(self._end - time.monotonic(), 0.1)

    def afterwards_s(self) -> float:
        """Seconds for what follows the promotion."""
        return max(self.left_s(), _AFTERWARDS_S)


class Way(Protocol):
    """How a standby is reached: by SQL, or by its folder. Each step raises TimeoutError if it takes too long.

    Attributes:
        place: Its host and port.
        command: The command line that promotes it.
    """

    place: tuple[str, int]
    command: str

    def before(self, within_s: float) -> Before:
        """The standby as it is; refuses a primary."""

    def promote(self, within_s: float) -> None:
        """Promote, and wait until it takes writes."""

    def timeline(self, within_s: float) -> int:
        """That of the server as it is now."""

    def make_slot(self, name: str, within_s: float) -> bool:
        """Make a slot; False if it is there."""


# By SQL

_SETTINGS = ("primary_conninfo", "primary_slot_name", "data_directory")
# Of all places that know a timeline, the one that knows the newest: the control file is as old as the last
# restartpoint, and a history file comes with the first WAL of its timeline.
_TIMELINE_OF_STANDBY = """
    SELECT greatest((SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),
                    (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()),
                    (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver),
                    (SELECT max(('x' || left(name, 8))::bit(32)::int) FROM pg_catalog.pg_ls_waldir()
                     WHERE name ~ '^[0-9A-F]{8}[.]history$'))"""
_RECEIVED = """
    SELECT coalesce(greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()), '0/0')
           - '0/0'::pg_catalog.pg_lsn"""
_TIMELINE_OF_PRIMARY = """
    SELECT ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int"""


class _BySql:
    """A login that may promote: a superuser, or who was granted EXECUTE on pg_promote."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        # Nothing that others have put into the database runs with our rights.
        self._value(_CONNECTS_WITHIN_S, "SET search_path TO pg_catalog")
        info = conn.info
        host = info.host or "localhost"
        words = {"--host": host, "--port": str(info.port), "--username": info.user, "--dbname": info.dbname}
        given = " ".join(f"{option} {shlex.quote(value)}" for option, value in words.items())
        self.command = f"pgorthanc replication promote {given}"
        if host.startswith("/"):
            host = access.reachable(self._value(_CONNECTS_WITHIN_S, "SHOW listen_addresses") or "localhost")
        self.place = (host, info.port)

    def _value(self, within_s: float, query: str, *arguments: object) -> Any:
        cur = self._conn.cursor()  # not closed: that is an error while a statement is under way
        cur.execute(query, arguments or None)
        db.wait_for_answer(self._conn, within_s)
        row = cur.fetchone() if cur.description else None
        return row[0] if row else None

    def before(self, within_s: float) -> Before:
        if not self._value(within_s, "SELECT pg_catalog.pg_is_in_recovery()"):
            raise _is_primary(self.place, self.timeline(within_s))
        query = "SELECT json_object_agg(name, setting) FROM pg_catalog.pg_settings WHERE name = ANY (%s)"
        settings = self._value(within_s, query, list(_SETTINGS)) or {}
        if "primary_conninfo" not in settings:
            raise PgOrthancError(
                f"role {self._conn.info.user} may not see which server the standby follows",
                "log in as a superuser with --username, or name the folder of the standby with --dir",
            )
        folder = settings.get("data_directory", "")
        here = survey.local_folder(self._conn, folder)
        return Before(
            self._value(within_s, "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"),
            int(self._value(within_s, _TIMELINE_OF_STANDBY)),
            int(self._value(within_s, _RECEIVED)),
            settings["primary_conninfo"] or "",
            settings.get("primary_slot_name") or "",
            str(here.resolve()) if here else folder,
            socket.gethostname() if here else self.place[0],
            self._mark(within_s),
        )

    def _mark(self, within_s: float) -> str:
        """The mark in its folder, as far as the login may read files of the server."""
        query = (
            "SELECT pg_catalog.convert_from(pg_catalog.pg_read_binary_file(%s, 0, 10000, true), 'SQL_ASCII')"
        )
        try:
            return self._value(within_s, query, mark.MARK) or ""
        except errors.InsufficientPrivilege:
            return ""

    def promote(self, within_s: float) -> None:
        try:
            done = self._value(within_s, "SELECT pg_catalog.pg_promote(true, %s)", max(int(within_s), 1))
        except errors.InsufficientPrivilege:
            raise PgOrthancError(
                f"role {self._conn.info.user} may not promote the standby",
                "log in as a superuser with --username, or name the folder of the standby with --dir",
            ) from None
        if not done:
            raise TimeoutError

    def timeline(self, within_s: float) -> int:
        standby = self._value(within_s, "SELECT pg_catalog.pg_is_in_recovery()")
        return int(self._value(within_s, _TIMELINE_OF_STANDBY if standby else _TIMELINE_OF_PRIMARY))

    def make_slot(self, name: str, within_s: float) -> bool:
        query = "SELECT true FROM pg_catalog.pg_replication_slots WHERE slot_name = %s"
        if self._value(within_s, query, name):
            return False
        self._value(within_s, "SELECT pg_catalog.pg_create_physical_replication_slot(%s, true)", name)
        return True


@contextmanager
def by_sql(target: db.Target, *, wait_s: float = _CONNECTS_WITHIN_S) -> Iterator[Way]:
    """A standby by a login with SQL, which never waits for a network that has frozen.

    Raises:
        ConnectError: There is no login within `wait_s` seconds.
    """
    conn = db.connect_async(replace(target, retries=0), timeout_s=min(wait_s, _CONNECTS_WITHIN_S))
    try:
        with db.translate_errors(conn):
            try:
                way = _BySql(conn)
            except TimeoutError as error:
                raise ConnectError(
                    f"the server at {conn.info.host}:{conn.info.port} takes the login, and does not answer: {error}",
                    "check the server and the network; nothing was promoted",
                ) from None
            yield way
    finally:
        conn.close()


# By the folder


class _ByFolder:
    """The folder of a standby on this machine; its own replication login tells how far it is."""

    def __init__(self, directory: Path) -> None:
        self._cluster = Cluster(directory)
        if self._cluster.pid() is None:
            raise PgOrthancError(
                f"the server in {self._cluster.path} does not run",
                f"start it: pg_ctl -D {self._cluster.path} start",
            )
        self.place = (access.reachable(self._cluster.listens() or "localhost"), self._cluster.port())
        self.command = f"pgorthanc replication promote --dir {shlex.quote(str(self._cluster.path))}"

    def before(self, within_s: float) -> Before:
        control = self._cluster.control()
        if not control.is_standby:
            raise _is_primary(self.place, self.timeline(within_s))
        path, machine = str(self._cluster.path), socket.gethostname()
        if fenced := mark.read(
            self._cluster.path
        ):  # an old primary, which may follow none: no role to log in with
            return Before(control.system_identifier, control.timeline, 0, "", "", path, machine, fenced)
        upstream = self._cluster.setting("primary_conninfo")
        with self._session(within_s, upstream) as conn:
            identity = walsender.identify(conn, within_s)
        return Before(
            control.system_identifier,
            identity.timeline,
            identity.lsn,
            upstream,
            self._cluster.setting("primary_slot_name"),
            path,
            machine,
        )

    @contextmanager
    def _session(self, within_s: float, upstream: str = "") -> Iterator[Connection]:
        given = db.parse_dsn(upstream or self._cluster.setting("primary_conninfo"))
        passfile = self._cluster.path / PASSFILE
        target = db.Target(
            self._cluster.local(given.get("user", ""), str(passfile) if passfile.exists() else "")
        )
        try:
            with db.replication_session(target, timeout_s=min(within_s, _CONNECTS_WITHIN_S)) as conn:
                yield conn
        except ConnectError as error:
            raise type(error)(
                f"the role {given.get('user')} cannot log in to its own standby: {error.message}",
                "name the standby by --uri as a superuser instead of --dir",
            ) from None

    def promote(self, within_s: float) -> None:
        self._cluster.run("pg_ctl", "promote", "-w", "-t", str(max(int(within_s), 1)), "-D", ".")

    def timeline(self, within_s: float) -> int:
        with self._session(within_s) as conn:
            return walsender.identify(conn, within_s).timeline

    def make_slot(self, name: str, within_s: float) -> bool:
        with self._session(within_s) as conn:
            return walsender.create_slot(conn, name, within_s)


def by_folder(directory: Path) -> Way:
    """A standby by its folder on this machine, for when no login is at hand.

    Raises:
        PgOrthancError: It does not run.
    """
    return _ByFolder(directory)


def _is_primary(place: tuple[str, int], timeline: int) -> UsageError:
    return UsageError(
        f"the server {place[0]}:{place[1]} is a primary already (timeline {timeline})",
        "name the standby; if it was promoted before, go on with: pgorthanc replication rejoin",
    )
