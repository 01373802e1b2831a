"""The page about an import: right sums, nothing from elsewhere, no name that was not asked for, good to look at."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pgorthanc_cli import db, ingest
from pgorthanc_cli.index import Outcome
from pgorthanc_cli.views import charts, import_page
from pgorthanc_cli.views.import_page import page
from pgorthanc_cli.views.import_statistics import (
    LISTED,
    OTHERS,
    UNREAD,
    ImportStatistics,
    Timeline,
)
from tests.support import samples

NAME = "Doe^Jane [b]<script>alert('&')</script>"


def item(
    path: str,
    outcome: Outcome = Outcome.IMPORTED,
    *,
    modality: str = "CT",
    year: str = "2019",
    patient: str = "p1",
) -> ingest.IndexedFile:
    summary = ingest.InstanceSummary("i", patient, NAME, modality, year)
    return ingest.IndexedFile(ingest.Source(path), outcome, 1000, summary)


def batch(
    *items: ingest.IndexedFile, refusals: tuple[ingest.FileProblem, ...] = (), unread: int = 0
) -> ingest.Batch:
    count = [i.outcome for i in items].count
    return ingest.Batch(
        imported=count(Outcome.IMPORTED), known=count(Outcome.KNOWN) + unread, overwritten=count(Outcome.OVERWRITTEN),
        refusals=refusals, bytes=1000 * len(items), items=items,
    )  # fmt: skip


class Texts(HTMLParser):
    """The words and the tags of a page; complains about what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "rect", "line", "polygon", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line", "polygon", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data.strip())


@pytest.fixture
def roots(tmp_path: Path) -> list[str]:
    for name in ("one", "two"):
        (tmp_path / name / "Doe").mkdir(parents=True)
    (tmp_path / "alone.dcm").touch()
    return [str(tmp_path / name) for name in ("one", "two", "alone.dcm")]


def run_of(roots: list[str], *, names: bool) -> ImportStatistics:
    one, two, alone = roots
    statistics = ImportStatistics(roots, names=names)
    statistics.add(
        batch(item(f"{one}/Doe/1.dcm"), item(f"{one}/Doe/2.dcm", Outcome.KNOWN), item(alone, modality="MR"))
    )
    statistics.add(
        batch(
            item(f"{two}/Doe/3.dcm", Outcome.OVERWRITTEN, modality="", year="", patient="p2"),
            refusals=(
                ingest.FileProblem(f"{two}/Doe/4.dcm", "cut off at byte 17 of 128"),
                ingest.FileProblem(f"{two}/Doe/5.dcm", "cut off at byte 4 of 128"),
                ingest.FileProblem(f"{two}/<i>.txt", "no DICOM"),
            ),
            unread=5,
        )
    )
    return statistics


def test_the_sums(roots: list[str], tmp_path: Path) -> None:
    statistics = run_of(roots, names=False)
    total = statistics.total
    assert (total.imported, total.known, total.refused, total.size_bytes) == (3, 6, 3, 3000)
    assert (statistics.overwritten, statistics.patient_count) == (1, 2)
    assert {name: row.imported for name, row in statistics.modalities.items()} == {"CT": 1, "MR": 1, "": 1}
    assert {name: row.imported for name, row in statistics.years.items()} == {"2019": 2, "": 1}
    folders = {name: (r.imported, r.known, r.refused) for name, r in statistics.folders.items()}
    assert folders == {
        roots[0]: (1, 1, 0),
        roots[1]: (1, 0, 3),
        str(tmp_path): (1, 0, 0),
        UNREAD: (0, 5, 0),
    }
    assert {r.text: r.count for r in statistics.reasons} == {
        "cut off at byte … of 128": 2,
        "no DICOM": 1,
    }


def test_relative_and_listed_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    statistics = ImportStatistics(["."])
    statistics.add(batch(item("./a/b/1.dcm"), item("./1.dcm"), item("/elsewhere/1.dcm")))
    assert {name: row.imported for name, row in statistics.folders.items()} == {
        str(tmp_path): 2,
        LISTED: 1,
    }


