"""`replication promote`: a standby becomes the primary, once the old one is proved to be dead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from pgorthanc_cli.errors import ConnectError, PgOrthancError
from pgorthanc_cli.replication import probe, source
from pgorthanc_cli.replication.fence import Before, Fence, fenced, proof, refuse_fenced
from pgorthanc_cli.replication.loss import Loss
from pgorthanc_cli.replication.mark import Claim
from pgorthanc_cli.replication.ways import Deadline, Way


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


def promote(
    way: Way,
    fence: Fence,
    *,
    slots: tuple[str, ...] = (),
    parameters: Mapping[str, str] | None = None,
    wait_s: float = 300.0,
) -> Promoted:
    """Make sure that the old primary is dead, then promote.

    Args:
        way: The standby, see `by_sql` and `by_folder`.
        fence: What to do about the old primary.
        slots: Slots to make for other standbys; its own one from before if empty, for the old primary.
        parameters: Role and database of Orthanc, for the ConnectionUri.
        wait_s: How long all of it may take.

    Raises:
        UsageError: It is a primary already, or `fence` names another server's folder.
        ConnectError: The standby does not answer in time.
        PgOrthancError: The old primary lives, or nothing proves that it is dead; it is fenced for another standby;
            or it holds commits that would be lost.
    """
    deadline = Deadline(wait_s)
    with _bounded(way, deadline):
        before = way.before(deadline.left_s())
    refuse_fenced(before)
    names = slots or ((before.slot,) if before.slot else ())
    for name in names:
        source.check_slot_name(name)
    others = (
        [place for place in probe.places(before.upstream) if place != way.place] if before.upstream else []
    )
    with _old_primary(way, fence, before, deadline) as (claim, lost):
        said = proof(others, fence, before, way.command)
        if claim:
            claim.promoting()
        with _bounded(way, deadline, asked=True):
            way.promote(deadline.left_s())
    with _bounded(way, deadline, promoted=True):
        made = tuple(name for name in names if way.make_slot(name, deadline.afterwards_s()))
        timeline = way.timeline(deadline.afterwards_s())
    return Promoted(
        server=_shown(way.place),
        timeline_before=before.timeline,
        timeline=timeline,
        old_primary=said,
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


@contextmanager
def _old_primary(
    way: Way, fence: Fence, before: Before, deadline: Deadline
) -> Iterator[tuple[Claim | None, Loss | None]]:
    """The fenced folder of the old primary, if one is given."""
    if fence.folder is None:
        yield None, None
        return

    def now() -> Before:
        with _bounded(way, deadline):
            return way.before(deadline.left_s())

    with fenced(fence.folder, fence, before, way.place, now, deadline.left_s) as found:
        yield found


@contextmanager
def _bounded(way: Way, deadline: Deadline, *, asked: bool = False, promoted: bool = False) -> Iterator[None]:
    """A standby that does not answer in time becomes an error that says how far the promotion is.

    Raises:
        ConnectError: Nothing was promoted.
        PgOrthancError: It was, or may have been.
    """
    try:
        yield
    except TimeoutError:
        place, waited = _shown(way.place), f"{deadline.wait_s:g} s"
    else:
        return
    look = "see which server takes writes: pgorthanc replication status"
    if promoted:
        raise PgOrthancError(
            f"{place} was promoted, but does not answer any more: its slots may be missing",
            f"{look}; for each other standby: SELECT pg_create_physical_replication_slot('SLOT', true)",
        )
    if asked:
        raise PgOrthancError(
            f"{place} has not finished its promotion within {waited}; it may go on, or be done: the answer is missing",
            f"do not promote another standby; its log tells how far it is; {look}",
        )
    raise ConnectError(
        f"the standby {place} has not answered within {waited}; nothing was promoted",
        "check the server and the network, then run the same command again, or name its folder on its machine: --dir",
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
