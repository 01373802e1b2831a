"""Prepare an empty index in PostgreSQL for loading, and complete it afterwards.

While it is loaded it has no keys, no indexes and no triggers, which is several times
faster, and `globalproperties` has another name, so that no program accepts it as an
index. The journal records what was dropped; the last transaction restores the properties
and compares the whole catalog with the one before, and only then is it an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg2.errors

from pgorthanc_cli import db, locks
from pgorthanc_cli.errors import InUseError, PgOrthancError, RevisionError
from pgorthanc_cli.migrate import journal
from pgorthanc_cli.migrate.journal import LoadPlan
from pgorthanc_cli.migrate.model import DEFAULT_SERVER, ConversionSettings
from pgorthanc_cli.schema import catalog, features, initialize
from pgorthanc_cli.schema.verify import repairs

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

_HIDDEN_PROPERTIES = "pgorthanc_globalproperties"
# Loaded without keys and indexes; the others are small.
_LARGE = (
    "resources", "maindicomtags", "dicomidentifiers", "metadata", "attachedfiles", "changes", "labels",
)  # fmt: skip
_LOADED = (*_LARGE, "exportedresources", "patientrecyclingorder", "keyvaluestores", "queues")
_MUST_BE_EMPTY = (*_LOADED, "globalintegerschanges", "invalidchildcounts", "auditlogs")
# Counters and properties of the empty index are not compared: both are overwritten.
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
_KEYS_OF_INDEX = """
    SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint
        WHERE conindid = to_regclass(%s) AND contype <> 'f'"""
_SET_SERVER_PROPERTY = """INSERT INTO serverproperties (server, property, value) VALUES (%s, %s, %s)
    ON CONFLICT (server, property) DO UPDATE SET value = EXCLUDED.value"""
_SET_GLOBAL_PROPERTY = """INSERT INTO globalproperties (property, value) VALUES (%s, %s)
    ON CONFLICT (property) DO UPDATE SET value = EXCLUDED.value"""
_HIGHEST_RECYCLING_NUMBER = """SELECT max(value::bigint) FROM metadata WHERE type = 19
    AND id = ANY (ARRAY(SELECT internalid FROM resources WHERE resourcetype = 0))"""
_END_ORPHANS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()
            AND pid IN (SELECT pid FROM pg_locks WHERE relation = ANY (%s::regclass[]))"""
_SEQUENCES = {
    "resources": "resources_internalid_seq",
    "changes": "changes_seq_seq",
    "exportedresources": "exportedresources_seq_seq",
    "queues": "queues_id_seq",
}


def is_unfinished(objects: catalog.Catalog) -> bool:
    """Return whether a schema contains an unfinished conversion."""
    return f"table {journal.TABLE}" in objects


def loadable_tables(objects: catalog.Catalog) -> list[str]:
    """Return the tables of an index that can be loaded."""
    return [table for table in _LOADED if f"table {table}" in objects]


def ensure_empty_index(conn: Connection, schema: str, settings: ConversionSettings) -> None:
    """Make sure that there is an empty index; create one in an empty schema.

    Raises:
        RevisionError: There is an index of another revision, a damaged one, or one with
            rows.
        PgOrthancError: The encoding of the database cannot store every text.
    """
    _require_utf8(conn)
    objects = catalog.snapshot(conn, schema)
    with_storage = "table storagearea" in objects
    layout = catalog.layout(objects, schema)
    if layout is None or (settings.large_objects and not with_storage):
        number = settings.revision or (layout.revision if layout else None)
        initialize.init(
            conn,
            schema=schema,
            require_idle=locks.require_idle,
            revision=number,
            with_storage=settings.large_objects,
        )
        return
    if settings.revision not in (None, layout.revision):
        raise RevisionError(
            f"schema {schema} holds an index at revision {layout.name}, wanted revision {settings.revision}",
            "use another database, leave out --revision, or downgrade or upgrade the index first",
        )
    expected = catalog.expected(layout.revision or 1, with_storage=with_storage)
    # Version 4.0 of the plugin creates no labels.
    without_labels = layout.made_by == "4.0"
    problems = [
        str(difference)
        for difference in catalog.differences(objects, expected)
        if difference.matters and not (without_labels and "labels" in difference.name)
    ]
    if problems or not layout.revision:
        raise RevisionError(
            f"the index in schema {schema} is not what revision {layout.name} must be: "
            f"{'; '.join(problems[:5]) or 'it is older than revision 1'}",
            "use a new database, or see how to repair it: pgorthanc verify schema --print-sql",
        )
    _require_empty(conn, schema, objects, with_storage=settings.large_objects)


