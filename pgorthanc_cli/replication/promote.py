"""`replication promote`: a standby becomes the primary, once the old one is known to be gone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.replication import access, loss, probe, source, walsender
from pgorthanc_cli.replication.cluster import PASSFILE, Cluster
from pgorthanc_cli.replication.compare import one

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_ARRIVES_WITHIN_S = 10.0
_AT_REST_S = 1.0


@dataclass(frozen=True)
class Promoted:
    """A new primary.

    Attributes:
        server: Host and port.
        timeline_before: Of the standby.
        timeline: Of the new primary.
        old_primary: Where the old one was, and how it is known to be gone.
        lost_bytes: WAL of the old primary that the new one has not; None while the old one's folder has not been
            looked at: `rejoin` tells.
        lost_commits: How many transactions that is.
        slots: Those that were made here for other standbys.
        connection_uri: For Orthanc's configuration, without the password: it finds whichever takes writes.
        next: What to do now, in this order.
    """

    server: str
    timeline_before: int
    timeline: int
    old_primary: str
    lost_bytes: int | None
    lost_commits: int | None
    slots: tuple[str, ...]
    connection_uri: str
    next: tuple[str, ...]


@dataclass(frozen=True)
class Fence:
    """How the old primary is kept from taking writes.

    Attributes:
        folder: Its data folder on this machine: it is stopped, and marked to start as a standby only.
        gone: Somebody has made sure that it is off and stays off; only asked where its port does not tell.
        accept_loss: Promote even if the folder shows commits that the standby never got.
    """

    folder: Path | None = None
    gone: bool = False
    accept_loss: bool = False


@dataclass(frozen=True)
class Before:
    """A standby; `received` is where its log ends, `upstream` the connection string of its primary."""

    system_identifier: str
    timeline: int
    received: int
    upstream: str
    slot: str


class Way(Protocol):
    """How a standby is reached: by SQL, or by its folder."""

    place: tuple[str, int]

    def before(self) -> Before:
        """The standby as it is; refuses a primary."""

    def promote(self, wait_s: float) -> None:
        """Promote, and wait until it takes writes."""

    def timeline(self) -> int:
        """That of the server as it is now."""

    def make_slot(self, name: str) -> bool:
        """Make a slot; False if it is there."""


def promote(
    way: Way,
    fence: Fence,
    *,
    slots: tuple[str, ...] = (),
    parameters: Mapping[str, str] | None = None,
    wait_s: float = 300.0,
) -> Promoted:
    """Make sure that the old primary is gone, then promote.

    Args:
        way: The standby, see `by_sql` and `by_folder`.
        fence: What to do about the old primary.
        slots: Slots to make for other standbys; its own one from before if empty, for the old primary.
        parameters: Role and database of Orthanc, for the ConnectionUri.
        wait_s: How long the promotion may take.

    Raises:
        UsageError: It is a primary already, or `fence` names another server's folder.
        PgOrthancError: The old primary lives, or nobody can tell; or it holds commits that would be lost.
    """
    before = way.before()
    names = slots or ((before.slot,) if before.slot else ())
    for name in names:
        source.check_slot_name(name)
    others = (
        [place for place in probe.places(before.upstream) if place != way.place] if before.upstream else []
    )
    lost = None
    if fence.folder is not None:
        lost = _fence(way, Cluster(fence.folder), before, accept_loss=fence.accept_loss)
    said = [_refuse_living(place, fence) for place in others]
    way.promote(wait_s)
    made = tuple(name for name in names if way.make_slot(name))
    return Promoted(
        server=_shown(way.place),
        timeline_before=before.timeline,
        timeline=way.timeline(),
        old_primary="; ".join(said) or "unknown: the standby followed none",
        lost_bytes=lost.bytes if lost else None,
        lost_commits=lost.commits if lost else None,
        slots=made,
        connection_uri=connection_uri(parameters or {}, [way.place, *others]),
        next=(
            "put connection_uri into Orthanc's configuration (ConnectionUri), add the password, restart each Orthanc",
            "let the old primary connect: pgorthanc replication primary --allow ITS-ADDRESS --passfile FILE",
            "bring it back as a standby, on its machine: pgorthanc replication rejoin --dir FOLDER --from DSN",
            "if commits are to wait for it, switch that on again: pgorthanc replication primary --synchronous",
        ),
    )


def connection_uri(parameters: Mapping[str, str], servers: list[tuple[str, int]]) -> str:
    """Orthanc's ConnectionUri that finds whichever of the servers takes writes; without the password."""
    role, database = (quote(parameters.get(name, "orthanc"), safe="") for name in ("user", "dbname"))
    hosts = ",".join(
        f"[{host}]:{port}" if ":" in host else f"{quote(host, safe='')}:{port}" for host, port in servers
    )
    more = {name: parameters[name] for name in ("sslmode", "sslrootcert") if name in parameters}
    extra = "".join(f"&{name}={quote(value, safe='')}" for name, value in more.items())
    return f"postgresql://{role}@{hosts}/{database}?target_session_attrs=read-write{extra}"


