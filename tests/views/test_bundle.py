"""`support-bundle`: what it has written."""

from __future__ import annotations

from pathlib import Path

from pgorthanc_cli.doctor import Bundle
from pgorthanc_cli.views import bundle
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "bundle"


def test_the_page() -> None:
    names = ("versions.json", "doctor.json", "doctor.html")
    page = bundle.page(Bundle(Path("/tmp/for support.tar.gz"), names, ()), commands)
    golden.check_view(GOLDEN, "written", page)


def test_files_that_were_cut() -> None:
    names = ("versions.json", "tables.json", "storage.json")
    page = bundle.page(Bundle(Path("bundle.tar.gz"), names, names[1:]), commands)
    golden.check_view(GOLDEN, "cut", page)


def commands(*words: str) -> str:
    return " ".join(("pgorthanc", *words, "--host", "db1"))
