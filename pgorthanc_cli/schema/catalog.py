"""The objects of a schema, and how they differ from those of a revision of the index.

A `Catalog` maps each object of a schema to its definition, both as text that does not depend on the schema's
name, the server's version or the order of creation: `"column resources.childcount": "5 integer"`. The catalog
of each revision is in `pgorthanc_cli/catalogs/rev{N}.json`; `make catalog` writes it, and tests compare it with the
scripts. The bodies of functions are not part of it: those of the plugin differ from ours.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from psycopg2 import sql

from pgorthanc_cli import catalogs, db
from pgorthanc_cli.errors import RevisionError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

Catalog = dict[str, str]

TRIGRAM_INDEX = "dicomidentifiersindexvalues2"
_INVALID = " INVALID"

# Only what the scripts write: Orthanc owns the other properties.
_PROPERTIES = sql.SQL("""SELECT 'property ' || property, value FROM {schema}.globalproperties
    WHERE property IN (1, 4, 6, 10, 11, 12, 13, 14)""")
# The values change with each instance; NULL is a defect, as it stays NULL for ever.
_COUNTERS = sql.SQL("""SELECT 'counter ' || key, CASE WHEN value IS NULL THEN 'NULL' ELSE 'a number' END
    FROM {schema}.globalintegers""")

_OPERATOR_CLASS = re.compile(r'("(?:[^"]|"")+"|\w+)\.gin_trgm_ops')
# Indexes that another object replaces: not missing while that one exists and is valid.
_SUBSTITUTES = {
    "index childrenindex": "index childrenindex2",
    "index publicindex": "constraint resources.uniquepublicid",
}
# The definition that the plugin gives it on a server whose version it cannot parse.
_OTHER_CHILDREN_INDEX = (
    "CREATE INDEX childrenindex2 ON resources USING btree (parentid, publicid, internalid)"
)


@dataclass(frozen=True)
class Layout:
    """A layout of the tables, as a release of the plugin created it.

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
        """The revision as messages name it."""
        return str(self.revision) if self.revision else "unknown"

    @property
    def made_by(self) -> str:
        """The releases of the plugin that create exactly this layout."""
        return next(layout.plugins for layout in layouts() if layout.has == self.has)

    def matches(self, objects: Catalog) -> bool:
        """Return whether a schema has this layout."""
        columns = {name.removeprefix("column ") for name in objects}
        return columns.issuperset(self.has) and columns.isdisjoint(self.lacks)


@dataclass(frozen=True)
class Difference:
    """An object whose definition differs from the expected one.

    Attributes:
        name: The object, as in `index publicindex`.
        actual: Its definition in the database, None if it is missing.
        expected: The definition it must have, None if it must not exist.
        matters: Whether it affects the plugin.
    """

    name: str
    actual: str | None
    expected: str | None
    matters: bool

    def __str__(self) -> str:
        """The difference as part of a message."""
        if self.actual is None:
            return f"{self.name} is missing"
        if self.expected is None:
            return f"{self.name} does not belong there"
        return f"{self.name} is '{self.actual}', wanted '{self.expected}'"


def snapshot(conn: Connection, schema: str) -> Catalog:
    """Return all objects of a schema, and the properties and counters of the index in it.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
    """
    db.check_schema(conn, schema)
    described = db.described_rows(conn, schema, db.statement(__package__, "objects.sql"), schema, schema)
    objects = {name: _neutral(definition) for name, definition in described}
    objects |= dict(
        db.described_rows(conn, schema, db.statement(__package__, "attached.sql"), schema, schema)
    )
    for column, query in (("globalproperties.value", _PROPERTIES), ("globalintegers.value", _COUNTERS)):
        if f"column {column}" in objects:
            objects |= dict(db.rows(conn, query.format(schema=sql.Identifier(schema))))
    return dict(sorted(objects.items()))


def read_layout(conn: Connection, schema: str) -> Layout | None:
    """Return the layout of the index in a schema; None if there is no index.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: The tables have no known layout.
    """
    return layout(snapshot(conn, schema), schema)