def _shown(place: tuple[str, int]) -> str:
    return f"{place[0]}:{place[1]}"


# The old primary


def _refuse_living(place: tuple[str, int], fence: Fence) -> str:
    """How the old primary is known to be gone.

    Raises:
        PgOrthancError: It is not known, or it lives.
    """
    found = probe.probe(*place)
    if found == probe.ANSWERS:
        raise PgOrthancError(
            f"the old primary {_shown(place)} still answers: two primaries would take different writes",
            "stop it first, and every Orthanc that uses it; on its machine --fence FOLDER stops it, and all it has "
            "committed arrives before the promotion",
        )
    if found == probe.SILENT and not (fence.gone or fence.folder):
        raise PgOrthancError(
            f"the old primary {_shown(place)} is silent: it may be alive behind a broken network",
            "make sure that it is off and stays off (power, or the network of the Orthancs), then: --old-is-gone",
        )
    what = "its port is closed" if found == probe.REFUSES else "it is silent"
    return f"{_shown(place)}: {'fenced, ' if fence.folder else ''}{what}"


def _fence(way: Way, old: Cluster, before: Before, *, accept_loss: bool) -> loss.Loss:
    """Stop the old primary for good; what it has committed and the standby will not get.

    Raises:
        UsageError: The folder is that of another server, of a copy, or of a standby.
        PgOrthancError: There are such commits.
    """
    control = old.control()
    if control.system_identifier != before.system_identifier:
        raise UsageError(
            f"{old.path} is the folder of another server: its system identifier is {control.system_identifier}, "
            f"the standby's is {before.system_identifier}"
        )
    if control.is_standby:
        raise UsageError(
            f"{old.path} is the folder of a standby ({control.state})", "name the folder of the old primary"
        )
    ports = {port for _, port in probe.places(before.upstream)}
    if old.pid() is not None and old.port() not in ports:
        raise UsageError(
            f"the server in {old.path} listens on port {old.port()}, and the standby follows port "
            f"{' or '.join(map(str, sorted(ports)))}: it is a copy of the old primary",
            "name the folder of the old primary",
        )
    old.fence()
    lost = _wait_for_the_rest(way, old)
    if lost.commits and not accept_loss:
        raise PgOrthancError(
            f"the old primary is stopped, and has {lost.commits} commits ({lost.bytes:,} bytes of WAL) that the "
            "standby never got",
            f"start it again if you can: remove {old.path / 'standby.signal'}, pg_ctl -D {old.path} start; "
            "to give these commits up: --accept-loss",
        )
    return lost


def _wait_for_the_rest(way: Way, old: Cluster) -> loss.Loss:
    """What is missing once the standby has all that is on its way."""
    deadline = time.monotonic() + _ARRIVES_WITHIN_S
    last, since = -1, time.monotonic()
    while True:
        now = way.before()
        found = loss.after(old, now.timeline, now.received)
        if now.received != last:
            last, since = now.received, time.monotonic()
        rested = time.monotonic() - since > _AT_REST_S
        if not found.commits or rested or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


# By SQL


