"""`replication standby`, `promote` and `rejoin`: what a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pgorthanc_cli.replication import Promoted, Rejoined, Standby
from pgorthanc_cli.views import failover as views
from pgorthanc_cli.views.page import Page
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "replication"
STATUS = "pgorthanc replication status --uri 'host=db1,db2 port=5432,5432 user=orthanc dbname=orthanc'"
SERVICE = "pgorthanc replication plan --print systemd --uri 'host=db1 port=5432 user=orthanc dbname=orthanc'"
PREPARATION = (
    "pgorthanc replication primary --allow ADDRESS-OF-THE-OLD-PRIMARY --passfile replication.pgpass "
    "--host db2 --username postgres"
)
START = "/usr/lib/postgresql/15/bin/pg_ctl -D {0} -l {0}/log start"
HIDDEN = "not compared: the server asks for a password, and none was given"
INDEX: dict[str, int | str | None] = {
    "revision": 10,
    "patients": 15,
    "studies": 30,
    "series": 120,
    "instances": 12_000,
}

STANDBY = Standby(
    directory="/srv/orthanc-standby", version="15.18", listen="db2", port=5432, primary="db1:5432",
    slot="pgorthanc_standby", name="pgorthanc_standby", system_identifier="7", timeline=3, verified=True,
    checksums=True, streaming=True, index=INDEX, difference="none", next=(), address="db2:5432",
    start_command=START.format("/srv/orthanc-standby"),
)  # fmt: skip
PROMOTED = Promoted(
    server="db2:5432", timeline_before=3, timeline=4, old_primary="db1:5432: fenced, its port is closed",
    lost_bytes=0, lost_commits=0, slots=("pgorthanc_standby",),
    connection_uri="postgresql://orthanc@db2:5432,db1:5432/orthanc?target_session_attrs=read-write", next=(),
    role="pgorthanc_replication",
)  # fmt: skip
REJOINED = Rejoined(
    directory="/srv/primary", method="follow", why="none", primary="db2:5432", slot="pgorthanc_standby", timeline=4,
    forked_at="", lost_bytes=0, lost_commits=0, streaming=True, index=INDEX, difference="none", kept="none",
    address="db1:5432", start_command=START.format("/srv/primary"),
)  # fmt: skip


def created(standby: Standby) -> Page:
    return views.standby_page(standby, status=STATUS, service=SERVICE)


def promoted(server: Promoted) -> Page:
    return views.promoted_page(server, PREPARATION)


def rejoined(server: Rejoined) -> Page:
    return views.rejoined_page(server, status=STATUS)


PAGES = {
    "standby-streams": created(STANDBY),
    "standby-not-asked-to-compare": created(
        replace(STANDBY, listen="*", checksums=False, index=None, difference="not compared")
    ),
    "standby-not-compared": created(replace(STANDBY, verified=False, index=None, difference=HIDDEN)),
    "standby-differs": created(replace(STANDBY, difference="studies 31 there and 30 here")),
    "standby-not-started": created(replace(STANDBY, streaming=False, index=None, difference="not compared")),
    "promote-fenced": promoted(PROMOTED),
    "promote-confirmed": promoted(
        replace(
            PROMOTED,
            server="127.0.0.1:5433",
            lost_bytes=None,
            lost_commits=None,
            old_primary="db1:5432: confirmed to be down, it is silent",
        )
    ),
    "promote-with-loss": promoted(replace(PROMOTED, lost_commits=3, lost_bytes=4_096)),
    "rejoin-followed": rejoined(REJOINED),
    "rejoin-rewound": rejoined(
        replace(REJOINED, method="rewind", forked_at="0/5A3F2C8", lost_commits=5, lost_bytes=12_000)
    ),
    "rejoin-copied": rejoined(
        replace(
            REJOINED,
            method="copy",
            why="pg_rewind needs a superuser's login on the new primary (--uri)",
            kept="/srv/primary.before-rejoin",
            index=None,
            difference="not compared",
        )
    ),
    "rejoin-not-started": rejoined(
        replace(REJOINED, streaming=False, index=None, difference="not compared", address="")
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_states(name: str) -> None:
    golden.check_view(GOLDEN, name, PAGES[name])
