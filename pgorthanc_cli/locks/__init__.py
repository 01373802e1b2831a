"""Who uses a database: sessions, Orthanc's advisory locks, and Orthancs that hold none. No lock is ever tried."""

from pgorthanc_cli.locks.idle import owners, require_idle, require_no_orthanc
from pgorthanc_cli.locks.orthancs import Orthanc
from pgorthanc_cli.locks.sessions import (
    Session,
    client_sessions,
    other_sessions,
    pooled_sessions,
    terminate_sessions,
)
from pgorthanc_cli.locks.terminate import Terminated, choose, terminate
from pgorthanc_cli.locks.usage import NAMELESS, Lock, Usage, Watcher, inspect, wait_until_free

__all__ = [
    "NAMELESS",
    "Lock",
    "Orthanc",
    "Session",
    "Terminated",
    "Usage",
    "Watcher",
    "choose",
    "client_sessions",
    "inspect",
    "other_sessions",
    "owners",
    "pooled_sessions",
    "require_idle",
    "require_no_orthanc",
    "terminate",
    "terminate_sessions",
    "wait_until_free",
]
