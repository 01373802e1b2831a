"""The SQL that mends a difference of a schema, made from the catalog that the revision must have.

Nothing is dropped that may hold somebody's data, and nothing that has no place in any revision of the index: that
belongs to the administrator.
"""

from __future__ import annotations

import re

from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.catalog import Catalog, Difference
from pgorthanc_cli.schema.verify.functions import Bodies
from pgorthanc_cli.schema.verify.model import Fix, Phase

_COLUMN = re.compile(r"(?P<place>\d+) (?P<type>.+?)(?P<null> NOT NULL)?(?: DEFAULT (?P<default>.+))?")
_SEQUENCE = re.compile(
    r"(?P<type>\w+) START (?P<start>\d+) INCREMENT (?P<by>\d+) MIN (?P<min>\d+) MAX (?P<max>\d+)"
    r"(?: OWNED BY (?P<table>\w+)\.(?P<column>\w+))?"
)
_PROPERTY = """INSERT INTO globalproperties (property, value) VALUES ({key}, '{value}')
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value;"""
_ADVANCE = "SELECT setval('{sequence}', highest) FROM ({query}) AS known (highest) WHERE highest IS NOT NULL;"
_HIGHEST = "SELECT max({column}) FROM {table}"
RECYCLING = "patientrecyclingordersequence"
HIGHEST_PLACE = """SELECT max(CASE WHEN value ~ '^[0-9]{1,18}$' THEN value::bigint END)
    FROM resources JOIN metadata ON id = internalid AND type = 19 WHERE resourcetype = 0"""
_INVALID = " INVALID"
_NOT_VALID = " NOT VALID"

# Left-over tables and columns that hold nothing that could be missed: marks, or what a deletion left for Orthanc.
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
# Of another revision, and harmless: what takes hours to build stays for the next upgrade or downgrade.
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


