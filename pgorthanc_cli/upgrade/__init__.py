"""Upgrade and downgrade: inspect, plan, and change the revision in three phases."""

from pgorthanc_cli.locks import Session, other_sessions
from pgorthanc_cli.progress import Progress
from pgorthanc_cli.upgrade.change import downgrade, upgrade
from pgorthanc_cli.upgrade.items import Item
from pgorthanc_cli.upgrade.model import PHASES, Changed, Obstacle, Settings
from pgorthanc_cli.upgrade.plan import Plan, plan
from pgorthanc_cli.upgrade.preserved import Loss
from pgorthanc_cli.upgrade.script import sql

__all__ = [
    "PHASES", "Changed", "Item", "Loss", "Obstacle", "Plan", "Progress", "Session", "Settings", "downgrade",
    "other_sessions", "plan", "sql", "upgrade",
]  # fmt: skip
