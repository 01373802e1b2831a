"""From Orthanc's default SQLite index to PostgreSQL: everything kept, and proved."""

from pgorthanc_cli.migrate.model import Compared, Converted, Event, Files, Finding, Settings  # fmt: skip
from pgorthanc_cli.migrate.run import check, convert
from pgorthanc_cli.progress import Progress

__all__ = ["Compared", "Converted", "Event", "Files", "Finding", "Progress", "Settings", "check", "convert"]
