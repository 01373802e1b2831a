"""The server that a standby follows, reached by a role that may only replicate.

The protocol needs REPLICATION and no database. Facts: PostgreSQL, "Streaming Replication
Protocol".
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import errors, sql
from psycopg2.extras import ReplicationCursor

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, Interrupted, PgOrthancError, UsageError
from pgorthanc_cli.server.wal import format_lsn, parse_lsn

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

ROLE = "pgorthanc_replication"
SLOT = "pgorthanc_standby"

# Of all that libpq used for a login, what a standby needs for its own.
_PARAMETERS = (
    "host", "hostaddr", "port", "user", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "channel_binding",
    "gssencmode", "target_session_attrs", "require_auth", "connect_timeout",
)  # fmt: skip
_DEFAULTS = {
    "sslmode": "prefer",
    "channel_binding": "prefer",
    "gssencmode": "prefer",
    "target_session_attrs": "any",
}
_DROP_TIMEOUT_S = 4.0
_ANSWER_TIMEOUT_S = 30.0
_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")
# No server is ever on it: the request fails, but only after it has acquired the slot.
_NO_TIMELINE = 2**32 - 1


@dataclass(frozen=True)
class Identity:
    """A server, as it identifies itself.

    Attributes:
        system_identifier: Set by initdb; a primary and its standbys share it.
        timeline: Goes up with each promotion.
        lsn: The end of the WAL, in bytes; of a standby, what it has received or replayed.
        major: The major version.
        standby: Whether it is a standby; None before PostgreSQL 14, which does not report
            it.
    """

    system_identifier: str
    timeline: int
    lsn: int
    major: int
    standby: bool | None


@dataclass(frozen=True, repr=False)
class Upstream:
    """A server that accepts the replication login.

    Attributes:
        target: The login, for replication sessions.
        identity: The server.
        parameters: Those of libpq, without the password, from whichever source.
        password: The password of the login, empty if the server asked for none.
    """

    target: db.Target
    identity: Identity
    parameters: dict[str, str]
    password: str

    @property
    def endpoint(self) -> str:
        """Return host and port, as messages name them."""
        host = self.parameters.get("host", "the local socket")
        return f"{host}:{self.parameters.get('port', '5432')}"

    @property
    def role(self) -> str:
        """Return the role of the login."""
        return self.parameters.get("user", "")


def connect(target: db.Target) -> Upstream:
    """Log in for replication, and identify the server.

    Raises:
        ConnectError: The server refuses the login; the hint says what its administrator
            runs.
        UsageError: It is a standby itself, or the connection string names several
            servers.
    """
    if "," in db.parse_dsn(target.dsn).get("host", ""):
        raise UsageError("a standby follows one server, and --from names several", "name the primary alone")
    try:
        with db.replication_session(target) as conn:
            identity = identify(conn)
            # From PGHOST, a service file, … too: the standby's server has none of these.
            used = parameters(conn)
            password = conn.info.password or ""
    except ConnectError as error:
        raise type(error)(
            f"no login for replication: {error.message}",
            f"{error.hint}; to let this machine in, on the primary: "
            "pgorthanc replication primary --allow ADDRESS",
        ) from None
    upstream = Upstream(target, identity, used, password)
    if identity.standby:
        raise UsageError(
            f"the server {upstream.endpoint} is a standby itself",
            "name the primary: the one that takes writes",
        )
    return upstream


def parameters(conn: Connection) -> dict[str, str]:
    """Return libpq's parameters, for a program or server that gets no environment."""
    used = conn.info.dsn_parameters
    return {name: used[name] for name in _PARAMETERS if used.get(name, "") not in ("", _DEFAULTS.get(name))}


# Slots


def check_slot_name(name: str) -> None:
    """Raise UsageError if PostgreSQL does not accept a name for a slot."""
    if not _SLOT_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of a replication slot", "use up to 63 lower-case letters, digits and _"
        )


