"""Cleaning up after dead runs: files that no row names are removed, all others stay.

Nothing is deleted for a run that may be alive. Nothing in a journal is trusted but UUIDs,
and those are looked up in the index.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from pgorthanc_cli import files, storage
from pgorthanc_cli.ingest import runs
from pgorthanc_cli.ingest.journal import (
    FOLDER,
    SET_ASIDE,
    WORKERS,
    Journal,
    open_run_folder,
    open_top_folder,
    remove_run,
)
from pgorthanc_cli.text import printable

# Earlier versions had no heartbeat, but changed their folder with each batch.
LEGACY_STALE_S = 900.0
# For the workers and the session of a process that has just died.
_GRACE_S = 5.0
_PAUSE_S = 0.05
_RUN = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MAX_BYTES = 16 << 20  # of a journal; a batch needs a hundredth of it
_DATABASE = re.compile(r'^\s*\{\s*"database"\s*:\s*"([^"\\]*)"')
_UUID = re.compile(rf'"({storage.UUID_PATTERN})"')


class DamagedJournalError(Exception):
    """A journal cannot be read; has what could be salvaged.

    Attributes:
        database: The index that it belongs to, None if unknown.
        uuids: Whole UUIDs in it.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        match = _DATABASE.match(text)
        self.database = match[1] if match else None
        self.uuids = _UUID.findall(text) if match else []


