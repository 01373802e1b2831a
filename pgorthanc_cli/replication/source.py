"""The server that a standby follows, reached as the standby will reach it: by a role that may only replicate."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, Interrupted, PgOrthancError, UsageError
from pgorthanc_cli.replication import walsender
from pgorthanc_cli.server import programs

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

ROLE = "pgorthanc_replication"
SLOT = "pgorthanc_standby"

# Of all that libpq used for a login, what a standby needs for its own; what has its default value is left out.
_KEPT = ("host", "hostaddr", "port", "user", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl",
         "channel_binding", "gssencmode", "target_session_attrs", "require_auth", "connect_timeout")  # fmt: skip
_DEFAULTS = {
    "sslmode": "prefer",
    "channel_binding": "prefer",
    "gssencmode": "prefer",
    "target_session_attrs": "any",
}
_DROPPED_WITHIN_S = 4.0
_SLOT_NAME = re.compile(r"[a-z0-9_]{1,63}")


@dataclass(frozen=True, repr=False)
class Source:
    """A server that takes the login.

    Attributes:
        target: The login, for replication sessions.
        identity: The server.
        parameters: libpq's, without the password, wherever they came from.
        password: The password of the login, empty if the server asked for none.
    """

    target: db.Target
    identity: walsender.Identity
    parameters: dict[str, str]
    password: str

    @property
    def place(self) -> str:
        """Host and port, as messages name it."""
        return f"{self.parameters.get('host', 'the local socket')}:{self.parameters.get('port', '5432')}"

    @property
    def role(self) -> str:
        """The role of the login."""
        return self.parameters.get("user", "")


def reach(target: db.Target) -> Source:
    """Log in for replication.

    Raises:
        ConnectError: The server does not let us in; the hint says what its administrator runs.
        UsageError: It is a standby itself, or several servers are named.
    """
    if "," in db.parse_dsn(target.dsn).get("host", ""):
        raise UsageError("a standby follows one server, and --from names several", "name the primary alone")
    try:
        with db.replication_session(target) as conn:
            identity = walsender.identify(conn)
            used = parameters(conn)
            password = conn.info.password or ""
    except ConnectError as error:
        raise type(error)(
            f"no login for replication: {error.message}",
            f"{error.hint}; to let this machine in, on the primary: pgorthanc replication primary --allow ADDRESS",
        ) from None
    found = Source(target, identity, used, password)
    if identity.standby:
        raise UsageError(
            f"the server {found.place} is a standby itself", "name the primary: the one that takes writes"
        )
    return found


def parameters(conn: Connection) -> dict[str, str]:
    """What libpq used for a connection, wherever it came from, for a program or a server that gets no environment."""
    used = conn.info.dsn_parameters
    return {name: used[name] for name in _KEPT if used.get(name, "") not in ("", _DEFAULTS.get(name))}


def check_slot_name(name: str) -> None:
    """Make sure that PostgreSQL takes it.

    Raises:
        UsageError: It does not.
    """
    if not _SLOT_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of a replication slot", "use up to 63 lower-case letters, digits and _"
        )


@contextmanager
def slot(source: Source, name: str) -> Iterator[None]:
    """A slot that no standby uses; created if it is missing, and dropped again if the block fails.

    Raises:
        PgOrthancError: Another standby uses it, or it is lost. What the block raises leaves it with the name of a
            slot that stays on the primary, and the statement that drops it.
    """
    check_slot_name(name)
    with db.replication_session(source.target) as conn:
        state = walsender.slot_state(conn, name)
    if state == "active":
        raise PgOrthancError(
            f"another standby streams through the slot {name} of {source.place}",
            "each standby has its own: choose another name with --slot, or stop that standby",
        )
    if state == "lost":
        raise PgOrthancError(
            f"the slot {name} of {source.place} is lost: it needed WAL beyond max_slot_wal_keep_size",
            f"on the primary: SELECT pg_drop_replication_slot('{name}'); then run the same command again",
        )
    made = state == "absent"
    try:
        if made:
            with db.replication_session(source.target) as conn:
                made = walsender.create_slot(conn, name)
        yield
    except (PgOrthancError, KeyboardInterrupt) as error:
        raise _abandoned(source, name, error, made=made) from None
    except BaseException:
        if made:
            _drop(source, name)
        raise


def _abandoned(
    source: Source, name: str, error: PgOrthancError | KeyboardInterrupt, *, made: bool
) -> PgOrthancError:
    """The error, with what has become of the slot."""
    failure = (
        error
        if isinstance(error, PgOrthancError)
        else Interrupted("interrupted", "run it again to start over")
    )
    if made and _drop(source, name):
        if failure is error:
            return failure
        return Interrupted(f"interrupted; the slot {name} of {source.place} was dropped again", failure.hint)
    stays = "stays: it could not be dropped" if made else "stays, as it was before"
    drop = f"on the primary: SELECT pg_drop_replication_slot('{name}');"
    return type(failure)(
        f"{failure.message}; the slot {name} of {source.place} {stays}, and holds back WAL until a standby uses it",
        f"{failure.hint}; if no standby will use the slot, {drop}",
    )


def _drop(source: Source, name: str) -> bool:
    """Whether the slot is gone; the primary may take a moment to see that the copy has ended, or not be there."""
    deadline = time.monotonic() + _DROPPED_WITHIN_S
    try:
        with db.replication_session(source.target, timeout_s=_DROPPED_WITHIN_S) as conn:
            while not walsender.drop_slot(conn, name, max(deadline - time.monotonic(), 0.1)):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
    except PgOrthancError:
        return False
    return True


def is_streaming(source: Source, name: str) -> bool:
    """Whether a standby streams through the slot."""
    with db.replication_session(source.target) as conn:
        return walsender.slot_state(conn, name) == "active"


@contextmanager
def conninfo_for(account: programs.Account, parameters: dict[str, str], password: str) -> Iterator[str]:
    """A connection string for a program of that account; the password is in a file that only it can read."""
    folder = Path(tempfile.mkdtemp(prefix="pgorthanc-login-"))
    try:
        account.own(folder)
        # A network that drops everything is noticed within a minute.
        given = {**db.KEEPALIVE, "tcp_user_timeout": "60000", **parameters}
        if password:
            given["passfile"] = str(
                write_passfile(folder / "pgpass", account, given.get("user", ""), password)
            )
        yield make_dsn(**given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_passfile(path: Path, account: programs.Account, role: str, password: str) -> Path:
    """A new password file (0600) that serves for any server: after a failover it is the other one."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        account.own(handle)
        file.write(pgpass_line(role, password))
    return path


def pgpass_line(role: str, password: str) -> str:
    """host:port:database:role:password, with `*` for the first three."""
    escaped = (field.replace("\\", r"\\").replace(":", r"\:") for field in (role, password))
    return ":".join(("*", "*", "*", *escaped)) + "\n"
