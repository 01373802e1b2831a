"""Whether a difference matters to the plugin, and why: the text for the operator."""

from __future__ import annotations

import re
from dataclasses import replace

from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.catalog import TRIGRAM_INDEX, Catalog, Difference, substitute
from pgorthanc_cli.schema.verify.functions import UNKNOWN, Origin

_MISSING = {
    "table": "the plugin stops at its first use of it; a repair makes it empty, what it held is gone",
    "column": "the plugin reads and writes it, so its statements fail",
    "constraint": "nothing keeps wrong rows out any more, and what relies on it fails",
    "index": "the searches that need it read whole tables",
    "sequence": "no row can be added where it gives the numbers",
    "trigger": "what it keeps up to date goes wrong with the next change",
    "rule": "deleted files leave their large objects behind for ever",
    "function": "the plugin calls it, and fails",
    "counter": "statistics are wrong, and changes of it are lost",
    "property": "the plugin takes the index for an older one at its next start",
}
_DIFFERENT = {
    "table": "an unlogged or partitioned table is empty after a crash, or is not recognised by the plugin",
    "column": "the plugin inserts and reads by position and type",
    "constraint": "it lets in, removes or refuses other rows than the plugin expects",
    "index": "the searches that need it may read whole tables",
    "sequence": "numbers come out wrong, or run out",
    "trigger": "what it keeps up to date goes wrong",
    "rule": "deleted files leave their large objects behind, or more is deleted than meant",
    "function": "the plugin calls it in another way, or its next upgrade cannot replace it",
    "counter": "adding to NULL gives NULL, so this statistic is lost for ever",
    "property": "the plugin takes the index for another one at its next start",
}
_EXTRA = {
    "column": "the plugin inserts by position",
    "constraint": "it may refuse or remove rows that the plugin writes",
    "index": "it refuses rows that the plugin writes",
    "trigger": "it runs with every change of the plugin",
    "rule": "it changes what the plugin's statements do",
    "function": "the plugin drops functions by name only: with a second one of that name its upgrade fails",
    "counter": "the plugin does not look at it",
    "property": "the plugin does not look at it",
    "table": "the plugin does not look at it",
    "sequence": "the plugin does not look at it",
    "child": "the plugin's queries read its rows as those of the table, and no key of the table covers them",
    "rowsecurity": "a role that does not own the table sees only the rows that its policies allow",
}
_HARMLESS = {
    "index": "it slows down each write a little",
    "function": "the plugin never calls it",
}
# Where a definition names the table that its object belongs to.
_OWNER = {"index": r" ON (?:ONLY )?(\S+) USING", "sequence": r"OWNED BY ([^.]+)\."}
_STAMP = "the plugin believes it, and runs the wrong upgrade or none at its next start"
_INVALID_INDEX = (
    "building it has failed: every write maintains it, but no search uses it, and the plugin does not notice"
)
# A table with other columns is not repaired: only an administrator can tell what they hold.
_REBUILD = (
    "restore the table from a backup, or create it with the columns in the expected order and copy the rows"
)
_FOREIGN = "drop it if no other program needs it"
_SWITCH_OFF = {
    "child": "detach it: ALTER TABLE {child} NO INHERIT {table}; or, for a partition, restore the table from a backup",
    "rowsecurity": "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY;",
}
# The plugin reads all columns of these two, in their order (SCHEMA.md 4).
_READ_BY_POSITION = ("maindicomtags", "exportedresources")


