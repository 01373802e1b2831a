"""Import: walk -> dicom -> storage and index.

What it writes is what Orthanc writes when it receives the same files one after the other, in the order given,
whatever the number of workers: they read, parse and store; the parent writes the index, each batch in one
transaction. After any interruption, running again completes the work (see `journal`).

    target = db.Target("dbname=orthanc")
    tally = ingest.Tally()
    for batch in ingest.run(target, ["/data/dicom"], ingest.Settings(storage_dir=Path("/var/lib/orthanc"))):
        tally.add(batch)
"""

from pgorthanc_cli.ingest.facts import Facts, Item
from pgorthanc_cli.ingest.feed import Feed, deliver
from pgorthanc_cli.ingest.limits import Hours, Limits
from pgorthanc_cli.ingest.link import Link
from pgorthanc_cli.ingest.pipeline import run, run_sources
from pgorthanc_cli.ingest.report import Batch, Difference, Report, Settings, Tally
from pgorthanc_cli.ingest.shard import By, Shard
from pgorthanc_cli.ingest.walk import Source, listed, shown, walk
from pgorthanc_cli.ingest.worker import Refusal

__all__ = [
    "Batch",
    "By",
    "Difference",
    "Facts",
    "Feed",
    "Hours",
    "Item",
    "Limits",
    "Link",
    "Refusal",
    "Report",
    "Settings",
    "Shard",
    "Source",
    "Tally",
    "deliver",
    "listed",
    "run",
    "run_sources",
    "shown",
    "walk",
]
