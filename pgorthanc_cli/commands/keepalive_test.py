"""`pgorthanc keepalive-test`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call
from pgorthanc_cli.commands.type_options import POSITIVE_TIME, TIMES
from pgorthanc_cli.errors import Interrupted, PartialFailure, UsageError
from pgorthanc_cli.progress import silent

if TYPE_CHECKING:
    from pgorthanc_cli.keepalive import TrialResult


_UP_TO_S = 15 * 60.0


@commands.command("keepalive-test")
@click.option("--ages", type=TIMES, metavar="TIME,...", help="Idle times to try, such as 1m,4m,6m.")
@click.option(
    "--up-to", type=POSITIVE_TIME, metavar="TIME", help="Try usual idle times up to this one.  [default: 15m]"
)
@click.option(
    "--answer",
    type=POSITIVE_TIME,
    metavar="TIME",
    default="10s",
    show_default=True,
    help="How long to wait for an answer.",
)
@click.option("--in-transaction", is_flag=True, help="Leave a transaction open on the idle connections.")
@click.option("--confirm", is_flag=True, help="Then try the recommended parameters again, as long.")
def command(
    call: Call,
    *,
    ages: tuple[float, ...] | None,
    up_to: float | None,
    answer: float,
    in_transaction: bool,
    confirm: bool,
) -> None:
    """Find out when idle connections are dropped.

    And what keeps them alive. For each idle time, three connections wait at the same time: one silent, one with
    keep-alive probes from this client, one with probes from the server. So the test lasts as long as the longest time.
    It reports which connections were dropped and how, the limit, and the parameters for ConnectionUri that pass. Run it
    on Orthanc's machine.

    \b
    Examples:
      pgorthanc keepalive-test --config /etc/orthanc
      pgorthanc keepalive-test --config /etc/orthanc --up-to 2h
      pgorthanc keepalive-test --config /etc/orthanc --ages 1m,4m,6m

    Exit codes: 0 every connection survived; 6 some were dropped; 130 interrupted.
    """
    from pgorthanc_cli import keepalive

    if ages and up_to:
        raise UsageError("--ages and --up-to contradict each other", "name one of them")
    plan = keepalive.TrialPlan(
        ages_s=ages or keepalive.ages_up_to(up_to or _UP_TO_S),
        answer_s=answer,
        in_transaction=in_transaction,
        confirm=confirm,
    )
    with call.target() as target:
        trial = keepalive.Trial(target, plan)
        try:
            trial.run(silent if call.quiet else lambda progress: output.note(progress.what))
        except KeyboardInterrupt:
            _show(call, trial.result(), interrupted=True)
            raise click.exceptions.Exit(Interrupted.exit_code) from None
    result = trial.result()
    _show(call, result)
    if result.died:
        raise click.exceptions.Exit(PartialFailure.exit_code)


def _show(call: Call, result: TrialResult, *, interrupted: bool = False) -> None:
    from pgorthanc_cli.views import keepalive as views

    confirm = call.again("--confirm")
    page = views.page(result, confirm, interrupted=interrupted, verbose=call.verbose)
    call.emit_page(result, page)
