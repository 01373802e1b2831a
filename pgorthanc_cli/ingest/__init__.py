"""Import: walk -> dicom -> storage and index.

It writes what Orthanc writes when it receives the same files one after the other, in the
order given, whatever the number of workers: they read, parse and store; the parent writes
the index, each batch in one transaction. After any interruption, running again completes
the work (see `journal`).

    target = db.Target("dbname=orthanc")
    settings = ingest.Settings(storage_dir=Path("/var/lib/orthanc"))
    result = ingest.run_import(target, ingest.ImportPlan(["/data/dicom"]), settings)
"""

from pgorthanc_cli.ingest.model import (
    Batch,
    FileProblem,
    ImportResult,
    IndexedFile,
    InstanceSummary,
    Tally,
)
from pgorthanc_cli.ingest.pipeline import import_sources
from pgorthanc_cli.ingest.refusals import Reason, Reasons
from pgorthanc_cli.ingest.run import run_import
from pgorthanc_cli.ingest.settings import ImportPlan, Link, Settings, from_options
from pgorthanc_cli.ingest.walk import Shard, ShardBy, Source, listed, walk
from pgorthanc_cli.pacing import Hours, Limits

__all__ = [
    "Batch",
    "FileProblem",
    "Hours",
    "ImportPlan",
    "ImportResult",
    "IndexedFile",
    "InstanceSummary",
    "Limits",
    "Link",
    "Reason",
    "Reasons",
    "Settings",
    "Shard",
    "ShardBy",
    "Source",
    "Tally",
    "from_options",
    "import_sources",
    "listed",
    "run_import",
    "walk",
]
