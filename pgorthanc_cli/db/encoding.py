"""The encoding under which Orthanc exchanges text with its database.

Orthanc sends and expects UTF-8 and sets no client encoding. So the server takes its bytes for whatever encoding
ALTER ROLE, ALTER DATABASE or the configuration file give that session, and otherwise for the encoding of the
database. In a database that is LATIN1, WIN1252 or SQL_ASCII the bytes of UTF-8 are stored as they are; under a
setting of LATIN1 in a UTF8 database each byte becomes a character. Orthanc reads back what it wrote, and would
garble text that was stored correctly. All of this was tried with Orthanc 1.10.1 (plugin 4.0) and 1.13.0 (5.0).

pgorthanc's own sessions are UTF8 (`db.Target.parameters`), which is right for names and messages. Only text of the
index is written as Orthanc writes it: as UTF-8, declared to be `of_orthanc`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgorthanc_cli import db

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Orthanc creates the tables itself, so its role is their owner, unless that one cannot log in; then it is ours.
# The order of settings is PostgreSQL's: of a role in a database, of a role, of a database, of all roles.
_SETTING = """
    WITH orthanc AS (
        SELECT coalesce((SELECT r.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
                         WHERE c.oid = pg_catalog.to_regclass(pg_catalog.quote_ident(index_schema()) || '.resources')
                             AND r.rolcanlogin),
                        (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user)) AS role,
               (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) AS base
    )
    SELECT pg_catalog.substr(setting, 17)
    FROM orthanc, pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) AS setting
    WHERE s.setrole IN (0, orthanc.role) AND s.setdatabase IN (0, orthanc.base)
      AND setting LIKE 'client_encoding=%%'
    ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1
"""
_MAY_SEE_FILES = """
    SELECT pg_catalog.has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')
       AND pg_catalog.has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')
"""
_IN_FILES = "SELECT setting FROM pg_catalog.pg_file_settings WHERE name = 'client_encoding' AND applied"
_CANONICAL = "SELECT pg_catalog.pg_encoding_to_char(pg_catalog.pg_char_to_encoding(%s))"


def of_orthanc(conn: Connection) -> str:
    """Return the client encoding of Orthanc's sessions in this database, by PostgreSQL's name for it.

    A setting in the server's configuration file counts only where the role may see it.
    """
    setting = db.value(conn, _SETTING)
    if setting is None and db.value(conn, _MAY_SEE_FILES):
        setting = db.value(conn, _IN_FILES)
    return db.value(conn, _CANONICAL, setting) or of_database(conn) if setting else of_database(conn)


def of_database(conn: Connection) -> str:
    """Return the encoding of the database."""
    return conn.info.parameter_status("server_encoding") or "UTF8"