class SeverityRules:
    """Decide which differences of one schema matter."""

    def __init__(self, objects: Catalog, expected: Catalog, *, without_labels: bool) -> None:
        self._objects = objects
        self._expected = expected
        self._without_labels = without_labels
        self._revisions = catalog.revisions_of_objects()

    def table_of(self, difference: Difference) -> str | None:
        """Return the missing or extra table that an object belongs to: the finding of the table covers the object."""
        kind, _, rest = difference.name.partition(" ")
        if kind in ("table", "function", "property", "counter"):
            return None
        definition = difference.expected or difference.actual or ""
        owner = re.search(_OWNER.get(kind, r"^$"), definition)
        table = owner[1] if owner else rest.partition(".")[0]
        exists, expected = f"table {table}" in self._objects, f"table {table}" in self._expected
        return table if exists != expected else None

    def classify(self, difference: Difference) -> tuple[Difference, str]:
        """Return the difference, with the decision on whether it matters, and why."""
        special = self._special(difference)
        if special:
            return replace(difference, matters=special[0]), special[1]
        kind = difference.name.partition(" ")[0]
        if difference.actual is None:
            return difference, _MISSING[kind]
        if difference.expected is not None:
            return difference, _DIFFERENT[kind]
        return self._extra(kind, difference)

    def advice(self, difference: Difference) -> str | None:
        """Return what to do about a difference that no statement repairs safely."""
        kind, _, rest = difference.name.partition(" ")
        if difference.name == f"index {TRIGRAM_INDEX}":
            return "have an administrator run CREATE EXTENSION pg_trgm, then run: pgorthanc verify schema --print-sql"
        if not difference.matters:
            return None
        if kind in _SWITCH_OFF:
            table, _, child = rest.partition(".")
            return _SWITCH_OFF[kind].format(table=table, child=child)
        if difference.expected is None:
            return _FOREIGN
        table = rest.partition(".")[0]
        return _REBUILD.replace("the table", f"table {table}") if kind in ("column", "table") else None

    def has_substitute(self, name: str) -> bool:
        """Return whether another index does the work of a missing one: building it would cost hours for nothing."""
        return substitute(name, self._objects) is not None

    def _special(self, difference: Difference) -> tuple[bool, str] | None:
        name, actual = difference.name, difference.actual
        if name == "property 4":
            return True, _STAMP
        if name == "property 11":
            return False, "no plugin of this revision reads it; an official downgrade script loses it"
        if name == f"index {TRIGRAM_INDEX}":
            return False, "searches with wildcards are slow without it"
        if actual is None and self.has_substitute(name):
            return False, f"{substitute(name, self._objects)} serves the same searches"
        if self._without_labels and re.search(r"\blabels", name) and actual is None:
            return False, "plugin 4.0 does not know labels; a plugin from 5.0 on creates them when it starts"
        if name.startswith("index ") and (actual or "").endswith(" INVALID"):
            return True, _INVALID_INDEX
        return None

    def _extra(self, kind: str, difference: Difference) -> tuple[Difference, str]:
        revisions = self._revisions.get(difference.name)
        why = _EXTRA[kind] if difference.matters or kind not in ("index", "function") else _HARMLESS[kind]
        if revisions:
            owner = f"revision {_ranges(revisions)}"
            if kind == "column":
                why = f"the plugin that needs it adds it again in its upgrade, and fails; {why}"
            return difference, f"left behind by a script, it belongs to {owner}; {why}"
        if kind == "column" and self._harmless_column(difference):
            return replace(difference, matters=False), "it blocks upgrades and downgrades"
        return difference, f"not created by the plugin; {why}"

    def _harmless_column(self, difference: Difference) -> bool:
        table = difference.name.removeprefix("column ").partition(".")[0]
        definition = difference.actual or ""
        last = sum(name.startswith(f"column {table}.") for name in self._expected)
        optional = "NOT NULL" not in definition or "DEFAULT" in definition
        return int(definition.split()[0]) > last and optional and table not in _READ_BY_POSITION


def describe_body(origin: Origin) -> tuple[str, str]:
    """Return the origin of a body that does not fit the revision, and why that matters."""
    if origin.name == UNKNOWN:
        return (
            "unknown",
            "it was changed by hand, or comes from a release that pgorthanc does not know: what it does is unknown",
        )
    return (
        f"of {origin.name}, revision {origin.revision}",
        "it was written for the tables of another revision: it fails, or writes wrong values",
    )


def _ranges(revisions: list[int]) -> str:
    return str(revisions[0]) if len(revisions) == 1 else f"{revisions[0]} to {revisions[-1]}"
