"""Where attachments are (`storage show`), and moving them from one storage area to another (`storage move`).

`survey` reads what the index says. `phases` leads a move, `worker` and
`ends` do the work on some attachments, `record` remembers what was proved.
`row_phases`, `row_worker` and `proved` lead a move that changes rows; `rules` knows what these must say.
"""

from pgorthanc_cli.placement.model import PHASES, Failed, Moved, MoveSettings, Place
from pgorthanc_cli.placement.settings import from_options
from pgorthanc_cli.placement.start import move
from pgorthanc_cli.placement.survey import Area, Content, Group, Shown, show

__all__ = [
    "PHASES",
    "Area",
    "Content",
    "Failed",
    "Group",
    "MoveSettings",
    "Moved",
    "Place",
    "Shown",
    "from_options",
    "move",
    "show",
]
