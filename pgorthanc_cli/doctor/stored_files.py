"""Check of the stored files, by the journal of `verify storage`: this room reads no file of the area."""

from __future__ import annotations

import shlex
import sqlite3
from datetime import datetime, timezone

from pgorthanc_cli import index
from pgorthanc_cli.doctor.model import Subject, Verdict, check
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.scrub import HARMLESS, NORMAL, JournalSummary, journal_summary
from pgorthanc_cli.text import duration, plural, printable

_DAY_S = 86_400.0
_LATE_S, _OLD_S = 8 * _DAY_S, 90 * _DAY_S  # a weekly check was missed; so old a check proves little


@check("storage", needs_index=True)
def storage(subject: Subject) -> Verdict:
    """Check that stored files are checked regularly, and that the last check found no damage."""
    path = subject.scrub_journal
    if path is None:
        return Verdict(
            "UNKNOWN", "not checked: no journal is named", "Name that of verify storage with --journal."
        )
    name = printable(str(path))
    command = ""
    if subject.storage_words is not None:
        words = ("verify", "storage", *subject.storage_words, "--journal", str(path))
        command = shlex.join(words)
    try:
        with subject.conn.cursor() as cur:
            identity = index.identity(cur)
        summary = journal_summary(path, identity)
    except FileNotFoundError:
        hint = "It is not known whether index and stored files fit together. Check them:"
        return Verdict(
            "WARNING", f"stored files were never checked: no journal at {name}", hint, command=command
        )
    except UsageError as error:
        return Verdict("UNKNOWN", error.message, "Name the journal of this index.")
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if "locked" in reason:
            return Verdict("OK", "a check of the stored files is running now")
        return Verdict("UNKNOWN", f"the journal {name} cannot be read: {reason}", "Run doctor as its owner.")
    return _judge(summary, command)


def _judge(summary: JournalSummary, command: str) -> Verdict:
    """Return the worst of what a journal tells."""
    now = datetime.now(timezone.utc)
    age_s = (now - summary.finished_at).total_seconds() if summary.finished_at else None
    oldest_s = (now - summary.oldest).total_seconds() if summary.oldest else 0.0
    never = max(0, summary.attachments - summary.checked)
    damaged = {kind: n for kind, n in summary.counts.items() if kind not in HARMLESS}
    orphans = {kind: n for kind, n in summary.counts.items() if kind in HARMLESS and kind not in NORMAL}
    figures = {
        "storage_damaged": float(sum(damaged.values())),
        "storage_orphans": float(sum(orphans.values())),
        "storage_never_checked": float(never),
        "storage_oldest_check_age_s": round(oldest_s),
    }
    if damaged:
        message = f"the last check found {plural(sum(damaged.values()), 'damage')}: {_kinds(damaged)}"
        hint = (
            "Orthanc cannot send these files. List them and their studies, to repair or to send them again:"
        )
        listing = f"{command} --list studies" if command else ""
        return Verdict("CRITICAL", message, hint, figures, command=listing)
    again = "Check the stored files again:"
    if age_s is None:
        message = "no check of the stored files has finished yet"
        return Verdict("WARNING", message, again, figures, command=command)
    if age_s > _LATE_S:
        message = f"the last check of the stored files was {duration(age_s)} ago"
        return Verdict("WARNING", message, again, figures, command=command)
    if orphans:
        message = f"the last check found no damage, but {plural(sum(orphans.values()), 'orphan')}: {_kinds(orphans)}"
        hint = "They take space, and nothing is lost. See what they are:"
        return Verdict("WARNING", message, hint, figures, command=command)
    if oldest_s > _OLD_S:
        message = f"the content of an attachment was last checked {duration(oldest_s)} ago"
        return Verdict("WARNING", message, "Give the check more time, or run it more often.", figures)
    message = f"no damage, the last check was {duration(age_s)} ago"
    if never:
        message += f"; {never:,} of {summary.attachments:,} attachments were not read yet"
    return Verdict("OK", message, figures=figures)


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
