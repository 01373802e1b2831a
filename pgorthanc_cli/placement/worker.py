"""What worker processes do with some attachments: copy them, or remove them from the source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pgorthanc_cli import db
from pgorthanc_cli.placement.ends import BothEnds, Content, Unreadable, difference, digest
from pgorthanc_cli.placement.model import MoveSettings, Row
from pgorthanc_cli.placement.row_worker import RowMover
from pgorthanc_cli.storage import is_uuid


class Batch(NamedTuple):
    """What became of some attachments.

    Attributes:
        done: How many were copied, or removed.
        bytes: Their stored bytes.
        already_there: How many were in the target, or no longer in the source.
        failed: The others, each with a reason.
    """

    done: int
    bytes: int
    already_there: int
    failed: list[tuple[Row, str]]


class Mover(BothEnds):
    """Copies and removes attachments whose rows stay as they are."""

    def copy(self, rows: Sequence[tuple[Any, ...]], trusted: bool) -> Batch:
        """Copy what is not in the target; prove both sides.

        Args:
            rows: The attachments.
            trusted: What is in the target was proved before: compare its size only.
        """
        failed: list[tuple[Row, str]] = []
        missing = self._missing([Row(*row) for row in rows], trusted=trusted, failed=failed)
        contents = []
        # Each is read twice, to prove and to write it: so no content has to fit into memory.
        for row, chunks in self._from.open(missing):
            try:
                actual = digest(chunks())
            except Unreadable as error:
                failed.append((row, str(error)))
                continue
            if reason := difference(row, *actual):
                failed.append((row, reason))
            else:
                contents.append(Content(row, chunks, actual[1]))
        if contents:
            self._to.put(contents)
        size = sum(each.row.size for each in contents)
        return Batch(len(contents), size, len(rows) - len(contents) - len(failed), failed)

    def _missing(self, rows: Sequence[Row], *, trusted: bool, failed: list[tuple[Row, str]]) -> list[Row]:
        """Return which attachments have to be copied."""
        failed += [(row, "its name is not a UUID") for row in rows if not is_uuid(row.uuid)]
        rows = [row for row in rows if is_uuid(row.uuid)]
        sizes = self._to.sizes(rows)
        present = [row for row in rows if sizes.get(row.key) == row.size]
        if not trusted:
            present = self._proved(present)
        right = set(present)
        return [row for row in rows if row not in right]

    def _proved(self, rows: Sequence[Row]) -> list[Row]:
        """Return those whose content in the target is right: by the index, or by the source without an MD5."""
        without = [row for row in rows if not row.md5]
        expected = {row.key: (row.size, row.md5) for row in rows}
        for row, chunks in self._from.open(without):
            try:
                expected[row.key] = digest(chunks())
            except Unreadable:
                # Equals no content: it counts as not proved.
                expected[row.key] = (-1, "")
        proved = []
        for row, chunks in self._to.open(rows):
            try:
                if digest(chunks()) == expected[row.key]:
                    proved.append(row)
            except Unreadable:
                continue
        return proved

    def clean(self, rows: Sequence[tuple[Any, ...]]) -> Batch:
        """Remove from the source what the target has, with the right content."""
        sizes = self._from.sizes([Row(*row) for row in rows])
        present = [row for row in (Row(*each) for each in rows) if row.key in sizes]
        proved = set(self._proved(present))
        failed = [(row, "the target does not have its content") for row in present if row not in proved]
        removed = [row for row in present if row in proved]
        if removed:
            self._from.remove(removed)
        size = sum(sizes[row.key] for row in removed)
        return Batch(len(removed), size, len(rows) - len(present), failed)


_mover: Mover | RowMover | None = None


def work(target: db.Target, settings: MoveSettings, task: str, *arguments: Any) -> Any:
    """Run a method of this process's mover: `copy`, `clean` or `list_part`, `copy_rows` or `clean_rows`."""
    global _mover
    # Connections and folders stay open from one batch to the next.
    if _mover is None or (_mover.target, _mover.settings) != (target, settings):
        _mover = (RowMover if settings.changes_rows else Mover)(target, settings)
    result = getattr(_mover, task)(*arguments)
    _mover.finish()
    return result