class _BySql:
    """A login that may promote: a superuser, or who was granted EXECUTE on pg_promote."""

    def __init__(self, conn: Connection, place: tuple[str, int]) -> None:
        self._conn = conn
        self.place = place

    def before(self) -> Before:
        if not one(self._conn, "SELECT pg_is_in_recovery()"):
            raise _is_primary(self.place, self.timeline())
        settings = self._settings("primary_conninfo", "primary_slot_name")
        if "primary_conninfo" not in settings:
            raise PgOrthancError(
                f"role {self._conn.info.user} may not see which server the standby follows",
                f'as a superuser: GRANT pg_monitor TO "{self._conn.info.user}"; or name the folder with --dir',
            )
        return Before(
            one(self._conn, "SELECT system_identifier::text FROM pg_control_system()"),
            self.timeline(),
            int(one(self._conn, "SELECT coalesce(pg_last_wal_replay_lsn(), '0/0') - '0/0'::pg_lsn")),
            settings["primary_conninfo"],
            settings.get("primary_slot_name", ""),
        )

    def _settings(self, *names: str) -> dict[str, str]:
        with self._conn.cursor() as cur:
            cur.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(names),))
            return dict(cur.fetchall())

    def promote(self, wait_s: float) -> None:
        if not one(self._conn, "SELECT pg_promote(true, %s)", int(wait_s)):
            raise PgOrthancError(
                f"the promotion has not ended within {wait_s:.0f} s, and goes on",
                "the server's log tells how far it is; run: pgorthanc replication status",
            )

    def timeline(self) -> int:
        if one(self._conn, "SELECT pg_is_in_recovery()"):
            query = """SELECT greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                                       (SELECT min_recovery_end_timeline FROM pg_control_recovery()))"""
            return int(one(self._conn, query))
        return int(one(self._conn, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"), 16)

    def make_slot(self, name: str) -> bool:
        if one(self._conn, "SELECT true FROM pg_replication_slots WHERE slot_name = %s", name):
            return False
        one(self._conn, "SELECT pg_create_physical_replication_slot(%s, true)", name)
        return True


@contextmanager
def by_sql(target: db.Target) -> Iterator[Way]:
    """A standby by a login with SQL."""
    with db.session(target, autocommit=True, readonly=True, need_schema=False) as conn:
        # The session began on a standby; what comes after the promotion writes.
        conn.set_session(autocommit=True, readonly=False)
        host = conn.info.host or "localhost"
        if host.startswith("/"):
            host = access.reachable(one(conn, "SHOW listen_addresses") or "localhost")
        yield _BySql(conn, (host, conn.info.port))


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

    def before(self) -> Before:
        control = self._cluster.control()
        if not control.is_standby:
            raise _is_primary(self.place, self.timeline())
        upstream = self._cluster.setting("primary_conninfo")
        with self._session(upstream) as conn:
            identity = walsender.identify(conn)
        return Before(
            control.system_identifier,
            identity.timeline,
            identity.lsn,
            upstream,
            self._cluster.setting("primary_slot_name"),
        )

    @contextmanager
    def _session(self, upstream: str = "") -> Iterator[Connection]:
        given = db.parse(upstream or self._cluster.setting("primary_conninfo"))
        passfile = self._cluster.path / PASSFILE
        target = db.Target(
            self._cluster.local(given.get("user", ""), str(passfile) if passfile.exists() else "")
        )
        try:
            with db.replication_session(target) as conn:
                yield conn
        except ConnectError as error:
            raise type(error)(
                f"the role {given.get('user')} cannot log in to its own standby: {error.message}",
                "name the standby by --uri as a superuser instead of --dir",
            ) from None

    def promote(self, wait_s: float) -> None:
        self._cluster.run("pg_ctl", "promote", "-w", "-t", str(int(wait_s)), "-D", ".")

    def timeline(self) -> int:
        with self._session() as conn:
            return walsender.identify(conn).timeline

    def make_slot(self, name: str) -> bool:
        with self._session() as conn:
            return walsender.create_slot(conn, name)


def by_folder(directory: Path) -> Way:
    """A standby by its folder on this machine, for when no login is at hand.

    Raises:
        PgOrthancError: It does not run.
    """
    return _ByFolder(directory)


def _is_primary(place: tuple[str, int], timeline: int) -> UsageError:
    return UsageError(
        f"the server {_shown(place)} is a primary already (timeline {timeline})",
        "name the standby; if it was promoted before, go on with: pgorthanc replication rejoin",
    )
