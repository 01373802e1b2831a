"""A primary and its standbys; see docs/replication.md.

A standby follows its primary by a role that may only replicate, through a slot, with a
password in a file. What a server reports over the replication protocol is enough for most
of it: no superuser's password has to be on the machine of a standby.
"""

from pgorthanc_cli.replication.candidate import Candidate, by_folder, by_sql
from pgorthanc_cli.replication.fence import Fence, NotProved
from pgorthanc_cli.replication.health import Problem
from pgorthanc_cli.replication.instructions import FORMS, instructions
from pgorthanc_cli.replication.plan import PlanItem, PrimaryPlan, Requirements, plan
from pgorthanc_cli.replication.primary import Prepared, prepare
from pgorthanc_cli.replication.promote import Promoted, promote
from pgorthanc_cli.replication.rejoin import Rejoined, rejoin
from pgorthanc_cli.replication.split_brain import Branch, Split
from pgorthanc_cli.replication.standby import Standby, StandbyOptions, create
from pgorthanc_cli.replication.state import (
    Follower,
    Limits,
    ReplicationStatus,
    ServerState,
    Slot,
    hosts,
    status,
)
from pgorthanc_cli.replication.upstream import ROLE, SLOT

__all__ = [
    "FORMS", "ROLE", "SLOT", "Branch", "Candidate", "Fence", "Follower", "Limits", "NotProved",
    "PlanItem", "Prepared", "PrimaryPlan", "Problem", "Promoted", "Rejoined",
    "ReplicationStatus", "Requirements", "ServerState", "Slot", "Split", "Standby", "StandbyOptions",
    "by_folder", "by_sql", "create", "hosts", "instructions", "plan", "prepare", "promote",
    "rejoin", "status",
]  # fmt: skip
