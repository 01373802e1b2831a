"""Starts a phase of a move, once both ends were looked at."""

from __future__ import annotations

import threading
from functools import partial

from pgorthanc_cli import db, index
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.placement import model, space
from pgorthanc_cli.placement.attachments import Attachments
from pgorthanc_cli.placement.model import ADVANCED, Moved, MoveSettings
from pgorthanc_cli.placement.phases import Run
from pgorthanc_cli.placement.record import Keeper
from pgorthanc_cli.placement.row_phases import RowRun
from pgorthanc_cli.placement.worker import work
from pgorthanc_cli.progress import Report, silent
from pgorthanc_cli.storage import FilesystemArea
from pgorthanc_cli.text import printable
from pgorthanc_cli.workers import pool


def move(
    target: db.Target,
    settings: MoveSettings,
    *,
    stop: threading.Event | None = None,
    report: Report = silent,
) -> Moved:
    """Do one phase of a move.

    Args:
        target: The index.
        settings: What to move, and which phase.
        stop: Ends the phase at the next safe point when set; the result is then not complete.
        report: Called with the number of attachments that were looked at.

    Raises:
        UsageError: The phases come in the wrong order, or the folder is not the right one.
        InUseError: An Orthanc is connected, or another move is running.
        PgOrthancError: An end cannot be read or written to.
    """
    stop = stop or threading.Event()
    _require_usable(settings)
    # Before anything is opened that a forked process must not share.
    with (
        pool(settings.jobs, partial(work, target, settings), stop, fork=True) as workers,
        db.session(target) as conn,
        db.advisory_lock(conn, db.LOCK_MOVE, wait_s=0),
    ):
        attachments = Attachments(conn, settings)
        # The plugin creates it when it starts with EnableStorage; here that comes later.
        if settings.target.folder is None and not attachments.has_storage_area():
            space.create_storage_area(conn)
        with conn.cursor() as cur:
            identity = index.identity(cur)
        conn.rollback()
        keeper = Keeper(settings, identity)
        arguments = (attachments, workers, settings, stop, report, keeper, keeper.read())
        run = RowRun(*arguments, identity=identity) if settings.changes_rows else Run(*arguments)
        return run.result()


def _require_usable(settings: MoveSettings) -> None:
    """Check the two folders before anything else.

    Raises:
        UsageError: Source and target are the same, or part of an archive is to be switched.
        PgOrthancError: A folder is missing, or cannot be written to.
    """
    source, target = settings.source.folder, settings.target.folder
    if settings.is_partial and settings.phase != model.COPY and not settings.is_told_by_rows:
        raise UsageError(
            f"--phase {settings.phase} is for all attachments: Orthanc reads from one storage area only",
            "leave out --study and --older-than",
        )
    if target:
        FilesystemArea(target).prepare()
    if source:
        try:
            area = FilesystemArea(source)
            _ = area.descriptor
        except OSError as error:
            raise PgOrthancError(
                f"the storage folder {printable(str(source))} cannot be read: {error.strerror}",
                "check that it is mounted, or name the right folder",
            ) from None
    same = settings.source == settings.target
    is_folder = ADVANCED not in (settings.source.kind, settings.target.kind)
    if same or (is_folder and source and target and source.samefile(target)):
        raise UsageError(
            f"the attachments are to be moved from {settings.source} to {settings.target}",
            "name another target, or the source with --from-dir",
        )
