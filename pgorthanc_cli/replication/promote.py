"""`replication promote`: a standby becomes the primary once the old one is down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError
from pgorthanc_cli.replication.candidate import Candidate, Deadline
from pgorthanc_cli.replication.fence import Fence, StandbyState, fenced, proof
from pgorthanc_cli.replication.mark import Claim, refusal
from pgorthanc_cli.replication.probe import Endpoint, endpoints, format_endpoint
from pgorthanc_cli.replication.upstream import ROLE, SLOT, check_slot_name
from pgorthanc_cli.server.wal import Loss


@dataclass(frozen=True)
class Promoted:
    """A new primary.

    Attributes:
        server: Host and port.
        timeline_before: Of the standby.
        timeline: Of the new primary.
        old_primary: Where the old one was, and how it is known to be down.
        lost_bytes: WAL of the old primary that the new one lacks; None if the old one's
            folder was not inspected (`rejoin` reports it).
        lost_commits: Number of transactions in it.
        slots: Those that were created here for other standbys.
        connection_uri: For Orthanc's configuration, without the password: it finds the
            server that takes writes.
        next: What to do now, in this order.
        role: The role by which the standby has followed the old primary, for the way back.
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
    role: str

    @property
    def slot(self) -> str:
        """Return the slot for the old primary as a standby."""
        return SLOT if SLOT in self.slots or not self.slots else self.slots[0]


def promote(
    candidate: Candidate,
    fence: Fence,
    *,
    slots: tuple[str, ...] = (),
    parameters: Mapping[str, str] | None = None,
    wait_s: float = 300.0,
) -> Promoted:
    """Make sure that the old primary is down, then promote a standby.

    Args:
        candidate: The standby, see `by_sql` and `by_folder`.
        fence: How the old primary is kept from taking writes.
        slots: Slots to create for other standbys; if empty its own one from before, for
            the old primary.
        parameters: Role and database of Orthanc, for the ConnectionUri.
        wait_s: Time limit for all steps together.

    Raises:
        UsageError: It is a primary already, or `fence` names another server's folder.
        ConnectError: The standby does not answer in time.
        NotProved: Nothing proves that the old primary is down.
        PgOrthancError: The old primary runs; it is fenced for another standby; or it holds
            commits that would be lost.
    """
    deadline = Deadline(wait_s)
    with _translated(candidate, deadline):
        standby = candidate.state(deadline.remaining_s())
    # The standby is itself an old primary that was fenced for another standby.
    if standby.mark:
        raise refusal(f"{standby.folder}, the folder of this server,", standby.folder, standby.mark)
    # Slots are not replicated: without a new one the old primary, or another standby,
    # could miss WAL.
    names = slots or ((standby.slot,) if standby.slot else ())
    for name in names:
        check_slot_name(name)
    upstreams = endpoints(standby.conninfo) if standby.conninfo else ()
    others = [endpoint for endpoint in upstreams if endpoint != candidate.endpoint]
    with _fenced_folder(candidate, fence, standby, deadline) as (claim, loss):
        reason = proof(others, fence, standby, candidate.command)
        # Before the request: if this process dies now, the promotion may have begun.
        if claim:
            claim.promoting()
        with _translated(candidate, deadline, requested=True):
            candidate.promote(deadline.remaining_s())
    with _translated(candidate, deadline, promoted=True):
        created = tuple(name for name in names if candidate.create_slot(name, deadline.follow_up_s()))
        timeline = candidate.timeline(deadline.follow_up_s())
    return Promoted(
        server=format_endpoint(candidate.endpoint),
        timeline_before=standby.timeline,
        timeline=timeline,
        old_primary=reason,
        lost_bytes=loss.bytes if loss else None,
        lost_commits=loss.commits if loss else None,
        slots=created,
        connection_uri=connection_uri(parameters or {}, [candidate.endpoint, *others]),
        next=(
            "put connection_uri into Orthanc's configuration (ConnectionUri), add the password, restart each Orthanc",
            "let the old primary connect: pgorthanc replication primary --allow ITS-ADDRESS --passfile FILE",
            "bring it back as a standby, on its machine: pgorthanc replication rejoin --pgdata FOLDER --from DSN",
            "if commits are to wait for it, once it streams: "
            "pgorthanc replication primary --allow ITS-ADDRESS --passfile FILE --synchronous",
        ),
        role=db.parse_dsn(standby.conninfo).get("user", ROLE) if standby.conninfo else ROLE,
    )


@contextmanager
def _fenced_folder(
    candidate: Candidate, fence: Fence, standby: StandbyState, deadline: Deadline
) -> Iterator[tuple[Claim | None, Loss | None]]:
    if fence.folder is None:
        yield None, None
        return

    def refresh() -> StandbyState:
        with _translated(candidate, deadline):
            return candidate.state(deadline.remaining_s())

    endpoint, remaining_s = candidate.endpoint, deadline.remaining_s
    with fenced(fence.folder, fence, standby, endpoint, refresh, remaining_s) as (claim, loss):
        yield claim, loss


@contextmanager
def _translated(
    candidate: Candidate, deadline: Deadline, *, requested: bool = False, promoted: bool = False
) -> Iterator[None]:
    """Turn a TimeoutError into an error that says how far the promotion is.

    Raises:
        ConnectError: Nothing was promoted.
        PgOrthancError: It was, or may have been.
    """
    try:
        yield
    except TimeoutError:
        server, waited = format_endpoint(candidate.endpoint), f"{deadline.wait_s:g} s"
    else:
        return
    check = "see which server takes writes: pgorthanc replication status"
    if promoted:
        raise PgOrthancError(
            f"{server} was promoted, but does not answer any more: its slots may be missing",
            f"{check}; for each other standby: SELECT pg_create_physical_replication_slot('SLOT', true)",
        )
    if requested:
        raise PgOrthancError(
            f"{server} has not finished its promotion within {waited}; it may go on, or be done: the answer is missing",
            f"do not promote another standby; its log tells how far it is; {check}",
        )
    raise ConnectError(
        f"the standby {server} has not answered within {waited}; nothing was promoted",
        "check the server and the network, then run the same command again, or name its data folder with --pgdata",
    )


def connection_uri(parameters: Mapping[str, str], servers: list[Endpoint]) -> str:
    """Return a ConnectionUri, without password, that finds the writable server."""
    role, database = (quote(parameters.get(name, "orthanc"), safe="") for name in ("user", "dbname"))
    hosts = ",".join(
        f"[{host}]:{port}" if ":" in host else f"{quote(host, safe='')}:{port}" for host, port in servers
    )
    tls = {name: parameters[name] for name in ("sslmode", "sslrootcert") if name in parameters}
    extra = "".join(f"&{name}={quote(value, safe='')}" for name, value in tls.items())
    return f"postgresql://{role}@{hosts}/{database}?target_session_attrs=read-write{extra}"
