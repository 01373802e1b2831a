"""The comparison of a schema with what its revision must be."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from pgorthanc_cli.db import planted
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.catalog import Catalog, Difference, Layout
from pgorthanc_cli.schema.verify import data
from pgorthanc_cli.schema.verify.functions import Bodies, Body, bare, bodies
from pgorthanc_cli.schema.verify.judge import Judge, of_body
from pgorthanc_cli.schema.verify.mend import Mender, without_lock
from pgorthanc_cli.schema.verify.model import Finding, Fix, SchemaReport

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


def schema(conn: Connection, schema: str, *, deep: bool = False) -> SchemaReport:
    """Compare a schema with the catalog of its revision, its functions with all that are known, and its data.

    Args:
        conn: A connection; nothing is written, so a standby and a role that only reads will do.
        schema: PostgreSQL namespace.
        deep: Also recount statistics, tree and child counts: reads resources and attachedfiles as a whole.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: It holds no index, or one of no known layout or before revision 1.
    """
    found = catalog.snapshot(conn, schema)
    here = _layout(conn, found, schema)
    known, digests = Bodies(), bodies(conn)
    revision = _revision(found, digests, known, here)
    wanted = catalog.expected(revision, with_storage="table storagearea" in found)
    mender = Mender(found, wanted, revision, known, _trigram_schema(conn))
    judge = Judge(found, wanted, revision, without_labels=here.made_by == "4.0")
    strange, origins = _functions(digests, wanted, known, mender, revision)
    findings = [
        *_findings(_differences(conn, found, wanted), judge, mender),
        *strange,
        *_planted(conn, schema),
    ]
    if not any(one.found is None and one.name.startswith(("table ", "column ")) for one in findings):
        findings += data.findings(conn, found, revision, deep=deep, schema=schema)
    return SchemaReport(
        schema=schema,
        revision=revision,
        recorded_revision=found.get("property 4"),
        plugins=here.plugins if here.revision == revision else catalog.plugins(revision),
        healthy=not any(finding.matters for finding in findings),
        deep=deep,
        functions=dict(origins.most_common()),
        findings=tuple(sorted(findings, key=lambda finding: not finding.matters)),
    )


def _planted(conn: Connection, schema: str) -> list[Finding]:
    """Objects that would run with the rights of this role; what they are for is not known, so they are not dropped."""
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


def _layout(conn: Connection, found: Catalog, schema: str) -> Layout:
    here = catalog.layout(found, schema)
    if here is None:
        raise RevisionError(
            f"schema {schema} of database {conn.info.dbname} holds no Orthanc index",
            "name the right one with --dbname and --schema, or make an index: pgorthanc init",
        )
    if here.revision == 0:
        raise RevisionError(
            f"the index in schema {schema} has the layout of plugin {here.plugins}, before revision 1: "
            "there is nothing to compare it with",
            "run: pgorthanc upgrade",
        )
    return here


def _revision(found: Catalog, digests: dict[str, Body], known: Bodies, here: Layout) -> int:
    """The revision of the layout, or the recorded one if the schema is as near to that: scripts leave tables behind."""
    recorded = found.get("property 4") or ""
    if recorded == str(here.revision) or recorded not in map(str, catalog.revisions()):
        return here.revision

    def distance(revision: int) -> int:
        wanted = catalog.expected(revision, with_storage="table storagearea" in found)
        wrong = [d for d in catalog.differences(found, wanted) if d.matters and d.name != "property 4"]
        bad = [
            name
            for name, digest in digests.items()
            if name in wanted and not known.origin(name, digest, revision).fits
        ]
        return len(wrong) + len(bad)

    return min(int(recorded), here.revision, key=distance)


def _differences(conn: Connection, found: Catalog, wanted: Catalog) -> list[Difference]:
    """Also the trigram index, where the server could have a valid one."""
    name = f"index {catalog.TRIGRAM_INDEX}"
    state = catalog.trigram(conn, found)
    slow = (
        [Difference(name, found.get(name), wanted[name], matters=False)]
        if state in ("missing", "invalid")
        else []
    )
    return [*catalog.differences(found, wanted), *slow]


def _findings(differences: list[Difference], judge: Judge, mender: Mender) -> list[Finding]:
    """One for each difference, but a table that is missing or too many stands for all that belongs to it."""
    parts: dict[str, list[Fix]] = defaultdict(list)
    found = []
    for difference in differences:
        table = judge.table_of(difference)
        if table is None:
            found.append(_finding(difference, judge, mender))
        elif difference.actual is None:
            parts[f"table {table}"] += mender.fixes(difference)
    return [replace(one, repair=(*one.repair, *parts[one.name])) for one in found]


def _finding(difference: Difference, judge: Judge, mender: Mender) -> Finding:
    judged, why = judge.verdict(difference)
    repair = () if judge.stood_in(judged.name) else mender.fixes(judged)
    advice = without_lock(repair) if repair else judge.advice(judged)
    blocks = difference.matters and difference.expected is None and not (judged.matters or repair)
    return Finding(judged.name, judged.actual, judged.expected, judged.matters, why, repair, advice, blocks)


def _functions(
    digests: dict[str, Body], wanted: Catalog, known: Bodies, mender: Mender, revision: int
) -> tuple[list[Finding], Counter[str]]:
    """The functions whose body does not belong to the revision, and where all of them come from."""
    strange: list[Finding] = []
    origins: Counter[str] = Counter()
    for name in sorted(wanted.keys() & digests.keys()):
        origin = known.origin(name, digests[name], revision)
        origins[origin.name] += 1
        if not origin.fits:
            found, why = of_body(origin)
            wanted_body = f"that of revision {revision}"
            strange.append(Finding(f"body of {bare(name)}", found, wanted_body, True, why, mender.body(name)))
    return strange, origins


def _trigram_schema(conn: Connection) -> str | None:
    """Where pg_trgm is installed."""
    with conn.cursor() as cur:
        cur.execute("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'pg_trgm'")
        row = cur.fetchone()
    return row[0] if row else None
