"""The pages of `verify schema` in the states that a person can meet."""

from __future__ import annotations

from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.schema.verify import Finding, Fix, Phase, Repaired, SchemaReport
from pgorthanc_cli.views import verify as views
from pgorthanc_cli.views.page import Page
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "verify"
ENDPOINT = db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18")
REPAIR = "pgorthanc verify schema --apply --config /etc/orthanc"
MISSING = Finding(
    "index childrenindex2", None, "CREATE INDEX", matters=True, why="the searches that need it read whole tables",
    repair=(Fix(Phase.INDEX, "CREATE INDEX childrenindex2 ON resources (parentid)"),),
)  # fmt: skip
COLUMN = Finding(
    "column labels.label", "2 integer", "2 text", matters=True,
    why="the plugin inserts and reads by position and type", advice="restore the table labels from a backup",
)  # fmt: skip
EXTRA = Finding(
    "column resources.foo", "7 integer", None, matters=False,
    why="it blocks upgrades and downgrades", blocks=True,
)  # fmt: skip
HARMLESS = Finding("index own", "CREATE INDEX", None, matters=False, why="it slows down each write a little")


def report(*findings: Finding, schema: str = "public") -> SchemaReport:
    healthy = not any(finding.matters for finding in findings)
    return SchemaReport(schema, 10, "10", "10.0 to 10.3", healthy, False, {}, findings, ENDPOINT)


def check(state: str, page: Page) -> None:
    golden.check_view(GOLDEN, state, page)


def test_comparisons() -> None:
    check("healthy", views.page(report(), REPAIR))
    check("harmless", views.page(report(HARMLESS), REPAIR))
    check("harmless-verbose", views.page(report(HARMLESS), REPAIR, verbose=True))
    check("warning", views.page(report(EXTRA, HARMLESS), REPAIR))
    check("problems", views.page(report(MISSING, COLUMN, EXTRA, schema="odd schema"), REPAIR))


def test_repairs() -> None:
    done = Repaired("public", 10, True, ("index childrenindex2",), (), ENDPOINT)
    check("repaired", views.repaired_page(done))
    check("nothing-to-do", views.repaired_page(Repaired("public", 10, True, (), (), ENDPOINT)))
    partly = Repaired("public", 10, False, ("index childrenindex2",), (COLUMN, EXTRA), ENDPOINT)
    check("partly-repaired", views.repaired_page(partly))
    check("not-repaired", views.repaired_page(Repaired("public", 10, False, (), (COLUMN,), ENDPOINT)))
