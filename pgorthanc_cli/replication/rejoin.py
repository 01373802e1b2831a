"""`replication rejoin`: an old primary becomes a standby of the new one."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication import compare, loss, mark, source, standby
from pgorthanc_cli.replication.cluster import STANDBY_SIGNAL, Cluster, Control
from pgorthanc_cli.replication.source import Source
from pgorthanc_cli.replication.walsender import show_lsn

# What PostgreSQL itself keeps at the top of a data folder, beside base, global and pg_*.
_SERVERS_OWN = frozenset(
    (
        "PG_VERSION", "base", "global", "postmaster.pid", "postmaster.opts", "backup_label", "backup_label.old",
        "tablespace_map", "tablespace_map.old", "backup_manifest", "current_logfiles", "standby.signal",
        "recovery.signal",
    )
)  # fmt: skip
_NOT_ITS_OWN = ("pg_hba.conf", "pg_ident.conf", "pg_log")


@dataclass(frozen=True)
class Rejoined:
    """An old primary that is a standby now.

    Attributes:
        directory: Its data folder.
        method: `follow` (it had nothing of its own), `rewind` (pg_rewind), or `copy` (a new base backup).
        why: Why it was not rewound, where it was copied; else `none`.
        primary: Host and port of the server that it follows.
        slot: Its slot there.
        timeline: The one that it follows.
        forked_at: Where the two parted, a place in the log; empty if they did not.
        lost_bytes: WAL that it had written beyond, and that is given up.
        lost_commits: How many transactions that was.
        streaming: Whether it has begun to receive.
        index: Revision and counts of Orthanc's index on it; None if no database was named to compare.
        difference: In what they differ from the primary's; `none`, or `not compared`.
        kept: Where the old data are, if it was copied; remove them when nobody needs them.
    """

    directory: str
    method: str
    why: str
    primary: str
    slot: str
    timeline: int
    forked_at: str
    lost_bytes: int
    lost_commits: int
    streaming: bool
    index: compare.Counts | None
    difference: str
    kept: str


def rejoin(
    directory: Path,
    primary: db.Target,
    *,
    slot: str = source.SLOT,
    name: str = "",
    administrator: db.Target | None = None,
    discard: bool = False,
    start: bool = True,
    progress: standby.Progress = lambda done, total: None,
) -> Rejoined:
    """Make a standby of the server that was the primary before.

    Args:
        directory: Its data folder; the server is stopped.
        primary: The replication login on the new primary.
        slot: Its slot there; made if it is missing.
        name: Its application_name; that of the slot if empty.
        administrator: A superuser's login on the new primary, which pg_rewind needs; without it, it is copied anew.
            If it names Orthanc's database, what both hold is compared.
        discard: Give up transactions that only the old primary has.
        start: Whether it is started; else a service manager does it.
        progress: Called with the bytes that are copied, and those in all.

    Raises:
        ConnectError: The new primary does not let us in.
        UsageError: The two are no pair, or the roles are mixed up.
        PgOrthancError: It runs, it has commits of its own, or it does not stream afterwards.
    """
    cluster = Cluster(directory)
    found = source.reach(primary)
    control = None if _saved(cluster.path).exists() else cluster.control()
    if control:
        _check(cluster, control, found)
    forked, lost = _lost(cluster, control, found, discard=discard)
    with source.slot(found, slot):
        method, why = "follow", "none"
        if control is None or lost.bytes:
            method, why = _renew(cluster, control, found, administrator, slot, progress)
        cluster.follow(found.parameters, found.password, slot=slot, name=name or slot)
        if not cluster.outside_configuration:
            standby.admit(cluster, found.role, ())
    if start:
        cluster.start()
        standby.wait_until_streaming(found, slot, cluster)
    mark.clear(cluster)
    index, difference = standby.compared(cluster, administrator if start else None)
    return Rejoined(
        directory=str(cluster.path),
        method=method,
        why=why,
        primary=found.place,
        slot=slot,
        timeline=found.identity.timeline,
        forked_at=show_lsn(forked) if forked else "",
        lost_bytes=lost.bytes,
        lost_commits=lost.commits,
        streaming=start,
        index=index,
        difference=difference,
        kept=str(aside_of(cluster.path)) if method == "copy" else "none",
    )


def _check(cluster: Cluster, control: Control, found: Source) -> None:
    """Refuse what is no old primary of that server."""
    if cluster.pid() is not None:
        raise PgOrthancError(
            f"the server in {cluster.path} runs",
            f"if it takes writes, stop every Orthanc that uses it; stop it: pg_ctl -D {cluster.path} stop, or "
            f"pgorthanc server stop --dir {cluster.path}",
        )
    if cluster.major != found.identity.major:
        raise UsageError(
            f"{cluster.path} is PostgreSQL {cluster.major}, the primary {found.place} is {found.identity.major}",
            "make a new standby: pgorthanc replication standby",
        )
    if control.system_identifier != found.identity.system_identifier:
        raise UsageError(
            f"{cluster.path} never was a primary of {found.place}: its system identifier is "
            f"{control.system_identifier}, that of the primary {found.identity.system_identifier}",
            "name the right folder; or make a new standby: pgorthanc replication standby",
        )
    if control.timeline > found.identity.timeline:
        raise UsageError(
            f"{cluster.path} is on timeline {control.timeline}, newer than {found.identity.timeline} of {found.place}: "
            "it was promoted after it",
            "start it as the primary, and rejoin the other one",
        )
    if control.timeline == found.identity.timeline and not control.is_standby and not cluster.is_fenced:
        raise UsageError(
            f"{found.place} was not promoted: it is on timeline {control.timeline}, as {cluster.path} is",
            "promote the standby first: pgorthanc replication promote",
        )


def _lost(
    cluster: Cluster, control: Control | None, found: Source, *, discard: bool
) -> tuple[int | None, loss.Loss]:
    """Where the two parted, and what the old primary has written since.

    Raises:
        PgOrthancError: It has committed transactions since, and nobody said that they may be given up.
    """
    forked = loss.fork(found, control.timeline) if control else None
    if control is None or forked is None:
        return None, loss.Loss(0, 0)
    lost = loss.after(cluster, control.timeline, forked)
    if lost.commits and not discard:
        raise PgOrthancError(
            f"{cluster.path} holds {lost.commits} committed transactions ({lost.bytes:,} bytes of WAL) that "
            f"{found.place} never got",
            "keep a copy of the folder if they matter; Orthanc files that they were about can be imported again; "
            "to give them up: --discard",
        )
    return forked, lost


# The data


def _renew(
    cluster: Cluster,
    control: Control | None,
    found: Source,
    administrator: db.Target | None,
    slot: str,
    progress: standby.Progress,
) -> tuple[str, str]:
    """Rewind, or copy where that cannot be; how it was done, and why it was copied."""
    why = _obstacle(control, administrator)
    if administrator and not why:
        try:
            _rewind(cluster, administrator)
        except PgOrthancError as error:
            why = error.message
        else:
            return "rewind", "none"
    _copy(cluster, found, slot, progress)
    return "copy", why


def _obstacle(control: Control | None, administrator: db.Target | None) -> str:
    if control is None:
        return "an earlier rejoin was interrupted, and left the data incomplete"
    if not control.rewindable:
        return "pg_rewind needs data checksums or wal_log_hints"
    if administrator is None:
        return "pg_rewind needs a superuser's login on the new primary (--uri)"
    return ""


def _rewind(cluster: Cluster, administrator: db.Target) -> None:
    with db.session(administrator, autocommit=True, need_schema=False) as conn:
        with conn.cursor() as cur:
            # Until then its control file shows the timeline of before, and pg_rewind sees nothing to do.
            cur.execute("CHECKPOINT")
        parameters = {"dbname": "postgres", **source.parameters(conn)}
        password = conn.info.password or ""
    (cluster.path / STANDBY_SIGNAL).unlink(missing_ok=True)  # the crash recovery of pg_rewind refuses it
    outside = cluster.outside_configuration
    config = [f"--config-file={outside}"] if outside and cluster.major >= 15 else []
    cluster.disown_pid_files()
    _save(cluster.path)
    with source.conninfo_for(cluster.account, parameters, password) as conninfo:
        cluster.run("pg_rewind", "--target-pgdata", ".", "--source-server", conninfo, *config)
    for entry in _own_entries(cluster.path):  # those of the new primary, which pg_rewind has brought
        _remove(entry)
    _move(_saved(cluster.path), cluster.path)


def _copy(cluster: Cluster, found: Source, slot: str, progress: standby.Progress) -> None:
    """A new base backup beside the old data, which then change places; the old ones are kept."""
    path, aside = cluster.path, aside_of(cluster.path)
    if aside.exists():
        raise PgOrthancError(f"{aside} is there from an earlier time", "move it away, or remove it")
    new = path.with_name(f".{path.name}.pgorthanc-new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    cluster.account.own(new)
    try:
        standby.copy(found, new, cluster.account, cluster.programs, slot, progress)
        for entry in _own_entries(new):
            _remove(entry)
        own = _saved(path)
        for entry in own.iterdir() if own.exists() else _own_entries(path):
            _copy_entry(entry, new / entry.name)
        path.rename(aside)
        new.rename(path)
    except OSError as error:
        raise PgOrthancError(
            f"{path} cannot be replaced: {error.strerror}",
            "empty the folder yourself, and make a new standby in it: pgorthanc replication standby",
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(_saved(path), ignore_errors=True)


def aside_of(path: Path) -> Path:
    """Where the old data are after a copy."""
    return path.with_name(f"{path.name}.before-rejoin")


# What is not PostgreSQL's: configuration, certificates, logs. pg_rewind and pg_basebackup bring the new primary's.


def _saved(path: Path) -> Path:
    """Where it is while pg_rewind works; what is there later tells that pg_rewind was interrupted."""
    return path.with_name(f".{path.name}.pgorthanc-rejoin")


def _save(path: Path) -> None:
    making = path.with_name(f".{path.name}.pgorthanc-saving")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    for entry in _own_entries(path):
        _copy_entry(entry, making / entry.name)
    making.rename(_saved(path))


def _move(saved: Path, to: Path) -> None:
    for entry in list(saved.iterdir()):
        entry.rename(to / entry.name)
    saved.rmdir()


def _own_entries(folder: Path) -> list[Path]:
    return [
        entry
        for entry in folder.iterdir()
        if entry.name not in _SERVERS_OWN
        and (not entry.name.startswith("pg_") or entry.name in _NOT_ITS_OWN)
        and (entry.is_file() or entry.is_dir() or entry.is_symlink())
    ]


def _copy_entry(entry: Path, to: Path) -> None:
    """With owner and mode."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.copytree(entry, to, symlinks=True)
    else:
        shutil.copy2(entry, to, follow_symlinks=False)
    owner = entry.lstat()
    for path in (to, *to.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
