"""The password of the replication role: its files, and its distribution.

A standby reads its password file whenever it connects: without the new password it goes
on streaming, but its next connection fails.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.server import cluster, processes, programs
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PASSFILE = "pgorthanc.replication.pgpass"  # in the data folder of a standby

_STREAMING = """
    SELECT DISTINCT r.application_name, coalesce(host(r.client_addr), 'this machine'), coalesce(s.slot_name, '')
    FROM pg_catalog.pg_stat_replication r LEFT JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid
    WHERE r.usename = %s ORDER BY 1, 2, 3"""
_DISCONNECTED = """
    SELECT slot_name FROM pg_catalog.pg_replication_slots
    WHERE slot_type = 'physical' AND NOT active AND NOT temporary ORDER BY 1"""


@dataclass(frozen=True)
class StandbyLogin:
    """A standby that logs in with the password of the role.

    Attributes:
        name: Its application_name; of one that is disconnected its slot.
        address: The address from which it is connected; empty if it is disconnected.
        slot: Its slot; empty if it has none.
        streaming: Whether it is connected now.
        folder: Its data folder, if that is on this machine and can be changed from here;
            else empty.
        password: Whether it has the new password, or the command that gives it.
    """

    name: str
    address: str
    slot: str
    streaming: bool
    folder: str = ""
    password: str = "the old one"  # noqa: S105 - a remark about it

    @property
    def needs_command(self) -> bool:
        """Return whether an administrator has to bring it the new password."""
        return not self.folder

    def __str__(self) -> str:
        """Return name, address and slot, as messages name it."""
        slot = f", slot {self.slot}" if self.slot else ""
        return printable(f"{self.name} ({self.address or 'away'}{slot})")


def standby_logins(conn: Connection, role: str) -> list[StandbyLogin]:
    """Return all standbys that use the password of a role, as far as known."""
    system = str(db.value(conn, "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"))
    local = _local_folders(system, role)
    logins = [
        StandbyLogin(name, address, slot, streaming=True, folder=local.pop(slot or name, ""))
        for name, address, slot in db.rows(conn, _STREAMING, role)
    ]
    for (slot,) in db.rows(conn, _DISCONNECTED):
        logins.append(StandbyLogin(slot, "", slot, streaming=False, folder=local.pop(slot, "")))
    # Those that follow another standby have the role and its password from there.
    for name, folder in local.items():
        logins.append(StandbyLogin(name, "this machine", "", streaming=True, folder=folder))
    return logins


def _local_folders(system: str, role: str) -> dict[str, str]:
    """Return the folders of local standbys with our password file, by slot or name."""
    folders = {}
    for folder in processes.running_folders():
        if not cluster.is_standby_folder(folder) or cluster.system_identifier(folder) != system:
            continue
        try:
            standby = open_cluster(folder)
            conninfo = db.parse_dsn(standby.setting("primary_conninfo"))
            slot = standby.setting("primary_slot_name")
        except PgOrthancError:
            continue  # it belongs to another account
        is_ours = conninfo.get("passfile") in (PASSFILE, str(folder / PASSFILE))
        if conninfo.get("user") == role and is_ours and (folder / PASSFILE).exists():
            folders[slot or conninfo.get("application_name", "")] = str(folder)
    return folders


def refuse_unconfirmed(logins: Sequence[StandbyLogin], role: str, passfile: Path) -> None:
    """Raise UsageError if a new password would cut off a standby elsewhere."""
    cut_off = [login for login in logins if login.streaming and login.needs_command]
    if cut_off:
        raise UsageError(
            f"a new password for {role} would cut off, at their next connection: {'; '.join(map(str, cut_off))}; "
            "their password files cannot be changed from here, and nothing was changed",
            f"add --yes, and then bring each of them the new one: {_command(passfile)}",
        )


def distribute(
    logins: Sequence[StandbyLogin], role: str, password: str, passfile: Path
) -> tuple[StandbyLogin, ...]:
    """Write the new password to the local standbys; name the command for the others."""
    updated = []
    for login in logins:
        if login.folder:
            try:
                file = open_cluster(Path(login.folder)).write(PASSFILE, standby_pgpass_line(role, password))
            except (PgOrthancError, OSError):
                updated.append(replace(login, folder="", password=_command(passfile)))
            else:
                updated.append(replace(login, password=f"updated in {file}"))
        else:
            updated.append(replace(login, password=_command(passfile)))
    return tuple(updated)


def _command(passfile: Path) -> str:
    # It names the file: a password on a command line would be visible to every account.
    name = shlex.quote(passfile.name)
    return (
        f"copy {shlex.quote(str(passfile))} to the standby's machine, and there, as the account of its server: "
        f"install -m 600 {name} DATA-FOLDER-OF-THE-STANDBY/{PASSFILE}"
    )


# Password files


def standby_pgpass_line(role: str, password: str) -> str:
    """Return a line for any server: after a failover it is the other one."""
    return cluster.pgpass_line("*", "*", "*", role, password)


def read_passfile(passfile: Path, role: str) -> str | None:
    """Return the role's password in a file that we wrote, None if there is none.

    Raises:
        UsageError: It cannot be read, or has no line for the role.
    """
    try:
        lines = passfile.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{passfile} cannot be read: {error.strerror}") from None
    start = standby_pgpass_line(role, "").removesuffix("\n")
    for line in lines:
        if line.startswith(start):
            return line.removeprefix(start).replace(r"\:", ":").replace(r"\\", "\\")
    raise UsageError(
        f"{passfile} holds no line {start}PASSWORD",
        "name another file with --passfile; this one stays as it is",
    )


def write_passfile(passfile: Path, role: str, password: str) -> None:
    """Create or replace the administrator's password file.

    Raises:
        UsageError: It cannot be written.
    """
    me = programs.Account(os.geteuid(), os.getegid())
    new = passfile.with_name(f"{passfile.name}.{os.getpid()}.new")
    try:
        _create_passfile(new, me, role, password)
        new.rename(passfile)
    except OSError as error:
        raise UsageError(
            f"{passfile} cannot be written: {error.strerror}", "name another with --passfile"
        ) from None


def _create_passfile(path: Path, account: programs.Account, role: str, password: str) -> Path:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        account.own(handle)
        file.write(standby_pgpass_line(role, password))
    return path


@contextmanager
def conninfo_for(account: programs.Account, parameters: dict[str, str], password: str) -> Iterator[str]:
    """Yield a connection string with a password file that only the account can read."""
    folder = Path(tempfile.mkdtemp(prefix="pgorthanc-login-"))
    try:
        account.own(folder)
        # A network that drops everything is noticed within a minute.
        login = {**db.KEEPALIVE, "tcp_user_timeout": "60000", **parameters}
        if password:
            role = login.get("user", "")
            login["passfile"] = str(_create_passfile(folder / "pgpass", account, role, password))
        yield make_dsn(**login)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
