"""From Orthanc's default SQLite index to PostgreSQL: everything kept, and proved."""

from pgorthanc_cli.progress import Progress
from pgorthanc_cli.sqlite.model import (
    Compared,
    Converted,
    Event,
    Files,
    Finding,
    Settings,
)  # fmt: skip
from pgorthanc_cli.sqlite.run import check, convert

__all__ = ["Compared", "Converted", "Event", "Files", "Finding", "Progress", "Settings", "check", "convert"]
