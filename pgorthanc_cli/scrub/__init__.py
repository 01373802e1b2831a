"""`verify storage`: whether the index and the storage area still fit together.

Only `quarantine` and `repair` write.

`run` compares them part by part, `content` one attachment with its row, `second` decides
what of the differences is damage, and what only a file in flight.
"""

from pgorthanc_cli.scrub.model import DEPTHS, KINDS, Finding, Moved, Repaired, Settings, StorageReport
from pgorthanc_cli.scrub.quarantine import candidates, require_usable, restore, set_aside
from pgorthanc_cli.scrub.repair import Copies, find_copies, planned, repair, require_mirror
from pgorthanc_cli.scrub.run import check
from pgorthanc_cli.scrub.settings import from_options

__all__ = [
    "DEPTHS",
    "KINDS",
    "Copies",
    "Finding",
    "Moved",
    "Repaired",
    "Settings",
    "StorageReport",
    "candidates",
    "check",
    "find_copies",
    "from_options",
    "planned",
    "repair",
    "require_mirror",
    "require_usable",
    "restore",
    "set_aside",
]
