"""`replication rejoin`: an old primary becomes a standby of the new one."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pgorthanc_cli import db, progress
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.replication import basebackup, mark, standby, upstream
from pgorthanc_cli.replication.password import conninfo_for
from pgorthanc_cli.replication.probe import format_endpoint
from pgorthanc_cli.replication.survey import address_of
from pgorthanc_cli.replication.upstream import Upstream
from pgorthanc_cli.server.cluster import STANDBY_SIGNAL, Cluster, Control, remove
from pgorthanc_cli.server.private import open_cluster
from pgorthanc_cli.server.wal import Loss, cut_incomplete_record, first_request, format_lsn, written_after

# What PostgreSQL itself has at the top of a data folder, besides pg_*.
_SERVER_ENTRIES = frozenset(
    (
        "PG_VERSION", "base", "global", "postmaster.pid", "postmaster.opts", "backup_label", "backup_label.old",
        "tablespace_map", "tablespace_map.old", "backup_manifest", "current_logfiles", "standby.signal",
        "recovery.signal",
    )
)  # fmt: skip
_SITE_ENTRIES = ("pg_hba.conf", "pg_ident.conf", "pg_log")


@dataclass(frozen=True)
class Rejoined:
    """An old primary that is a standby now.

    Attributes:
        directory: Its data folder.
        method: `follow` (it had no WAL of its own), `rewind` (pg_rewind), or `copy` (a
            new base backup). The first two need WAL that the new primary still has.
        why: Why it was copied: pg_rewind cannot work or has failed, or the new primary
            has removed WAL that the old data need; `none` if it was not copied.
        primary: Host and port of the server that it follows.
        slot: Its slot there.
        timeline: The one that it follows.
        forked_at: The LSN at which the two diverged; empty if they did not.
        lost_bytes: WAL that it had written beyond, and that is discarded.
        lost_commits: Number of transactions in it.
        streaming: Whether it has begun to receive.
        index: Revision and counts of Orthanc's index on it; None if no database was named
            to compare.
        difference: How they differ from the primary's; `none`, or `not compared`.
        kept: The folder of the old data, if it was copied, to be removed by the
            administrator.
        address: Host and port by which this machine reaches it; empty if it was not
            started.
        start_command: The command that starts it.
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
    index: basebackup.IndexCounts | None
    difference: str
    kept: str
    address: str
    start_command: str


def rejoin(
    directory: Path,
    primary: db.Target,
    *,
    slot: str = upstream.SLOT,
    name: str = "",
    administrator: db.Target | None = None,
    discard: bool = False,
    start: bool = True,
    report: progress.Report = progress.silent,
) -> Rejoined:
    """Make the old primary a standby of the new one.

    Args:
        directory: Its data folder; the server is stopped.
        primary: The replication login on the new primary.
        slot: Its slot there; created if it is missing.
        name: Its application_name; that of the slot if empty.
        administrator: A superuser's login on the new primary, which pg_rewind needs;
            without it the data are copied. If it names Orthanc's database, the contents
            of both are compared.
        discard: Discard transactions that only the old primary has.
        start: Whether it is started; else a service manager does it.
        report: Called with the bytes that are copied.

    Raises:
        ConnectError: The new primary refuses the login.
        UsageError: The two are not a pair, or their roles are swapped.
        PgOrthancError: It runs, it has commits of its own, or it does not stream
            afterwards.
    """
    cluster = open_cluster(directory)
    source = upstream.connect(primary)
    # After an interrupted rewind the control file may be that of the new primary.
    control = None if _saved(cluster.path).exists() else cluster.control()
    if control:
        _check(cluster, control, source)
    fork, loss = _find_loss(cluster, control, source, discard=discard)
    external_config = cluster.external_config_file
    with upstream.reserved_slot(source, slot):
        obstacle = _obstacle_to_keeping(cluster, control, fork, source)
        method, why = "follow", "none"
        if obstacle or loss.bytes:
            obstacle = obstacle or _obstacle_to_rewind(control, administrator)
            method, why = _replace_data(cluster, obstacle, source, administrator, slot, report)
            # Again, because the files that mark a private server are back now.
            cluster = open_cluster(directory)
            cluster.external_config_file = external_config
        elif control and fork is not None:
            cut_incomplete_record(cluster, control, fork)
        standby.follow(cluster, source.parameters, source.password, slot=slot, name=name or slot)
        if not external_config:
            standby.allow_in_pg_hba(cluster, source.role, ())
    if start:
        cluster.start()
        standby.wait_until_streaming(source, slot, cluster)
    # Last: until it follows, the mark keeps it from being promoted.
    mark.clear(cluster)
    index, difference = basebackup.compare_index(cluster, administrator if start else None)
    return Rejoined(
        directory=str(cluster.path),
        method=method,
        why=why,
        primary=source.endpoint,
        slot=slot,
        timeline=source.identity.timeline,
        forked_at=format_lsn(fork) if fork else "",
        lost_bytes=loss.bytes,
        lost_commits=loss.commits,
        streaming=start,
        index=index,
        difference=difference,
        kept=str(backup_folder(cluster.path)) if method == "copy" else "none",
        address=format_endpoint(address_of(cluster)) if start else "",
        start_command=cluster.command_line("start"),
    )


