"""Text in the database: its encoding, and the versions of the collations that order its indexes."""

from __future__ import annotations

from psycopg2 import sql

from pgorthanc_cli.doctor.model import Subject, Verdict

_ENCODING = """
    SELECT pg_catalog.pg_encoding_to_char(d.encoding), pg_catalog.pg_encoding_max_length(d.encoding) > 1
        FROM pg_catalog.pg_database d
        WHERE d.datname = pg_catalog.current_database()
"""
# A session of Orthanc gets them at its start, unless its connection string says otherwise.
_CLIENT_ENCODINGS = """
    SELECT coalesce(r.rolname, 'all roles'), pg_catalog.split_part(setting, '=', 2)
        FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole,
            pg_catalog.unnest(s.setconfig) AS setting
        WHERE setting LIKE 'client_encoding=%%' AND (s.setdatabase = 0 OR s.setdatabase = (
            SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) ORDER BY 1
"""
_UTF8 = ("UTF8", "UNICODE", "UTF-8")
_VERSIONED_SINCE = 150000

# A provider without versions (C, POSIX, C.UTF-8, builtin) has NULL on both sides.
_DATABASE = """
    SELECT d.datcollate, d.datcollversion, pg_catalog.pg_database_collation_actual_version(d.oid)
        FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_COLLATE = "SELECT datcollate FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
# Collations that columns of indexes name themselves, instead of the database's.
_OF_INDEXES = """
    SELECT DISTINCT pg_catalog.format('%%s.%%I', o.collnamespace::pg_catalog.regnamespace::text, o.collname),
           o.collversion, pg_catalog.pg_collation_actual_version(o.oid)
        FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN pg_catalog.unnest(i.indcollation) AS used(number)
        JOIN pg_catalog.pg_collation o ON o.oid = used.number
        WHERE n.nspname = %s AND o.collprovider <> 'd' AND o.collversion IS NOT NULL ORDER BY 1
"""
_ORDERED_COLUMNS = """
    SELECT DISTINCT t.relname::text, a.attname::text
        FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_am m ON m.oid = c.relam
        JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
        WHERE n.nspname = %s AND m.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL AND i.indcollation[0] <> 0
        ORDER BY 1, 2
"""
# An index is walked in its own order, which is compared with the order of today.
_WALK = """
    SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off; SET LOCAL enable_seqscan = off;
    SET LOCAL enable_bitmapscan = off; SET LOCAL max_parallel_workers_per_gather = 0
"""
_WALK_BEFORE = _WALK.replace("SET LOCAL enable_incremental_sort = off;", "")
_INCREMENTAL_SINCE = 130000
_MISPLACED = """
    SELECT EXISTS (SELECT FROM (SELECT {column} AS here, pg_catalog.lag({column}) OVER (ORDER BY {column}) AS before
        FROM {table}) AS walked WHERE here < before)
