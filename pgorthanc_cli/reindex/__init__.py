"""`reindex`: main DICOM tags computed again from the stored files, as Orthanc's `/reconstruct` does.

`selection` says which resources, `plan` which file decides each of them, `heads` reads as little of a
file as is needed, `write` compares with the index in SQL and writes what differs. Workers do the
reading and the writing; `run` hands out the batches.
"""

from pgorthanc_cli.reindex.check import Checked, LevelCheck, MissingTag, check
from pgorthanc_cli.reindex.model import (
    Change,
    Estimate,
    Reindexed,
    Selection,
    Settings,
    Unreadable,
)
from pgorthanc_cli.reindex.repair import REPAIRS, Repaired, repair
from pgorthanc_cli.reindex.run import reindex
from pgorthanc_cli.reindex.settings import from_options, profile_of

__all__ = [
    "REPAIRS",
    "Change",
    "Checked",
    "Estimate",
    "LevelCheck",
    "MissingTag",
    "Reindexed",
    "Repaired",
    "Selection",
    "Settings",
    "Unreadable",
    "check",
    "from_options",
    "profile_of",
    "reindex",
    "repair",
]
