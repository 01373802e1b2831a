"""Batches of rows of the Orthanc index; no files.

What is written is what Orthanc writes when it receives the same instances one after the other (INGEST.md 4 to
11), at every revision of the schema. A batch is one transaction of the caller.
"""

from pgorthanc_cli.index.batch import Writer, log_stable
from pgorthanc_cli.index.lookup import Layout, check_sequences, identity, known, named_attachments
from pgorthanc_cli.index.model import (
    INSTANCE,
    LEVEL_NAMES,
    Attachment,
    Conflict,
    LevelRows,
    Outcome,
    Overwrite,
    Record,
    Vanished,
    Written,
)

__all__ = [
    "INSTANCE",
    "LEVEL_NAMES",
    "Attachment",
    "Conflict",
    "Layout",
    "LevelRows",
    "Outcome",
    "Overwrite",
    "Record",
    "Vanished",
    "Writer",
    "Written",
    "check_sequences",
    "identity",
    "known",
    "log_stable",
    "named_attachments",
]
