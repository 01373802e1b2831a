"""The pages of `migrate-sqlite` in the states that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.migrate import Converted
from pgorthanc_cli.migrate.model import Compared, FileCheck, Finding
from pgorthanc_cli.views import migrate as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "migrate"
CHECKED = Converted(
    source="/var/lib/orthanc/db/index",
    resources={"patients": 15, "studies": 30, "series": 120, "instances": 12_000},
    rows={"resources": 12_165}, repaired=(), repaired_rows=0, skipped=(), skipped_rows=0,
    elapsed_s=3.2, dry_run=True,
)  # fmt: skip
CONVERTED = replace(
    CHECKED,
    dry_run=False, schema="public", revision=10, verified=True, plugins="10.0 to 10.3",
    compared=(Compared("resources", 12_165, 12_165, 1, 1),),
    endpoint=db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18"),
    configuration='{\n  "PostgreSQL": {\n    "EnableIndex": true,\n    "Host": "db1"\n  }\n}',
)  # fmt: skip
SKIPPED = Finding("metadata", "0a9b3153-2512774b", "type 7 holds a NUL character: skipped")
STATES = {
    "checked": CHECKED,
    "checked-with-skipped-rows": replace(CHECKED, skipped=(SKIPPED,), skipped_rows=1204),
    "converted": CONVERTED,
    "converted-with-problems": replace(
        CONVERTED,
        repaired=(SKIPPED,),
        repaired_rows=1,
        files=FileCheck(12_000, 0, 1, 2, ("uuid-1: missing",), elsewhere=31),
    ),
    "converted-unverified": replace(CONVERTED, verified=False, large_objects=12_000, files=FileCheck(12_000)),
}


@pytest.mark.parametrize("state", STATES)
def test_pages(state: str) -> None:
    again = "pgorthanc migrate-sqlite --config /etc/orthanc"
    verify = "pgorthanc verify schema --deep --config /etc/orthanc"
    golden.check_view(GOLDEN, state, views.page(STATES[state], again, verify))
