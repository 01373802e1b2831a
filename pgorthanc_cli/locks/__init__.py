"""Who works on a database: sessions, Orthanc's advisory locks, and Orthancs that hold none. No lock is ever tried."""

from pgorthanc_cli.locks.alone import require_idle, require_no_orthanc
from pgorthanc_cli.locks.look import Found, Lock, Watcher, look, until_free
from pgorthanc_cli.locks.orthancs import Orthanc
from pgorthanc_cli.locks.sessions import Session, clients, end, of_pooler, others
from pgorthanc_cli.locks.terminate import Terminated, choose, terminate

__all__ = [
    "Found", "Lock", "Orthanc", "Session", "Terminated", "Watcher", "choose", "clients", "end", "look",
    "of_pooler", "others", "require_idle", "require_no_orthanc", "terminate", "until_free",
]  # fmt: skip
