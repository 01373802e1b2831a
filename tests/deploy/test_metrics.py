"""The dashboard and the alerts use metrics and labels that `doctor --prometheus` writes, on a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgorthanc_cli import db, doctor, locks
from pgorthanc_cli.schema import initialize
from tests.deploy.places import DEPLOY, Mapping, documents
from tests.support import commandlines
from tests.support import samples as samples_of
from tests.support.importing import run as run_import
from tests.support.real_servers import Server

FROM_OTHERS = {"node_textfile_mtime_seconds"}  # of the node exporter
NAME = re.compile(r"\b(?:pgorthanc|node)_\w+")
LABEL = re.compile(r"\{\{ ?\$labels\.(\w+) ?\}\}")
COMMAND = re.compile(r"pgorthanc [\w -]+$")
DASHBOARD: Mapping = json.loads((DEPLOY / "grafana" / "pgorthanc.json").read_text("utf-8"))


def rules() -> list[Mapping]:
    (document,) = documents(DEPLOY / "prometheus" / "alerts.yaml")
    return [rule for group in document["groups"] for rule in group["rules"]]


def panel_expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def examined(dsn: str, folder: Path) -> dict[str, set[str]]:
    """The metrics of an examination, each with the names of its labels."""
    file = folder / "pgorthanc.prom"
    words = ["doctor", "--uri", dsn, "--storage-dir", str(folder), "--prometheus", str(file)]
    return written(words, file)


def verified(dsn: str, folder: Path) -> dict[str, set[str]]:
    """The metrics of a check of the storage area, each with the names of its labels."""
    file = folder / "storage.prom"
    words = ["verify", "storage", "--uri", dsn, "--storage-dir", str(folder / "storage")]
    return written([*words, "--prometheus", str(file), "--journal", str(folder / "scrub.db")], file)


def written(words: list[str], file: Path) -> dict[str, set[str]]:
    done = subprocess.run([sys.executable, "-m", "pgorthanc_cli", *words], capture_output=True, text=True)
    assert done.returncode in (0, 6), done.stderr
    return {
        family.name: {label for sample in family.samples for label in sample.labels}
        for family in text_string_to_metric_families(file.read_text("utf-8"))
    }


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """All metrics: those of a primary, and of its standby."""
    hba = "local all all trust\nlocal replication all trust\n"
    primary, standby = Server(hba, ""), Server(hba, "")
    folder = tmp_path_factory.mktemp("metrics")
    try:
        primary.create().start()
        with db.session(db.Target(primary.place)) as conn:
            initialize.init(conn, schema="public", require_idle=locks.require_idle)
        run_import(db.Target(primary.place), samples_of.folder(folder / "in", 1), folder / "storage")
        standby.copy_of(primary).start()
        yield (
            examined(standby.place, folder)
            | examined(primary.place, folder)
            | verified(primary.place, folder)
        )
    finally:
        standby.remove()
        primary.remove()


def test_every_metric_and_label_is_real(samples: dict[str, set[str]]) -> None:
    expressions = [*panel_expressions(), *(rule["expr"] for rule in rules())]
    used = {name for expression in expressions for name in NAME.findall(expression)}
    assert used - FROM_OTHERS <= set(samples)
    assert "pgorthanc_check_status" in used
    for rule in rules():
        metric = NAME.findall(rule["expr"])[0]
        labels = set(LABEL.findall(json.dumps(rule["annotations"])))
        assert labels <= samples.get(metric, set()), rule["alert"]


def test_every_figure_of_the_doctor_is_on_the_dashboard(samples: dict[str, set[str]]) -> None:
    shown = {name for expression in panel_expressions() for name in NAME.findall(expression)}
    assert set(samples) <= shown


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: Mapping) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
    description = rule["annotations"]["description"]
    command = LABEL.sub(
        lambda match: doctor.check_names()[0] if match[1] == "check" else match[0], description
    )
    called = COMMAND.findall(command)
    assert called or "systemctl" in description
    for line in called:
        assert commandlines.refusal(line.split()[1:]) is None


def test_expressions_are_balanced() -> None:
    for expression in (*panel_expressions(), *(rule["expr"] for rule in rules())):
        plain = re.sub(r'"[^"]*"', "", expression)
        assert all(plain.count(one) == plain.count(other) for one, other in ("()", "{}", "[]")), expression


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells
        assert place["x"] + place["w"] <= 24
        cells |= own