class Recovery:
    """Cleans up after the dead runs of an area that imported into one index."""

    def __init__(self, journal: Journal, session: runs.Session) -> None:
        self.journal = journal
        self.session = session
        self.area = journal.area
        self._warned: set[str] = set()  # runs and journals, so that each is reported once

    def clean_up(self) -> list[str]:
        """Clean up what can be cleaned up now; may be called again.

        Returns:
            Warnings about runs that may be alive, and about journals that are damaged or
                belong to another database.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        try:
            with self.area.rights, open_top_folder(self.area) as top:
                warnings = []
                self._remove_attempts(top)
                for run in self._other_runs(top):
                    warnings += self._clean_up_run(run, top)
                return warnings
        except OSError as error:
            raise storage.write_error(self.area.root, error) from error

    def _other_runs(self, top: int) -> Iterator[str]:
        for name in sorted(os.listdir(top)):
            run, dot, kind = name.rpartition(".")
            if dot and kind == "lock" and _RUN.fullmatch(run) and run != self.journal.run:
                yield run

    def _remove_attempts(self, top: int) -> None:
        """Remove what runs have left that were killed before their lock file got its name."""
        for name in os.listdir(top):
            run, dot, kind = name.rpartition(".")
            if dot and kind == "new" and _RUN.fullmatch(run):
                # That run goes on, or another import was faster.
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=top, follow_symlinks=False)
                    if self._storage_time_s(top) - status.st_mtime > runs.STALE_S:
                        os.unlink(name, dir_fd=top)

    def _clean_up_run(self, run: str, top: int) -> list[str]:
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW
            lock = files.open_regular(f"{run}.lock", flags, folder=top)
        except FileNotFoundError:
            return []  # another import was faster
        except OSError as error:
            return self._warn(run, f"cannot be opened ({error.strerror}) and is left alone")
        try:
            # Two imports may start at the same time: only one of them cleans up.
            if not runs.try_lock(lock, fcntl.LOCK_EX):
                return []  # it is alive
            return self._clean_up_locked(run, top, lock)
        finally:
            os.close(lock)

    def _clean_up_locked(self, run: str, top: int, lock: int) -> list[str]:
        marker = runs.Marker.parse(os.pread(lock, 4096, 0))
        dead = self._is_dead(marker, top)
        has_session = marker is not None and marker.session
        # Without its advisory lock, the run cannot commit rows for the files removed
        # here.
        if has_session and not _within(_GRACE_S if dead else 0.0, lambda: self.session.hold(run)):
            if not dead:
                return []
            message = "belongs to an import whose session in the database is still open"
            return self._warn(run, message)
        try:
            age_s = self._age_s(run, lock, marker, top)
            if not dead and age_s < (runs.STALE_S if marker else LEGACY_STALE_S):
                return self._warn(run, _may_be_alive(marker, age_s))
            if not self._workers_ended(run, marker, top):
                message = "belongs to a dead import whose worker processes still run"
                return self._warn(run, message)
            return self._clean_up_batches(run, top)
        finally:
            if has_session:
                self.session.release(run)

    def _is_dead(self, marker: runs.Marker | None, top: int) -> bool:
        """Whether a run with a free lock is certainly dead; if not, its age decides."""
        if self.journal.locks and (runs.is_local(top) or (marker and marker.same_boot())):
            return True
        return bool(marker and marker.visible() and runs.has_ended(marker.process))

    def _age_s(self, run: str, lock: int, marker: runs.Marker | None, top: int) -> float:
        """Return how long ago a run was last seen alive, by the clock of the storage."""
        now = self._storage_time_s(top)
        seen = os.fstat(lock).st_mtime
        if marker is None:
            with suppress(FileNotFoundError):
                folder_mtime = os.stat(run, dir_fd=top, follow_symlinks=False).st_mtime
                seen = max(seen, folder_mtime)
        return now - seen

    def _storage_time_s(self, top: int) -> float:
        """Return the time of the storage's clock, which on a network file system is the server's."""
        own_lock = f"{self.journal.run}.lock"
        os.utime(own_lock, dir_fd=top, follow_symlinks=False)
        return os.stat(own_lock, dir_fd=top, follow_symlinks=False).st_mtime

    def _workers_ended(self, run: str, marker: runs.Marker | None, top: int) -> bool:
        """Wait for the workers of a dead run.

        They outlive a killed parent by an instant, in which they may still write a file.
        """
        try:
            with open_run_folder(run, top) as folder:
                flags = os.O_RDWR | os.O_NOFOLLOW
                descriptor = files.open_regular(WORKERS, flags, folder=folder)
        except OSError:
            return True  # it had none
        try:
            # Process ids of another machine or container mean nothing here.
            identities = []
            if marker and marker.visible():
                content = os.pread(descriptor, 1 << 16, 0).decode("ascii", "replace")
                identities = content.splitlines()
            return _within(
                _GRACE_S,
                lambda: runs.try_lock(descriptor, fcntl.LOCK_EX) and all(map(runs.has_ended, identities)),
            )
        finally:
            os.close(descriptor)

    def _clean_up_batches(self, run: str, top: int) -> list[str]:
        warnings = []
        left = False
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            open_run_folder(run, top) as folder,
        ):
            for name in sorted(os.listdir(folder)):
                if name.endswith(".json"):
                    more, removed = self._clean_up_batch(run, name, folder, top)
                    warnings += more
                    left = left or not removed
        if not left:
            remove_run(run, top, self.area)
        return warnings

    def _clean_up_batch(self, run: str, name: str, folder: int, top: int) -> tuple[list[str], bool]:
        """Clean up after one batch; return warnings, and whether its journal is gone."""
        try:
            database, uuids = _read(name, folder)
        except FileNotFoundError:
            return [], True
        except DamagedJournalError as damage:
            return [self._set_aside(run, name, damage, folder, top)], True
        if database != self.journal.database:
            message = (
                "belongs to an interrupted import into another database and is left "
                "alone; run the import for that database again to settle it"
            )
            return self._warn(f"{run}/{name}", message), False
        self._discard_orphans(uuids)
        os.unlink(name, dir_fd=folder)
        return [], True

    def _discard_orphans(self, uuids: list[str]) -> int:
        """Remove the files that no row names; return how many rows name one."""
        named = self.session.named(uuids) if uuids else set()
        self.journal.discard(u for u in uuids if u not in named)
        return len(named)

    def _set_aside(self, run: str, name: str, damage: DamagedJournalError, folder: int, top: int) -> str:
        """Move a damaged journal away after salvaging its UUIDs; return a warning."""
        same_database = damage.database == self.journal.database
        # UUIDs are unique, but only the right index knows which of them have a row.
        rows = self._discard_orphans(damage.uuids) if same_database else 0
        with suppress(FileExistsError):
            os.mkdir(SET_ASIDE, 0o700, dir_fd=top)
        with open_run_folder(SET_ASIDE, top) as aside:
            os.rename(name, f"{run}-{name}", src_dir_fd=folder, dst_dir_fd=aside)
        before, after = (
            self._path(f"{run}/{name}"),
            self._path(f"{SET_ASIDE}/{run}-{name}"),
        )
        message = f"{before} is damaged ({damage}) and was set aside as {after}"
        if not same_database:
            return f"{message}; files of that import that no row names may be left in {self.area.root}"
        return (
            f"{message}; of {len(damage.uuids)} files that it still names, the index has "
            f"{rows}, and the others were removed"
        )

    def _warn(self, name: str, message: str) -> list[str]:
        """Return the warning, or none if it was reported before."""
        if name in self._warned:
            return []
        self._warned.add(name)
        return [f"{self._path(name if '/' in name else f'{name}.lock')} {message}"]

    def _path(self, name: str) -> str:
        return printable(str(self.area.root / FOLDER / name))


def _may_be_alive(marker: runs.Marker | None, age_s: float) -> str:
    """Return why nothing was deleted, and what to do."""
    who = "an import"
    if marker:
        pid = marker.process.split(" ")[0]
        who = f"an import on {printable(marker.host)} (process {pid})"
    rest_s = max(0.0, (runs.STALE_S if marker else LEGACY_STALE_S) - age_s)
    return (
        f"belongs to {who} that was last seen {max(0.0, age_s):.0f} s ago and may be "
        "alive, so its files were kept; if it was killed, run this import again in "
        f"{rest_s + 1:.0f} s: it removes what no row names"
    )


def _read(name: str, folder: int) -> tuple[str, list[str]]:
    """Return the database and the UUIDs of a journal.

    Raises:
        FileNotFoundError: It is gone.
        DamagedJournalError: It is not a journal.
    """
    try:
        descriptor = files.open_regular(name, os.O_NOFOLLOW, folder=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedJournalError(error.strerror or str(error)) from None
    with os.fdopen(descriptor, "rb") as stream:
        raw = stream.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise DamagedJournalError(f"more than {_MAX_BYTES >> 20} MiB")
    text = raw.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedJournalError("not JSON" if raw else "empty", text) from None
    database = content.get("database") if isinstance(content, dict) else None
    uuids = content.get("uuids") if isinstance(content, dict) else None
    if not isinstance(database, str) or not isinstance(uuids, list):
        raise DamagedJournalError("not a journal", text)
    # A name that is not a UUID could lead out of the storage area.
    if not all(isinstance(each, str) and storage.is_uuid(each) for each in uuids):
        raise DamagedJournalError("it names files that are no attachments", text)
    return database, uuids


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true in that time; it is tried once at least."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return met
