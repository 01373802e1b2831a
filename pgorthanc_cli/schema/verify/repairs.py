"""The statements that repair a difference of a schema, built from the catalog of its revision.

Nothing is dropped that may hold data, and nothing that no revision of the index has: that belongs to the administrator.
"""

from __future__ import annotations

import re

from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.catalog import Catalog, Difference
from pgorthanc_cli.schema.verify.functions import Bodies
from pgorthanc_cli.schema.verify.model import Fix, Phase

_COLUMN = re.compile(r"(?P<position>\d+) (?P<type>.+?)(?P<null> NOT NULL)?(?: DEFAULT (?P<default>.+))?")
_SEQUENCE = re.compile(
    r"(?P<type>\w+) START (?P<start>\d+) INCREMENT (?P<by>\d+) MIN (?P<min>\d+) MAX (?P<max>\d+)"
    r"(?: OWNED BY (?P<table>\w+)\.(?P<column>\w+))?"
)
_PROPERTY = """INSERT INTO globalproperties (property, value) VALUES ({key}, '{value}')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;"""
_ADVANCE = "SELECT setval('{sequence}', highest) FROM ({query}) AS known (highest) WHERE highest IS NOT NULL;"
_HIGHEST = "SELECT max({column}) FROM {table}"
RECYCLING = "patientrecyclingordersequence"
# A number of 18 digits always fits into a bigint; a cast that fails ends the whole query.
HIGHEST_POSITION = """SELECT max(CASE WHEN value ~ '^[0-9]{1,18}$' THEN value::bigint END)
    FROM resources JOIN metadata ON id = internalid AND type = 19 WHERE resourcetype = 0"""
_INVALID = " INVALID"
_NOT_VALID = " NOT VALID"

# Tables and columns that a script has left and that may be dropped: marks, or what a deletion left for Orthanc.
_EMPTY_TABLES = ("deletedfiles", "deletedresources", "remainingancestor")
_EMPTY_COLUMNS = ("queues.reserveduntil",)
_REMOVE = {
    "trigger": "DROP TRIGGER {name} ON {table};",
    "index": "DROP INDEX {rest};",
    "function": "DROP FUNCTION {rest};",
    "sequence": "DROP SEQUENCE {rest};",
    "constraint": "ALTER TABLE {table} DROP CONSTRAINT {name};",
    "counter": "DELETE FROM globalintegers WHERE key = {rest};",
    "property": "DELETE FROM globalproperties WHERE property = {rest};",
}
# Harmless indexes of another revision: they take hours to build, so they stay for the next upgrade or downgrade.
_BIG_INDEXES = ("childrenindex", "childrenindex2", "dicomidentifiersindex3")
_COUNT_MARKED = """UPDATE resources parent
    SET childcount = (SELECT count(*) FROM resources child WHERE child.parentid = parent.internalid)
    WHERE internalid IN (SELECT id FROM invalidchildcounts);"""

_RECOUNT = """INSERT INTO globalintegers (key, value)
    SELECT {key}, {counted}{pending}
    ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value;"""
_PENDING = " - (SELECT coalesce(sum(value), 0) FROM globalintegerschanges WHERE key = {key})"
_COUNTED_RESOURCES = "(SELECT count(*) FROM resources WHERE resourcetype = {level})"
_COUNTED = {
    0: "(SELECT coalesce(sum(compressedsize), 0) FROM attachedfiles)",
    1: "(SELECT coalesce(sum(uncompressedsize), 0) FROM attachedfiles)",
    6: "(SELECT coalesce(max(seq), 0) FROM changes)",
    7: "(SELECT coalesce(max(seq), 0) FROM patientrecyclingorder)",
}


