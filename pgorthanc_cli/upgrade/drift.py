"""The schema before a change of revision: its actual revision, its drift from it, repairs, and obstacles.

`verify` compares and repairs. Added here are columns of higher revisions that a script for another revision has left:
`verify` drops nothing that may hold data, while an upgrade or downgrade drops them or keeps them aside.

Whatever the switch would refuse at its end is reported before, by the same judgement: `catalog.deviations`. Whatever
would stop a step is read from the server's own dependencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog, steps, verify
from pgorthanc_cli.upgrade.model import Obstacle

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_LEFTOVER_COLUMNS = {
    "column globalintegerschanges.pk": ("ALTER TABLE globalintegerschanges DROP COLUMN pk",),
    "column invalidchildcounts.pk": ("ALTER TABLE invalidchildcounts DROP COLUMN pk",),
    "column resources.childcount": ("ALTER TABLE resources DROP COLUMN childcount",),
    # Rev4ToRev5.sql brings it back.
    "column attachedfiles.customdata": (
        """CREATE TABLE IF NOT EXISTS pgorthanc_kept_customdata AS
               SELECT id, filetype, uuid, customdata FROM attachedfiles WITH NO DATA""",
        """INSERT INTO pgorthanc_kept_customdata
               SELECT id, filetype, uuid, customdata FROM attachedfiles WHERE customdata IS NOT NULL""",
        "ALTER TABLE attachedfiles DROP COLUMN customdata",
    ),
}
# Plugins 6.0 to 8.0 take the layout of 2.2 to 3.3 for revision 1, and then create customdata at the position of
# revision.
_REVISION_COLUMNS = (
    "ALTER TABLE metadata ADD COLUMN revision integer",
    "ALTER TABLE attachedfiles ADD COLUMN revision integer",
)
_REVISION_BEFORE_CUSTOMDATA = (
    "ALTER TABLE metadata ADD COLUMN revision integer",
    "ALTER TABLE attachedfiles RENAME COLUMN customdata TO pgorthanc_customdata",
    "ALTER TABLE attachedfiles ADD COLUMN revision integer, ADD COLUMN customdata bytea",
    "UPDATE attachedfiles SET customdata = pgorthanc_customdata WHERE pgorthanc_customdata IS NOT NULL",
    "ALTER TABLE attachedfiles DROP COLUMN pgorthanc_customdata",
)
_OWNER = "SELECT set_config('role', pg_get_userbyid(relowner), true) FROM pg_class WHERE oid = 'resources'::regclass"
# Without a key the server cannot identify the row of a subscriber, and refuses to change any.
_PUBLISHED = """
    SELECT DISTINCT p.pubname::text, c.relname::text
        FROM pg_catalog.pg_publication_tables t JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
        JOIN pg_catalog.pg_class c ON c.relname = t.tablename AND c.relnamespace = %(schema)s::pg_catalog.regnamespace
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.schemaname
        WHERE (p.pubupdate OR p.pubdelete) AND c.relname = ANY (%(tables)s) AND (
            c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))) ORDER BY 1, 2
