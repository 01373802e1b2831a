"""`init`: what a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.schema.initialize import Initialised
from pgorthanc_cli.views import init as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "init"
CREATED = Initialised(
    revision=10,
    schema_version=6,
    created=True,
    storage=True,
    trigram="valid",
    schema="public",
    repaired=(),
    dry_run=False,
    endpoint=db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18"),
)
NOTHING = replace(CREATED, created=False)
REPAIRED = replace(NOTHING, repaired=("index childrenindex2", "table storagearea"))
SECTION = """"PostgreSQL": {
  "EnableIndex": true,
  "Password": "REPLACE-ME"
}"""


@pytest.mark.parametrize(
    ("state", "result", "section"),
    [
        ("created", CREATED, SECTION),
        ("created-with-configuration", replace(CREATED, storage=False, schema="pacs"), ""),
        ("created-without-trigram", replace(CREATED, trigram="missing"), SECTION),
        ("repaired", REPAIRED, SECTION),
        ("nothing-to-do", NOTHING, SECTION),
        ("dry-run-create", replace(CREATED, dry_run=True), SECTION),
        ("dry-run-repair", replace(REPAIRED, dry_run=True), SECTION),
    ],
)
def test_the_states(state: str, result: Initialised, section: str) -> None:
    page = views.page(
        result,
        section=section,
        import_files="pgorthanc import --storage postgresql PATH --host db1",
        init="pgorthanc init --host db1",
    )
    golden.check_view(GOLDEN, state, page)


def test_a_private_server_that_stops_with_the_command() -> None:
    page = views.page(
        CREATED,
        section="",
        import_files="pgorthanc import --storage postgresql PATH --embedded pg",
        init="pgorthanc init --embedded pg",
        start_server="pgorthanc server start -v --embedded pg",
    )
    golden.check_view(GOLDEN, "private", page)