def prepare_for_loading(
    conn: Connection,
    schema: str,
    fingerprint: str,
    source: str,
    number: int,
    settings: ConversionSettings,
) -> LoadPlan:
    """Drop keys and indexes of an empty index, and disable triggers and properties, in one transaction."""
    with conn, conn.cursor() as cur:
        objects = catalog.snapshot(conn, schema)
        _require_empty(conn, schema, objects, with_storage=settings.large_objects)
        tables = loadable_tables(objects)
        large = [table for table in _LARGE if table in tables]
        cur.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
        constraints = db.rows(conn, _KEYS, large)
        keys = [constraint for constraint in constraints if constraint[2] != "f"]
        foreign_keys = [constraint for constraint in constraints if constraint[2] == "f"]
        indexes = db.rows(conn, _INDEXES, large) + [(key[4], key[5]) for key in keys]
        plan = LoadPlan(
            fingerprint=fingerprint,
            source=source,
            revision=number,
            server_identifier=settings.server_identifier or _existing_server(conn),
            tables=tables,
            before=_comparable(objects),
            indexes=[list(index) for index in sorted(indexes, key=_slowest_first)],
            keys=[
                [table, name, _add_key(table, name, kind, index)] for table, name, kind, _, index, _ in keys
            ],
            references=[
                [table, name, f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition} NOT VALID"]
                for table, name, _, definition, *_ in foreign_keys
            ],
            triggers=[list(trigger) for trigger in db.rows(conn, _TRIGGERS, tables)],
        )
        journal.create(cur, plan)
        for table, name in plan.triggers:
            cur.execute(f"ALTER TABLE {table} DISABLE TRIGGER {name}")
        # Foreign keys first: they depend on the other constraints.
        for table, name, *_ in constraints:
            cur.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        for name, _ in plan.indexes:
            # Those of keys have been dropped with their constraints.
            cur.execute(f"DROP INDEX IF EXISTS {name}")
        cur.execute(f"ALTER TABLE globalproperties RENAME TO {_HIDDEN_PROPERTIES}")
    return plan


def resume(conn: Connection, fingerprint: str, source: str, settings: ConversionSettings) -> LoadPlan:
    """Return the plan of an unfinished conversion; with `restart`, remove what it has loaded.

    Raises:
        PgOrthancError: It converts another file, or this one before it was changed, or
            has other settings.
    """
    plan = journal.plan(conn)
    conn.commit()
    _end_orphaned_workers(conn, plan)
    number = settings.revision or plan.revision
    server = settings.server_identifier or plan.server_identifier
    if (number, server) != (plan.revision, plan.server_identifier):
        raise PgOrthancError(
            f"the schema holds an unfinished conversion to revision {plan.revision} with the server identifier "
            f"{plan.server_identifier}, wanted {number} and {server}",
            "run it with these; or drop the schema and start again",
        )
    if settings.restart:
        plan = replace(plan, fingerprint=fingerprint, source=source)
        _empty(conn, plan, with_storage=settings.large_objects)
    elif plan.fingerprint != fingerprint:
        raise PgOrthancError(
            f"the schema holds an unfinished conversion of {plan.source}, which was another index or has changed since",
            "add --start-over to start over with this one",
        )
    return plan


def missing_indexes(plan: LoadPlan, objects: catalog.Catalog) -> list[str]:
    """Return the statements for the indexes that do not exist yet, not even as part of a key."""
    keys = {name.partition(".")[2] for name in objects if name.startswith("constraint ")}
    return [
        statement for name, statement in plan.indexes if f"index {name}" not in objects and name not in keys
    ]


def add_keys(conn: Connection, plan: LoadPlan, objects: catalog.Catalog) -> None:
    """Create the missing keys from unique indexes, and the missing foreign keys, still to be validated."""
    with conn, conn.cursor() as cur:
        for table, name, statement in (*plan.keys, *plan.references):
            if f"constraint {table}.{name}" not in objects:
                cur.execute(statement)


def set_counters(conn: Connection, plan: LoadPlan, highest_ids: dict[str, int]) -> None:
    """Set counters and sequences; `highest_ids` are by table, see `Reader.highest_ids`."""
    with conn, conn.cursor() as cur:
        deltas = "table globalintegerschanges" in plan.before
        for key in range(6):
            cur.execute(repairs.recount(key, deltas=deltas).sql)
        # Not counts, but the last number that was given: it must not go back.
        _set_counter(cur, 6, highest_ids["changes"])
        if features.of_revision(plan.revision).recycling_counter:
            _set_counter(cur, 7, highest_ids["patientrecyclingorder"])
        _set_sequences(conn, plan, highest_ids)


def finalize(
    conn: Connection,
    schema: str,
    plan: LoadPlan,
    properties: tuple[dict[int, str], dict[int, str]],
) -> None:
    """Enable triggers and properties, compare the whole catalog, and commit: then it is an index.

    Args:
        conn: A connection.
        schema: Namespace of the index.
        plan: How it was prepared.
        properties: Those of the database, and those of the server.

    Raises:
        RevisionError: The schema differs from the one before; nothing is committed.
    """
    shared, own = properties
    with conn, conn.cursor() as cur:
        for table, name in plan.triggers:
            cur.execute(f"ALTER TABLE {table} ENABLE TRIGGER {name}")
        cur.execute(f"ALTER TABLE {_HIDDEN_PROPERTIES} RENAME TO globalproperties")
        journal.drop(cur)
        for number, value in shared.items():
            cur.execute(_SET_GLOBAL_PROPERTY, (number, value))
        for number, value in own.items():
            cur.execute(_SET_SERVER_PROPERTY, (plan.server_identifier, number, value))
        objects = _comparable(catalog.snapshot(conn, schema))
        require_sound([str(d) for d in catalog.differences(objects, plan.before)])


