"""`pgorthanc status`."""

from __future__ import annotations

from dataclasses import replace

import click

from pgorthanc_cli import commands
from pgorthanc_cli.commands import Call
from pgorthanc_cli.errors import RevisionError


@commands.command("status")
def command(call: Call) -> None:
    """Show what an index contains and who is using it.

    Its revision, counts and sizes, the sessions with Orthanc's locks, and pending work. Reads
    only.

    \b
    Examples:
      pgorthanc status --config /etc/orthanc
      pgorthanc status --host db1 --dbname orthanc --username orthanc
      pgorthanc status --config /etc/orthanc --json

    Exit codes: 0 shown; 3 cannot reach the server or log in; 4 no index.
    """
    from pgorthanc_cli import areas, db
    from pgorthanc_cli.schema import status as room
    from pgorthanc_cli.views import status as views

    # A diagnosis tries once, however often the configuration lets Orthanc try.
    with (
        call.resolved() as resolved,
        db.session(replace(resolved.target, retries=0), readonly=True) as conn,
    ):
        found = room.find(conn, resolved.target.schema)
        # Before revision 1 the tables are others.
        known = isinstance(found, room.Status) and isinstance(found.revision, int)
        sample = areas.sample(conn) if known else areas.Sample()
    if isinstance(found, room.Status):
        found = replace(
            found,
            areas=sample.areas,
            areas_not_found=sample.not_found(resolved.orthanc) if resolved.orthanc else (),
            kept_customdata=sample.kept_customdata,
        )
        # An upgrade to the revision of the tables only corrects the recorded one.
        to = ("--to", str(found.revision)) if isinstance(found.revision, int) else ()
        page = views.page(
            found,
            upgrade=call.command_line("upgrade", *to),
            show=call.command_line("storage", "show"),
        )
        call.emit_page(found, page)
        return
    schemas = found.other_schemas
    other = call.command_line("status", schema=schemas[0]) if schemas else ""
    page = views.no_index_page(found, init=call.command_line("init"), other_schema=other)
    call.emit_page(found, page)
    raise click.exceptions.Exit(RevisionError.exit_code)
