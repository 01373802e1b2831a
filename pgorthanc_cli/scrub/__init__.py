"""`verify storage`: whether the index and the storage area still fit together.

Only `quarantine`, `repair` and `orphans` write.

`run` compares them part by part, `content` one attachment with its row, `second` decides
what of the differences is damage, and what only a file in flight.
"""

from pgorthanc_cli.scrub.journal import Summary as JournalSummary
from pgorthanc_cli.scrub.journal import summary as journal_summary
from pgorthanc_cli.scrub.model import (
    DEPTHS,
    HARMLESS,
    KINDS,
    NORMAL,
    Finding,
    Indexed,
    Moved,
    Repaired,
    Settings,
    StorageReport,
)
from pgorthanc_cli.scrub.orphans import (
    Orphans,
    find_orphans,
    index_orphans,
    planned_imports,
    require_indexable,
)
from pgorthanc_cli.scrub.quarantine import candidates, planned_moves, require_usable, restore, set_aside
from pgorthanc_cli.scrub.repair import Copies, find_copies, planned_repairs, repair, require_mirror
from pgorthanc_cli.scrub.run import check
from pgorthanc_cli.scrub.settings import from_options

__all__ = [
    "DEPTHS",
    "HARMLESS",
    "KINDS",
    "NORMAL",
    "Copies",
    "Finding",
    "Indexed",
    "JournalSummary",
    "Moved",
    "Orphans",
    "Repaired",
    "Settings",
    "StorageReport",
    "candidates",
    "check",
    "find_copies",
    "find_orphans",
    "from_options",
    "index_orphans",
    "journal_summary",
    "planned_imports",
    "planned_moves",
    "planned_repairs",
    "repair",
    "require_indexable",
    "require_mirror",
    "require_usable",
    "restore",
    "set_aside",
]
