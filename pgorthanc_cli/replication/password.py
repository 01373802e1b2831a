"""A new password for the replication role: who uses the old one, and how each of them gets the new one.

A standby keeps it in a file of its own, and asks for it when it connects again: without the new one it streams until
then, and never after.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication import cluster as clusters
from pgorthanc_cli.replication import source
from pgorthanc_cli.replication.cluster import PASSFILE, Cluster
from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_STREAMING = """
    SELECT DISTINCT r.application_name, coalesce(host(r.client_addr), 'this machine'), coalesce(s.slot_name, '')
    FROM pg_catalog.pg_stat_replication r LEFT JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid
    WHERE r.usename = %s ORDER BY 1, 2, 3"""
_AWAY = """
    SELECT slot_name FROM pg_catalog.pg_replication_slots
    WHERE slot_type = 'physical' AND NOT active AND NOT temporary ORDER BY 1"""


@dataclass(frozen=True)
class User:
    """A standby that logs in with the password of the role.

    Attributes:
        name: Its application_name; of one that is away its slot.
        address: From where it is connected; empty if it is away.
        slot: Its slot; empty if it has none.
        streaming: Whether it is connected now.
        folder: Its data folder, if that is on this machine and can be changed from here; else empty.
        password: Whether it has the new password, or the command that gives it.
    """

    name: str
    address: str
    slot: str
    streaming: bool
    folder: str = ""
    password: str = "the old one"  # noqa: S105 - a word about it

    @property
    def needs_command(self) -> bool:
        """Whether somebody has to bring it the new password."""
        return not self.folder

    def __str__(self) -> str:
        """As messages name it."""
        place = self.address or "away"
        return printable(f"{self.name} ({place}{f', slot {self.slot}' if self.slot else ''})")


def users(conn: Connection, role: str) -> list[User]:
    """All that use the password of a role on this primary, as far as it knows them."""
    system = str(db.value(conn, "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"))
    here = _folders_here(system, role)
    found = [
        User(name, address, slot, streaming=True, folder=here.pop(slot or name, ""))
        for name, address, slot in db.rows(conn, _STREAMING, role)
    ]
    for (slot,) in db.rows(conn, _AWAY):
        found.append(User(slot, "", slot, streaming=False, folder=here.pop(slot, "")))
    # Those that follow another standby have the role and its password from there.
    found += [User(name, "this machine", "", streaming=True, folder=folder) for name, folder in here.items()]
    return found


def _folders_here(system: str, role: str) -> dict[str, str]:
    """Slot, or application_name, and folder of each standby that runs on this machine with a password file of ours."""
    found = {}
    for folder in clusters.running():
        if not clusters.is_standby_folder(folder) or clusters.system_identifier(folder) != system:
            continue
        try:
            standby = Cluster(folder)
            given = db.parse_dsn(standby.setting("primary_conninfo"))
            slot = standby.setting("primary_slot_name")
        except PgOrthancError:
            continue  # of an account that we are not
        ours = given.get("passfile") in (PASSFILE, str(folder / PASSFILE)) and (folder / PASSFILE).exists()
        if given.get("user") == role and ours:
            found[slot or given.get("application_name", "")] = str(folder)
    return found


def refuse_unasked(found: Sequence[User], role: str, passfile: Path) -> None:
    """Make sure that no standby that streams is cut off without a word.

    Raises:
        UsageError: One would be: its password file cannot be changed from here.
    """
    cut_off = [user for user in found if user.streaming and user.needs_command]
    if cut_off:
        raise UsageError(
            f"a new password for {role} would cut off, at their next connection: {'; '.join(map(str, cut_off))}; their "
            "password files cannot be changed from here, and nothing was changed",
            f"add --yes, and then bring each of them the new one: {_command(passfile)}",
        )


def handed_on(found: Sequence[User], role: str, password: str, passfile: Path) -> tuple[User, ...]:
    """Write the new password where that can be done from here; for the others the command that does it."""
    return tuple(_handed_on(user, role, password, passfile) for user in found)


def _handed_on(user: User, role: str, password: str, passfile: Path) -> User:
    if user.folder:
        try:
            file = Cluster(Path(user.folder)).write(PASSFILE, source.pgpass_line(role, password))
        except (PgOrthancError, OSError):
            user = replace(user, folder="")
        else:
            return replace(user, password=f"updated in {file}")
    return replace(user, password=_command(passfile))


def _command(passfile: Path) -> str:
    """The password itself is in no command."""
    name = shlex.quote(passfile.name)
    return (
        f"copy {shlex.quote(str(passfile))} to the standby's machine, and there, as the account of its server: "
        f"install -m 600 {name} DATA-FOLDER-OF-THE-STANDBY/{PASSFILE}"
    )
