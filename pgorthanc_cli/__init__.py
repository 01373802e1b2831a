"""Administration of the PostgreSQL databases of Orthanc, the DICOM server.

Each room of the package can be used from Python without the command line: `initialize.init`,
`ingest.run_import`, `revision.status` and so on take a connection or a `db.Target` and return plain
dataclasses. Nothing outside `commands/`, `cli.py` and `output.py` prints, prompts or exits.
"""

__version__ = "0.1.0"
