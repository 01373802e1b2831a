"""Import: walk -> dicom -> storage and index.

What it writes is what Orthanc writes when it receives the same files one after the other, in the order given,
whatever the number of workers: they read, parse and store; the parent writes the index, each batch in one
transaction. After any interruption, running again completes the work (see `journal`).

    target = db.Target("dbname=orthanc")
    tally = ingest.Tally()
    for batch in ingest.run(target, ["/data/dicom"], ingest.Settings(storage_dir=Path("/var/lib/orthanc"))):
        tally.add(batch)
"""

from pgorthanc_cli.ingest.pipeline import run
from pgorthanc_cli.ingest.report import Batch, Report, Settings, Tally
from pgorthanc_cli.ingest.walk import listed, walk
from pgorthanc_cli.ingest.worker import Refusal

__all__ = ["Batch", "Refusal", "Report", "Settings", "Tally", "listed", "run", "walk"]