def require_index(conn: Connection, schema: str, objects: Catalog) -> Layout:
    """Return the layout of the index in a schema.

    Raises:
        RevisionError: There is no index, or its layout is not known.
    """
    actual = layout(objects, schema)
    if actual is None:
        raise RevisionError(
            f"schema {schema} of database {conn.info.dbname} holds no Orthanc index",
            "name the right one with --dbname and --schema, or make an index: pgorthanc init",
        )
    return actual


def layout(objects: Catalog, schema: str) -> Layout | None:
    """Return the layout of a schema by its tables, whatever revision is recorded; None if there is no index.

    Raises:
        RevisionError: There are tables of an index, but they have no known layout.
    """
    # Such a schema has the tables of an index already, but not yet its constraints and triggers.
    if "table pgorthanc_migration" in objects:
        raise RevisionError(
            f"schema {schema} holds a conversion from SQLite that is not complete, and no index yet",
            "run the same migrate-sqlite command again to continue, or drop the schema",
        )
    match = next((entry for entry in layouts() if entry.matches(objects)), None)
    core = [name for name in ("resources", "globalproperties") if f"table {name}" in objects]
    if match is None and core:
        raise RevisionError(
            f"schema {schema} holds the table {' and '.join(core)}, but no Orthanc index of a known layout",
            "use another schema; if this is a damaged index, restore it from a backup",
        )
    # A revision belongs to all releases that work with it, whichever of them created its tables.
    return replace(match, plugins=plugins(match.revision)) if match and match.revision else match


def layouts() -> list[Layout]:
    """Return all known layouts, the newest first."""
    entries = catalogs.load("layouts.json")
    return [Layout(e["revision"], e["plugins"], tuple(e["has"]), tuple(e["lacks"])) for e in entries]


def revisions() -> list[int]:
    """Return the revisions that have a catalog, in ascending order."""
    return catalogs.revisions()


def newest() -> int:
    """Return the newest revision."""
    return revisions()[-1]


def plugins(revision: int) -> str:
    """Return the releases of the plugin that work with a revision."""
    texts = [layout.plugins for layout in reversed(layouts()) if layout.revision == revision]
    numbers = re.findall(r"\d+\.\d+", " ".join(texts))
    if texts[0].startswith("up to"):
        return f"up to {numbers[-1]}"
    return numbers[0] if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"


