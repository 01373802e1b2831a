"""How far long work is."""

from __future__ import annotations

from pgorthanc_cli.ingest import Batch, FileProblem
from pgorthanc_cli.text import progress_line, size
from pgorthanc_cli.views import progress
from pgorthanc_cli.views.progress import ImportProgress

REFUSED = tuple(FileProblem(f"/mnt/{number}", "is not DICOM") for number in range(14))


def state(*, counted: bool = False, total: int = 0) -> ImportProgress:
    made = ImportProgress()
    made.add(Batch(imported=84_000, known=196, refusals=REFUSED))
    made.counted, made.total = counted, total
    return made


def test_line_of_an_import_whose_files_are_counted() -> None:
    line = state(counted=True, total=412_000).line(44)
    expected = "  importing  84,210 of 412,000 (20%) · 14 refused · 1,914/s · 44 s · about 2 min 51 s left"
    assert line == expected


def test_line_while_the_files_are_still_being_counted() -> None:
    line = state(total=100_000).line(44)
    assert line == "  importing  84,210 · 100,000 found so far · 14 refused · 1,914/s · 44 s"
    assert state().line(44) == "  importing  84,210 · 14 refused · 1,914/s · 44 s"


def test_line_before_anything_is_done_and_after_more_than_was_counted() -> None:
    assert ImportProgress().line(0) == "  importing  0 · 0/s · 0 s"
    line = state(counted=True, total=80_000).line(44)
    assert line == "  importing  84,210 of 80,000 (100%) · 14 refused · 1,914/s · 44 s"


def test_line_of_followed_folders() -> None:
    assert state().following_line(3700) == "  following  84,000 imported, 14 refused · 1 h 1 min"


def test_log_lines() -> None:
    line = state(counted=True, total=412_000).log_line(44)
    assert line == "import 84210/412000 20% 1914/s refused=14 left=171s"
    assert state().log_line(44) == "import 84210 1914/s refused=14"


def test_what_a_batch_brings() -> None:
    assert progress.arrived(Batch(imported=1412, known=3, refusals=REFUSED)) == "1,412 imported, 14 refused"
    assert progress.arrived(Batch(known=3)) == ""


def test_line_of_a_copy() -> None:
    line = progress_line("copying", 1.2e9, 4e9, 10, show=size)
    assert line == "  copying  1.2 GB of 4 GB (30%) · 120 MB/s · 10 s · about 23 s left"
