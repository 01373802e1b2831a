"""The page about an import: what came in, from where, how fast, and what was refused.

    gathered = report.Gathered(["/archive/2009"], names=False)
    for batch in ingest.run(...):
        gathered.add(batch)
    Path("import.html").write_text(report.page(gathered, title="Import", facts={"database": "orthanc"}), "utf-8")

One HTML file: no script, nothing from elsewhere, every text escaped. Patients, folders below the ones that were
named, and files are in it only if `names` says so: paths, too, often name patients.
"""

from pgorthanc_cli.report.gathered import Gathered, Timeline
from pgorthanc_cli.report.page import page

__all__ = ["Gathered", "Timeline", "page"]