@contextmanager
def reserved_slot(upstream: Upstream, name: str) -> Iterator[None]:
    """Reserve a slot that no standby uses; if it was created, a failure drops it.

    Raises:
        PgOrthancError: Another standby uses it, or it is lost. An error of the block is
            extended by the name of a slot that stays on the primary, and the statement
            that drops it.
    """
    check_slot_name(name)
    with db.replication_session(upstream.target) as conn:
        state = slot_state(conn, name)
    if state == "active":
        raise PgOrthancError(
            f"another standby streams through the slot {name} of {upstream.endpoint}",
            "each standby has its own: choose another name with --slot, or stop that standby",
        )
    if state == "lost":
        raise PgOrthancError(
            f"the slot {name} of {upstream.endpoint} is lost: it needed WAL beyond max_slot_wal_keep_size",
            f"on the primary: SELECT pg_drop_replication_slot('{name}'); then run the same command again",
        )
    # Only a slot that this call has created is dropped again.
    created = state == "absent"
    try:
        if created:
            with db.replication_session(upstream.target) as conn:
                created = create_slot(conn, name)
        yield
    except (PgOrthancError, KeyboardInterrupt) as error:
        raise _with_slot(error, upstream, name, created=created) from None
    except BaseException:
        if created:
            _drop(upstream, name)
        raise


def _with_slot(
    error: PgOrthancError | KeyboardInterrupt, upstream: Upstream, name: str, *, created: bool
) -> PgOrthancError:
    """Drop a slot that was created; return the error with the state of the slot."""
    failure = error
    if not isinstance(failure, PgOrthancError):
        failure = Interrupted("interrupted", "run it again to start over")
    if created and _drop(upstream, name):
        if failure is error:
            return failure
        return Interrupted(
            f"interrupted; the slot {name} of {upstream.endpoint} was dropped again", failure.hint
        )
    stays = "stays: it could not be dropped" if created else "stays, as it was before"
    drop = f"on the primary: SELECT pg_drop_replication_slot('{name}');"
    return type(failure)(
        f"{failure.message}; the slot {name} of {upstream.endpoint} {stays}, and holds back WAL until a standby "
        "uses it",
        f"{failure.hint}; if no standby will use the slot, {drop}",
    )


def _drop(upstream: Upstream, name: str) -> bool:
    """Return whether the slot is gone; the primary may be down."""
    deadline = time.monotonic() + _DROP_TIMEOUT_S
    try:
        with db.replication_session(upstream.target, timeout_s=_DROP_TIMEOUT_S) as conn:
            # In use until the server notices that the client of the copy is gone.
            while not drop_slot(conn, name, max(deadline - time.monotonic(), 0.1)):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
    except PgOrthancError:
        return False
    return True


def is_streaming(upstream: Upstream, name: str) -> bool:
    """Return whether a standby streams through the slot."""
    with db.replication_session(upstream.target) as conn:
        return slot_state(conn, name) == "active"


# Commands of the protocol


