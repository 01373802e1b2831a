"""The server that a standby follows, reached as the standby will reach it: by a role that may only replicate."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, programs
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.replication import walsender

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
    if "," in db.parse(target.dsn).get("host", ""):
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
    """A slot that nobody uses; made if it is missing, and removed again if the block fails, lest it fill the disk.

    Raises:
        PgOrthancError: Another standby uses it, or it is lost.
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
    if made:
        with db.replication_session(source.target) as conn:
            walsender.create_slot(conn, name)
    try:
        yield
    except BaseException:
        if made:
            _drop(source, name)
        raise


def _drop(source: Source, name: str) -> None:
    try:
        with db.replication_session(source.target) as conn:
            walsender.drop_slot(conn, name)
    except PgOrthancError:
        pass  # the first failure is the one to tell


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
        given = dict(parameters)
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
