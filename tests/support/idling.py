"""Tests of idle connections: a whole run of keepalive-test within this process, and what it has found."""

from __future__ import annotations

from collections.abc import Callable

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.keepalive import Trial, TrialPlan, TrialResult
from pgorthanc_cli.progress import Progress
from tests.support.real_servers import Server

FAST = {"keepalives_idle": "1", "keepalives_interval": "1", "keepalives_count": "3"}
APPLICATION = "pgorthanc keepalive-test"


def at(port: int, **parameters: str) -> db.Target:
    given = {"sslmode": "disable", **parameters}
    dsn = make_dsn("", host="127.0.0.1", port=port, user="postgres", dbname="postgres", **given)
    return db.Target(dsn, application=APPLICATION)


def run(
    target: db.Target, *ages_s: float, during: Callable[[], object] | None = None, **plan: bool
) -> TrialResult:
    """A whole test; `during` is called when all connections are idle."""
    trial = Trial(target, TrialPlan(ages_s, answer_s=1.0, **plan))
    pending = [during] if during else []

    def report(progress: Progress) -> None:
        if "are idle now" in progress.what and pending:
            pending.pop()()

    trial.run(report)
    return trial.result()


def plain(port: int) -> str:
    """With what PgBouncer's own configuration knows."""
    return f"host=127.0.0.1 port={port} user=postgres dbname=postgres"


def fates(report: TrialResult) -> dict[tuple[float, str], str]:
    return {(age.age_s, age.probes): age.outcome for age in report.ages}


def sessions(server: Server) -> int:
    """How many connections of tests the server still has."""
    return int(server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"))


def said(report: TrialResult) -> str:
    return "\n".join(report.advice)
