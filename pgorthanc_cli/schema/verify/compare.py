"""Compare a schema with the catalog of its revision."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.db import planted
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.progress import Report, silent
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.catalog import Catalog, Difference, Layout
from pgorthanc_cli.schema.verify import data
from pgorthanc_cli.schema.verify.functions import Bodies, Body, bare, bodies
from pgorthanc_cli.schema.verify.model import Finding, Fix, SchemaReport
from pgorthanc_cli.schema.verify.repairs import Repairer, online_statement
from pgorthanc_cli.schema.verify.severity import SeverityRules, describe_body

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


def schema(conn: Connection, schema: str, *, deep: bool = False, report: Report = silent) -> SchemaReport:
    """Compare a schema with the catalog of its revision, its functions with all known ones, and its data.

    Args:
        conn: A connection; nothing is written, so a standby or a read-only role is enough.
        schema: PostgreSQL namespace.
        deep: Also recount statistics, tree and child counts: reads resources and attachedfiles as a whole.
        report: If deep and these are large: receives that they will be read, then each step.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: It holds no index, or one of no known layout or before revision 1.
    """
    objects = catalog.snapshot(conn, schema)
    layout = _layout(conn, objects, schema)
    known, digests = Bodies(), bodies(conn)
    revision = _revision(objects, digests, known, layout)
    expected = catalog.expected_like(objects, revision)
    repairer = Repairer(objects, expected, revision, known, _trigram_schema(conn))
    rules = SeverityRules(objects, expected, without_labels=layout.made_by == "4.0")
    foreign_bodies, origins = _functions(digests, expected, known, repairer, revision)
    planted_objects = _planted(conn, schema)
    reported = {finding.name for finding in planted_objects}
    # A planted object is reported once, as such.
    differences = [
        difference
        for difference in _differences(conn, objects, expected)
        if difference.expected is not None or difference.name not in reported
    ]
    findings = [*_findings(differences, rules, repairer), *foreign_bodies, *planted_objects]
    # Without one of these, the queries on the rows would fail.
    if not any(one.found is None and one.name.startswith(("table ", "column ")) for one in findings):
        findings += data.findings(conn, objects, revision, deep=deep, schema=schema, report=report)
    return SchemaReport(
        schema=schema,
        revision=revision,
        recorded_revision=objects.get("property 4"),
        plugins=layout.plugins if layout.revision == revision else catalog.plugins(revision),
        healthy=not any(finding.matters for finding in findings),
        deep=deep,
        functions=dict(origins.most_common()),
        findings=tuple(sorted(findings, key=lambda finding: not finding.matters)),
        endpoint=db.endpoint(conn),
    )


def _planted(conn: Connection, schema: str) -> list[Finding]:
    """Return objects that would run with the rights of this role; their purpose is unknown, so they are not dropped."""
    return [
        Finding(
            f"{each.kind} {each.name}",
            f"of role {each.owner}",
            None,
            matters=True,
            why="it may run in place of PostgreSQL's or the plugin's own, with the rights of whoever writes",
            advice=f"if that role has no business there: {each.remedy}",
        )
        for each in planted.find(conn, schema)
    ]


def _layout(conn: Connection, objects: Catalog, schema: str) -> Layout:
    layout = catalog.require_index(conn, schema, objects)
    if layout.revision == 0:
        raise RevisionError(
            f"the index in schema {schema} has the layout of plugin {layout.plugins}, before revision 1: "
            "there is nothing to compare it with",
            "run: pgorthanc upgrade",
        )
    return layout


def _revision(objects: Catalog, digests: dict[str, Body], known: Bodies, layout: Layout) -> int:
    """Return the revision of the layout, or the recorded one if the schema is as near to it.

    The official scripts leave tables of other revisions behind, so that the layout alone can mislead.
    """
    recorded = objects.get("property 4") or ""
    if recorded == str(layout.revision) or recorded not in map(str, catalog.revisions()):
        return layout.revision

    def distance(revision: int) -> int:
        expected = catalog.expected_like(objects, revision)
        differences = catalog.differences(objects, expected)
        wrong = [d for d in differences if d.matters and d.name != "property 4"]
        bad = [
            name
            for name, digest in digests.items()
            if name in expected and not known.origin(name, digest, revision).fits
        ]
        return len(wrong) + len(bad)

    return min(int(recorded), layout.revision, key=distance)


def _differences(conn: Connection, objects: Catalog, expected: Catalog) -> list[Difference]:
    """Return the differences, and also the trigram index if the server could have a valid one."""
    name = f"index {catalog.TRIGRAM_INDEX}"
    differences = catalog.differences(objects, expected)
    if catalog.trigram(conn, objects) in ("missing", "invalid"):
        differences.append(Difference(name, objects.get(name), expected[name], matters=False))
    return differences


def _findings(differences: list[Difference], rules: SeverityRules, repairer: Repairer) -> list[Finding]:
    """Return a finding for each difference; that of a missing or extra table covers all that belongs to it."""
    parts: dict[str, list[Fix]] = defaultdict(list)
    findings = []
    names = [difference.name for difference in differences]
    children = [name.partition(".")[2] for name in names if name.startswith("child ")]
    for difference in differences:
        table = rules.table_of(difference)
        if difference.name.removeprefix("table ") in children:
            # The finding about its inheritance says what to do.
            continue
        if table is None:
            findings.append(_finding(difference, rules, repairer))
        elif difference.actual is None:
            parts[f"table {table}"] += repairer.fixes(difference)
    return [replace(one, repair=(*one.repair, *parts[one.name])) for one in findings]


def _finding(difference: Difference, rules: SeverityRules, repairer: Repairer) -> Finding:
    rated, why = rules.classify(difference)
    repair = () if rules.has_substitute(rated.name) else repairer.fixes(rated)
    advice = online_statement(repair) if repair else rules.advice(rated)
    # Harmless to the plugin, but no step may lead from such a schema to one that matches.
    blocks = difference.matters and difference.expected is None and not (rated.matters or repair)
    return Finding(rated.name, rated.actual, rated.expected, rated.matters, why, repair, advice, blocks)


def _functions(
    digests: dict[str, Body], expected: Catalog, known: Bodies, repairer: Repairer, revision: int
) -> tuple[list[Finding], Counter[str]]:
    """Return findings of bodies that do not fit the revision, and how many bodies come from which release."""
    findings: list[Finding] = []
    origins: Counter[str] = Counter()
    for name in sorted(expected.keys() & digests.keys()):
        origin = known.origin(name, digests[name], revision)
        origins[origin.name] += 1
        if not origin.fits:
            actual, why = describe_body(origin)
            body = f"that of revision {revision}"
            repair = repairer.body(name)
            findings.append(Finding(f"body of {bare(name)}", actual, body, True, why, repair))
    return findings, origins


def _trigram_schema(conn: Connection) -> str | None:
    query = "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'pg_trgm'"
    name: str | None = db.value(conn, query)
    return name
