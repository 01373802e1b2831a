"""The phases of a move that changes rows: to or from the advanced-storage plugin, or to another compression.

Here a row says where its file is, or how it is stored. So `switch` changes rows, in one
transaction, with Orthanc stopped; `copy` and `clean` work while it is running.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pgorthanc_cli import db, locks
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.placement.model import ADVANCED, Attachment, Row
from pgorthanc_cli.placement.phases import Run, batches
from pgorthanc_cli.placement.proved import Journal, ProvedRows
from pgorthanc_cli.placement.rules import Rules
from pgorthanc_cli.text import plural


@dataclass
class RowRun(Run):
    """One phase and what it has counted so far."""

    identity: str = ""
    _journal: Journal = field(init=False)
    _proved: ProvedRows = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._journal = Journal(self.settings, self.identity)
        self._proved = ProvedRows(self.attachments.conn, self.attachments.selected)
        self._proved.load(self._journal)

    def copy(self) -> None:
        """Copy everything that is not in the target yet."""
        # With the plugin StorageDirectory may be empty: all files may be in its storages.
        if self.settings.source.kind != ADVANCED:
            self.require_the_right_source()
        for rows in batches(self._proved.attachments(), self.batch_files):
            self.submit("copy_rows", rows)
        self.collect_all()
        self.forget_deleted()
        self.record.switched = False

    def note(self, batch: Any) -> None:
        """Record what a batch has proved, before anything is done that depends on it."""
        self._journal.append(batch.entries)
        self.kept += batch.kept

    def switch(self) -> None:
        """Copy the remainder and change the rows, with Orthanc stopped and kept from starting."""
        conn = self.attachments.conn
        with ExitStack() as stack:
            for lock in (db.LOCK_INDEX, db.LOCK_STORAGE):
                stack.enter_context(db.advisory_lock(conn, lock, wait_s=0))
            self.warnings += locks.require_no_orthanc(conn, conn.schema)
            conn.rollback()
            self.copy()
            self._proved.load(self._journal)
            taken = set(self._proved.conflicts())
            if taken:
                reason = "another attachment has the same path in the target"
                rows = (Row(*each[:5]) for each in self._proved.attachments() if each.uuid in taken)
                self.failures += [(row, reason) for row in rows]
            if not self.failures:
                with db.translate_errors(conn, conn.schema):
                    self._proved.switch()
            self.record.switched = not self.failures
            self.unknown = self._proved.deleted()

    def remove_all(self) -> None:
        """Remove from the source what the index names in the target."""
        for rows in batches(self._proved.switched(), self.batch_files):
            kept = self._without_adopted(rows)
            if kept:
                self.submit("clean_rows", kept)
        self.collect_all()
        self.unknown = self._proved.deleted()
        if not self.failures and not self.unknown and self.settings.is_told_by_rows:
            self._journal.remove()

    def _without_adopted(self, rows: Sequence[Attachment]) -> list[Attachment]:
        """Return the attachments whose file in the source is not one that another instance has adopted."""
        rules = Rules(self.settings)
        paths = {each: os.path.join((row := rules.source(each)).root, row.name) for each in rows}
        taken = self._proved.adopted([path for path in paths.values() if path])
        reason = "an instance has adopted this file"
        self.failures += [(Row(*each[:5]), reason) for each, path in paths.items() if path in taken]
        return [each for each in rows if paths[each] not in taken]

    def count_left(self) -> int:
        """Return what no row names in an ordinary source; what another plugin's folders hold is not counted."""
        return 0 if self.settings.source.kind == ADVANCED else super().count_left()

    def require_switched(self) -> None:
        """Refuse to remove what an Orthanc may still use.

        Raises:
            UsageError: The switch is not done.
        """
        if not self.settings.is_told_by_rows:
            super().require_switched()

    def require_nothing_missing(self) -> None:
        """Refuse to clean while the index has attachments that are not in the target."""
        if self.settings.target.kind != ADVANCED:
            super().require_nothing_missing()
            return
        query = "SELECT count(*) FROM index.attachedfiles WHERE COALESCE(customdata, '') = ''"
        count = db.value(self.attachments.conn, query)
        self.attachments.conn.rollback()
        if count:
            raise UsageError(
                f"{plural(count, 'attachment')} not in {self.settings.target}: an Orthanc still stores in "
                f"{self.settings.source}",
                "nothing was removed; stop Orthanc, repeat --phase switch, and start it with the new configuration",
            )
