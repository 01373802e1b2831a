"""Tests of idle connections: a whole run of keepalive-test within this process, and what it has found."""

from __future__ import annotations

from collections.abc import Callable

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.keepalive import Plan, Report, Started, Trial
from tests.support.real_servers import Server

FAST = {"keepalives_idle": "1", "keepalives_interval": "1", "keepalives_count": "3"}
APPLICATION = "pgorthanc keepalive-test"


def at(port: int, **parameters: str) -> db.Target:
    given = {"sslmode": "disable", **parameters}
    dsn = make_dsn("", host="127.0.0.1", port=port, user="postgres", dbname="postgres", **given)
    return db.Target(dsn, application=APPLICATION)


def run(
    target: db.Target, *ages_s: float, during: Callable[[], object] | None = None, **plan: bool
) -> Report:
    """A whole test; `during` is called when all connections are idle."""
    trial = Trial(target, Plan(ages_s, answer_s=1.0, **plan))
    for event in trial.run():
        if isinstance(event, Started) and during:
            during()
            during = None
    return trial.report()


def plain(port: int) -> str:
    """With what PgBouncer's own configuration knows."""
    return f"host=127.0.0.1 port={port} user=postgres dbname=postgres"


def fates(report: Report) -> dict[tuple[float, str], str]:
    return {(age.age_s, age.probes): age.outcome for age in report.ages}


def sessions(server: Server) -> int:
    """How many connections of tests the server still has."""
    return int(server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"))


def said(report: Report) -> str:
    return "\n".join(report.advice)
