"""How far long work is: a line that changes on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

from pgorthanc_cli.ingest import Batch
from pgorthanc_cli.text import duration, percent, progress_line


class ImportProgress:
    """What an import has done so far.

    Attributes:
        files: Files read, or members of archives.
        imported: Those of them that are new in the index, or replaced.
        refused: Those of them that were refused.
        total: Files to read, as far as they have been counted.
        counted: Whether `total` is final.
    """

    def __init__(self) -> None:
        self.files = self.imported = self.refused = self.total = 0
        self.counted = False

    def add(self, batch: Batch) -> None:
        """Add the files of a batch."""
        self.files += batch.files
        self.imported += batch.imported + batch.overwritten + batch.restored
        self.refused += len(batch.refusals)

    def line(self, elapsed_s: float) -> str:
        """Return the line for a terminal, after so many seconds."""
        remarks = []
        if self.total > self.files and not self.counted:
            remarks.append(f"{self.total:,} found so far")
        if self.refused:
            remarks.append(f"{self.refused:,} refused")
        total = self.total if self.counted else None
        return progress_line("importing", self.files, total, elapsed_s, remarks=remarks)

    def following_line(self, elapsed_s: float) -> str:
        """Return the line for a terminal while folders are followed, which has no end."""
        counts = f"{self.imported:,} imported, {self.refused:,} refused"
        return f"  following  {counts} · {duration(elapsed_s)}"

    def log_line(self, elapsed_s: float) -> str:
        """Return the line for a log: words that a program can split at spaces."""
        rate = self.files / max(elapsed_s, 0.001)
        done = f"{self.files}/{self.total} {percent(self.files, self.total)}" if self.counted else self.files
        left = ""
        if self.counted and self.files < self.total and rate:
            left = f" left={(self.total - self.files) / rate:.0f}s"
        return f"import {done} {rate:.0f}/s refused={self.refused}{left}"


def arrived(batch: Batch) -> str:
    """Return what a batch has brought, or "" if nothing in it is new."""
    counts = {
        "imported": batch.imported,
        "replaced": batch.overwritten,
        "restored": batch.restored,
        "refused": len(batch.refusals),
    }
    return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)