"""


@dataclass(frozen=True)
class SchemaDrift:
    """How a schema differs from its revision.

    Attributes:
        start: The actual revision of the schema; 0 before revision 1.
        recorded: The recorded revision (global property 4).
        plugins: The releases of the plugin that work with the actual revision.
        findings: The differences, harmless ones included.
    """

    start: int
    recorded: int | None
    plugins: str
    findings: tuple[verify.Finding, ...]

    @property
    def repairs(self) -> list[verify.Finding]:
        """Return the findings that the switch repairs."""
        return [finding for finding in self.findings if finding.repair or _is_leftover(finding)]


def inspect(conn: Connection, schema: str) -> SchemaDrift:
    """Return the actual revision of an index, and how the schema differs from it.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: It holds no index, or nothing that is like any revision.
    """
    objects = catalog.snapshot(conn, schema)
    layout = catalog.require_index(conn, schema, objects)
    text = objects.get("property 4")
    recorded = int(text) if text and text.isdecimal() else None
    # A plugin from 6.0 to 8.0 has upgraded it all the same (UPSTREAM_DEFECTS.md B7).
    if layout.revision == 0 and "table globalintegerschanges" in objects:
        completed = objects | {
            "column metadata.revision": "4 integer",
            "column attachedfiles.revision": "9 integer",
        }
        layout = catalog.layout(completed, schema) or layout
        findings = (_missing_revision(objects),)
        return SchemaDrift(layout.revision, recorded, layout.plugins, findings)
    if layout.revision == 0:  # the first step creates whatever is missing
        return SchemaDrift(0, recorded, layout.plugins, ())
    report = verify.schema(conn, schema)
    return SchemaDrift(report.revision, recorded, report.plugins, report.findings)


def repair(conn: Connection, schema: str) -> tuple[SchemaDrift, tuple[str, ...]]:
    """Repair whatever can be repaired, as the owner of the index, in the present transaction.

    One repair can reveal the next, as in a table that was missing, so it inspects until nothing new is left.

    Returns:
        The remaining drift, and the repairs as messages.
    """
    repaired: list[verify.Finding] = []
    while True:
        drift = inspect(conn, schema)
        repairs = [finding for finding in drift.repairs if finding not in repaired]
        if not repairs:
            return drift, messages(repaired)
        with conn.cursor() as cur:
            for statement in statements(repairs):
                cur.execute(statement)
        repaired += repairs


def statements(repairs: list[verify.Finding]) -> list[str]:
    """Return the statements of repairs, in an order that runs.

    A dropped column takes along the key and the sequence named after it.
    """
    if not repairs:
        return []
    columns = [finding.name for finding in repairs if _is_leftover(finding)]
    dropped = [statement for name in columns for statement in _LEFTOVER_COLUMNS[name]]
    gone = [name.removeprefix("column ").replace(".", "_") for name in columns]
    others = [finding for finding in repairs if not any(name in finding.name for name in gone)]
    fixes = verify.ordered(fix for finding in others for fix in finding.repair)
    return [_OWNER, *dropped, *(fix.sql for fix in fixes)]


def messages(findings: list[verify.Finding]) -> tuple[str, ...]:
    """Return findings as a report names them, without why they matter."""
    return tuple(finding.difference for finding in findings)


def obstacles(
    conn: Connection, schema: str, objects: catalog.Catalog, drift: SchemaDrift, to: int
) -> tuple[Obstacle, ...]:
    """Return what keeps the index from revision `to`; changes nothing and waits for no lock."""
    tables = index_tables(objects)
    return (
        *_not_repaired(schema, objects, drift, to),
        *_dependents(conn, schema, drift.start, to),
        *_published(conn, schema, tables),
        *prepared_transactions(conn, schema, tables),
    )


def index_tables(objects: catalog.Catalog) -> list[str]:
    """Return the tables of the index in a schema, of whatever revision; the storage area is not one of them."""
    names = catalog.revisions_of_objects()
    return [name.removeprefix("table ") for name in objects if name.startswith("table ") and name in names]


def prepared_transactions(conn: Connection, schema: str, tables: list[str]) -> list[Obstacle]:
    """Return the prepared transactions that hold locks on the index: no list of sessions shows them."""
    locks = [db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP, db.LOCK_TRANSITION]
    query = db.statement(__package__, "prepared_transactions.sql")
    result = []
    for gid, owner, since in db.rows(conn, query, db.quote_ident(schema), tables, locks):
        literal = "'" + gid.replace("'", "''") + "'"
        result.append(
            Obstacle(
                f"prepared transaction {literal} of role {owner} has held locks on the index "
                f"since {since:%Y-%m-%d %H:%M:%S %z}",
                f"ask its application whether to commit it or roll it back, as role {owner}:",
                (f"ROLLBACK PREPARED {literal};", f"COMMIT PREPARED {literal};"),
            )
        )
    return result


def _is_leftover(finding: verify.Finding) -> bool:
    return finding.wanted is None and finding.name in _LEFTOVER_COLUMNS


def _missing_revision(objects: catalog.Catalog) -> verify.Finding:
    later = "column attachedfiles.customdata" in objects
    statements = _REVISION_BEFORE_CUSTOMDATA if later else _REVISION_COLUMNS
    return verify.Finding(
        "column metadata.revision",
        None,
        "4 integer",
        matters=True,
        why="a plugin has taken an index of plugin 3.3 or older for revision 1",
        repair=tuple(verify.Fix(verify.Phase.COLUMN, statement) for statement in statements),
    )


def _not_repaired(schema: str, objects: catalog.Catalog, drift: SchemaDrift, to: int) -> list[Obstacle]:
    """Return the differences that no step and no repair removes, so that the result would not match."""
    deviations = {difference.name: difference for difference in catalog.deviations(objects, to)}
    # Older layouts have no catalog: objects that no revision has are an administrator's.
    if drift.start == 0:
        names = catalog.revisions_of_objects()
        return [
            _obstacle(schema, difference)
            for difference in deviations.values()
            if difference.expected is None and difference.name not in names
        ]
    known = objects | catalog.expected_like(objects, to)
    result: list[Obstacle] = []
    for finding in drift.findings:
        if finding in drift.repairs:
            continue
        if finding.name in deviations:
            result.append(_obstacle(schema, deviations[finding.name], finding.advice))
        elif finding.matters and finding.name not in known:
            result.append(Obstacle(finding.difference, finding.advice or finding.why))
    return result


def _obstacle(schema: str, difference: catalog.Difference, advice: str | None = None) -> Obstacle:
    """Return a difference with its remedy; in a catalog, only names of children are quoted."""
    if difference.expected is not None:
        return Obstacle(str(difference), advice or "restore the expected definition")
    kind, _, rest = difference.name.partition(" ")
    name, _, part = rest.partition("." if kind != "function" else "(")
    table = f"{db.quote_ident(schema)}.{db.quote_ident(name)}"
    quoted = db.quote_ident(part)
    remedies = {
        "column": (
            "copy its values to a table of your own if anybody needs them, then drop it:",
            f"ALTER TABLE {table} DROP COLUMN {quoted};",
        ),
        "constraint": ("drop it:", f"ALTER TABLE {table} DROP CONSTRAINT {quoted};"),
        "trigger": ("drop it:", f"DROP TRIGGER {quoted} ON {table};"),
        "rule": ("drop it:", f"DROP RULE {quoted} ON {table};"),
        "index": ("drop it:", f"DROP INDEX {table};"),
        "function": ("drop it:", f"DROP FUNCTION {table}({part};"),
        "child": ("detach it:", f"ALTER TABLE {part} NO INHERIT {table};"),
        "rowsecurity": ("disable it:", f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY;"),
    }
    advice, statement = remedies[kind]
    what = {
        "child": f"table {part}, which inherits from {name}",
        "rowsecurity": f"row level security of {name}",
    }
    text = f"extra {what.get(kind, difference.name)} (not created by the plugin)"
    return Obstacle(text, advice, (statement,))


def _dependents(conn: Connection, schema: str, start: int, to: int) -> list[Obstacle]:
    """Return what depends on an object that a step drops."""
    dropped: list[tuple[str, str, str]] = []
    for step in steps.path(start, to):
        # The layouts before revision 1 have no catalog; that of revision 1 comes closest.
        before = catalog.expected(step.start or catalog.revisions()[0], with_storage=False)
        after = catalog.expected(step.end, with_storage=False)
        dropped += [name.partition(" ") for name in before.keys() - after.keys()]
    names = [*catalog.revisions_of_objects(), *catalog.storage()]
    parameters = {
        "schema": db.quote_ident(schema),
        "known": [name.removeprefix("table ") for name in names if name.startswith("table ")],
    }
    for kind in ("table", "column", "function"):
        parameters[f"{kind}s"] = [rest for other, _, rest in dropped if other == kind]
    with conn.cursor() as cur:
        cur.execute(db.statement(__package__, "dependents.sql"), parameters)
        return [
            Obstacle(
                f"{what} depends on {on}, which revision {to} does not have",
                "save its definition, drop it, and create it again afterwards",
            )
            for what, on in cur.fetchall()
        ]


def _published(conn: Connection, schema: str, tables: list[str]) -> list[Obstacle]:
    with conn.cursor() as cur:
        cur.execute(_PUBLISHED, {"schema": db.quote_ident(schema), "tables": tables})
        return [
            Obstacle(
                f"publication {publication} publishes changes of table {table}, which has no key, "
                "so PostgreSQL refuses to change its rows",
                "let whole rows identify themselves to the subscribers:",
                (f"ALTER TABLE {db.quote_ident(schema)}.{db.quote_ident(table)} REPLICA IDENTITY FULL;",),
            )
            for publication, table in cur.fetchall()
        ]