class Repairer:
    """Builds the repairs of one schema from its objects, the expected ones, and those of other revisions."""

    def __init__(
        self,
        objects: Catalog,
        expected: Catalog,
        revision: int,
        bodies: Bodies,
        trigram_schema: str | None,
    ) -> None:
        self._objects = objects
        self._expected = expected
        self._revision = revision
        self._bodies = bodies
        self._trigram_schema = trigram_schema
        self._revisions = catalog.revisions_of_objects()

    def fixes(self, difference: Difference) -> tuple[Fix, ...]:
        """Return the statements that repair a difference; none if that is unsafe, or it is not the plugin's object."""
        kind, _, rest = difference.name.partition(" ")
        if difference.expected is None:
            return self._extra(kind, rest, difference)
        builders = {
            "table": self._table,
            "column": self._column,
            "constraint": self._constraint,
            "index": self._index,
            "sequence": self._sequence,
            "trigger": self._trigger,
            "rule": self._rule,
            "function": self._function,
            "counter": self._counter,
            "property": self._property,
        }
        return tuple(builders[kind](rest, difference.actual, difference.expected))

    def body(self, name: str) -> tuple[Fix, ...]:
        """Return the statement that replaces the body of a function."""
        return (Fix(Phase.FUNCTION, self._bodies.statement(name, self._revision)),)

    def _extra(self, kind: str, rest: str, difference: Difference) -> tuple[Fix, ...]:
        """Return the statements that drop what an official script has left behind."""
        # The plugin drops this key by its name: under another name it would stay
        # (UPSTREAM_DEFECTS.md G6).
        if kind == "constraint" and (difference.actual or "").startswith(
            "FOREIGN KEY (parentid) REFERENCES resources"
        ):
            table, name = rest.split(".", 1)
            return (Fix(Phase.DROP, f'ALTER TABLE {table} DROP CONSTRAINT "{name}";'),)
        # What an interrupted REINDEX CONCURRENTLY leaves behind.
        if kind == "index" and re.search(r"_cc(?:new|old)\d*$", rest):
            return (Fix(Phase.DROP, f'DROP INDEX "{rest}";'),)
        if kind == "function" and difference.matters:
            return (Fix(Phase.DROP, f"DROP FUNCTION {rest};"),)
        if difference.name not in self._revisions:
            return ()
        return _remove(kind, rest, useless=(difference.actual or "").endswith(_INVALID))

    def _table(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        if actual:
            return [Fix(Phase.TABLE, f"ALTER TABLE {rest} SET LOGGED;")] if actual == "unlogged" else []
        columns = []
        for name, definition in self._expected.items():
            if name.startswith(f"column {rest}."):
                position, _, rest_of_it = definition.partition(" ")
                columns.append((int(position), f"    {name.rpartition('.')[2]} {rest_of_it}"))
        body = ",\n".join(column for _, column in sorted(columns))
        return [Fix(Phase.TABLE, f"CREATE TABLE {rest} (\n{body}\n);")]

    def _column(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        table, _, column = rest.partition(".")
        target = _COLUMN.fullmatch(expected)
        current = _COLUMN.fullmatch(actual or "")
        if f"table {table}" not in self._objects or not target:
            return []
        if not actual:
            # A column can only be added at the end, and the plugin inserts by position.
            existing = sum(name.startswith(f"column {table}.") for name in self._objects)
            if int(target["position"]) <= existing:
                return []
            definition = expected.partition(" ")[2]
            return [Fix(Phase.COLUMN, f"ALTER TABLE {table} ADD COLUMN {column} {definition};")]
        if not current or (current["position"], current["type"]) != (target["position"], target["type"]):
            return []
        head = f"ALTER TABLE {table} ALTER COLUMN {column}"
        fixes = []
        if current["null"] != target["null"]:
            fixes.append(Fix(Phase.KEY, f"{head} {'SET' if target['null'] else 'DROP'} NOT NULL;"))
        if current["default"] != target["default"]:
            change = f"SET DEFAULT {target['default']}" if target["default"] else "DROP DEFAULT"
            fixes.append(Fix(Phase.COLUMN, f"{head} {change};"))
        return fixes

    def _constraint(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        table, _, name = rest.partition(".")
        if actual == expected + _NOT_VALID:
            return [Fix(Phase.REFERENCE, f"ALTER TABLE {table} VALIDATE CONSTRAINT {name};")]
        phase = Phase.REFERENCE if expected.startswith("FOREIGN KEY") else Phase.KEY
        add = Fix(phase, f"ALTER TABLE {table} ADD CONSTRAINT {name} {expected};")
        return [Fix(Phase.DROP, f"ALTER TABLE {table} DROP CONSTRAINT {name};"), add] if actual else [add]

    def _index(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        if actual == expected + _INVALID:
            return [Fix(Phase.INDEX, f"REINDEX INDEX {rest};")]
        if rest == catalog.TRIGRAM_INDEX:
            if not self._trigram_schema:
                return []
            expected = expected.replace("gin_trgm_ops", f"{self._trigram_schema}.gin_trgm_ops")
        create = Fix(Phase.INDEX, f"{expected};")
        return [Fix(Phase.DROP, f"DROP INDEX {rest};"), create] if actual else [create]

    def _sequence(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        target = _SEQUENCE.fullmatch(expected)
        if not target:
            return []
        verb = "ALTER" if actual else "CREATE"
        settings = (
            f"AS {target['type']} START {target['start']} INCREMENT {target['by']} "
            f"MINVALUE {target['min']} MAXVALUE {target['max']} NO CYCLE"
        )
        fixes = [Fix(Phase.SEQUENCE, f"{verb} SEQUENCE {rest} {settings};")]
        if not target["table"]:
            return [*fixes, Fix(Phase.DATA, advance(rest, HIGHEST_POSITION))]
        table, column = target["table"], target["column"]
        return [
            *fixes,
            Fix(Phase.DATA, f"ALTER SEQUENCE {rest} OWNED BY {table}.{column};"),
            Fix(Phase.DATA, advance(rest, _HIGHEST.format(column=column, table=table))),
        ]

    def _trigger(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        table, _, name = rest.partition(".")
        if actual and actual.startswith(f"{expected} ENABLED"):
            return [Fix(Phase.TRIGGER, f"ALTER TABLE {table} ENABLE TRIGGER {name};")]
        return _replace("TRIGGER", table, name, actual, expected)

    def _rule(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        table, _, name = rest.partition(".")
        return _replace("RULE", table, name, actual, expected.rstrip(";"))

    def _function(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        create = Fix(Phase.FUNCTION, self._bodies.statement(f"function {rest}", self._revision))
        # CREATE OR REPLACE cannot change what a function returns.
        result = [re.search(r"RETURNS (\S+)", text or "") for text in (actual, expected)]
        same = actual is None or (result[0] and result[1] and result[0][1] == result[1][1])
        return [create] if same else [Fix(Phase.DROP, f"DROP FUNCTION {rest};"), create]

    def _counter(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        return [recount(int(rest), deltas="table globalintegerschanges" in self._expected)]

    def _property(self, rest: str, actual: str | None, expected: str) -> list[Fix]:
        phase = Phase.STAMP if rest == "4" else Phase.PROPERTY
        return [Fix(phase, _PROPERTY.format(key=rest, value=expected))]


def online_statement(repair: tuple[Fix, ...]) -> str | None:
    """Return how to build an index while Orthanc is running, which a transaction cannot; None for other repairs."""
    if [fix.phase for fix in repair] != [Phase.INDEX]:
        return None
    statement = re.sub(r"^(CREATE INDEX|REINDEX INDEX)", r"\1 CONCURRENTLY", repair[0].sql)
    return f"on a large index, while Orthanc is running: {statement}"


def recount(key: int, *, deltas: bool) -> Fix:
    """Set a counter to the contents of the index, less its pending deltas."""
    counted = _COUNTED.get(key, _COUNTED_RESOURCES.format(level=key - 2))
    pending = _PENDING.format(key=key) if deltas else ""
    return Fix(Phase.COUNTER, _RECOUNT.format(key=key, counted=counted, pending=pending))


def advance(sequence: str, highest: str) -> str:
    """Let a sequence continue after the highest value of a query; leave it if the query returns none."""
    return _ADVANCE.format(sequence=sequence, query=highest)


def _remove(kind: str, rest: str, *, useless: bool) -> tuple[Fix, ...]:
    """Drop an object of another revision, unless it may hold data or be of use again."""
    table, _, name = rest.partition(".")
    if kind == "table" and rest == "invalidchildcounts":
        # Its marks are the only record of which counts are wrong (UPSTREAM_DEFECTS.md
        # B5).
        return (Fix(Phase.DATA, _COUNT_MARKED), Fix(Phase.DATA, "DROP TABLE invalidchildcounts;"))
    if kind == "table" and rest in _EMPTY_TABLES:
        return (Fix(Phase.DROP, f"DROP TABLE {rest};"),)
    if kind == "column" and rest in _EMPTY_COLUMNS:
        return (Fix(Phase.DROP, f"ALTER TABLE {table} DROP COLUMN {name};"),)
    if kind not in _REMOVE or (rest in _BIG_INDEXES and not useless):
        return ()
    return (Fix(Phase.DROP, _REMOVE[kind].format(rest=rest, table=table, name=name)),)


def _replace(kind: str, table: str, name: str, actual: str | None, expected: str) -> list[Fix]:
    create = Fix(Phase.TRIGGER, f"{expected};")
    return [Fix(Phase.DROP, f"DROP {kind} {name} ON {table};"), create] if actual else [create]
