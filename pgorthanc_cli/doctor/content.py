"""What the rows say about stored files: content that is absent, or that Orthanc cannot read."""

from __future__ import annotations

from collections.abc import Sequence

from pgorthanc_cli.doctor.model import Subject, Verdict
from pgorthanc_cli.schema.verify import content
from pgorthanc_cli.schema.verify.model import Finding

# What a restore or a foreign plugin does wrong, it does to all rows; --deep reads all of them.
_ROWS = 100_000


def large_objects(subject: Subject) -> Verdict:
    """Check that the large objects of the storage area are there, and that Orthanc may read and delete them."""
    if "table storagearea" not in subject.found:
        return Verdict("OK", "no PostgreSQL storage area in this schema")
    found = content.large_objects(subject.conn, subject.found, subject.target.schema, most=_most(subject))
    return _verdict(
        subject, found, "storagearea", "large objects are there, and belong to the owner of storagearea"
    )


def attachments(subject: Subject) -> Verdict:
    """Check that Orthanc can work with the rows of all stored files."""
    at = (subject.conn, subject.found, subject.target.schema)
    found = [*content.customdata(*at, most=_most(subject)), *content.hashes(*at, most=_most(subject))]
    return _verdict(subject, found, "attachedfiles", "hashes and customdata are readable")


def _most(subject: Subject) -> int | None:
    return None if subject.deep else _ROWS


def _verdict(subject: Subject, found: Sequence[Finding], table: str, good: str) -> Verdict:
    wrong = [finding for finding in found if finding.matters]
    read = "" if subject.deep else f" (in the first {_ROWS:,} rows of {table}; --deep reads all)"
    fixes = [fix.sql for finding in wrong for fix in finding.repair]
    hints = [finding.advice for finding in wrong if finding.advice]
    hints += (
        [f"run: pgorthanc verify schema --deep --repair --apply; or as the owner: {' '.join(fixes)}"]
        if fixes
        else []
    )
    return Verdict(
        "CRITICAL" if wrong else "OK",
        "; ".join(f"{finding.difference}: {finding.why}" for finding in found) + read
        if found
        else good + read,
        " ".join(hints) or None,
    )
