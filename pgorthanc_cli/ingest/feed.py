"""Which files an import takes, and when: shares, known files, rates, hours, and what arrives later.

All of it decides only what is handed to a run; the run itself is the same as ever. While nothing may or can be
done there is no run: no connection, no lock, no process is held.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pgorthanc_cli import db, index
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.ingest import follow, known, stored
from pgorthanc_cli.ingest.limits import Hours, Limits
from pgorthanc_cli.ingest.report import Batch, Settings
from pgorthanc_cli.ingest.shard import Shard
from pgorthanc_cli.ingest.walk import Source, walk

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

FEW_FILES = 200


class Run(Protocol):
    """A way to import sources, such as `run_sources`; `few` says that it is not worth starting processes."""

    def __call__(self, sources: Iterator[Source | Batch], *, few: bool) -> Iterator[Batch]:
        """Yields what has become of them."""


@dataclass(frozen=True)
class Feed:
    """Which files, and when.

    Attributes:
        paths: Files and folders; consumed while working, but for `follow`.
        shard: The share of this machine.
        journal: The file in which it is remembered what each file holds.
        limits: How fast.
        hours: When.
        follow: Go on with what arrives in the folders, until stopped.
        settle_s: To follow: a file is taken when it has stayed the same for so many seconds.
    """

    paths: Iterable[str]
    shard: Shard | None = None
    journal: Path | None = None
    limits: Limits = field(default_factory=Limits)
    hours: Hours | None = None
    follow: bool = False
    settle_s: float = 5.0


def deliver(
    target: db.Target, feed: Feed, settings: Settings, run: Run, stop: threading.Event
) -> Iterator[Batch]:
    """Import what the feed brings: `run` is called once or again and again, and its batches are passed on.

    Raises:
        UsageError: The settings contradict the feed.
        PgOrthancError: The journal cannot be used; and whatever `run` raises.
    """
    if feed.journal and settings.overwrite is not index.Overwrite.NEVER:
        raise UsageError(
            "--journal passes over files that the index has, and --overwrite replaces them",
            "leave out one of them",
        )
    with ExitStack() as stack:
        record = None
        if feed.journal or feed.follow:
            record, warnings = stack.enter_context(known.opened(feed.journal, settings.profile))
            yield Batch(warnings=tuple(warnings))
        for sources, few in _rounds(feed, settings, record, stop):
            for batch in _Round(target, feed, settings, record, run, stop).batches(sources, few=few):
                if record:
                    record.add(batch.items)
                yield batch


def _rounds(
    feed: Feed, settings: Settings, record: known.Record | None, stop: threading.Event
) -> Iterator[tuple[Iterable[Source], bool]]:
    """Everything that is there; then, to follow, what arrives, and whether that is only little."""
    paths = tuple(feed.paths) if feed.follow else feed.paths

    def found() -> Iterator[Source]:
        return (feed.shard.walk if feed.shard else walk)(paths, settings.storage_dir)

    if not feed.follow or record is None:
        yield found(), False
        return
    yield record.seeing(follow.settled(found(), feed.settle_s)), False
    for arrived in follow.arrivals(lambda: record.unseen(found()), stop, settle_s=feed.settle_s):
        yield record.seeing(arrived), len(arrived) <= FEW_FILES


class _Round:
    """One run over sources, or, with hours, one in each span of them until all is done."""

    def __init__(
        self,
        target: db.Target,
        feed: Feed,
        settings: Settings,
        record: known.Record | None,
        run: Run,
        stop: threading.Event,
    ) -> None:
        self.target = target
        self.feed = feed
        self.settings = settings
        self.record = record
        self.run = run
        self.stop = stop

    def batches(self, sources: Iterable[Source], *, few: bool) -> Iterator[Batch]:
        with closing(_Index(self.target, self.settings)) as index_:
            left: Iterator[Source | Batch] = iter(sources)
            if self.record and self.feed.journal:
                left = self.record.unknown(left, index_.known)
            left = self.feed.limits.throttled(left, self.stop)
            hours = self.feed.hours
            if hours is None:
                yield from self.run(left, few=few)
                return
            while True:
                if not hours.open():
                    yield Batch(
                        warnings=(
                            f"outside the hours of the schedule: waiting until {hours.opening():%A %H:%M}",
                        )
                    )
                first = next(left, None) if hours.wait(self.stop) else None
                if first is None:
                    return
                yield from self.run(hours.during(itertools.chain([first], left)), few=few)
                index_.close()


class _Index:
    """Tells which instances the index has, content included; the connection is opened when it is needed."""

    def __init__(self, target: db.Target, settings: Settings) -> None:
        self._target = target
        self._settings = settings
        self._stack = ExitStack()
        self._conn: Connection | None = None
        self._capabilities: index.Capabilities | None = None

    def known(self, contents: list[known.Content]) -> set[known.Content]:
        if self._conn is None:
            self._conn = self._stack.enter_context(db.session(self._target, autocommit=True, readonly=True))
        with db.translate_errors(self._conn), self._conn.cursor() as cur:
            if self._capabilities is None:
                self._capabilities = index.Capabilities.read(self._conn)
            there = index.stored_attachments(
                cur, self._capabilities, [public_id for public_id, _ in contents]
            )
            lost: set[str] = set()
            if self._settings.store_dicom:
                every = [a for attachments in there.values() for a in attachments]
                lost = stored.lost(cur, self._settings.storage_dir, every)
        return {
            (public_id, md5)
            for public_id, md5 in contents
            if (attachments := there.get(public_id))
            and not any(a.uuid in lost for a in attachments)
            and (md5 is None or any(a.file_type == stored.DICOM and a.md5 in ("", md5) for a in attachments))
        }

    def close(self) -> None:
        self._conn = None
        self._stack.close()
