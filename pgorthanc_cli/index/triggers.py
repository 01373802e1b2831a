"""Row triggers that are off while a batch is written, as their work is done once for all its rows.

A role that may set session_replication_role switches off all triggers, also those of
foreign keys, for its own session. Their guarantee is kept: existing ancestors are locked as
a foreign key would lock them, all other parents are rows of the same transaction.

The owner of the tables can only disable Orthanc's own triggers, and for all sessions. So it
does under a lock that keeps every other writer out, and only in an import that has the
index for itself. They are enabled again in the same transaction: no other session ever
sees them disabled, and a crash rolls that back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from psycopg2 import errors

from pgorthanc_cli.index.lookup import TABLES_WITH_TRIGGERS, Capabilities, has_only_known_triggers

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

# The lock that ALTER TABLE takes. It lets others read. Who works on the tables, such as
# autovacuum, is not waited for: this batch is then written with the triggers on.
_LOCK = f"LOCK TABLE {', '.join(TABLES_WITH_TRIGGERS)} IN SHARE ROW EXCLUSIVE MODE NOWAIT"
_DISABLE, _ENABLE = (
    "; ".join(f"ALTER TABLE {table} {action} TRIGGER USER" for table in TABLES_WITH_TRIGGERS)
    for action in ("DISABLE", "ENABLE")
)


class Triggers:
    """Switches the triggers off as far as a role may.

    Attributes:
        foreign_keys_off: Those of foreign keys are off, too.
    """

    def __init__(self, capabilities: Capabilities, *, exclusive: bool) -> None:
        """`exclusive`: this session has the index lock, so that no Orthanc is at work."""
        self.foreign_keys_off = capabilities.triggers_off
        self._disable = exclusive and capabilities.owner_triggers_off

    @contextmanager
    def off(self, cur: Cursor) -> Iterator[bool]:
        """Yield whether the triggers are off in this block; an error in it ends the transaction."""
        if self.foreign_keys_off:
            cur.execute("SET LOCAL session_replication_role = replica")
            yield True
            cur.execute("SET LOCAL session_replication_role = origin")
        elif self._disable and _locked(cur):
            cur.execute(_DISABLE)
            yield True
            cur.execute(_ENABLE)
        else:
            yield False


def _locked(cur: Cursor) -> bool:
    """Lock the tables, unless another session works on them or has added a trigger."""
    cur.execute("SAVEPOINT triggers")
    try:
        cur.execute(_LOCK)
    except errors.LockNotAvailable:
        cur.execute("ROLLBACK TO SAVEPOINT triggers")
        return False
    cur.execute("RELEASE SAVEPOINT triggers")
    # From now on no other session can add one.
    return has_only_known_triggers(cur.connection)