def _check(cluster: Cluster, control: Control, source: Upstream) -> None:
    """Refuse a folder that is not that of an old primary of the server."""
    if cluster.pid() is not None:
        raise PgOrthancError(
            f"the server in {cluster.path} runs",
            "if it takes writes, stop every Orthanc that uses it; then stop it: "
            f"{cluster.command_line('stop')}",
        )
    if cluster.major != source.identity.major:
        raise UsageError(
            f"{cluster.path} is PostgreSQL {cluster.major}, the primary {source.endpoint} is {source.identity.major}",
            "make a new standby: pgorthanc replication standby",
        )
    if control.system_identifier != source.identity.system_identifier:
        raise UsageError(
            f"{cluster.path} never was a primary of {source.endpoint}: its system identifier is "
            f"{control.system_identifier}, that of the primary {source.identity.system_identifier}",
            "name the right folder; or make a new standby: pgorthanc replication standby",
        )
    if control.timeline > source.identity.timeline:
        raise UsageError(
            f"{cluster.path} is on timeline {control.timeline}, newer than {source.identity.timeline} of "
            f"{source.endpoint}: it was promoted after it",
            "start it as the primary, and rejoin the other one",
        )
    if (
        control.timeline == source.identity.timeline
        and not control.is_standby
        and not cluster.starts_as_standby
    ):
        raise UsageError(
            f"{source.endpoint} was not promoted: it is on timeline {control.timeline}, as {cluster.path} is",
            "promote the standby first: pgorthanc replication promote",
        )


def _find_loss(
    cluster: Cluster, control: Control | None, source: Upstream, *, discard: bool
) -> tuple[int | None, Loss]:
    """Return where the two diverged, and what the old primary has written since.

    Raises:
        PgOrthancError: It has committed transactions since, which `discard` does not
            discard.
    """
    fork = upstream.fork_lsn(source, control.timeline) if control else None
    if control is None or fork is None:
        return None, Loss(0, 0)
    loss = written_after(cluster, control.timeline, fork)
    if loss.commits and not discard:
        raise PgOrthancError(
            f"{cluster.path} holds {loss.commits} committed transactions ({loss.bytes:,} bytes of WAL) that "
            f"{source.endpoint} never got",
            "keep a copy of the folder if they matter; Orthanc files that they were about can be imported again; "
            "to give them up: --discard",
        )
    return fork, loss


# The data


def _obstacle_to_keeping(
    cluster: Cluster, control: Control | None, fork: int | None, source: Upstream
) -> str:
    """Return why the old data are useless, as they are and rewound; empty if they are not."""
    if control is None:
        return "an earlier rejoin was interrupted, and left the data incomplete"
    # A new primary whose slot was dropped, or that another tool has promoted, keeps no WAL
    # for this server, which would start and ask for it again and again.
    lsn = first_request(cluster, control, fork)
    if not upstream.has_wal(source, lsn):
        return f"{source.endpoint} has already removed WAL that the old data need, beginning at {format_lsn(lsn)}"
    return ""


def _obstacle_to_rewind(control: Control | None, administrator: db.Target | None) -> str:
    if control and not control.rewindable:
        return "pg_rewind needs data checksums or wal_log_hints"
    if administrator is None:
        return "pg_rewind needs a superuser's login on the new primary (--uri)"
    return ""


