"""What earlier tools left behind: recognised, named, and mended before the first step.

What is wrong, and what mends it, is known to `verify`. Added here are columns of higher revisions that a script for
another revision has left: `verify` drops nothing that may hold data, while on the way they are dropped or kept aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import catalog, verify

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_LEFT_COLUMNS = {
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
# Plugins 6.0 to 8.0 take the layout of 2.2 to 3.3 for revision 1, and then put customdata where revision must be.
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


@dataclass(frozen=True)
class Damage:
    """What is not as it must be.

    Attributes:
        start: The revision that the schema really has; 0 before revision 1.
        recorded: What it says itself.
        plugins: The releases of the plugin that work with that revision.
        findings: What is wrong, harmless things included.
    """

    start: int
    recorded: int | None
    plugins: str
    findings: tuple[verify.Finding, ...]

    @property
    def repairs(self) -> list[verify.Finding]:
        """What is mended on the way."""
        return [finding for finding in self.findings if finding.repair or _left_column(finding)]

    @property
    def obstacles(self) -> list[verify.Finding]:
        """What matters, and cannot be mended without somebody's decision."""
        return [finding for finding in self.findings if finding.matters and finding not in self.repairs]


def diagnose(conn: Connection, schema: str) -> Damage:
    """What revision an index really has, and how it differs from what that must be.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: It holds no index, or nothing that is like any revision.
    """
    found = catalog.snapshot(conn, schema)
    here = catalog.layout(found, schema)
    if here is None:
        raise RevisionError(
            f"schema {schema} of database {conn.info.dbname} holds no Orthanc index",
            "name the right one with --dbname and --schema, or make an index: pgorthanc init",
        )
    text = found.get("property 4")
    recorded = int(text) if text and text.isdecimal() else None
    if here.revision == 0 and "table globalintegerschanges" in found:
        completed = found | {
            "column metadata.revision": "4 integer",
            "column attachedfiles.revision": "9 integer",
        }
        here = catalog.layout(completed, schema) or here
        return Damage(here.revision, recorded, here.plugins, (_without_revision(found),))
    if here.revision == 0:  # the first step makes what is missing, whatever it is
        return Damage(0, recorded, here.plugins, ())
    report = verify.schema(conn, schema)
    return Damage(report.revision, recorded, report.plugins, report.findings)


def mend(conn: Connection, schema: str) -> tuple[Damage, tuple[str, ...]]:
    """Mend all that can be mended, as the owner of the index, in the present transaction.

    Returns:
        What is left, and in words what was mended.
    """
    mended: list[verify.Finding] = []
    while True:
        damage = diagnose(conn, schema)
        repairs = [finding for finding in damage.repairs if finding not in mended]
        if not repairs:
            return damage, words(mended)
        with conn.cursor() as cur:
            for statement in statements(repairs):
                cur.execute(statement)
        mended += repairs


def statements(repairs: list[verify.Finding]) -> list[str]:
    """What mends findings, in an order that runs; a column takes along the key and the sequence named after it."""
    columns = [finding.name for finding in repairs if _left_column(finding)]
    gone = [name.removeprefix("column ").replace(".", "_") for name in columns]
    left = [finding for finding in repairs if not any(name in finding.name for name in gone)]
    fixes = verify.model.ordered(fix for finding in left for fix in finding.repair)
    dropped = [statement for name in columns for statement in _LEFT_COLUMNS[name]]
    return [_OWNER, *dropped, *(fix.sql for fix in fixes)] if repairs else []


def _left_column(finding: verify.Finding) -> bool:
    return finding.wanted is None and finding.name in _LEFT_COLUMNS


def _without_revision(found: catalog.Catalog) -> verify.Finding:
    later = "column attachedfiles.customdata" in found
    statements = _REVISION_BEFORE_CUSTOMDATA if later else _REVISION_COLUMNS
    return verify.Finding(
        "column metadata.revision",
        None,
        "4 integer",
        matters=True,
        why="a plugin has taken an index of plugin 3.3 or older for revision 1",
        repair=tuple(verify.Fix(verify.Phase.COLUMN, statement) for statement in statements),
    )


def words(findings: list[verify.Finding]) -> tuple[str, ...]:
    """Findings as a report names them, without why they matter."""
    return tuple(str(catalog.Difference(f.name, f.found, f.wanted, f.matters)) for f in findings)