class Mender:
    """Makes statements for one schema: what it has, what it must have, and what other revisions have."""

    def __init__(
        self, found: Catalog, wanted: Catalog, revision: int, bodies: Bodies, trigram_schema: str | None
    ) -> None:
        self._found = found
        self._wanted = wanted
        self._revision = revision
        self._bodies = bodies
        self._trigram_schema = trigram_schema
        self._known = known_elsewhere()

    def fixes(self, difference: Difference) -> tuple[Fix, ...]:
        """The statements that mend a difference; none if that is not safe, or not our business."""
        kind, _, rest = difference.name.partition(" ")
        if difference.expected is None:
            return self._extra(kind, rest, difference)
        makers = {
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
        return tuple(makers[kind](rest, difference.actual, difference.expected))

    def body(self, name: str) -> tuple[Fix, ...]:
        """Replace the body of a function."""
        return (Fix(Phase.FUNCTION, self._bodies.statement(name, self._revision)),)

    def _extra(self, kind: str, rest: str, difference: Difference) -> tuple[Fix, ...]:
        """Remove what an official script has left behind, and nothing else."""
        if kind == "constraint" and (difference.actual or "").startswith(
            "FOREIGN KEY (parentid) REFERENCES resources"
        ):
            table, name = rest.split(".", 1)
            return (Fix(Phase.DROP, f'ALTER TABLE {table} DROP CONSTRAINT "{name}";'),)
        if kind == "index" and re.search(r"_cc(?:new|old)\d*$", rest):
            return (Fix(Phase.DROP, f'DROP INDEX "{rest}";'),)
        if kind == "function" and difference.matters:
            return (Fix(Phase.DROP, f"DROP FUNCTION {rest};"),)
        if difference.name not in self._known:
            return ()
        return _remove(kind, rest, useless=(difference.actual or "").endswith(_INVALID))

    def _table(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        if found:
            return [Fix(Phase.TABLE, f"ALTER TABLE {rest} SET LOGGED;")] if found == "unlogged" else []
        columns = sorted(
            (int(definition.split()[0]), f"    {name.rpartition('.')[2]} {definition.partition(' ')[2]}")
            for name, definition in self._wanted.items()
            if name.startswith(f"column {rest}.")
        )
        body = ",\n".join(column for _, column in columns)
        return [Fix(Phase.TABLE, f"CREATE TABLE {rest} (\n{body}\n);")]

    def _column(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        table, _, column = rest.partition(".")
        want = _COLUMN.fullmatch(wanted)
        have = _COLUMN.fullmatch(found or "")
        if f"table {table}" not in self._found or not want:
            return []
        if not found:
            appended = int(want["place"]) > self._columns(table)
            definition = wanted.partition(" ")[2]
            return (
                [Fix(Phase.COLUMN, f"ALTER TABLE {table} ADD COLUMN {column} {definition};")]
                if appended
                else []
            )
        if not have or (have["place"], have["type"]) != (want["place"], want["type"]):
            return []
        head = f"ALTER TABLE {table} ALTER COLUMN {column}"
        fixes = []
        if have["null"] != want["null"]:
            fixes.append(Fix(Phase.KEY, f"{head} {'SET' if want['null'] else 'DROP'} NOT NULL;"))
        if have["default"] != want["default"]:
            change = f"SET DEFAULT {want['default']}" if want["default"] else "DROP DEFAULT"
            fixes.append(Fix(Phase.COLUMN, f"{head} {change};"))
        return fixes

    def _columns(self, table: str) -> int:
        return sum(name.startswith(f"column {table}.") for name in self._found)

    def _constraint(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        table, _, name = rest.partition(".")
        if found == wanted + _NOT_VALID:
            return [Fix(Phase.REFERENCE, f"ALTER TABLE {table} VALIDATE CONSTRAINT {name};")]
        phase = Phase.REFERENCE if wanted.startswith("FOREIGN KEY") else Phase.KEY
        add = Fix(phase, f"ALTER TABLE {table} ADD CONSTRAINT {name} {wanted};")
        return [Fix(Phase.DROP, f"ALTER TABLE {table} DROP CONSTRAINT {name};"), add] if found else [add]

    def _index(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        if found == wanted + _INVALID:
            return [Fix(Phase.INDEX, f"REINDEX INDEX {rest};")]
        if rest == catalog.TRIGRAM_INDEX:
            if not self._trigram_schema:
                return []
            wanted = wanted.replace("gin_trgm_ops", f"{self._trigram_schema}.gin_trgm_ops")
        make = Fix(Phase.INDEX, f"{wanted};")
        return [Fix(Phase.DROP, f"DROP INDEX {rest};"), make] if found else [make]

    def _sequence(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        want = _SEQUENCE.fullmatch(wanted)
        if not want:
            return []
        verb = "ALTER" if found else "CREATE"
        settings = (
            f"AS {want['type']} START {want['start']} INCREMENT {want['by']} "
            f"MINVALUE {want['min']} MAXVALUE {want['max']} NO CYCLE"
        )
        fixes = [Fix(Phase.SEQUENCE, f"{verb} SEQUENCE {rest} {settings};")]
        if not want["table"]:
            return [*fixes, Fix(Phase.DATA, advance(rest, HIGHEST_PLACE))]
        table, column = want["table"], want["column"]
        return [
            *fixes,
            Fix(Phase.DATA, f"ALTER SEQUENCE {rest} OWNED BY {table}.{column};"),
            Fix(Phase.DATA, advance(rest, _HIGHEST.format(column=column, table=table))),
        ]

    def _trigger(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        table, _, name = rest.partition(".")
        if found and found.startswith(f"{wanted} ENABLED"):
            return [Fix(Phase.TRIGGER, f"ALTER TABLE {table} ENABLE TRIGGER {name};")]
        return _replace("TRIGGER", table, name, found, wanted)

    def _rule(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        table, _, name = rest.partition(".")
        return _replace("RULE", table, name, found, wanted.rstrip(";"))

    def _function(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        make = Fix(Phase.FUNCTION, self._bodies.statement(f"function {rest}", self._revision))
        result = [re.search(r"RETURNS (\S+)", text or "") for text in (found, wanted)]
        same = found is None or (result[0] and result[1] and result[0][1] == result[1][1])
        return [make] if same else [Fix(Phase.DROP, f"DROP FUNCTION {rest};"), make]

    def _counter(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        return [recount(int(rest), deltas="table globalintegerschanges" in self._wanted)]

    def _property(self, rest: str, found: str | None, wanted: str) -> list[Fix]:
        phase = Phase.STAMP if rest == "4" else Phase.PROPERTY
        return [Fix(phase, _PROPERTY.format(key=rest, value=wanted))]


def without_lock(repair: tuple[Fix, ...]) -> str | None:
    """How to have an index made beside a working Orthanc, which a transaction cannot; None if it is none."""
    if [fix.phase for fix in repair] != [Phase.INDEX]:
        return None
    statement = re.sub(r"^(CREATE INDEX|REINDEX INDEX)", r"\1 CONCURRENTLY", repair[0].sql)
    return f"on a big index, beside a working Orthanc: {statement}"


def recount(key: int, *, deltas: bool) -> Fix:
    """Set a counter to what there is, less what is still to be added to it."""
    counted = _COUNTED.get(key, _COUNTED_RESOURCES.format(level=key - 2))
    pending = _PENDING.format(key=key) if deltas else ""
    return Fix(Phase.COUNTER, _RECOUNT.format(key=key, counted=counted, pending=pending))


def advance(sequence: str, highest: str) -> str:
    """Let a sequence go on after the highest value of a query; as it is if that gives none."""
    return _ADVANCE.format(sequence=sequence, query=highest)


def known_elsewhere() -> dict[str, list[int]]:
    """The objects of all revisions, and the revisions that have them."""
    known: dict[str, list[int]] = {}
    for revision in catalog.revisions():
        for name in catalog.expected(revision, with_storage=False):
            known.setdefault(name, []).append(revision)
    return known


def _remove(kind: str, rest: str, *, useless: bool) -> tuple[Fix, ...]:
    """Remove an object of another revision, unless it may hold data or be of use again."""
    table, _, name = rest.partition(".")
    if kind == "table" and rest == "invalidchildcounts":
        return (Fix(Phase.DATA, _COUNT_MARKED), Fix(Phase.DATA, "DROP TABLE invalidchildcounts;"))
    if kind == "table" and rest in _EMPTY_TABLES:
        return (Fix(Phase.DROP, f"DROP TABLE {rest};"),)
    if kind == "column" and rest in _EMPTY_COLUMNS:
        return (Fix(Phase.DROP, f"ALTER TABLE {table} DROP COLUMN {name};"),)
    if kind not in _REMOVE or (rest in _BIG_INDEXES and not useless):
        return ()
    return (Fix(Phase.DROP, _REMOVE[kind].format(rest=rest, table=table, name=name)),)


def _replace(kind: str, table: str, name: str, found: str | None, wanted: str) -> list[Fix]:
    make = Fix(Phase.TRIGGER, f"{wanted};")
    return [Fix(Phase.DROP, f"DROP {kind} {name} ON {table};"), make] if found else [make]
