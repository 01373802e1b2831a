"""From one revision of the index to another: what is there, what is to be done, and the doing in three phases."""

from pgorthanc_cli.locks import Session, others
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.upgrade.model import PHASES, Changed, Event, Settings
from pgorthanc_cli.upgrade.plan import Plan, plan
from pgorthanc_cli.upgrade.printed import sql
from pgorthanc_cli.upgrade.run import downgrade, upgrade

__all__ = [
    "PHASES", "Changed", "Event", "Plan", "Progress", "Session", "Settings", "downgrade", "others", "plan", "sql",
    "upgrade",
]  # fmt: skip