@pytest.mark.parametrize("names", [True, False])
def test_names_are_there_only_if_asked_for(roots: list[str], names: bool) -> None:
    html = page(run_of(roots, names=names), title="A <title>", ending="Complete.", facts={"a<b": "c>d"})
    texts = Texts(html)
    text = " ".join(texts.words)
    assert ("Doe" in html) is names
    assert ("4.dcm" in html) is names
    assert (NAME in text) is names
    assert "A <title>" in text
    assert "a<b c>d" in text
    assert "script" not in texts.tags
    assert {"i", "b", "title"} & set(texts.tags) <= {"i", "b", "title"}
    assert ("This page names patients." in text) is names


def test_nothing_comes_from_elsewhere(roots: list[str]) -> None:
    html = page(run_of(roots, names=True), title="t", ending="e", facts={})
    texts = Texts(html)
    assert not {name for name, _ in texts.attributes} & {"src", "href", "srcset", "onload", "data"}
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_an_empty_run_is_a_page_too() -> None:
    texts = Texts(page(ImportStatistics([]), title="t", ending="Complete.", facts={}))
    assert "imported" in texts.words


def test_the_timeline_is_bounded_and_loses_nothing() -> None:
    line = Timeline()
    for n in range(10_000):
        line.add(n * 60.0, 7, 100)
    assert len(line.files) <= 240
    assert (sum(line.files), sum(line.bytes)) == (70_000, 1_000_000)
    assert line.width_s * len(line.files) >= 10_000 * 60


def test_memory_is_bounded() -> None:
    statistics = ImportStatistics([], names=True, max_rows=10)
    for n in range(100):
        odd = ingest.FileProblem(f"/{n}/x", "x" * n)
        statistics.add(batch(item(f"/{n}/1.dcm", modality=f"M{n}"), refusals=(odd,) * 5))
    assert len(statistics.modalities) == len(statistics.folders) == len(list(statistics.reasons)) == 11
    assert statistics.modalities[OTHERS].imported == 90
    assert [r.count for r in statistics.reasons if r.text == OTHERS] == [450]


@pytest.mark.parametrize("seconds", [0.5, 7, 61, 3600, 86_400, 9 * 86_400, 400 * 86_400])
def test_the_axis_of_time_is_readable(seconds: float) -> None:
    started = ImportStatistics([]).started
    drawn = charts.over_time([1.0] * 100, seconds / 100, started, kind="files", label=str)
    labels = re.findall(r'text-anchor="middle">([^<]+)<', drawn)
    assert len(labels) <= 12
    assert len(labels) >= (1 if seconds > 5 else 0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1, 7, 99, 100, 101, 2599, 1e9])
def test_the_axis_of_values_covers_them(value: float) -> None:
    assert value <= charts._round_up(value) <= max(10 * value, 1)


def test_the_page_is_renewed_while_the_import_runs(roots: list[str], tmp_path: Path) -> None:
    path = tmp_path / "import.html"
    writer = import_page.ImportPage(path, roots, {}, names=False, renew_s=0)
    writer.add(batch(item(f"{roots[0]}/1.dcm")))
    assert "At work." in path.read_text("utf-8")
    writer.write("Complete.")
    assert "Complete." in path.read_text("utf-8")


# --- the program ----------------------------------------------------------------------------------------------------


