"""`status`: each state of an index that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.schema.status import NoIndex, Status
from pgorthanc_cli.views import status as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "status"
BERLIN = timezone(timedelta(hours=1))
NOW = datetime(2026, 11, 25, 22, 12, tzinfo=BERLIN)
ENDPOINT = db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18")
ORTHANC = db.LockHolder(db.LOCK_INDEX, 9890, "orthanc", "", "10.0.0.5", NOW, "idle")
IN_USE = Status(
    schema="public",
    revision=10,
    recorded_revision=10,
    schema_version=6,
    plugins="10.0 to 10.3",
    patients=15,
    studies=30,
    series=120,
    instances=12_000,
    compressed_size_bytes=70_670_240,
    uncompressed_size_bytes=70_670_240,
    storage_area="filesystem",
    trigram="valid",
    locks=[ORTHANC],
    server_version="15.18",
    pending={"statistics_deltas": 638, "child_counts": 1},
    endpoint=ENDPOINT,
    newest=NOW - timedelta(minutes=2),
    index_bytes=49_208_679,
    sessions=5,
    connections=6,
    max_connections=100,
    time=NOW,
)
EMPTY = replace(
    IN_USE,
    patients=0,
    studies=0,
    series=0,
    instances=0,
    compressed_size_bytes=0,
    uncompressed_size_bytes=0,
    locks=[],
    pending={"statistics_deltas": 0, "child_counts": 0},
    newest=None,
    sessions=0,
    connections=1,
)
STATES = {
    "in-use": IN_USE,
    "large-objects": replace(
        IN_USE,
        schema="pacs",
        storage_area="postgresql",
        uncompressed_size_bytes=141_340_480,
        newest=NOW - timedelta(days=3),
        locks=[
            replace(ORTHANC, address=None),
            replace(ORTHANC, lock=db.LOCK_STORAGE, address=None),
            replace(ORTHANC, lock=db.LOCK_DATABASE_SETUP, pid=10_021, application="pgorthanc upgrade"),
        ],
    ),
    "without-locks": replace(IN_USE, locks=[], trigram="missing", schema="O'Neil \"x\""),
    "damaged": replace(IN_USE, recorded_revision=None, trigram="invalid", sessions=1, locks=[]),
    "files-not-found": replace(
        IN_USE,
        areas=("filesystem", "postgresql", "adopted"),
        areas_not_found=("postgresql", "adopted"),
        kept_customdata=1204,
    ),
    "empty": replace(EMPTY, trigram="unavailable"),
    "before-revision-1": replace(
        EMPTY, revision="unknown", recorded_revision=None, plugins="up to 2.1",
        patients=None, studies=None, series=None, instances=None, compressed_size_bytes=None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_the_states_of_an_index(state: str) -> None:
    page = views.page(
        STATES[state],
        upgrade="pgorthanc upgrade --config /etc/orthanc",
        show="pgorthanc storage show --config /etc/orthanc",
    )
    golden.check_view(GOLDEN, state, page)


NO_INDEX = NoIndex(ENDPOINT, "public", None, 0, ())


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("no-index", NO_INDEX),
        ("other-tables", replace(NO_INDEX, objects=12)),
        ("other-schema", replace(NO_INDEX, other_schemas=("pacs",))),
    ],
)
def test_a_schema_without_an_index(state: str, found: NoIndex) -> None:
    page = views.no_index_page(
        found, init="pgorthanc init --host db1", other_schema="pgorthanc status --schema pacs --host db1"
    )
    golden.check_view(GOLDEN, state, page)
