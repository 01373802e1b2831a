"""`verify storage`: whether the index and the storage area still fit together. Only reads.

`run` compares them part by part, `content` one attachment with its row, `second` decides
what of the differences is damage, and what only a file in flight.
"""

from pgorthanc_cli.scrub.model import DEPTHS, KINDS, Finding, Settings, StorageReport
from pgorthanc_cli.scrub.run import check
from pgorthanc_cli.scrub.settings import from_options

__all__ = ["DEPTHS", "KINDS", "Finding", "Settings", "StorageReport", "check", "from_options"]
