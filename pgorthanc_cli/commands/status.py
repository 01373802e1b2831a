"""`pgorthanc status`."""

from __future__ import annotations

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call


@commands.command("status")
def command(call: Call) -> None:
    """Show what an index is and holds.

    Its revision, counts and sizes, who works on it, and what is still to be done. Reads only.
    """
    from pgorthanc_cli import db
    from pgorthanc_cli.schema import status as room

    with call.target() as target, db.session(target, readonly=True) as conn:
        found = room.status(conn, target.schema)
    if found.recorded_revision != found.revision:
        call.warn(f"recorded as revision {found.recorded_revision or 'none'}; run: pgorthanc upgrade")
    call.emit(found)
