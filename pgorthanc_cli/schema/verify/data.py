"""Check the rows of an index; without `deep` only by queries that an index answers in an instant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.schema import duplicates, features
from pgorthanc_cli.schema.catalog import Catalog
from pgorthanc_cli.schema.features import Features
from pgorthanc_cli.schema.verify import content
from pgorthanc_cli.schema.verify.model import Finding, Fix, Phase
from pgorthanc_cli.schema.verify.repairs import HIGHEST_POSITION, RECYCLING, advance, recount

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# The plugin reads a position in the recycling order as a 32-bit integer.
_LAST_POSITION = 2**31 - 1
_SHOWN = 5

_ORDER = "SELECT max(seq), count(*) FILTER (WHERE patientid IS NULL) FROM index.patientrecyclingorder"
_REPEATED = """
    SELECT count(*) FROM (SELECT FROM index.patientrecyclingorder WHERE patientid IS NOT NULL
        GROUP BY patientid HAVING count(*) > 1) AS repeated"""
# A number of 18 digits always fits into a bigint.
_POSITIONS = """
    SELECT coalesce(max(CASE WHEN value ~ '^[0-9]{1,18}$' THEN value::bigint END), 0),
           count(*) FILTER (WHERE value IS NULL OR value !~ '^[0-9]{1,18}$')
        FROM index.metadata
        WHERE id = ANY (ARRAY(SELECT internalid FROM index.resources WHERE resourcetype = 0)) AND type = 19"""
_RENUMBER = """UPDATE metadata SET value = place::text FROM (
        SELECT id, row_number() OVER (ORDER BY value::bigint, id) AS place
            FROM resources JOIN metadata ON id = internalid AND type = 19 WHERE resourcetype = 0) patient
    WHERE metadata.id = patient.id AND type = 19;"""
# The sequence begins at 1: setval refuses 0.
_START_AGAIN = """SELECT setval('patientrecyclingordersequence', greatest(count(*), 1)) FROM resources
    JOIN metadata ON id = internalid AND type = 19 WHERE resourcetype = 0;"""

# Counters 2 to 5 are those of patients, studies, series and instances.
# Each table is read once.
_RECOUNTED = """
    SELECT counter.key, counter.value + {pending}, actual.value
        FROM index.globalintegers counter JOIN (
            SELECT sums.key, sums.value
                FROM (SELECT coalesce(sum(compressedsize), 0) AS stored, coalesce(sum(uncompressedsize), 0) AS served
                          FROM index.attachedfiles) files,
                     LATERAL (VALUES (0, files.stored), (1, files.served)) AS sums (key, value)
            UNION ALL
            SELECT level.key, coalesce(counted.number, 0) FROM generate_series(2, 5) AS level (key)
                LEFT JOIN (SELECT resourcetype, count(*) AS number FROM index.resources GROUP BY 1) counted
                    ON counted.resourcetype = level.key - 2
        ) AS actual (key, value) ON actual.key = counter.key
        WHERE counter.value IS NOT NULL ORDER BY 1"""
_PENDING = (
    "(SELECT coalesce(sum(value), 0) FROM index.globalintegerschanges noted WHERE noted.key = counter.key)"
)
_COUNTERS = ("compressed size", "uncompressed size", "patients", "studies", "series", "instances")

# An instance is no parent: without instances, all parents fit into the server's memory. Materialized, as the
# planner expects many such rows, and would sort all resources first.
_WRONG_PARENT = """
    WITH wrong AS MATERIALIZED (
        SELECT child.publicid, child.resourcetype
            FROM index.resources child LEFT JOIN index.resources parent
                ON parent.internalid = child.parentid AND parent.resourcetype < 3
            WHERE CASE child.resourcetype WHEN 0 THEN child.parentid IS NOT NULL
                       ELSE parent.resourcetype IS DISTINCT FROM child.resourcetype - 1 END)
    SELECT publicid, resourcetype, count(*) OVER () FROM wrong ORDER BY 2, 1 LIMIT 5"""
_CHILDLESS = """
    SELECT publicid, resourcetype, count(*) OVER () FROM index.resources parent
        WHERE resourcetype < 3 AND NOT EXISTS (
            SELECT FROM index.resources child WHERE child.parentid = parent.internalid)
        ORDER BY 2, 1 LIMIT 5"""
_CHILDREN = """(
        SELECT parent.internalid AS id, coalesce(child.number, 0) AS number
            FROM index.resources parent LEFT JOIN (
                SELECT parentid, count(*) AS number FROM index.resources GROUP BY parentid) child
                ON child.parentid = parent.internalid
            WHERE parent.resourcetype < 3) counted
    WHERE internalid = counted.id AND childcount IS DISTINCT FROM counted.number"""
_WRONG_COUNTS = "SELECT count(*) FROM index.resources, {children} AND {served}"
_SET_COUNTS = "UPDATE resources SET childcount = counted.number FROM {children} AND {served};"
# The plugin counts a number that is missing or marked; revision 3 has no marks, and corrupts a missing number.
_SERVED = """childcount IS NOT NULL AND NOT EXISTS (
        SELECT FROM index.invalidchildcounts marked WHERE marked.id = internalid)"""

_REMOVE_NAMELESS = "DELETE FROM patientrecyclingorder WHERE patientid IS NULL;"
_REMOVE_REPEATED = """DELETE FROM patientrecyclingorder older USING patientrecyclingorder newer
    WHERE older.patientid = newer.patientid AND older.seq < newer.seq;"""
_NOT_A_NUMBER = (
    "delete that metadata: DELETE FROM metadata WHERE type = 19 AND value !~ '^[0-9]{1,18}$'; "
    "such a patient gets a place with its next instance"
)
_LOOK_AT_THEM = (
    "look at them in Orthanc; what is not needed: DELETE /patients/{id}, /studies/{id} or /series/{id}"
)
_READABLE = """SELECT has_sequence_privilege(oid, 'SELECT'), quote_ident(current_user)
    FROM pg_class WHERE oid = to_regclass(quote_ident(index_schema()) || '.' || %s)"""
# A sequence that has given no number yet has the last_value 1, too.
_LAST_VALUE = "SELECT last_value - (NOT is_called)::integer FROM index.{sequence}"


def findings(
    conn: Connection,
    objects: Catalog,
    revision: int,
    *,
    deep: bool,
    schema: str | None = None,
    report: Report = silent,
) -> list[Finding]:
    """Return the problems with the rows of an index that has all its tables and columns."""
    has = features.of_revision(revision)
    checks = _metadata_order(conn) if has.recycling_in_metadata else _table_order(conn, has)
    if deep:
        checks += _deep(conn, objects, has, schema, report)
    return checks


def _deep(
    conn: Connection, objects: Catalog, has: Features, schema: str | None, report: Report
) -> list[Finding]:
    """Run the checks that read whole tables, one after the other."""
    deltas = "table globalintegerschanges" in objects
    below = "they are not found below their patient, or below another one"
    empty = "they are listed, but hold no instance"
    steps: dict[str, Callable[[], list[Finding]]] = {
        "recounting statistics": partial(_counters, conn, deltas=deltas),
        "checking parents": partial(_tree, conn, "parents", _WRONG_PARENT, below),
        "looking for resources without a child": partial(
            _tree, conn, "resources without a child", _CHILDLESS, empty
        ),
    }
    if has.child_counts:
        steps["recounting children"] = partial(_child_counts, conn, marks=has.child_count_marks)
    if "constraint resources.uniquepublicid" not in objects:
        steps["looking for duplicate public ids"] = partial(_duplicates, conn)
    if schema:
        steps["checking the rows of stored files"] = partial(content.findings, conn, objects, schema)
    report = db.announce_scans(conn, ("resources", "attachedfiles", "storagearea"), report)
    checks = []
    for number, (what, check) in enumerate(steps.items(), 1):
        report(Progress("", what, number, len(steps)))
        checks += check()
    return checks


def _table_order(conn: Connection, has: Features) -> list[Finding]:
    """Check the recycling order in PatientRecyclingOrder."""
    highest, nameless = db.row(conn, _ORDER) or (None, 0)
    repeated = db.value(conn, _REPEATED)
    check = _counter_of_order if has.recycling_counter else _sequence_of_order
    checks = check(conn, highest or 0)
    if nameless:
        checks.append(
            _wrong(
                "rows of patientrecyclingorder",
                f"{nameless} without a patient",
                "none",
                "recycling stops at such a row, and the upgrade to revision 6 fails",
                _REMOVE_NAMELESS,
            )
        )
    if repeated:
        checks.append(
            _wrong(
                "patients of patientrecyclingorder",
                f"{repeated} more than once",
                "each once",
                "such a patient is recycled too early, and the upgrade to revision 2 fails",
                _REMOVE_REPEATED,
            )
        )
    return checks


def _counter_of_order(conn: Connection, highest: int) -> list[Finding]:
    counter = db.value(conn, "SELECT max(value) FROM index.globalintegers WHERE key = 7")
    if counter is None or counter >= highest:
        return []
    why = "the next new patient is not stored, and its study has no patient"
    return [
        _wrong("value of counter 7", str(counter), f"{highest} or more", why, recount(7, deltas=False).sql)
    ]


def _sequence_of_order(conn: Connection, highest: int) -> list[Finding]:
    name = "patientrecyclingorder_seq_seq"
    last, checks = _last_value(conn, name)
    if last is not None and last < highest:
        why = "new patients are recycled first, and fail once it meets a number that is taken"
        repair = advance(name, "SELECT max(seq) FROM patientrecyclingorder")
        checks.append(_wrong(f"value of sequence {name}", str(last), f"{highest} or more", why, repair))
    return checks


def _metadata_order(conn: Connection) -> list[Finding]:
    """Check the recycling order in metadata 19 of the patients."""
    highest, not_numbers = db.row(conn, _POSITIONS) or (0, 0)
    last, checks = _last_value(conn, RECYCLING)
    top = max(highest, last or 0)
    if not_numbers:
        why = "recycling fails for all patients"
        checks.append(
            _wrong(
                "metadata 19", f"no number for {not_numbers} patients", "numbers", why, advice=_NOT_A_NUMBER
            )
        )
    elif top > _LAST_POSITION:
        why = "the plugin reads a place in the recycling order as 32 bits, and fails at the first larger one"
        actual, expected = f"up to {top}", f"at most {_LAST_POSITION}"
        checks.append(_wrong("metadata 19", actual, expected, why, _RENUMBER, _START_AGAIN))
    elif last is not None and last < highest:
        why = "patients that were used last are recycled first"
        repair = advance(RECYCLING, HIGHEST_POSITION)
        checks.append(_wrong(f"value of sequence {RECYCLING}", str(last), f"{highest} or more", why, repair))
    return checks


def _last_value(conn: Connection, sequence: str) -> tuple[int | None, list[Finding]]:
    """Return the last value of a sequence; None if it is missing or may not be read."""
    row = db.row(conn, _READABLE, sequence)
    if row is None:
        return None, []
    readable, role = row
    if readable:
        return db.value(conn, _LAST_VALUE.format(sequence=sequence)), []
    unchecked = Finding(
        f"value of sequence {sequence}",
        "not readable",
        "readable",
        matters=False,
        why="it was not checked",
        advice=f"to have it checked: GRANT SELECT ON SEQUENCE {sequence} TO {role};",
    )
    return None, [unchecked]


def _counters(conn: Connection, *, deltas: bool) -> list[Finding]:
    counted = db.rows(conn, _RECOUNTED.format(pending=_PENDING if deltas else "0"))
    return [
        _wrong(
            f"value of counter {key} ({_COUNTERS[key]})",
            str(value),
            str(actual),
            "Orthanc reports this wrong number and never corrects it",
            recount(key, deltas=deltas).sql,
        )
        for key, value, actual in counted
        if value != actual
    ]


def _tree(conn: Connection, what: str, query: str, why: str) -> list[Finding]:
    rows = db.rows(conn, query)
    if not rows:
        return []
    examples = ", ".join(f"{LEVELS[level]} {name}" for name, level, _ in rows)
    return [_wrong(what, f"{rows[0][2]} wrong, such as {examples}", "none", why, advice=_LOOK_AT_THEM)]


def _child_counts(conn: Connection, *, marks: bool) -> list[Finding]:
    served = _SERVED if marks else "true"
    wrong = db.value(conn, _WRONG_COUNTS.format(children=_CHILDREN, served=served))
    if not wrong:
        return []
    # Repairs are run, and printed, with the schema in search_path.
    repair = _SET_COUNTS.format(children=_CHILDREN, served=served).replace("index.", "")
    why = "the plugin answers with them, or spoils them with the next instance"
    return [_wrong("child counts", f"{wrong} wrong", "the numbers of children", why, repair)]


def _duplicates(conn: Connection) -> list[Finding]:
    repeated = duplicates.find(conn)
    if not repeated:
        return []
    examples = ", ".join(map(str, repeated[:_SHOWN]))
    why = "Orthanc finds only one of the resources, and the upgrade to revision 2 fails"
    advice = "run: pgorthanc upgrade --repair-duplicates"
    return [
        _wrong(
            "public ids",
            f"{len(repeated)} more than once, such as {examples}",
            "each once",
            why,
            advice=advice,
        )
    ]


def _wrong(
    name: str, actual: str, expected: str, why: str, *statements: str, advice: str | None = None
) -> Finding:
    repair = tuple(Fix(Phase.DATA, statement) for statement in statements)
    return Finding(name, actual, expected, matters=True, why=why, repair=repair, advice=advice)
