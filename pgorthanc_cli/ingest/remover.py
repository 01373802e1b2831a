"""The files of overwritten instances, removed while the next batch is written.

A file system takes longer to remove a file than PostgreSQL takes for its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from pgorthanc_cli.ingest.journal import Journal


class Remover:
    """Removes files in a thread of its own, a batch at a time.

    The batch is in the journal, so that of a killed run the next one removes them.
    """

    def __init__(self, journal: Journal) -> None:
        """Take the journal; the thread gets an area of its own, which is not thread-safe."""
        self._journal = replace(journal, area=copy.copy(journal.area))
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._removal: Future[None] | None = None

    def remove(self, name: str, uuids: Sequence[str]) -> None:
        """Begin to remove a batch whose transaction is committed, once the one before is removed.

        Raises:
            PgOrthancError: The storage folder cannot be written to.
        """
        self._wait()
        self._removal = self._thread.submit(self._remove, name, uuids)

    def close(self) -> None:
        """Wait until everything is removed; raises as `remove`."""
        try:
            self._wait()
        finally:
            self._thread.shutdown()
            self._journal.area.close()

    def _wait(self) -> None:
        removal, self._removal = self._removal, None
        if removal:
            removal.result()

    def _remove(self, name: str, uuids: Sequence[str]) -> None:
        self._journal.discard(uuids)
        self._journal.forget(name)
