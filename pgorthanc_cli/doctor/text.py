"""Checks of text: the encoding of the database, and the collations that order its indexes."""

from __future__ import annotations

from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.doctor.model import Subject, Verdict, check

_ENCODING = """
    SELECT pg_catalog.pg_encoding_to_char(d.encoding), pg_catalog.pg_encoding_max_length(d.encoding) > 1
        FROM pg_catalog.pg_database d
        WHERE d.datname = pg_catalog.current_database()
"""
# A session of Orthanc starts with them unless its connection string sets another one.
_CLIENT_ENCODINGS = """
    SELECT coalesce(r.rolname, 'all roles'), pg_catalog.split_part(setting, '=', 2),
           CASE WHEN s.setrole = 0 AND s.setdatabase <> 0
                THEN 'DATABASE ' || pg_catalog.quote_ident(pg_catalog.current_database())
                ELSE 'ROLE ' || coalesce(pg_catalog.quote_ident(r.rolname), 'ALL')
                     || CASE WHEN s.setdatabase <> 0
                             THEN ' IN DATABASE ' || pg_catalog.quote_ident(pg_catalog.current_database())
                             ELSE '' END
           END
        FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole,
            pg_catalog.unnest(s.setconfig) AS setting
        WHERE setting LIKE 'client_encoding=%%' AND (s.setdatabase = 0 OR s.setdatabase = (
            SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) ORDER BY 1
"""
_UTF8_NAMES = ("UTF8", "UNICODE", "UTF-8")
_DATABASE_VERSION_SINCE = 150000

# A provider without versions (C, POSIX, C.UTF-8, builtin) has NULL on both sides.
_DATABASE_COLLATION = """
    SELECT d.datcollversion, pg_catalog.pg_database_collation_actual_version(d.oid)
        FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_COLLATION_NAME = (
    "SELECT datcollate FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
)
# Columns of an index may have collations of their own.
_INDEX_COLLATIONS = """
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
# With these the server must read an index in the order in which it is stored.
_READ_BY_INDEX = """
    SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
    SET LOCAL max_parallel_workers_per_gather = 0
"""
_NO_INCREMENTAL_SORT = "SET LOCAL enable_incremental_sort = off"
_INCREMENTAL_SORT_SINCE = 130000
# The comparison uses the collation as it is today: it differs from the stored order if that changed.
_HAS_MISPLACED_ROW = """
    SELECT EXISTS (SELECT FROM (
        SELECT {column} AS value, pg_catalog.lag({column}) OVER (ORDER BY {column}) AS previous
        FROM {table}) AS stored WHERE value < previous)
"""


_NEW_DATABASE = (
    "The encoding of a database cannot be changed; Orthanc reads back what it wrote. For a new "
    "archive, let pgorthanc init --create-database create a database in UTF8."
)


@check("encoding")
def encoding(subject: Subject) -> Verdict:
    """Check that the database stores text as Orthanc sends it: in UTF-8."""
    [(name, is_multibyte)] = db.rows(subject.conn, _ENCODING)
    if name != "UTF8":
        return Verdict("WARNING", _foreign_encoding(name, is_multibyte), _NEW_DATABASE)
    others = [
        (f"{value} for {role}", f"ALTER {where} RESET client_encoding;")
        for role, value, where in db.rows(subject.conn, _CLIENT_ENCODINGS)
        if value.upper() not in _UTF8_NAMES
    ]
    if others:
        return Verdict(
            "WARNING",
            "the database is UTF8, but client_encoding is set to "
            f"{', '.join(setting for setting, _ in others)}: the server garbles names with accents, "
            "as Orthanc sends UTF-8",
            "As a superuser; then restart Orthanc:",
            statements="\n".join(statement for _, statement in others),
        )
    return Verdict("OK", "UTF8, as Orthanc sends it")


def _foreign_encoding(name: str, is_multibyte: bool) -> str:
    """Return what another encoding means for Orthanc, which sends UTF-8 and sets no client_encoding."""
    if name == "SQL_ASCII":
        return (
            "SQL_ASCII: the server checks and converts nothing, and upper and lower case are known for ASCII "
            "only"
        )
    if is_multibyte:
        return (
            f"{name}: Orthanc sends UTF-8, and the server refuses values whose bytes are not valid in {name}"
        )
    return (
        f"{name}: Orthanc sends UTF-8, which the server takes for {name}: other clients see garbled names, "
        "and searches do not find accented letters in the other case"
    )


