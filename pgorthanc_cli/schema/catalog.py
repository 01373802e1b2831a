"""What a schema consists of, and how that differs from what a revision of the index must consist of.

A `Catalog` maps each object of a schema to its definition, both as text that does not depend on the schema's
name, the server's version or the order of creation: `"column resources.childcount": "5 integer"`. The
definitions that the scripts produce are kept in `pgorthanc_cli/catalogs/rev{N}.json`, written by `dump`; tests
compare them with the scripts. The bodies of functions are no part of it: those of the plugin differ from ours.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psycopg2 import sql

from pgorthanc_cli import catalogs, db
from pgorthanc_cli.errors import RevisionError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

Catalog = dict[str, str]

TRIGRAM_INDEX = "dicomidentifiersindexvalues2"
_INVALID = " INVALID"

# Where pk stands in globalintegerschanges and invalidchildcounts depends on the way that led to revision 10, and
# nothing may address these tables by position; so it counts as the first column.
_OBJECTS = """
WITH ours AS (
    SELECT * FROM pg_class c WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
SELECT 'table ' || relname,
       CASE relkind WHEN 'p' THEN 'partitioned ' ELSE '' END
       || CASE relpersistence WHEN 'u' THEN 'unlogged' ELSE 'permanent' END
    FROM ours WHERE relkind IN ('r', 'p')
UNION ALL
SELECT format('column %%s.%%s', t.relname, a.attname),
       concat_ws(' ', row_number() OVER (PARTITION BY t.oid ORDER BY a.attname <> 'pk', a.attnum),
           format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
           'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid),
           CASE WHEN a.attidentity <> '' THEN 'IDENTITY' END, CASE WHEN a.attgenerated <> '' THEN 'GENERATED' END)
    FROM ours t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE t.relkind IN ('r', 'p')
UNION ALL
SELECT format('constraint %%s.%%s', t.relname, c.conname), pg_get_constraintdef(c.oid)
    FROM pg_constraint c JOIN ours t ON t.oid = c.conrelid WHERE c.contype IN ('p', 'u', 'f', 'c', 'x')
UNION ALL
SELECT 'index ' || c.relname,
       pg_get_indexdef(i.indexrelid, 0, true) || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
    FROM pg_index i JOIN ours c ON c.oid = i.indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
UNION ALL
SELECT 'sequence ' || c.relname,
       concat_ws(' ', format_type(s.seqtypid, NULL), 'START', s.seqstart, 'INCREMENT', s.seqincrement,
           'MIN', s.seqmin, 'MAX', s.seqmax, CASE WHEN s.seqcycle THEN 'CYCLE' END,
           'OWNED BY ' || (SELECT format('%%s.%%s', t.relname, a.attname) FROM pg_depend d
               JOIN pg_class t ON t.oid = d.refobjid
               JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
               WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')))
    FROM pg_sequence s JOIN ours c ON c.oid = s.seqrelid
UNION ALL
SELECT format('trigger %%s.%%s', t.relname, g.tgname),
       pg_get_triggerdef(g.oid, true) || CASE g.tgenabled WHEN 'O' THEN '' ELSE ' ENABLED ' || g.tgenabled::text END
    FROM pg_trigger g JOIN ours t ON t.oid = g.tgrelid WHERE NOT g.tgisinternal
UNION ALL
SELECT format('rule %%s.%%s', t.relname, r.rulename),
       pg_get_ruledef(r.oid, true) || CASE r.ev_enabled WHEN 'O' THEN '' ELSE ' ENABLED ' || r.ev_enabled::text END
    FROM pg_rewrite r JOIN ours t ON t.oid = r.ev_class WHERE t.relkind IN ('r', 'p')
UNION ALL
SELECT format('function %%s(%%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
       concat_ws(' ', p.prokind, 'RETURNS ' || pg_get_function_result(p.oid), l.lanname, p.provolatile,
           CASE WHEN p.proisstrict THEN 'STRICT' END, CASE WHEN p.prosecdef THEN 'SECURITY DEFINER' END, p.proconfig)
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
    WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
"""
# What others attach to a table, and what changes the rows that its queries see.
_ATTACHED = """
    SELECT pg_catalog.format('child %%s.%%s', t.relname, i.inhrelid::pg_catalog.regclass), 'inherits'
        FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class t ON t.oid = i.inhparent
        WHERE t.relkind IN ('r', 'p') AND t.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)
    UNION ALL
    SELECT 'rowsecurity ' || relname, CASE WHEN relforcerowsecurity THEN 'FORCED' ELSE 'ENABLED' END
        FROM pg_catalog.pg_class
        WHERE relrowsecurity AND relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s)
"""
# Only what the scripts write: the rest of the properties is Orthanc's own business.
_PROPERTIES = sql.SQL("""SELECT 'property ' || property, value FROM {schema}.globalproperties
    WHERE property IN (1, 4, 6, 10, 11, 12, 13, 14)""")
_COUNTERS = sql.SQL("""SELECT 'counter ' || key, CASE WHEN value IS NULL THEN 'NULL' ELSE 'a number' END
    FROM {schema}.globalintegers""")

_OPERATOR_CLASS = re.compile(r'("(?:[^"]|"")+"|\w+)\.gin_trgm_ops')
# Indexes that another object stands in for: not missed while that one is there and valid.
_STAND_IN = {
    "index childrenindex": "index childrenindex2",
    "index publicindex": "constraint resources.uniquepublicid",
}
# The shape that the plugin gives it on a server whose version it cannot parse.
_OTHER_CHILDREN_INDEX = (
    "CREATE INDEX childrenindex2 ON resources USING btree (parentid, publicid, internalid)"
)


@dataclass(frozen=True)
class Layout:
    """A layout of the tables that a release of the plugin made.

    Attributes:
        revision: Its revision; 0 for the layouts before revision 1.
        plugins: The releases of the plugin that work with it.
        has: Columns by which it is recognised.
        lacks: Columns of other layouts.
    """

    revision: int
    plugins: str
    has: tuple[str, ...]
    lacks: tuple[str, ...]

    @property
    def name(self) -> str:
        """The revision for a message."""
        return str(self.revision) if self.revision else "unknown"

    @property
    def made_by(self) -> str:
        """The releases of the plugin that create exactly this layout."""
        return next(layout.plugins for layout in layouts() if layout.has == self.has)

    def fits(self, found: Catalog) -> bool:
        """Whether a schema has this layout."""
        columns = {name.removeprefix("column ") for name in found}
        return columns.issuperset(self.has) and columns.isdisjoint(self.lacks)


@dataclass(frozen=True)
class Difference:
    """An object that is not as it must be.

    Attributes:
        name: The object, as in `index publicindex`.
        found: Its definition in the database, None if it is missing.
        wanted: The definition it must have, None if it must not be there.
        matters: Whether the plugin may stumble over it.
    """

    name: str
    found: str | None
    wanted: str | None
    matters: bool

    def __str__(self) -> str:
        """The difference as part of a message."""
        if self.found is None:
            return f"{self.name} is missing"
        if self.wanted is None:
            return f"{self.name} does not belong there"
        return f"{self.name} is '{self.found}', wanted '{self.wanted}'"


def snapshot(conn: Connection, schema: str) -> Catalog:
    """Everything that a schema consists of, and the properties and counters of the index in it.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
    """
    db.check_schema(conn, schema)
    objects = db.described(conn, schema, _OBJECTS, schema, schema)
    catalog = {name: _neutral(definition) for name, definition in objects}
    catalog |= dict(db.described(conn, schema, _ATTACHED, schema, schema))
    for column, query in (("globalproperties.value", _PROPERTIES), ("globalintegers.value", _COUNTERS)):
        if f"column {column}" in catalog:
            catalog |= dict(db.rows(conn, query.format(schema=sql.Identifier(schema))))
    return dict(sorted(catalog.items()))


def layout(found: Catalog, schema: str) -> Layout | None:
    """The layout that a schema has, by its tables and not by what it says of itself; None: no index there.

    Raises:
        RevisionError: There is something of that name, but of no known layout.
    """
    if "table pgorthanc_migration" in found:
        raise RevisionError(
            f"schema {schema} holds a conversion from SQLite that is not complete, and no index yet",
            "run the same pgorthanc migrate-sqlite again: it goes on; or drop the schema",
        )
    known = next((entry for entry in layouts() if entry.fits(found)), None)
    core = [name for name in ("resources", "globalproperties") if f"table {name}" in found]
    if known is None and core:
        raise RevisionError(
            f"schema {schema} holds the table {' and '.join(core)}, but no Orthanc index of a known layout",
            "use another schema; if this is a damaged index, restore it from a backup",
        )
    # A revision belongs to all releases that work with it, whichever of them created its tables.
    return replace(known, plugins=plugins(known.revision)) if known and known.revision else known


def layouts() -> list[Layout]:
    """All known layouts, the newest first."""
    entries = catalogs.load("layouts.json")
    return [Layout(e["revision"], e["plugins"], tuple(e["has"]), tuple(e["lacks"])) for e in entries]


def revisions() -> list[int]:
    """The revisions whose catalog is known, in ascending order."""
    return catalogs.revisions()


def plugins(revision: int) -> str:
    """The releases of the plugin that work with a revision."""
    texts = [layout.plugins for layout in reversed(layouts()) if layout.revision == revision]
    numbers = re.findall(r"\d+\.\d+", " ".join(texts))
    if texts[0].startswith("up to"):
        return f"up to {numbers[-1]}"
    return numbers[0] if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"


def of_plugin(release: str) -> int:
    """The revision that a release of the plugin works with, as in `9.0` or `10.3.1`.

    Raises:
        RevisionError: The release is not known, or it is older than revision 1.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.|$)", release)
    if numbers:
        wanted = int(numbers[1]), int(numbers[2])
        for layout in layouts():
            known = [tuple(map(int, number.split("."))) for number in re.findall(r"\d+\.\d+", layout.plugins)]
            if layout.revision and known[0] <= wanted <= known[-1]:
                return layout.revision
    releases = ", ".join(layout.plugins for layout in reversed(layouts()) if layout.revision)
    raise RevisionError(
        f"no revision is known for release {release} of the plugin", f"known are the releases {releases}"
    )


def require(revision: int) -> None:
    """Make sure that a revision exists.

    Raises:
        RevisionError: It does not; the hint lists those that do.
    """
    *others, newest = map(str, revisions())
    if str(revision) not in (*others, newest):
        raise RevisionError(f"revision {revision} does not exist", f"choose {', '.join(others)} or {newest}")


def wanted(revision: int, *, with_storage: bool) -> Catalog:
    """What a schema must consist of at a revision, with the storage area or without.

    Raises:
        RevisionError: There is no such revision.
    """
    require(revision)
    objects: Catalog = catalogs.load(f"rev{revision}.json")
    return objects | (storage() if with_storage else {})


def storage() -> Catalog:
    """What the storage area consists of."""
    objects: Catalog = catalogs.load("storagearea.json")
    return objects


def trigram(conn: Connection, found: Catalog) -> str:
    """The state of the trigram index, which speeds up searches with wildcards.

    Returns:
        `valid`; `invalid` (its construction failed or still goes on); `missing` (it could be created);
        `unavailable` (it cannot: the server does not have the extension pg_trgm).
    """
    definition = found.get(f"index {TRIGRAM_INDEX}")
    if definition:
        return "invalid" if definition.endswith(_INVALID) else "valid"
    with conn.cursor() as cur:
        cur.execute("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm')")
        return "missing" if (cur.fetchone() or (False,))[0] else "unavailable"


def collisions(found: Catalog, wanted: Catalog) -> list[str]:
    """The objects of a schema that stand in the way of those that are wanted."""
    return [
        name for name, definition in found.items() if name in wanted or _intrudes(name, definition, wanted)
    ]


def differences(found: Catalog, wanted: Catalog) -> list[Difference]:
    """How a schema differs from what it must consist of.

    Not counted, because the plugin works with it: what has a name of ours (`pgorthanc_...`), a trigram index that
    is not there or not ready (and what revision 1 records of it), and the shape of childrenindex2 that the plugin
    makes on servers whose version it cannot read.
    """
    names = sorted(found.keys() | wanted.keys())
    changed = (n for n in names if found.get(n) != wanted.get(n) and not _tolerated(n, found.get(n), wanted))
    return [
        Difference(n, found.get(n), wanted.get(n), n in wanted or _intrudes(n, found[n], wanted))
        for n in changed
    ]


def stand_in(name: str, found: Catalog) -> str | None:
    """Return the object that does the work of a missing index: building that index would cost hours for nothing."""
    other = _STAND_IN.get(name)
    return other if other in found and not found[other or ""].endswith(_INVALID) else None


def deviations(found: Catalog, revision: int, before: Catalog | None = None) -> list[Difference]:
    """Return what keeps a schema from being an index of a revision: the judgement of a switch, and of its plan.

    Another index may stand in for a missing one, but not for one that was there `before`.
    """
    expected = wanted(revision, with_storage="table storagearea" in found)
    return [
        difference
        for difference in differences(found, expected)
        if difference.matters
        and not (
            difference.found is None
            and stand_in(difference.name, found)
            and (before is None or difference.name not in before)
        )
    ]


def dump(catalog: Catalog) -> str:
    """A catalog as the text of its file."""
    return json.dumps(catalog, indent=0, ensure_ascii=False) + "\n"


def _tolerated(name: str, found: str | None, wanted: Catalog) -> bool:
    if (
        name == "property 10"
    ):  # plugins up to 5.1 write 0 where pg_trgm is missing, and try again at each start
        return found == "0" and wanted.get("property 4") == "1"
    if "pgorthanc_" in name:
        return any(part.startswith("pgorthanc_") for part in re.split(r"[ .]", name))
    if name == f"index {TRIGRAM_INDEX}":
        return found is None or found.endswith(_INVALID)
    return found == _OTHER_CHILDREN_INDEX


def _intrudes(name: str, definition: str, wanted: Catalog) -> bool:
    """Whether an object that is too much changes how the index works.

    A second function of a name does (the plugin drops some by their bare name), and whatever belongs to a table of
    the index, except an index that enforces nothing.
    """
    kind, _, rest = name.partition(" ")
    if kind == "function":
        bare = rest.partition("(")[0]
        return any(other.startswith(f"function {bare}(") for other in wanted)
    if kind == "index":
        table = re.match(r"CREATE UNIQUE INDEX .* ON (?:ONLY )?(\S+) USING", definition)
        return bool(table and f"table {table[1]}" in wanted)
    attached = ("column", "constraint", "trigger", "rule", "child", "rowsecurity")
    return kind in attached and f"table {rest.partition('.')[0]}" in wanted


def _neutral(definition: str) -> str:
    """Without line breaks, and without the place where pg_trgm is installed."""
    return _OPERATOR_CLASS.sub("gin_trgm_ops", " ".join(definition.split()))
