"""What must hold for the rows of an index; without `deep` only what an index answers in an instant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.schema import duplicates
from pgorthanc_cli.schema.catalog import Catalog
from pgorthanc_cli.schema.verify import content
from pgorthanc_cli.schema.verify.mend import HIGHEST_PLACE, RECYCLING, advance, recount
from pgorthanc_cli.schema.verify.model import Finding, Fix, Phase

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# The plugin reads a place in the recycling order as a 32-bit integer.
_LAST_PLACE = 2**31 - 1
_SHOWN = 5

_ORDER = "SELECT max(seq), count(*) FILTER (WHERE patientid IS NULL) FROM index.patientrecyclingorder"
_REPEATED = """
    SELECT count(*) FROM (SELECT FROM index.patientrecyclingorder WHERE patientid IS NOT NULL
        GROUP BY patientid HAVING count(*) > 1) AS repeated"""
_PLACES = """
    SELECT coalesce(max(CASE WHEN value ~ '^[0-9]{1,18}$' THEN value::bigint END), 0),
           count(*) FILTER (WHERE value IS NULL OR value !~ '^[0-9]{1,18}$')
        FROM index.metadata
        WHERE id = ANY (ARRAY(SELECT internalid FROM index.resources WHERE resourcetype = 0)) AND type = 19"""
_RENUMBER = """UPDATE metadata SET value = place::text FROM (
        SELECT id, row_number() OVER (ORDER BY value::bigint, id) AS place
            FROM resources JOIN metadata ON id = internalid AND type = 19 WHERE resourcetype = 0) patient
    WHERE metadata.id = patient.id AND type = 19;"""
_START_AGAIN = """SELECT setval('patientrecyclingordersequence', greatest(count(*), 1)) FROM resources
    JOIN metadata ON id = internalid AND type = 19 WHERE resourcetype = 0;"""

_RECOUNTED = """
    SELECT key, counter.value + {pending}, CASE
            WHEN key = 0 THEN (SELECT coalesce(sum(compressedsize), 0) FROM index.attachedfiles)
            WHEN key = 1 THEN (SELECT coalesce(sum(uncompressedsize), 0) FROM index.attachedfiles)
            ELSE (SELECT count(*) FROM index.resources WHERE resourcetype = key - 2) END
        FROM index.globalintegers counter WHERE key BETWEEN 0 AND 5 AND counter.value IS NOT NULL ORDER BY key"""
_PENDING = (
    "(SELECT coalesce(sum(value), 0) FROM index.globalintegerschanges noted WHERE noted.key = counter.key)"
)
_COUNTERS = ("compressed size", "uncompressed size", "patients", "studies", "series", "instances")

_WRONG_PARENT = """
    SELECT child.publicid, child.resourcetype, count(*) OVER ()
        FROM index.resources child LEFT JOIN index.resources parent ON parent.internalid = child.parentid
        WHERE CASE child.resourcetype WHEN 0 THEN child.parentid IS NOT NULL
                   ELSE parent.resourcetype IS DISTINCT FROM child.resourcetype - 1 END
        ORDER BY 2, 1 LIMIT 5"""
_CHILDLESS = """
    SELECT publicid, resourcetype, count(*) OVER () FROM index.resources parent
        WHERE resourcetype < 3 AND NOT EXISTS (
            SELECT FROM index.resources child WHERE child.parentid = parent.internalid)
        ORDER BY 2, 1 LIMIT 5"""
_CHILDREN = """(
        SELECT parent.internalid AS id, count(child.internalid) AS number
            FROM index.resources parent LEFT JOIN index.resources child ON child.parentid = parent.internalid
            WHERE parent.resourcetype < 3 GROUP BY parent.internalid) counted
    WHERE internalid = counted.id AND childcount IS DISTINCT FROM counted.number"""
_WRONG_COUNTS = "SELECT count(*) FROM index.resources, {children} AND {served}"
_SET_COUNTS = "UPDATE resources SET childcount = counted.number FROM {children} AND {served};"
# A number that is missing or marked is counted by the plugin; revision 3 knows no marks, and spoils what is missing.
_SERVED = """childcount IS NOT NULL AND NOT EXISTS (
        SELECT FROM index.invalidchildcounts marked WHERE marked.id = internalid)"""

_REMOVE_NAMELESS = "DELETE FROM patientrecyclingorder WHERE patientid IS NULL;"
_REMOVE_REPEATED = """DELETE FROM patientrecyclingorder older USING patientrecyclingorder newer
    WHERE older.patientid = newer.patientid AND older.seq < newer.seq;"""
_NO_PLACE = (
    "delete that metadata: DELETE FROM metadata WHERE type = 19 AND value !~ '^[0-9]{1,18}$'; "
    "such a patient gets a place with its next instance"
)
_LOOK_AT_THEM = (
    "look at them in Orthanc; what is not needed: DELETE /patients/{id}, /studies/{id} or /series/{id}"
)
_READABLE = """SELECT has_sequence_privilege(oid, 'SELECT'), quote_ident(current_user)
    FROM pg_class WHERE oid = to_regclass(quote_ident(index_schema()) || '.' || %s)"""
_LAST_VALUE = "SELECT last_value - (NOT is_called)::integer FROM index.{sequence}"


def findings(
    conn: Connection, found: Catalog, revision: int, *, deep: bool, schema: str | None = None
) -> list[Finding]:
    """What is wrong with the rows of an index that lacks no table or column."""
    checks = _places(conn) if revision >= 6 else _order(conn, revision)
    if deep:
        checks += [
            *_counters(conn, deltas="table globalintegerschanges" in found),
            *_tree(
                conn, "parents", _WRONG_PARENT, "they are not found below their patient, or below another one"
            ),
            *_tree(conn, "resources without a child", _CHILDLESS, "they are listed, but hold no instance"),
            *(_child_counts(conn, marks=revision >= 4) if revision >= 3 else ()),
            *(_duplicates(conn) if "constraint resources.uniquepublicid" not in found else ()),
            *(content.findings(conn, found, schema) if schema else ()),
        ]
    return checks


def _order(conn: Connection, revision: int) -> list[Finding]:
    """The recycling order below revision 6, a table of its own."""
    ((highest, nameless),) = _rows(conn, _ORDER)
    ((repeated,),) = _rows(conn, _REPEATED)
    checks = (
        _counter_of_order(conn, highest or 0) if revision == 2 else _sequence_of_order(conn, highest or 0)
    )
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
    ((counter,),) = _rows(conn, "SELECT max(value) FROM index.globalintegers WHERE key = 7")
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
        mended = advance(name, "SELECT max(seq) FROM patientrecyclingorder")
        checks.append(_wrong(f"value of sequence {name}", str(last), f"{highest} or more", why, mended))
    return checks


def _places(conn: Connection) -> list[Finding]:
    """The recycling order since revision 6: metadata 19 of the patients."""
    ((highest, strange),) = _rows(conn, _PLACES)
    last, checks = _last_value(conn, RECYCLING)
    top = max(highest, last or 0)
    if strange:
        why = "recycling fails for all patients"
        checks.append(
            _wrong("metadata 19", f"no number for {strange} patients", "numbers", why, advice=_NO_PLACE)
        )
    elif top > _LAST_PLACE:
        why = "the plugin reads a place in the recycling order as 32 bits, and fails at the first larger one"
        found, wanted = f"up to {top}", f"at most {_LAST_PLACE}"
        checks.append(_wrong("metadata 19", found, wanted, why, _RENUMBER, _START_AGAIN))
    elif last is not None and last < highest:
        why = "patients that were used last are recycled first"
        mended = advance(RECYCLING, HIGHEST_PLACE)
        checks.append(_wrong(f"value of sequence {RECYCLING}", str(last), f"{highest} or more", why, mended))
    return checks


def _last_value(conn: Connection, sequence: str) -> tuple[int | None, list[Finding]]:
    """The last number that a sequence gave; None if it is missing or may not be read."""
    rows = _rows(conn, _READABLE, sequence)
    if not rows:
        return None, []
    ((readable, role),) = rows
    if readable:
        ((last,),) = _rows(conn, _LAST_VALUE.format(sequence=sequence))
        return last, []
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
    counted = _rows(conn, _RECOUNTED.format(pending=_PENDING if deltas else "0"))
    return [
        _wrong(
            f"value of counter {key} ({_COUNTERS[key]})",
            str(value),
            str(true),
            "this statistic stays wrong: the plugin only adds to it",
            recount(key, deltas=deltas).sql,
        )
        for key, value, true in counted
        if value != true
    ]


def _tree(conn: Connection, what: str, query: str, why: str) -> list[Finding]:
    rows = _rows(conn, query)
    if not rows:
        return []
    shown = ", ".join(f"{LEVELS[level]} {name}" for name, level, _ in rows)
    return [_wrong(what, f"{rows[0][2]} wrong, such as {shown}", "none", why, advice=_LOOK_AT_THEM)]


def _child_counts(conn: Connection, *, marks: bool) -> list[Finding]:
    served = _SERVED if marks else "true"
    ((wrong,),) = _rows(conn, _WRONG_COUNTS.format(children=_CHILDREN, served=served))
    if not wrong:
        return []
    mended = _SET_COUNTS.format(children=_CHILDREN, served=served).replace("index.", "")
    why = "the plugin answers with them, or spoils them with the next instance"
    return [_wrong("child counts", f"{wrong} wrong", "the numbers of children", why, mended)]


def _duplicates(conn: Connection) -> list[Finding]:
    found = duplicates.find(conn)
    if not found:
        return []
    shown = ", ".join(map(str, found[:_SHOWN]))
    why = "Orthanc finds only one of the resources, and the upgrade to revision 2 fails"
    advice = "run: pgorthanc upgrade --repair-duplicates"
    return [
        _wrong("public ids", f"{len(found)} more than once, such as {shown}", "each once", why, advice=advice)
    ]


def _wrong(
    name: str, found: str, wanted: str, why: str, *statements: str, advice: str | None = None
) -> Finding:
    repair = tuple(Fix(Phase.DATA, statement) for statement in statements)
    return Finding(name, found, wanted, matters=True, why=why, repair=repair, advice=advice)


def _rows(conn: Connection, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    with conn.cursor() as cur:
        cur.execute(query, arguments or None)
        return cur.fetchall()
