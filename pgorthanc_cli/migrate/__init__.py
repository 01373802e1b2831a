"""Convert an Orthanc index of another database to PostgreSQL, completely and verified."""

from pgorthanc_cli.migrate.conversion import convert
from pgorthanc_cli.migrate.model import Compared, ConversionSettings, Converted, FileCheck, Finding
from pgorthanc_cli.migrate.run import check

__all__ = ["Compared", "ConversionSettings", "Converted", "FileCheck", "Finding", "check", "convert"]
