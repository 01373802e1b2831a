"""The client encoding of Orthanc's own sessions.

Orthanc sends and expects UTF-8, but sets no client encoding. So the server interprets its bytes in the encoding that
ALTER ROLE, ALTER DATABASE or the configuration file set for the session, by default that of the database. In a
LATIN1, WIN1252 or SQL_ASCII database the bytes of UTF-8 are stored unchanged; with client_encoding LATIN1 in a UTF8
database each byte becomes a character. Orthanc reads back what it wrote, and would garble text that was stored
correctly. All of this was tried with Orthanc 1.10.1 (plugin 4.0) and 1.13.0 (5.0).

pgorthanc's own sessions are UTF8 (`db.Target.parameters`), which is right for names and messages. Only text of the
index is written as Orthanc writes it: as UTF-8 bytes, declared to be in the encoding `of_orthanc`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgorthanc_cli import db

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Orthanc creates the tables, so its role is their owner; if that role cannot log in we take our own. Precedence as in
# PostgreSQL: role in a database, role, database, all roles.
_MAY_SEE_FILES = """
    SELECT pg_catalog.has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')
       AND pg_catalog.has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')
"""
_IN_FILES = "SELECT setting FROM pg_catalog.pg_file_settings WHERE name = 'client_encoding' AND applied"
_CANONICAL = "SELECT pg_catalog.pg_encoding_to_char(pg_catalog.pg_char_to_encoding(%s))"


def of_orthanc(conn: Connection) -> str:
    """Return the client encoding of Orthanc's sessions in this database, by PostgreSQL's name.

    The server's configuration file counts only if our role may see it.
    """
    setting = db.value(conn, db.statement(__package__, "encoding.sql"))
    if setting is None and db.value(conn, _MAY_SEE_FILES):
        setting = db.value(conn, _IN_FILES)
    name = db.value(conn, _CANONICAL, setting) if setting else None
    return name or of_database(conn)


def of_database(conn: Connection) -> str:
    """Return the encoding of the database."""
    return conn.info.parameter_status("server_encoding") or "UTF8"
