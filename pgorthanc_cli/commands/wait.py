"""`pgorthanc wait`."""

from __future__ import annotations

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call
from pgorthanc_cli.commands.type_options import TIME
from pgorthanc_cli.progress import Progress


@commands.command("wait")
@click.option("--ready", is_flag=True, help="For a server that lets us in and takes changes (default).")
@click.option("--revision", type=int, metavar="N", help="For an index at this revision.")
@click.option("--unlocked", is_flag=True, help="Until no session holds Orthanc's locks 42, 43 and 44.")
@click.option("--replica", is_flag=True, help="For a standby that receives and has replayed what it got.")
@click.option(
    "--timeout", "timeout_s", type=TIME, default="60s", show_default=True, metavar="TIME",
    help="Give up then; 0: check once.",
)  # fmt: skip
def command(
    call: Call, *, ready: bool, revision: int | None, unlocked: bool, replica: bool, timeout_s: float
) -> None:
    """Wait until Orthanc can start.

    For init containers, ExecStartPre and CI. Several conditions must hold at the same time. A server that is down, a
    login that is refused, a database that does not exist yet: all of that is waited for, and reported on stderr.

    \b
    Examples:
      pgorthanc wait --config /etc/orthanc
      pgorthanc wait --config /etc/orthanc --revision 10 --unlocked --timeout 5m
      pgorthanc wait --host db2 --username orthanc --replica

    Exit codes: 0 all conditions hold; otherwise what was missing when the time was up: 3 the server, 4 the index at
    this revision, 5 a session holds a lock.
    """
    from pgorthanc_cli import waiting
    from pgorthanc_cli.views import waiting as views

    ready = ready or not (revision is not None or unlocked or replica)
    conditions = waiting.Conditions(ready=ready, revision=revision, unlocked=unlocked, replica=replica)

    def report(progress: Progress) -> None:
        if not call.quiet:
            output.note(f"waiting for {conditions}: {progress.what}")

    with call.target() as target:
        reached = waiting.wait(target, conditions, timeout_s=timeout_s, report=report)
    call.emit_page(reached, views.page(reached))
