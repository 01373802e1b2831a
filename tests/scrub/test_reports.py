"""What `verify storage` writes for monitoring systems, and its web page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgorthanc_cli import db
from pgorthanc_cli.scrub.model import KINDS
from tests.scrub.injected import Store, bad_name, missing
from tests.support import samples
from tests.support.importing import run as import_files


@pytest.fixture
def store(fresh: db.Target, tmp_path: Path) -> Store:
    import_files(fresh, samples.folder(tmp_path / "in", 3), tmp_path / "area")
    return Store(fresh, tmp_path / "area", compress=False)


def verify(store: Store, *options: object) -> subprocess.CompletedProcess[str]:
    words = ("verify", "storage", "--uri", store.target.dsn, "--storage-dir", store.area, *options)
    command = [sys.executable, "-m", "pgorthanc_cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def metrics(file: Path) -> dict[tuple[str, str], float]:
    return {
        (family.name.removeprefix("pgorthanc_storage_"), sample.labels.get("kind", "")): sample.value
        for family in text_string_to_metric_families(file.read_text("utf-8"))
        for sample in family.samples
    }


def test_metrics(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "storage.prom"
    assert verify(store, "--prometheus", file, "--journal", tmp_path / "scrub.db").returncode == 0
    healthy = metrics(file)
    assert (healthy["attachments", ""], healthy["checked", ""], healthy["complete", ""]) == (3, 3, 1)
    assert healthy["oldest_check_timestamp_seconds", ""] <= healthy["finished_timestamp_seconds", ""]
    assert {kind: healthy["findings", kind] for kind in KINDS} == dict.fromkeys(KINDS, 0)
    missing(store)
    assert verify(store, "--prometheus", file).returncode == 6
    assert (metrics(file)["damaged", ""], metrics(file)["findings", "missing"]) == (1, 1)
    assert file.stat().st_mode & 0o777 == 0o644


def test_one_line_for_nagios(store: Store) -> None:
    healthy = verify(store, "--nagios")
    assert (healthy.returncode, healthy.stdout) == (
        0,
        "VERIFY-STORAGE OK - All 3 attachments are intact. | attachments=3 checked=3 damaged=0 findings=0\n",
    )
    bad_name(store)
    orphan = verify(store, "--nagios")
    assert (orphan.returncode, orphan.stdout.count("\n")) == (1, 1)
    assert "1 orphan. (1 foreign-file)" in orphan.stdout
    missing(store)
    damaged = verify(store, "--nagios")
    assert damaged.returncode == 2
    assert damaged.stdout.startswith("VERIFY-STORAGE CRITICAL - 1 of 3 attachments is damaged, in 1 study.")


def test_a_web_page_lists_every_finding(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        missing(store)
    page = tmp_path / "storage.html"
    assert verify(store, "--html", page).returncode == 6
    text = page.read_text("utf-8")
    assert text.count("2 missing") == 1
    assert text.count(f"{store.area}"[-20:]) >= 1
    assert page.stat().st_mode & 0o777 == 0o600