_REBUILD = "As the owner of the database, in this order:"


@check("collation")
def collation(subject: Subject) -> Verdict:
    """Check that text indexes have the order that the C library or ICU gives them today."""
    collate = db.value(subject.conn, _COLLATION_NAME)
    suffix = ""
    if subject.deep:
        misplaced = _misplaced_indexes(subject)
        if misplaced:
            return Verdict(
                "CRITICAL",
                f"out of order: {', '.join(misplaced)}: look-ups miss rows, and unique indexes let "
                "duplicates in",
                _REBUILD,
                statements=_rebuild(subject),
            )
        suffix = "; all indexes of text are in order"
    if subject.conn.server_version < _DATABASE_VERSION_SINCE:
        return _unversioned_collation(collate, suffix)
    recorded, changed = _collation_versions(subject)
    if not changed:
        version = f"version {recorded}" if recorded else "without versions"
        return Verdict("OK", f"{collate}, {version}{suffix}")
    messages = "; ".join(message for message, _ in changed)
    return Verdict(
        "WARNING",
        f"{messages}: the order of text has changed under the indexes, so look-ups may miss rows, and "
        f"unique indexes may let duplicates in{suffix}",
        _REBUILD,
        statements=_rebuild(subject, *(statement for _, statement in changed)),
    )


def _unversioned_collation(collate: str, suffix: str) -> Verdict:
    """Judge a database that records no version; a `suffix` says that its indexes were read."""
    if suffix:
        return Verdict("OK", f"{collate}{suffix}")
    if collate in ("C", "POSIX"):
        return Verdict("OK", f"{collate}, whose order never changes")
    return Verdict(
        "UNKNOWN",
        f"not checked: {collate}; servers before PostgreSQL 15 record no version of it",
        "Compare the indexes with today's order:",
        command="doctor --deep collation",
    )


def _collation_versions(subject: Subject) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the version recorded for the database, and what has changed since.

    A change is a message, and the statement that records the version of today.
    """
    conn = subject.conn
    database = db.quote_ident(conn.info.dbname)
    [(recorded, actual)] = db.rows(conn, _DATABASE_COLLATION)
    refresh = f"ALTER DATABASE {database} REFRESH COLLATION VERSION;"
    collations = [("the database", refresh, recorded, actual)]
    for name, before, now in db.rows(conn, _INDEX_COLLATIONS, subject.target.schema):
        refresh = f"ALTER COLLATION {name} REFRESH VERSION;"
        collations.append((f"collation {name}", refresh, before, now))
    changed = [
        (f"{name}: recorded version {before}, now {now or 'none'}", refresh)
        for name, refresh, before, now in collations
        if before != now
    ]
    return recorded, changed


def _rebuild(subject: Subject, *refresh: str) -> str:
    """Return the statements in the order that helps.

    REFRESH silences the server's warning whatever the indexes hold, so it comes last.
    """
    database = db.quote_ident(subject.conn.info.dbname)
    return "\n".join([f"REINDEX DATABASE CONCURRENTLY {database};", *refresh])


def _misplaced_indexes(subject: Subject) -> list[str]:
    """Return the columns whose index has neighbours in another order than that of today."""
    conn, schema = subject.conn, subject.target.schema
    misplaced = []
    with conn.cursor() as cur:
        cur.execute("BEGIN")
        try:
            cur.execute(_READ_BY_INDEX)
            if conn.server_version >= _INCREMENTAL_SORT_SINCE:
                cur.execute(_NO_INCREMENTAL_SORT)
            for table, column in db.rows(conn, _ORDERED_COLUMNS, schema):
                query = sql.SQL(_HAS_MISPLACED_ROW).format(
                    column=sql.Identifier(column), table=sql.Identifier(schema, table)
                )
                if db.value(conn, query):
                    misplaced.append(f"the index on {table}.{column}")
        finally:
            cur.execute("ROLLBACK")
    return misplaced
