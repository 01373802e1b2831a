"""The pages of `storage show` in the states that a person can meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.placement import Area, Content, Group, Shown
from pgorthanc_cli.views import placement as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "placement"
CHECK = "pgorthanc verify storage --config /etc/orthanc"
ENDPOINT = db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18")
TB = 10**12
SHOWN = Shown(
    areas=(Area("postgresql", "", 36_120_411, 18 * TB, 21 * TB, 16.7),),
    contents=(
        Content("postgresql", "dicom", "none", 36_000_000, 18 * TB, 18 * TB),
        Content("postgresql", "user", "zlib", 120_411, 9 * 10**9, 10**9),
    ),
    groups=(),
    orphans=0,
    wrong_owner=0,
    owner="orthanc",
    other_objects=0,
    unreadable_tables=(),
    endpoint=ENDPOINT,
)


def check(state: str, shown: Shown) -> None:
    golden.check_view(GOLDEN, state, views.page(shown, "public", CHECK if shown.areas else ""))


def test_one_area() -> None:
    check("large-objects", SHOWN)
    check("nothing", replace(SHOWN, areas=(), contents=(), owner=None))


def test_several_areas_and_groups() -> None:
    areas = (
        Area("adopted", "", 1, 900, 900, 0.0),
        Area("advanced-storage", "cold\x1b", 4_000, 10**9, 10**9, 0.0),
        Area("filesystem", "", 1_000, 10**9, 45 * 10**7, -55.0),
        Area("unknown", "", 1, 0, 0, None),
    )
    groups = (
        Group("modality", "CT", 900, TB, TB),
        Group("modality", "", 1, 0, 0),
        Group("year", "2004", 1, 1, 1),
    )
    contents = (Content("filesystem", "dicom-until-pixel-data", "7", 1_000, 10**9, 10**9),)
    check("several", replace(SHOWN, areas=areas, groups=groups, contents=contents))


def test_findings() -> None:
    check(
        "findings",
        replace(SHOWN, orphans=890, wrong_owner=1, other_objects=1, unreadable_tables=("public.notes",)),
    )
