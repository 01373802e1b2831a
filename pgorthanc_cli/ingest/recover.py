"""What dead runs have left in the storage area: files that no row names are removed, all others stay.

Nothing is deleted for a run that may be alive, and nothing that a journal says is believed but UUIDs, which are
looked up in the index.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import NamedTuple

from pgorthanc_cli import files, storage
from pgorthanc_cli.ingest import journal, runs
from pgorthanc_cli.text import printable

LEGACY_STALE_S = 900.0  # earlier versions had no heartbeat, but changed their folder with each batch
_PATIENCE_S = 5.0  # for the workers and the session of a process that has just died
_PAUSE_S = 0.05
_RUN = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MOST_BYTES = 16 << 20  # of a journal; a batch needs a hundredth of it
_DATABASE = re.compile(r'^\s*\{\s*"database"\s*:\s*"([^"\\]*)"')
_NAMED = re.compile(rf'"({storage.UUID_PATTERN})"')


class Damaged(Exception):
    """A journal cannot be read; says what could be saved.

    Attributes:
        database: The index that it belongs to, None if that is not to be seen.
        uuids: Whole UUIDs in it.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        about = _DATABASE.match(text)
        self.database = about[1] if about else None
        self.uuids = _NAMED.findall(text) if about else []


class Entry(NamedTuple):
    """What a journal says."""

    database: str
    uuids: list[str]