def _replace_data(
    cluster: Cluster,
    obstacle: str,
    source: Upstream,
    administrator: db.Target | None,
    slot: str,
    report: progress.Report,
) -> tuple[str, str]:
    """Rewind unless there is an obstacle, else copy; return the method, and why it was a copy."""
    if administrator and not obstacle:
        try:
            _rewind(cluster, administrator)
        except PgOrthancError as error:
            obstacle = error.message
        else:
            # It begins at an earlier checkpoint now; older minor releases of pg_rewind
            # remove the WAL from there on.
            obstacle = _obstacle_to_keeping(cluster, cluster.control(), None, source)
            if not obstacle:
                return "rewind", "none"
    _copy(cluster, source, slot, report)
    return "copy", obstacle


def _rewind(cluster: Cluster, administrator: db.Target) -> None:
    with db.session(administrator, autocommit=True, need_schema=False) as conn:
        with conn.cursor() as cur:
            # Until a checkpoint its control file has the timeline before the promotion,
            # and pg_rewind does nothing.
            cur.execute("CHECKPOINT")
        parameters = {"dbname": "postgres", **upstream.parameters(conn)}
        password = conn.info.password or ""
    (cluster.path / STANDBY_SIGNAL).unlink(
        missing_ok=True
    )  # pg_rewind's crash recovery refuses to start with it
    file = cluster.external_config_file
    # pg_rewind has this option since PostgreSQL 15.
    config = [f"--config-file={file}"] if file and cluster.major >= 15 else []
    # pg_rewind refuses to work where a server seems to run.
    cluster.invalidate_stale_pids()
    _save(cluster.path)
    with conninfo_for(cluster.account, parameters, password) as conninfo:
        cluster.run("pg_rewind", "--target-pgdata", ".", "--source-server", conninfo, *config)
    # Those of the new primary, which pg_rewind has copied.
    for entry in _site_entries(cluster.path):
        remove(entry)
    saved = _saved(cluster.path)
    for entry in list(saved.iterdir()):
        entry.rename(cluster.path / entry.name)
    saved.rmdir()


def _copy(cluster: Cluster, source: Upstream, slot: str, report: progress.Report) -> None:
    """Copy the new primary beside the old data, then swap them; the old data stay."""
    path, backup = cluster.path, backup_folder(cluster.path)
    if backup.exists():
        raise PgOrthancError(f"{backup} is there from an earlier time", "move it away, or remove it")
    new = path.with_name(f".{path.name}.pgorthanc-new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    cluster.account.own(new)
    try:
        basebackup.copy(source, new, cluster.account, cluster.programs, slot, report)
        for entry in _site_entries(new):
            remove(entry)
        saved = _saved(path)
        for entry in saved.iterdir() if saved.exists() else _site_entries(path):
            _copy_entry(entry, new / entry.name)
        # Two renames: between them the folder is missing, never half of one and half of
        # the other.
        path.rename(backup)
        new.rename(path)
    except OSError as error:
        raise PgOrthancError(
            f"{path} cannot be replaced: {error.strerror}",
            "empty the folder yourself, and make a new standby in it: pgorthanc replication standby",
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(_saved(path), ignore_errors=True)


def backup_folder(path: Path) -> Path:
    """Return the folder of the old data after a copy."""
    return path.with_name(f"{path.name}.before-rejoin")


# The site's own entries of the folder: configuration, certificates, logs. pg_rewind and
# pg_basebackup replace them by those of the new primary, so they are saved and restored.


def _saved(path: Path) -> Path:
    """Return their folder while pg_rewind runs; later it means an interruption."""
    return path.with_name(f".{path.name}.pgorthanc-rejoin")


def _save(path: Path) -> None:
    partial = path.with_name(f".{path.name}.pgorthanc-saving")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    for entry in _site_entries(path):
        _copy_entry(entry, partial / entry.name)
    partial.rename(_saved(path))  # only when it is complete


def _site_entries(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if _is_site_entry(entry)]


def _is_site_entry(entry: Path) -> bool:
    if entry.name in _SERVER_ENTRIES:
        return False
    if entry.name.startswith("pg_") and entry.name not in _SITE_ENTRIES:
        return False
    return entry.is_file() or entry.is_dir() or entry.is_symlink()  # not a socket


def _copy_entry(entry: Path, to: Path) -> None:
    """Copy a file or folder with its owner and mode; symlinks stay symlinks."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.copytree(entry, to, symlinks=True)
    else:
        shutil.copy2(entry, to, follow_symlinks=False)
    owner = entry.lstat()
    for path in (to, *to.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
