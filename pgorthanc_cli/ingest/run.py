"""An import from start to end: which files it takes, and when it runs.

Shards, known files, rates, hours and following folders only decide which files are handed
to `pipeline.import_sources` or to a Dask cluster. While nothing may or can be done, no
connection, no lock and no process is held.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from pgorthanc_cli import db, index
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.ingest import arrivals, stored
from pgorthanc_cli.ingest.model import Batch, ImportResult, Tally, ignore
from pgorthanc_cli.ingest.pipeline import ReportBatch, import_sources
from pgorthanc_cli.ingest.settings import ImportPlan, Settings
from pgorthanc_cli.ingest.walk import Source, walk

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from pgorthanc_cli.ingest import known_files

SMALL_FILES = 200  # for so few files that arrived, no processes are started


def run_import(
    target: db.Target,
    plan: ImportPlan,
    settings: Settings | None = None,
    *,
    stop: threading.Event | None = None,
    report: ReportBatch = ignore,
    tally: Tally | None = None,
) -> ImportResult:
    """Import the files of a plan.

    Args:
        target: The database of the index; any revision from 1 on.
        plan: Which files, when, and by how many workers.
        settings: How to import.
        stop: Set it to end after the current batch.
        report: Called with each batch, once it is committed.
        tally: Counts the batches; after an error it has what was committed.

    Raises:
        UsageError: The settings contradict the plan, or each other.
        InUseError: An Orthanc uses the database (unless `settings.concurrent`).
        RevisionError: There is no index, or none that can be written to.
        ConnectError: The connection was lost; what was reported is committed.
        PgOrthancError: The storage area or the journal cannot be written to.
    """
    settings = settings or Settings()
    tally = tally or Tally(dry_run=settings.dry_run, adopting=settings.adopt is not None)
    return _Import(target, plan, settings, stop or threading.Event(), report, tally).run()


class _Import:
    def __init__(
        self,
        target: db.Target,
        plan: ImportPlan,
        settings: Settings,
        stop: threading.Event,
        report: ReportBatch,
        tally: Tally,
    ) -> None:
        self.target = target
        self.plan = plan
        self.settings = settings
        self.stop = stop
        self.report = report
        self.tally = tally
        self.journal: known_files.Journal | None = None

    def run(self) -> ImportResult:
        plan = self.plan
        if plan.journal and self.settings.overwrite is not index.Overwrite.NEVER:
            raise UsageError(
                "--journal passes over files that the index has, and --overwrite replaces them",
                "leave out one of them",
            )
        with ExitStack() as stack:
            # To follow folders, a temporary journal remembers the files seen before.
            if plan.journal or plan.follow:
                # With SQLite, which other imports do not need.
                from pgorthanc_cli.ingest import known_files

                self.journal, warnings = stack.enter_context(
                    known_files.open_journal(
                        plan.journal, self.settings.profile, delay_s=plan.journal_delay_s
                    )
                )
                self._done(Batch(warnings=tuple(warnings)))
            if plan.follow and self.journal:
                self._follow(tuple(plan.paths), self.journal)
            else:
                self._import(self._walk(plan.paths), jobs=plan.jobs)
        return self.tally.result(interrupted=self.stop.is_set() and not plan.follow)

    def _done(self, batch: Batch) -> None:
        # The rows are committed: from now on a rerun need not read these files.
        if self.journal:
            self.journal.add(batch.items)
        self.tally.add(batch)
        self.report(batch)

    def _walk(self, paths: Iterable[str]) -> Iterator[Source]:
        walk_paths = self.plan.shard.walk if self.plan.shard else walk
        return walk_paths(paths, self.settings.own_folders)

    def _follow(self, paths: tuple[str, ...], journal: known_files.Journal) -> None:
        """Import the files that are there, then those that arrive, until stopped."""
        plan = self.plan
        existing = arrivals.complete(self._walk(paths), plan.settle_s)
        self._import(journal.seeing(existing), jobs=plan.jobs)
        for arrived in arrivals.arrivals(
            lambda: journal.unseen(self._walk(paths)),
            self.stop,
            settle_s=plan.settle_s,
            poll_s=plan.poll_s,
            poll_rest=plan.poll_rest,
            max_waiting=plan.max_waiting,
        ):
            # Starting processes takes longer than importing a few files.
            jobs = 1 if len(arrived) <= SMALL_FILES else plan.jobs
            self._import(journal.seeing(arrived), jobs=jobs)

    def _import(self, sources: Iterable[Source], *, jobs: int) -> None:
        """Import in one run; with hours, in one for each of their spans."""
        with closing(_IndexLookup(self.target, self.settings)) as lookup:
            remaining = iter(sources)
            if self.journal and self.plan.journal:
                remaining = self.journal.mark_known(remaining, lookup.known)
            remaining = self.plan.limits.throttled(remaining, self.stop)
            hours = self.plan.hours
            if hours is None:
                self._run(remaining, jobs=jobs)
                return
            while True:
                if not hours.open():
                    opening = f"{hours.opening():%A %H:%M}"
                    message = f"outside the hours of the schedule: waiting until {opening}"
                    self._done(Batch(warnings=(message,)))
                # Without a file left, no further run takes the lock.
                first = next(remaining, None) if hours.wait(self.stop) else None
                if first is None:
                    return
                self._run(hours.during(itertools.chain([first], remaining)), jobs=jobs)
                lookup.close()  # no connection is held until the next span

    def _run(self, sources: Iterable[Source], *, jobs: int) -> None:
        if self.plan.scheduler:
            from pgorthanc_cli.ingest import dask_cluster

            dask_cluster.import_sources(
                self.target,
                sources,
                self.settings,
                scheduler=self.plan.scheduler,
                stop=self.stop,
                report=self._done,
                connected=self.tally.connected,
            )
        else:
            import_sources(
                self.target,
                sources,
                self.settings,
                jobs=jobs,
                stop=self.stop,
                report=self._done,
                connected=self.tally.connected,
            )


class _IndexLookup:
    """Finds which instances the index has, content included; connects when needed."""

    def __init__(self, target: db.Target, settings: Settings) -> None:
        self._target = target
        self._settings = settings
        self._stack = ExitStack()
        self._conn: Connection | None = None
        self._capabilities: index.Capabilities | None = None

    def known(self, versions: list[known_files.Version]) -> set[known_files.Version]:
        if self._conn is None:
            session = db.session(self._target, autocommit=True, readonly=True)
            self._conn = self._stack.enter_context(session)
        with db.translate_errors(self._conn), self._conn.cursor() as cur:
            if self._capabilities is None:
                self._capabilities = index.Capabilities.read(self._conn)
            public_ids = [public_id for public_id, _ in versions]
            attachments = index.stored_attachments(cur, self._capabilities, public_ids)
            missing: set[str] = set()
            if self._settings.store_dicom and not self._settings.adopt:
                every = [a for group in attachments.values() for a in group]
                missing = stored.missing(cur, self._settings.storage_dir, every)
        return {
            (public_id, md5)
            for public_id, md5 in versions
            if _has_content(attachments.get(public_id, ()), md5, missing)
        }

    def close(self) -> None:
        self._conn = None
        self._stack.close()


def _has_content(attachments: Iterable[index.StoredAttachment], md5: str | None, missing: set[str]) -> bool:
    """Whether the attachments of an instance are all there and have this content.

    None and "" are MD5s that an older journal, or the index, does not know.
    """
    attachments = list(attachments)
    if not attachments or any(a.uuid in missing for a in attachments):
        return False
    if md5 is None:
        return True
    files = [a for a in attachments if a.file_type == stored.DICOM]
    return any(a.md5 in ("", md5) for a in files)