class Recovery:
    """Settles the dead runs of an area, for the index of one run; may be done again."""

    def __init__(self, journals: journal.Journal, session: runs.Session) -> None:
        self.journals = journals
        self.session = session
        self.area = journals.area
        self._told: set[str] = set()  # runs that there was a warning about

    def settle(self) -> list[str]:
        """Settle what can be settled now.

        Returns:
            Warnings: about runs that may be alive, and journals that are damaged or of another database.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        try:
            with self.area.rights, journal.top(self.area) as top:
                return [w for run in self._runs(top) for w in self._settle(run, top)]
        except OSError as error:
            raise storage.write_error(self.area.root, error) from error

    def _runs(self, top: int) -> Iterator[str]:
        for name in sorted(os.listdir(top)):
            run, dot, kind = name.rpartition(".")
            if dot and kind == "lock" and _RUN.fullmatch(run) and run != self.journals.run:
                yield run

    def _settle(self, run: str, top: int) -> Iterator[str]:
        try:
            lock = files.open_regular(f"{run}.lock", os.O_RDWR | os.O_NOFOLLOW, folder=top)
        except FileNotFoundError:
            return  # another import has settled it
        except OSError as error:
            yield from self._warn(run, f"cannot be opened ({error.strerror}) and is left alone")
            return
        try:
            yield from self._settle_locked(run, top, lock)
        finally:
            os.close(lock)

    def _settle_locked(self, run: str, top: int, lock: int) -> Iterator[str]:
        if not runs.take(lock, fcntl.LOCK_EX):
            return  # it lives
        marker = runs.Marker.parse(os.pread(lock, 4096, 0))
        dead = self._is_dead(marker, top)
        held = self._hold(run, marker, patient=dead)
        if held is False:
            if dead:
                yield from self._warn(run, "belongs to an import whose session in the database is still open")
            return
        try:
            age = self._age(run, lock, marker, top)
            if not dead and age < (runs.STALE_S if marker else LEGACY_STALE_S):
                yield from self._warn(run, _may_be_alive(marker, age))
            elif not self._await_workers(run, marker, top):
                yield from self._warn(run, "belongs to a dead import whose worker processes still run")
            else:
                yield from self._settle_run(run, top)
        finally:
            if held:
                self.session.release(run)

    def _is_dead(self, marker: runs.Marker | None, top: int) -> bool:
        """Whether a run whose lock is free is known to be dead; if not, its heartbeat decides."""
        if self.journals.locks and (runs.is_local(top) or (marker and marker.same_boot())):
            return True
        return bool(marker and marker.visible() and runs.gone(marker.process))

    def _hold(self, run: str, marker: runs.Marker | None, *, patient: bool) -> bool | None:
        """Hold the lock that it had in the database; False: its session still has it; None: it had none."""
        if marker is None or not marker.session:
            return None
        return _within(_PATIENCE_S if patient else 0.0, lambda: self.session.take(run))

    def _age(self, run: str, lock: int, marker: runs.Marker | None, top: int) -> float:
        """How long ago it was last seen alive, by the clock of the storage."""
        own = f"{self.journals.run}.lock"
        os.utime(own, dir_fd=top, follow_symlinks=False)
        seen = os.fstat(lock).st_mtime
        if marker is None:
            with suppress(FileNotFoundError):
                seen = max(seen, os.stat(run, dir_fd=top, follow_symlinks=False).st_mtime)
        return os.stat(own, dir_fd=top, follow_symlinks=False).st_mtime - seen

    def _await_workers(self, run: str, marker: runs.Marker | None, top: int) -> bool:
        """Workers outlive a killed parent by an instant, in which they may still write a file."""
        try:
            with journal.folder_of(run, top) as folder:
                descriptor = files.open_regular(journal.WORKERS, os.O_RDWR | os.O_NOFOLLOW, folder=folder)
        except OSError:
            return True  # it had none
        try:
            written = os.pread(descriptor, 1 << 16, 0).decode("ascii", "replace").splitlines()
            seen = written if marker and marker.visible() else []
            return _within(
                _PATIENCE_S, lambda: runs.take(descriptor, fcntl.LOCK_EX) and all(map(runs.gone, seen))
            )
        finally:
            os.close(descriptor)

    def _settle_run(self, run: str, top: int) -> Iterator[str]:
        left = False
        with suppress(FileNotFoundError, NotADirectoryError), journal.folder_of(run, top) as folder:
            for name in sorted(os.listdir(folder)):
                if name.endswith(".json"):
                    kept = yield from self._settle_entry(run, name, folder, top)
                    left = left or kept
        if not left:
            journal.remove(run, top, self.area)

    def _settle_entry(self, run: str, name: str, folder: int, top: int) -> Generator[str, None, bool]:
        """Settle one journal; whether it has to stay."""
        try:
            entry = _read(name, folder)
        except FileNotFoundError:
            return False
        except Damaged as damage:
            yield self._set_aside(run, name, damage, folder, top)
            return False
        if entry.database != self.journals.database:
            yield from self._warn(
                f"{run}/{name}",
                "belongs to an interrupted import into another database and is left alone; "
                "run the import for that database again to settle it",
            )
            return True
        self._discard(entry.uuids)
        os.unlink(name, dir_fd=folder)
        return False

    def _discard(self, uuids: list[str]) -> int:
        """Remove those files that no row names; how many rows name one."""
        kept = self.session.named(uuids) if uuids else set()
        self.journals.discard(u for u in uuids if u not in kept)
        return len(kept)

    def _set_aside(self, run: str, name: str, damage: Damaged, folder: int, top: int) -> str:
        """Keep a damaged journal for people, and do for the UUIDs in it what can be done."""
        ours = damage.database == self.journals.database
        rows = self._discard(damage.uuids) if ours else 0
        with suppress(FileExistsError):
            os.mkdir(journal.SET_ASIDE, 0o700, dir_fd=top)
        with journal.folder_of(journal.SET_ASIDE, top) as aside:
            os.rename(name, f"{run}-{name}", src_dir_fd=folder, dst_dir_fd=aside)
        path = self._path(f"{journal.SET_ASIDE}/{run}-{name}")
        message = f"{self._path(f'{run}/{name}')} is damaged ({damage}) and was set aside as {path}"
        if not ours:
            return f"{message}; files of that import that no row names may be left in {self.area.root}"
        return (
            f"{message}; of {len(damage.uuids)} files that it still names, the index has {rows}, "
            "and the others were removed"
        )

    def _warn(self, name: str, what: str) -> Iterator[str]:
        """Say it once in a run."""
        if name not in self._told:
            self._told.add(name)
            yield f"{self._path(name if '/' in name else f'{name}.lock')} {what}"

    def _path(self, name: str) -> str:
        return printable(str(self.area.root / journal.FOLDER / name))


def _may_be_alive(marker: runs.Marker | None, age: float) -> str:
    """Why nothing was deleted, and what settles it."""
    who = (
        f"an import on {printable(marker.host)} (process {marker.process.split(' ')[0]})"
        if marker
        else "an import"
    )
    rest = max(0.0, (runs.STALE_S if marker else LEGACY_STALE_S) - age)
    return (
        f"belongs to {who} that was last seen {max(0.0, age):.0f} s ago and may be alive, so its files were kept; "
        f"if it was killed, run this import again in {rest + 1:.0f} s: it removes what no row names"
    )


def _read(name: str, folder: int) -> Entry:
    """What a journal says.

    Raises:
        FileNotFoundError: It is gone.
        Damaged: It is not what a journal must be.
    """
    try:
        descriptor = files.open_regular(name, os.O_NOFOLLOW, folder=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(error.strerror or str(error)) from None
    with os.fdopen(descriptor, "rb") as stream:
        raw = stream.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise Damaged(f"more than {_MOST_BYTES >> 20} MiB")
    text = raw.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise Damaged("not JSON" if raw else "empty", text) from None
    database = content.get("database") if isinstance(content, dict) else None
    uuids = content.get("uuids") if isinstance(content, dict) else None
    if not isinstance(database, str) or not isinstance(uuids, list):
        raise Damaged("not a journal", text)
    if not all(isinstance(each, str) and storage.is_uuid(each) for each in uuids):
        raise Damaged("it names files that are no attachments", text)
    return Entry(database, uuids)


def _within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether something becomes true in that time; tried once at least."""
    deadline = time.monotonic() + seconds
    while not (done := true()) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    return done