def revision_of_plugin(release: str) -> int:
    """Return the revision that a release of the plugin works with, as in `9.0` or `10.3.1`.

    Raises:
        RevisionError: The release is not known, or it is older than revision 1.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.|$)", release)
    if numbers:
        version = int(numbers[1]), int(numbers[2])
        for layout in layouts():
            texts = re.findall(r"\d+\.\d+", layout.plugins)
            known = [tuple(map(int, text.split("."))) for text in texts]
            if layout.revision and known[0] <= version <= known[-1]:
                return layout.revision
    releases = ", ".join(layout.plugins for layout in reversed(layouts()) if layout.revision)
    raise RevisionError(
        f"no revision is known for release {release} of the plugin", f"known are the releases {releases}"
    )


def require_revision(revision: int) -> None:
    """Raise an error that lists the revisions if there is no such revision.

    Raises:
        RevisionError: There is no such revision.
    """
    *others, last = map(str, revisions())
    if str(revision) not in (*others, last):
        raise RevisionError(f"revision {revision} does not exist", f"choose {', '.join(others)} or {last}")


def expected(revision: int, *, with_storage: bool) -> Catalog:
    """Return the objects of a revision, with the storage area or without.

    Raises:
        RevisionError: There is no such revision.
    """
    require_revision(revision)
    objects: Catalog = catalogs.load(f"rev{revision}.json")
    return objects | (storage() if with_storage else {})


def expected_like(objects: Catalog, revision: int) -> Catalog:
    """Return the objects of a revision, with the storage area if the schema has it."""
    return expected(revision, with_storage="table storagearea" in objects)


@cache
def revisions_of_objects() -> dict[str, list[int]]:
    """Return the objects of all revisions, without the storage area, and the revisions that have each."""
    result: dict[str, list[int]] = {}
    for revision in revisions():
        for name in expected(revision, with_storage=False):
            result.setdefault(name, []).append(revision)
    return result


def storage() -> Catalog:
    """Return the objects of the storage area."""
    objects: Catalog = catalogs.load("storagearea.json")
    return objects


def trigram(conn: Connection, objects: Catalog) -> str:
    """Return the state of the trigram index, which speeds up searches with wildcards.

    Returns:
        `valid`; `invalid` (its construction failed or is still running); `missing` (it could be created);
        `unavailable` (it cannot: the server does not have the extension pg_trgm).
    """
    definition = objects.get(f"index {TRIGRAM_INDEX}")
    if definition:
        return "invalid" if definition.endswith(_INVALID) else "valid"
    available = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm')"
    return "missing" if db.value(conn, available) else "unavailable"


def collisions(objects: Catalog, expected: Catalog) -> list[str]:
    """Return the objects of a schema that conflict with the expected ones."""
    return [
        name
        for name, definition in objects.items()
        if name in expected or _intrudes(name, definition, expected)
    ]


def differences(objects: Catalog, expected: Catalog) -> list[Difference]:
    """Return how a schema differs from its expected catalog.

    The plugin works with these, so they are no differences: objects of our own (`pgorthanc_...`), a trigram index that
    is missing or not ready (and what revision 1 records of it), and the childrenindex2 that the plugin creates on
    servers whose version it cannot parse.
    """
    result = []
    for name in sorted(objects.keys() | expected.keys()):
        actual = objects.get(name)
        if actual != expected.get(name) and not _tolerated(name, actual, expected):
            matters = name in expected or _intrudes(name, objects[name], expected)
            result.append(Difference(name, actual, expected.get(name), matters))
    return result


def substitute(name: str, objects: Catalog) -> str | None:
    """Return the object that does the work of a missing index: building that index would cost hours for nothing."""
    other = _SUBSTITUTES.get(name)
    return other if other in objects and not objects[other or ""].endswith(_INVALID) else None


def deviations(objects: Catalog, revision: int, before: Catalog | None = None) -> list[Difference]:
    """Return the differences that keep a schema from being an index of a revision.

    Both the switch of an upgrade and its plan decide by this. A substitute may replace a missing index, but not one
    that existed `before`.
    """
    result = []
    for difference in differences(objects, expected_like(objects, revision)):
        substituted = difference.actual is None and substitute(difference.name, objects)
        lost = before is not None and difference.name in before
        if difference.matters and (lost or not substituted):
            result.append(difference)
    return result


def dump(objects: Catalog) -> str:
    """Return a catalog as the text of its file."""
    return json.dumps(objects, indent=0, ensure_ascii=False) + "\n"


def _tolerated(name: str, actual: str | None, expected: Catalog) -> bool:
    # Plugins up to 5.1 write 0 where pg_trgm is missing, and try again at each start.
    if name == "property 10":
        return actual == "0" and expected.get("property 4") == "1"
    if "pgorthanc_" in name:
        return any(part.startswith("pgorthanc_") for part in re.split(r"[ .]", name))
    if name == f"index {TRIGRAM_INDEX}":
        return actual is None or actual.endswith(_INVALID)
    return actual == _OTHER_CHILDREN_INDEX


def _intrudes(name: str, definition: str, expected: Catalog) -> bool:
    """Return whether an extra object changes how the index works.

    A second function of a name does (the plugin drops some by their bare name), and whatever belongs to a table of
    the index, except an index that enforces nothing.
    """
    kind, _, rest = name.partition(" ")
    if kind == "function":
        bare = rest.partition("(")[0]
        return any(other.startswith(f"function {bare}(") for other in expected)
    if kind == "index":
        table = re.match(r"CREATE UNIQUE INDEX .* ON (?:ONLY )?(\S+) USING", definition)
        return bool(table and f"table {table[1]}" in expected)
    attached = ("column", "constraint", "trigger", "rule", "child", "rowsecurity")
    return kind in attached and f"table {rest.partition('.')[0]}" in expected


def _neutral(definition: str) -> str:
    """Remove line breaks, and the schema in which pg_trgm is installed."""
    return _OPERATOR_CLASS.sub("gin_trgm_ops", " ".join(definition.split()))
