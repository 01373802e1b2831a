"""The replication protocol: who a server is, where its log ends, its slots. It needs REPLICATION, and no database.

Facts: PostgreSQL, "Streaming Replication Protocol".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import errors, sql

from pgorthanc_cli import db

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_NO_TIMELINE = 2**32 - 1
_ANSWERS_WITHIN_S = 30.0


@dataclass(frozen=True)
class Identity:
    """A server.

    Attributes:
        system_identifier: Given by initdb; a primary and its standbys share it.
        timeline: Goes up with each promotion.
        lsn: Where its log ends; of a standby, what it has received or replayed.
        major: Its major version.
        standby: Whether it is a standby; None before PostgreSQL 14, which does not tell.
    """

    system_identifier: str
    timeline: int
    lsn: int
    major: int
    standby: bool | None


def identify(conn: Connection, within_s: float = _ANSWERS_WITHIN_S) -> Identity:
    """The server at the other end.

    Raises:
        TimeoutError: It does not answer in time.
    """
    system_identifier, timeline, lsn, *_ = _row(conn, "IDENTIFY_SYSTEM", within_s)
    standby = None
    if conn.server_version >= 140000:
        standby = _row(conn, "SHOW in_hot_standby", within_s)[0] == "on"
    return Identity(system_identifier, timeline, parse_lsn(lsn), conn.server_version // 10000, standby)


def slot_state(conn: Connection, name: str) -> str:
    """Of a physical slot: absent, free, active (somebody streams through it), or lost (its WAL was removed).

    It is taken for a moment with a request that cannot be fulfilled: no other command of the protocol tells
    whether a slot is in use.
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
    except psycopg2.Error:  # such a timeline is not in this server's history
        pass
    return "free"


def create_slot(conn: Connection, name: str, within_s: float = _ANSWERS_WITHIN_S) -> bool:
    """Make a physical slot that keeps WAL from now on; False if there is one of that name.

    Raises:
        TimeoutError: The server does not answer in time.
    """
    command = sql.SQL("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL").format(sql.Identifier(name))
    try:
        _row(conn, command, within_s)
    except errors.DuplicateObject:
        return False
    return True


def drop_slot(conn: Connection, name: str, within_s: float = _ANSWERS_WITHIN_S) -> bool:
    """Drop a slot, if there is one of that name; False while it is in use.

    Raises:
        TimeoutError: The server does not answer in time.
    """
    try:
        _row(conn, sql.SQL("DROP_REPLICATION_SLOT {}").format(sql.Identifier(name)), within_s)
    except errors.ObjectInUse:
        return False
    except errors.UndefinedObject:
        pass
    return True


def history(conn: Connection, timeline: int) -> str:
    """The history file of a timeline; the first one has none."""
    if timeline == 1:
        return ""
    _, content = _row(conn, f"TIMELINE_HISTORY {timeline}")
    return bytes(content).decode() if isinstance(content, memoryview) else str(content)


def _row(
    conn: Connection, command: str | sql.Composable, within_s: float = _ANSWERS_WITHIN_S
) -> tuple[Any, ...]:
    """The answer to a command on an asynchronous connection.

    Raises:
        TimeoutError: There is none in time.
    """
    cur = conn.cursor()  # not closed: that is an error while a command is under way
    cur.execute(command)
    db.wait_for_answer(conn, within_s)
    return (cur.fetchone() or ()) if cur.description else ()


def parse_lsn(text: str) -> int:
    """A place in the log, `16/B374D848`, as a number of bytes."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def show_lsn(lsn: int) -> str:
    """A number of bytes as PostgreSQL writes a place in the log."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
