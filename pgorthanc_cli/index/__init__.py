"""Batches of rows of the Orthanc index; no files.

What is written is what Orthanc writes when it receives the same instances one after the other (INGEST.md 4 to
11), at every revision of the schema. A batch is one transaction of the caller.
"""

from pgorthanc_cli.index.batch import Writer, log_stable
from pgorthanc_cli.index.custom import foreign
from pgorthanc_cli.index.lookup import (
    Layout,
    Stored,
    absent_objects,
    check_sequences,
    identity,
    known,
    named_attachments,
    still_named,
    stored,
)
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
    "Stored",
    "Vanished",
    "Writer",
    "Written",
    "absent_objects",
    "check_sequences",
    "foreign",
    "identity",
    "known",
    "log_stable",
    "named_attachments",
    "still_named",
    "stored",
]