def require_sound(problems: Sequence[str]) -> None:
    """Raise RevisionError if there are problems: the target does not become an index."""
    if problems:
        raise RevisionError(
            f"the new index is not as it must be, and was not made: {'; '.join(problems[:5])}",
            "run it again with --start-over; if that does not help, report it with the output of --html",
        )


def _require_utf8(conn: Connection) -> None:
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise PgOrthancError(
            f"database {conn.info.dbname} has the encoding {encoding}, wanted UTF8",
            "name a database that can hold every name with --dbname; an administrator can create one, such as: "
            f"CREATE DATABASE orthanc_utf8 OWNER {db.quote_ident(conn.info.user)} ENCODING 'UTF8' TEMPLATE template0;",
        )


def _require_empty(conn: Connection, schema: str, objects: catalog.Catalog, *, with_storage: bool) -> None:
    for table in (*_MUST_BE_EMPTY, *(["storagearea"] if with_storage else [])):
        if f"table {table}" in objects and db.row(conn, f"SELECT 1 FROM {table} LIMIT 1"):
            raise InUseError(
                f"the index in schema {schema} of database {conn.info.dbname} is not empty: {table} holds rows",
                "convert into a new database: an index cannot take in another one",
            )


def _existing_server(conn: Connection) -> str:
    """Return the identifier of the one Orthanc that was ever started on the index, else the default."""
    servers = db.rows(conn, "SELECT DISTINCT server FROM serverproperties LIMIT 2")
    return str(servers[0][0]) if len(servers) == 1 else DEFAULT_SERVER


def _comparable(objects: catalog.Catalog) -> catalog.Catalog:
    return {name: text for name, text in objects.items() if not name.startswith(_RECOMPUTED)}


def _slowest_first(index: tuple[Any, ...]) -> tuple[bool, bool]:
    # The trigram index takes longest, then those of the two largest tables: begun first, none
    # of them is the last one that a single worker is still busy with.
    return (" USING gin " not in index[1], "maindicomtags" not in index[1] and "metadata" not in index[1])


def _add_key(table: str, name: str, kind: str, index: str) -> str:
    key = "PRIMARY KEY" if kind == "p" else "UNIQUE"
    return f"ALTER TABLE {table} ADD CONSTRAINT {name} {key} USING INDEX {index}"


def _end_orphaned_workers(conn: Connection, plan: LoadPlan) -> None:
    """End the sessions of a killed run: a server notices a lost client only at the end of a statement."""
    with conn, conn.cursor() as cur:
        cur.execute(_END_ORPHANS, ([*plan.tables, journal.TABLE],))
        # Sessions that were just ended roll back first, which may take a while.
        cur.execute("SET LOCAL lock_timeout = '60s'")
        try:
            cur.execute(f"LOCK TABLE {', '.join(plan.tables)} IN ACCESS EXCLUSIVE MODE")
        except psycopg2.errors.LockNotAvailable:
            raise InUseError(
                "another session works with the tables of the unfinished index",
                "end the session that blocks it, then run the same command again; to find it: pgorthanc check-lock",
            ) from None


def _empty(conn: Connection, plan: LoadPlan, *, with_storage: bool) -> None:
    """Remove what a conversion has loaded and created."""
    with conn, conn.cursor() as cur:
        for table, name, _ in plan.references:
            cur.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
        for name, _ in plan.indexes:
            # An index that belongs to a key cannot be dropped by itself.
            for table, constraint in db.rows(conn, _KEYS_OF_INDEX, name):
                cur.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
            cur.execute(f"DROP INDEX IF EXISTS {name}")
        cur.execute(f"TRUNCATE {', '.join(plan.tables)}")
        if with_storage:
            # Its rule deletes the large objects.
            cur.execute("DELETE FROM storagearea")
        journal.clear(cur, plan)


def _set_counter(cur: Cursor, key: int, value: int) -> None:
    cur.execute(
        """INSERT INTO globalintegers (key, value) VALUES (%s, %s)
           ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value""",
        (key, value),
    )


def _set_sequences(conn: Connection, plan: LoadPlan, highest_ids: dict[str, int]) -> None:
    """Set the sequences so that ids of deleted rows are not given again."""
    values = {sequence: highest_ids[table] for table, sequence in _SEQUENCES.items()}
    number = highest_ids["patientrecyclingorder"]
    values["patientrecyclingorder_seq_seq"] = number
    if "sequence patientrecyclingordersequence" in plan.before:
        # The conversion renumbers the order if its numbers do not fit into 32 bits.
        stored = db.value(conn, _HIGHEST_RECYCLING_NUMBER) or 0
        values["patientrecyclingordersequence"] = max(stored, number if number < 2**31 else 0)
    for sequence, value in values.items():
        if f"sequence {sequence}" in plan.before:
            # If nothing was ever given, the next number is 1: `is_called` is false.
            db.row(conn, "SELECT setval(%s::regclass, greatest(%s, 1), %s)", sequence, value, value > 0)