"""


def encoding(subject: Subject) -> Verdict:
    """Check that the database stores text as Orthanc sends it: in UTF-8."""
    name, several_bytes = subject.row(_ENCODING)
    others = [
        f"{value} for {role}"
        for role, value in subject.rows(_CLIENT_ENCODINGS)
        if value.upper() not in (*_UTF8, name)
    ]
    if name != "UTF8":
        return Verdict("WARNING", _foreign_encoding(name, several_bytes), _NEW_DATABASE)
    if others:
        return Verdict(
            "WARNING",
            f"the database is UTF8, but client_encoding is set to {', '.join(others)}: Orthanc sends UTF-8, and the "
            "server converts it as if it were that, so names with accents are garbled",
            "as an administrator: ALTER DATABASE name RESET client_encoding; ALTER ROLE name RESET client_encoding;",
        )
    return Verdict("OK", "UTF8, as Orthanc sends it")


_NEW_DATABASE = (
    "what is stored cannot be converted in place; Orthanc reads it back as it wrote it. For a new archive: pgorthanc "
    "init --create-database, which creates the database in UTF8"
)


def _foreign_encoding(name: str, several_bytes: bool) -> str:
    """Say what an encoding other than UTF-8 means for Orthanc, which sends UTF-8 and sets no client_encoding."""
    if name == "SQL_ASCII":
        return "SQL_ASCII: the server checks and converts nothing, and upper and lower case are known for ASCII only"
    if several_bytes:
        return (
            f"{name}: Orthanc sends UTF-8, and the server refuses values whose bytes are not valid in {name}"
        )
    return (
        f"{name}: Orthanc sends UTF-8, which the server takes for {name}: other clients see garbled names, and "
        "searches do not find accented letters in the other case"
    )


def collation(subject: Subject) -> Verdict:
    """Check that the indexes of text are in the order that the C library or ICU has today."""
    (collate,) = subject.row(_COLLATE)
    misplaced = _misplaced(subject) if subject.deep else []
    if misplaced:
        return Verdict(
            "CRITICAL",
            f"out of order: {', '.join(misplaced)}: look-ups miss rows, and unique indexes let duplicates in",
            _rebuild(subject),
        )
    read = "; all indexes of text are in order" if subject.deep else ""
    if subject.conn.server_version < _VERSIONED_SINCE:
        if collate in ("C", "POSIX") or subject.deep:
            return Verdict("OK", f"{collate}{'' if read else ', whose order never changes'}{read}")
        return Verdict(
            "UNKNOWN",
            f"not checked: {collate}; this server is older than PostgreSQL 15, and records no version of it",
            "to compare the indexes with today's order: pgorthanc doctor --deep collation",
        )
    database = sql.Identifier(subject.conn.info.dbname).as_string(subject.conn)
    refresh = f"ALTER DATABASE {database} REFRESH COLLATION VERSION;"
    recorded = [("the database", refresh, *subject.row(_DATABASE)[1:])]
    for name, was, now in subject.rows(_OF_INDEXES, subject.target.schema):
        recorded.append((f"collation {name}", f"ALTER COLLATION {name} REFRESH VERSION;", was, now))
    changed = [entry for entry in recorded if entry[2] != entry[3]]
    if not changed:
        version = recorded[0][3]
        return Verdict("OK", f"{collate}, {f'version {version}' if version else 'without versions'}{read}")
    shown = "; ".join(f"{what}: recorded version {was}, now {now or 'none'}" for what, _, was, now in changed)
    return Verdict(
        "WARNING",
        f"{shown}: the order of text has changed under the indexes, so look-ups may miss rows, and unique indexes may "
        f"let duplicates in{read}",
        _rebuild(subject, *(statement for _, statement, _, _ in changed)),
    )


def _rebuild(subject: Subject, *refresh: str) -> str:
    """Return the statements in the only order that helps: REFRESH silences the warning, whatever the indexes hold."""
    database = sql.Identifier(subject.conn.info.dbname).as_string(subject.conn)
    last = f" and then: {' '.join(refresh)}" if refresh else ""
    return f"as the owner of the database, first: REINDEX DATABASE CONCURRENTLY {database};{last}"


def _misplaced(subject: Subject) -> list[str]:
    """Return the columns whose index has neighbours in another order than that of today."""
    misplaced = []
    with subject.conn.cursor() as cur:
        cur.execute("BEGIN")
        try:
            cur.execute(_WALK if subject.conn.server_version >= _INCREMENTAL_SINCE else _WALK_BEFORE)
            cur.execute(_ORDERED_COLUMNS, (subject.target.schema,))
            for table, column in cur.fetchall():
                place = sql.Identifier(subject.target.schema, table)
                cur.execute(sql.SQL(_MISPLACED).format(column=sql.Identifier(column), table=place))
                if cur.fetchone() == (True,):
                    misplaced.append(f"the index on {table}.{column}")
        finally:
            cur.execute("ROLLBACK")
    return misplaced
