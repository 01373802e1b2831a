"""Batches of rows of the Orthanc index; no files.

What is written is what Orthanc writes when it receives the same instances one after the
other (INGEST.md 4 to 11), at every revision of the schema. A batch is one transaction of
the caller.
"""

from pgorthanc_cli.index.batch import Writer, log_stable
from pgorthanc_cli.index.customdata import unsupported_plugin
from pgorthanc_cli.index.insert import copy_cell
from pgorthanc_cli.index.lookup import (
    Capabilities,
    StoredAttachment,
    check_sequences,
    identity,
    missing_large_objects,
    referenced_uuids,
    still_referenced,
    stored_attachments,
    stored_custom_data,
    stored_instances,
)
from pgorthanc_cli.index.model import (
    INSTANCE,
    Attachment,
    BatchResult,
    Conflict,
    LevelRows,
    Outcome,
    Overwrite,
    ParentDeleted,
    Record,
)

__all__ = [
    "INSTANCE",
    "Attachment",
    "BatchResult",
    "Capabilities",
    "Conflict",
    "LevelRows",
    "Outcome",
    "Overwrite",
    "ParentDeleted",
    "Record",
    "StoredAttachment",
    "Writer",
    "check_sequences",
    "copy_cell",
    "identity",
    "log_stable",
    "missing_large_objects",
    "referenced_uuids",
    "still_referenced",
    "stored_attachments",
    "stored_custom_data",
    "stored_instances",
    "unsupported_plugin",
]