def pgorthanc(target: db.Target, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "pgorthanc_cli", "import", "--json", "--uri", target.dsn, *options, "-j1",
        "--storage-dir", str(tmp_path / "area"), "--report", str(tmp_path / "report.html"), str(tmp_path / "in"),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    samples.folder(tmp_path / "in" / "Doe", 20)
    for n, (modality, day) in enumerate([("MR", "20180101"), ("MR", "20190101"), ("US", "")]):
        (tmp_path / "in" / f"{n}.dcm").write_bytes(
            samples.instance(f"Q{n}", f"1.3.{n}", f"1.3.{n}.1", Modality=modality, StudyDate=day)
        )
    (tmp_path / "in" / "odd.txt").write_text("no DICOM")
    return tmp_path / "in"


def test_a_report_of_a_real_import(fresh: db.Target, archive: Path, tmp_path: Path) -> None:
    assert pgorthanc(fresh, tmp_path, "--report-names").returncode == 6
    words = Texts((tmp_path / "report.html").read_text("utf-8")).words
    for expected in (
        "23",
        "CT",
        "MR",
        "US",
        "2018",
        "Name^Of[P1]",
        f"{archive}/Doe",
        str(archive / "odd.txt"),
    ):
        assert expected in words, expected
    assert pgorthanc(fresh, tmp_path).returncode == 6
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Name^" not in page
    assert "Doe" not in page
    assert "odd.txt" not in page


def test_an_import_that_fails_says_so_on_the_page(empty: db.Target, archive: Path, tmp_path: Path) -> None:
    done = pgorthanc(empty, tmp_path)
    assert done.returncode == 4
    assert "Ended by an error: there is no Orthanc index" in (tmp_path / "report.html").read_text("utf-8")


def test_a_page_that_cannot_be_written_is_found_out_before_the_work(
    fresh: db.Target, archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "report.html").mkdir()
    done = pgorthanc(fresh, tmp_path)
    assert done.returncode == 2
    assert not (tmp_path / "area").exists()


# --- in a browser ----------------------------------------------------------------------------------------------------


class Picture:
    """A screenshot: rows of (red, green, blue)."""

    def __init__(self, data: bytes) -> None:
        pos, packed = 8, b""
        while pos < len(data):
            length, kind = struct.unpack_from(">I4s", data, pos)
            body = data[pos + 8 : pos + 8 + length]
            if kind == b"IHDR":
                self.width, self.height, depth, colour = struct.unpack_from(">IIBB", body)
                assert (depth, colour) in ((8, 2), (8, 6))
                self.step = 3 if colour == 2 else 4
            packed += body if kind == b"IDAT" else b""
            pos += length + 12
        self._unfilter(zlib.decompress(packed))

    def _unfilter(self, raw: bytes) -> None:
        """PNG (W3C), 9: each line says which of five predictions it was written with."""
        size, step = self.width * self.step, self.step
        above = bytes(size)
        self.lines: list[bytes] = []
        for start in range(0, len(raw), size + 1):
            kind, line = raw[start], bytearray(raw[start + 1 : start + 1 + size])
            for n in range(size) if kind else ():
                left = line[n - step] if n >= step else 0
                up, corner = above[n], above[n - step] if n >= step else 0
                guess = left + up - corner
                paeth = min((left, up, corner), key=lambda v: abs(guess - v))
                line[n] = (line[n] + (left, up, (left + up) // 2, paeth)[kind - 1]) & 255
            above = bytes(line)
            self.lines.append(above)

    def colour(self, x: int, y: int) -> tuple[int, ...]:
        return tuple(self.lines[y][x * self.step : x * self.step + 3])


@pytest.mark.interop
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 500])
def test_it_looks_right_in_a_browser(fresh: db.Target, archive: Path, tmp_path: Path, width: int) -> None:
    pgorthanc(fresh, tmp_path)
    shot = tmp_path / "shot.png"
    subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1100", f"--screenshot={shot}",
            (tmp_path / "report.html").as_uri(),
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    seen = Picture(shot.read_bytes())
    assert (seen.width, seen.height) == (width, 1100)
    pixels = [seen.colour(x, y) for y in range(0, 1100, 2) for x in range(0, width, 2)]
    share = {colour: pixels.count(colour) / len(pixels) for colour in set(pixels)}
    paper, card, bad = (0xF4, 0xF6, 0xF8), (255, 255, 255), (0xB3, 0x39, 0x2F)
    teal = sum(part for (red, green, blue), part in share.items() if min(green, blue) - red >= 10)
    assert share[card] > 0.3
    assert teal > 0.003  # the picture of the throughput, in whatever tint the width leaves
    assert bad in share  # what was refused stands out
    assert len(share) > 100  # text
    margins = {seen.colour(x, y) for y in range(1100) for x in (*range(5), *range(width - 5, width))}
    assert margins == {paper}  # nothing is wider than the page


def test_the_json_is_the_same_with_and_without_a_report(
    fresh: db.Target, archive: Path, tmp_path: Path
) -> None:
    keys = set(json.loads(pgorthanc(fresh, tmp_path).stdout))
    assert keys == {
        "imported", "known", "overwritten", "refused", "refusals", "instances_per_s", "mb_per_s", "elapsed_s", "bytes",
        "differing", "differences", "uncompared", "restored", "dry_run", "reasons", "interrupted", "endpoint",
        "adopted",
    }  # fmt: skip
