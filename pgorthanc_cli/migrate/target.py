"""The index in PostgreSQL: made ready to be filled, put together again, stamped.

While it is filled it has no keys, no indexes and no triggers, which is several times faster, and its properties are
away (`globalproperties` has another name), so nobody takes it for an index. What it had is noted in the journal; the
last transaction gives it back, compares the whole catalog with the one before, and makes it an index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg2.errors

from pgorthanc_cli import locks
from pgorthanc_cli.errors import InUseError, PgOrthancError, RevisionError
from pgorthanc_cli.migrate import journal
from pgorthanc_cli.migrate.model import DEFAULT_SERVER, Settings
from pgorthanc_cli.schema import catalog, initialize
from pgorthanc_cli.schema.verify import mend

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

HIDDEN = "pgorthanc_globalproperties"
# Filled without keys and indexes; the others are small.
_BIG = ("resources", "maindicomtags", "dicomidentifiers", "metadata", "attachedfiles", "changes", "labels")
_FILLED = (*_BIG, "exportedresources", "patientrecyclingorder", "keyvaluestores", "queues")
_REMAINS = (*_FILLED, "globalintegerschanges", "invalidchildcounts", "auditlogs")
# Row counts that a fresh or an emptied index may have in its counters do not matter: they are written anew.
_RECOMPUTED = ("counter ", "property ")

_KEYS = """
    SELECT conrelid::regclass::text, quote_ident(conname), contype, pg_get_constraintdef(c.oid),
           conindid::regclass::text, pg_get_indexdef(conindid)
        FROM pg_constraint c
        WHERE (contype = 'f' AND confrelid = 'resources'::regclass)
            OR (contype IN ('p', 'u') AND conrelid = ANY (%s::regclass[]))
        ORDER BY contype <> 'f', 1, 2"""
_INDEXES = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index i
        WHERE indrelid = ANY (%s::regclass[])
            AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid) ORDER BY 1"""
_TRIGGERS = """
    SELECT tgrelid::regclass::text, quote_ident(tgname) FROM pg_trigger
        WHERE tgrelid = ANY (%s::regclass[]) AND NOT tgisinternal AND tgenabled = 'O' ORDER BY 1, 2"""
_SET_SERVER = """INSERT INTO serverproperties (server, property, value) VALUES (%s, %s, %s)
    ON CONFLICT (server, property) DO UPDATE SET value = EXCLUDED.value"""
_SET_GLOBAL = """INSERT INTO globalproperties (property, value) VALUES (%s, %s)
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value"""
_HIGHEST_PLACE = """SELECT max(value::bigint) FROM metadata WHERE type = 19
    AND id = ANY (ARRAY(SELECT internalid FROM resources WHERE resourcetype = 0))"""
