"""All that can be wrong with a database of Orthanc, looked at in one go; nothing is changed."""

from pgorthanc_cli.doctor.bundle import bundle
from pgorthanc_cli.doctor.examine import CHECKS, examine
from pgorthanc_cli.doctor.model import Check, Health

__all__ = ["CHECKS", "Check", "Health", "bundle", "examine"]
