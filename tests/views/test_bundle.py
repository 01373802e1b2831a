"""`support-bundle`: what it has written."""

from __future__ import annotations

from pathlib import Path

from pgorthanc_cli.views import bundle
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "bundle"


def test_the_page() -> None:
    page = bundle.page(Path("/tmp/for support.tar.gz"), ("versions.json", "doctor.json", "doctor.html"))
    golden.check_view(GOLDEN, "written", page)