def identify(conn: Connection, timeout_s: float = _ANSWER_TIMEOUT_S) -> Identity:
    """Return the identity of the server.

    Raises:
        TimeoutError: It does not answer in time.
    """
    system_identifier, timeline, lsn, *_ = _row(conn, "IDENTIFY_SYSTEM", timeout_s)
    standby = None
    if conn.server_version >= 140000:
        standby = _row(conn, "SHOW in_hot_standby", timeout_s)[0] == "on"
    return Identity(system_identifier, timeline, parse_lsn(lsn), conn.server_version // 10000, standby)


def slot_state(conn: Connection, name: str) -> str:
    """Return the state of a slot: absent, free, active, or lost (its WAL was removed).

    No command of the protocol reports whether a slot is in use. So this acquires it
    briefly with a request that cannot succeed.
    """
    request = sql.SQL("START_REPLICATION SLOT {} PHYSICAL 0/0 TIMELINE {}")
    try:
        _row(conn, request.format(sql.Identifier(name), sql.Literal(_NO_TIMELINE)))
    except errors.UndefinedObject:
        return "absent"
    except errors.ObjectInUse:
        return "active"
    except errors.ObjectNotInPrerequisiteState:
        return "lost"
    except psycopg2.OperationalError:  # the connection is lost
        raise
    except psycopg2.Error:  # the timeline is not in this server's history
        pass
    return "free"


def create_slot(conn: Connection, name: str, timeout_s: float = _ANSWER_TIMEOUT_S) -> bool:
    """Create a physical slot that keeps WAL from now on; return False if the name exists.

    Raises:
        TimeoutError: The server does not answer in time.
    """
    command = sql.SQL("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL").format(sql.Identifier(name))
    try:
        _row(conn, command, timeout_s)
    except errors.DuplicateObject:
        return False
    return True


def drop_slot(conn: Connection, name: str, timeout_s: float = _ANSWER_TIMEOUT_S) -> bool:
    """Drop a slot if it exists; return False while it is in use.

    Raises:
        TimeoutError: The server does not answer in time.
    """
    try:
        _row(conn, sql.SQL("DROP_REPLICATION_SLOT {}").format(sql.Identifier(name)), timeout_s)
    except errors.ObjectInUse:
        return False
    except errors.UndefinedObject:
        pass
    return True


def fork_lsn(upstream: Upstream, timeline: int) -> int | None:
    """Return where a server left an older timeline; None if it never was on it."""
    return dict(_history(upstream)).get(timeline)


def has_wal(upstream: Upstream, lsn: int) -> bool:
    """Return whether a server still has its WAL from an LSN on.

    Asks for it as a standby does, and stops at the first message.

    Args:
        upstream: The server.
        lsn: The beginning of a segment, on the server's own timeline or one before it.

    Raises:
        ConnectError: It sends neither WAL nor an error in time.
    """
    own = upstream.identity
    timeline = next((number for number, end in _history(upstream) if lsn < end), own.timeline)
    if timeline == own.timeline and lsn >= own.lsn:
        return True  # it would wait until something is written there
    # On a connection of its own: only its end stops what the server sends.
    with db.replication_session(upstream.target) as conn:
        try:
            _await_wal(conn, f"START_REPLICATION PHYSICAL {format_lsn(lsn)} TIMELINE {timeline}")
        except errors.UndefinedFile:
            return False
    return True


def _await_wal(conn: Connection, request: str, timeout_s: float = _ANSWER_TIMEOUT_S) -> None:
    """Request WAL on an asynchronous connection, and wait until some has come.

    Raises:
        TimeoutError: There is none in time.
        psycopg2.Error: The server reports an error, also instead of the first WAL.
    """
    deadline = time.monotonic() + timeout_s
    cur = conn.cursor(cursor_factory=ReplicationCursor)
    cur.start_replication_expert(request)  # type: ignore[no-untyped-call]
    db.wait_for_answer(conn, timeout_s)
    while cur.read_message() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no WAL within {timeout_s:g} s")
        # Not until the deadline: TLS may have read what the socket no longer shows.
        select.select([conn], [], [], 1)


def _history(upstream: Upstream) -> list[tuple[int, int]]:
    """Return the timelines before a server's own, oldest first, each with the LSN of its end."""
    # The first timeline has no history file.
    if upstream.identity.timeline == 1:
        return []
    with db.replication_session(upstream.target) as conn:
        _, content = _row(conn, f"TIMELINE_HISTORY {upstream.identity.timeline}")
    history = bytes(content).decode() if isinstance(content, memoryview) else str(content)
    # A line for each timeline: number, LSN, reason (PostgreSQL, "Timelines").
    lines = [line.split() for line in history.splitlines()]
    return [
        (int(words[0]), parse_lsn(words[1])) for words in lines if len(words) > 1 and words[0].isdecimal()
    ]


def _row(
    conn: Connection, command: str | sql.Composable, timeout_s: float = _ANSWER_TIMEOUT_S
) -> tuple[Any, ...]:
    """Return the answer to a command on an asynchronous connection.

    Raises:
        TimeoutError: There is none in time.
    """
    # Not closed: closing is an error while a command is running.
    cur = conn.cursor()
    cur.execute(command)
    db.wait_for_answer(conn, timeout_s)
    return (cur.fetchone() or ()) if cur.description else ()