_END_ORPHANS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()
            AND pid IN (SELECT pid FROM pg_locks WHERE relation = ANY (%s::regclass[]))"""
_SEQUENCES = {
    "Resources": "resources_internalid_seq",
    "Changes": "changes_seq_seq",
    "ExportedResources": "exportedresources_seq_seq",
    "Queues": "queues_id_seq",
}


@dataclass(frozen=True)
class Plan:
    """How the index is filled and put together again; kept in the journal.

    Attributes:
        fingerprint: Of the source.
        source: Its path, for messages.
        revision: Of the index.
        server_identifier: Whose the server properties are.
        tables: Those of PostgreSQL that may be filled.
        before: The catalog of the empty index.
        indexes: (name, statement), the slowest first.
        keys: (table, name, statement) that makes a key of a unique index.
        references: (table, name, statement) of the foreign keys, not validated.
        triggers: (table, name).
    """

    fingerprint: str
    source: str
    revision: int
    server_identifier: str
    tables: list[str]
    before: dict[str, str]
    indexes: list[list[str]]
    keys: list[list[str]]
    references: list[list[str]]
    triggers: list[list[str]]


def unfinished(found: catalog.Catalog) -> bool:
    """Whether a schema holds a conversion that did not get through."""
    return f"table {journal.TABLE}" in found


def establish(conn: Connection, schema: str, settings: Settings) -> int:
    """Make sure that there is an empty index, created if there is none; its revision.

    Raises:
        RevisionError: There is another revision, or one that is not as it must be, or it holds something.
        PgOrthancError: The database cannot hold every text.
    """
    _require_encoding(conn)
    found = catalog.snapshot(conn, schema)
    here = catalog.layout(found, schema)
    if here is None or (settings.large_objects and "table storagearea" not in found):
        wanted = settings.revision or (here.revision if here else None)
        return initialize.init(
            conn,
            schema=schema,
            require_idle=locks.require_idle,
            revision=wanted,
            with_storage=settings.large_objects,
        ).revision
    if settings.revision not in (None, here.revision):
        raise RevisionError(
            f"schema {schema} holds an index at revision {here.name}, wanted revision {settings.revision}",
            "use another database, leave out --to-revision, or run: pgorthanc downgrade or upgrade",
        )
    wanted_catalog = catalog.expected(here.revision or 1, with_storage="table storagearea" in found)
    wrong = [d for d in catalog.differences(found, wanted_catalog) if d.matters and not _of_labels(here, d)]
    if wrong or not here.revision:
        raise RevisionError(
            f"the index in schema {schema} is not what revision {here.name} must be: "
            f"{'; '.join(map(str, wrong[:5])) or 'it is older than revision 1'}",
            "run: pgorthanc verify schema --repair; or use a new database",
        )
    _require_empty(conn, schema, found, with_storage=settings.large_objects)
    return here.revision


def take_apart(
    conn: Connection, schema: str, fingerprint: str, source: str, number: int, settings: Settings
) -> Plan:
    """Take keys, indexes, triggers and properties away from an empty index, in one transaction."""
    with conn, conn.cursor() as cur:
        found = catalog.snapshot(conn, schema)
        _require_empty(conn, schema, found, with_storage=settings.large_objects)
        tables = [table for table in _FILLED if f"table {table}" in found]
        big = [table for table in _BIG if table in tables]
        cur.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
        keys = _rows(cur, _KEYS, (big,))
        unique = [key for key in keys if key[2] != "f"]
        indexes = _rows(cur, _INDEXES, (big,)) + [(key[4], key[5]) for key in unique]
        plan = Plan(
            fingerprint=fingerprint,
            source=source,
            revision=number,
            server_identifier=settings.server_identifier or _known_server(cur),
            tables=tables,
            before={k: v for k, v in found.items() if not k.startswith(_RECOMPUTED)},
            indexes=[list(index) for index in sorted(indexes, key=_slowest_first)],
            keys=[
                [table, name, _add_key(table, name, kind, index)] for table, name, kind, _, index, _ in unique
            ],
            references=[
                [t, n, f"ALTER TABLE {t} ADD CONSTRAINT {n} {d} NOT VALID"]
                for t, n, c, d, *_ in keys
                if c == "f"
            ],
            triggers=[list(trigger) for trigger in _rows(cur, _TRIGGERS, (tables,))],
        )
        journal.create(cur, asdict(plan))
        for table, name in plan.triggers:
            cur.execute(f"ALTER TABLE {table} DISABLE TRIGGER {name}")
        for table, name, *_ in keys:
            cur.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        for name, _ in plan.indexes:
            cur.execute(f"DROP INDEX IF EXISTS {name}")
        cur.execute(f"ALTER TABLE globalproperties RENAME TO {HIDDEN}")
    return plan


def resume(conn: Connection, fingerprint: str, source: str, settings: Settings) -> Plan:
    """The plan of an unfinished conversion; with `restart` everything it has loaded is removed.

    Raises:
        PgOrthancError: It was of another file, of this one before it changed, or told otherwise.
    """
    plan = _recorded(journal.run(conn))
    conn.commit()
    _end_orphans(conn, plan)
    told = (settings.revision or plan.revision, settings.server_identifier or plan.server_identifier)
    if told != (plan.revision, plan.server_identifier):
        raise PgOrthancError(
            f"the schema holds an unfinished conversion to revision {plan.revision} with the server identifier "
            f"{plan.server_identifier}, wanted {told[0]} and {told[1]}",
            "run it with these; or drop the schema and begin anew",
        )
    if settings.restart:
        plan = replace(plan, fingerprint=fingerprint, source=source)
        _empty(conn, plan, with_storage=settings.large_objects)
    elif plan.fingerprint != fingerprint:
        raise PgOrthancError(
            f"the schema holds an unfinished conversion of {plan.source}, which was another index or has changed since",
            "add --restart to begin anew with this one",
        )
    return plan


def _recorded(record: dict[str, Any]) -> Plan:
    """The plan as the journal has it.

    Raises:
        PgOrthancError: It is not whole.
    """
    try:
        plan = Plan(**record)
        pairs, triples = [*plan.indexes, *plan.triggers], [*plan.keys, *plan.references]
        sound = all(len(each) == 2 for each in pairs) and all(len(each) == 3 for each in triples)
        texts = [plan.fingerprint, plan.source, plan.server_identifier, *plan.tables, *plan.before.values()]
        sound = sound and all(isinstance(t, str) for t in itertools.chain(texts, *pairs, *triples))
    except (TypeError, AttributeError):
        sound = False
    if not sound or not plan.tables:
        raise journal.unusable()
    return plan


def missing_indexes(plan: Plan, known: catalog.Catalog) -> list[str]:
    """The statements for the indexes that are not there yet, not even as part of a key."""
    keys = {name.partition(".")[2] for name in known if name.startswith("constraint ")}
    return [make for name, make in plan.indexes if f"index {name}" not in known and name not in keys]


def add_keys(conn: Connection, plan: Plan, known: catalog.Catalog) -> None:
    """Make keys of the unique indexes, and foreign keys that are still to be validated, as far as they are missing."""
    with conn, conn.cursor() as cur:
        for table, name, statement in (*plan.keys, *plan.references):
            if f"constraint {table}.{name}" not in known:
                cur.execute(statement)


def stamp(
    conn: Connection,
    schema: str,
    plan: Plan,
    properties: tuple[dict[int, str], dict[int, str]],
) -> None:
    """The last transaction: triggers and properties; the whole catalog is compared; then it is an index.

    Args:
        conn: A connection.
        schema: The namespace of the index.
        plan: How it was taken apart.
        properties: Those of the database, and those of the server.

    Raises:
        RevisionError: The schema is not what it was. Nothing is committed then.
    """
    with conn, conn.cursor() as cur:
        for table, name in plan.triggers:
            cur.execute(f"ALTER TABLE {table} ENABLE TRIGGER {name}")
        cur.execute(f"ALTER TABLE {HIDDEN} RENAME TO globalproperties")
        journal.drop(cur)
        shared, own = properties
        for number, value in shared.items():
            cur.execute(_SET_GLOBAL, (number, value))
        for number, value in own.items():
            cur.execute(_SET_SERVER, (plan.server_identifier, number, value))
        found = catalog.snapshot(conn, schema)
        now = {k: v for k, v in found.items() if not k.startswith(_RECOMPUTED)}
        wrong = [str(difference) for difference in catalog.differences(now, plan.before)]
        require_sound(wrong)


def require_sound(wrong: Sequence[str]) -> None:
    """Stop if anything is wrong with the new index.

    Raises:
        RevisionError: Something is; it does not become an index.
    """
    if wrong:
        raise RevisionError(
            f"the new index is not as it must be, and was not made: {'; '.join(wrong[:5])}",
            "run it again with --restart; if that does not help, report it with the output of --report",
        )


def count(conn: Connection, plan: Plan, highest: dict[str, int]) -> None:
    """Set counters and sequences; `highest`: table of SQLite -> the highest number it has ever given."""
    with conn, conn.cursor() as cur:
        _count(cur, plan, highest)
        _set_sequences(cur, plan, highest)


def _require_encoding(conn: Connection) -> None:
    found = conn.info.parameter_status("server_encoding")
    if found != "UTF8":
        raise PgOrthancError(
            f"database {conn.info.dbname} has the encoding {found}, wanted UTF8",
            "create one that can hold every name: CREATE DATABASE orthanc ENCODING 'UTF8' TEMPLATE template0",
        )


def _of_labels(here: catalog.Layout, difference: catalog.Difference) -> bool:
    """The plugin 4.0 makes no labels."""
    return here.made_by == "4.0" and "labels" in difference.name


def _require_empty(conn: Connection, schema: str, found: catalog.Catalog, *, with_storage: bool) -> None:
    with conn.cursor() as cur:
        for table in (*_REMAINS, *(["storagearea"] if with_storage else [])):
            if f"table {table}" in found and _rows(cur, f"SELECT 1 FROM {table} LIMIT 1"):
                raise InUseError(
                    f"the index in schema {schema} of database {conn.info.dbname} is not empty: {table} holds rows",
                    "convert into a new database: an index cannot take in another one",
                )


def _known_server(cur: Cursor) -> str:
    """The one Orthanc that was started on the index before, if there is one."""
    servers = _rows(cur, "SELECT DISTINCT server FROM serverproperties LIMIT 2")
    return str(servers[0][0]) if len(servers) == 1 else DEFAULT_SERVER


def _slowest_first(index: tuple[Any, ...]) -> tuple[bool, bool]:
    return (" USING gin " not in index[1], "maindicomtags" not in index[1] and "metadata" not in index[1])


def _add_key(table: str, name: str, kind: str, index: str) -> str:
    return f"ALTER TABLE {table} ADD CONSTRAINT {name} {'PRIMARY KEY' if kind == 'p' else 'UNIQUE'} USING INDEX {index}"


def _end_orphans(conn: Connection, plan: Plan) -> None:
    """End what sessions of a killed run still do: a server notices only at the end of a statement."""
    with conn, conn.cursor() as cur:
        cur.execute(_END_ORPHANS, ([*plan.tables, journal.TABLE],))
        cur.execute("SET LOCAL lock_timeout = '60s'")
        try:
            cur.execute(f"LOCK TABLE {', '.join(plan.tables)} IN ACCESS EXCLUSIVE MODE")
        except psycopg2.errors.LockNotAvailable:
            raise InUseError(
                "another session works with the tables of the unfinished index",
                "see who with: pgorthanc check-lock; end that session, then run the same command again",
            ) from None


def _empty(conn: Connection, plan: Plan, *, with_storage: bool) -> None:
    """Remove what a conversion has loaded and built."""
    with conn, conn.cursor() as cur:
        for table, name, _ in plan.references:
            cur.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
        for name, _ in plan.indexes:
            _drop_index(cur, name)
        cur.execute(f"TRUNCATE {', '.join(plan.tables)}")
        if with_storage:
            cur.execute("DELETE FROM storagearea")  # its rule deletes the large objects
        journal.begin_again(cur, asdict(plan))


def _drop_index(cur: Cursor, name: str) -> None:
    """Also if it belongs to a key by now."""
    owner = _rows(
        cur,
        "SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint WHERE conindid = to_regclass(%s)"
        " AND contype <> 'f'",
        (name,),
    )
    for table, constraint in owner:
        cur.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
    cur.execute(f"DROP INDEX IF EXISTS {name}")


def _count(cur: Cursor, plan: Plan, highest: dict[str, int]) -> None:
    """The counters: recounted, but for those that must not go back."""
    deltas = "table globalintegerschanges" in plan.before
    for key in range(6):
        cur.execute(mend.recount(key, deltas=deltas).sql)
    places = {7: highest["PatientRecyclingOrder"]} if plan.revision == 2 else {}
    for key, value in {6: highest["Changes"], **places}.items():
        cur.execute(
            """INSERT INTO globalintegers (key, value) VALUES (%s, %s)
               ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value""",
            (key, value),
        )


def _set_sequences(cur: Cursor, plan: Plan, highest: dict[str, int]) -> None:
    """Numbers of what was deleted must not come back."""
    for table, sequence in _SEQUENCES.items():
        if f"sequence {sequence}" in plan.before:
            _set_sequence(cur, sequence, highest.get(table, 0))
    places = highest["PatientRecyclingOrder"]
    if "sequence patientrecyclingordersequence" in plan.before:
        ((place,),) = _rows(cur, _HIGHEST_PLACE)
        _set_sequence(cur, "patientrecyclingordersequence", max(place or 0, places if places < 2**31 else 0))
    else:
        _set_sequence(cur, "patientrecyclingorder_seq_seq", places)


def _set_sequence(cur: Cursor, name: str, value: int) -> None:
    cur.execute("SELECT setval(%s::regclass, greatest(%s, 1), %s)", (name, value, value > 0))


def _rows(cur: Cursor, query: str, arguments: Iterable[object] = ()) -> list[tuple[Any, ...]]:
    cur.execute(query, tuple(arguments) or None)
    return cur.fetchall()
