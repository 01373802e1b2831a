"""A primary and its standbys: plan, prepare, copy, watch, promote, rejoin; see docs/replication.md.

Standbys follow by a role that may replicate and nothing else, through a slot, with a password in a file. What a
server says of itself over the replication protocol is enough for most of it: no superuser's password has to be
on the machine of a standby.
"""

from pgorthanc_cli.replication.fence import Fence
from pgorthanc_cli.replication.plan import Asked, Plan, plan
from pgorthanc_cli.replication.primary import Prepared, prepare
from pgorthanc_cli.replication.printed import FORMS, printed
from pgorthanc_cli.replication.promote import Promoted, promote
from pgorthanc_cli.replication.rejoin import Rejoined, rejoin
from pgorthanc_cli.replication.source import ROLE, SLOT
from pgorthanc_cli.replication.standby import Standby, Wanted, create
from pgorthanc_cli.replication.state import Limits, Status, hosts, status
from pgorthanc_cli.replication.ways import by_folder, by_sql

__all__ = [
    "FORMS", "ROLE", "SLOT", "Asked", "Fence", "Limits", "Plan", "Prepared", "Promoted", "Rejoined", "Standby",
    "Status", "Wanted", "by_folder", "by_sql", "create", "hosts", "plan", "prepare", "printed", "promote", "rejoin",
    "status",
]  # fmt: skip
