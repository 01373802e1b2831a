"""Databases of many encodings, and settings of others that a session meets there."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import make_dsn, parse_dsn

from pgorthanc_cli import db
from tests.support.schemas import libc

FRENCH, JAPANESE, MIXED = "Hôpital", "山田", "Ð\u0081é€"


class Place(NamedTuple):
    """A database: its encoding, and the client encoding that the role or the database gives each session."""

    encoding: str = "UTF8"
    of_role: str | None = None
    of_database: str | None = None

    def __str__(self) -> str:
        return "-".join(
            filter(None, (self.encoding, self.of_role and f"role {self.of_role}", self.of_database))
        )


# Place -> the bytes that Orthanc stores there for FRENCH, JAPANESE and MIXED; None: it refuses the file. Seen with
# Orthanc 1.10.1 (plugin 4.0) and 1.13.0 (plugin 5.0); the interop test compares.
RAW = tuple(text.encode() for text in (FRENCH, JAPANESE, MIXED))
TWICE = tuple(raw.decode("latin-1").encode() for raw in RAW)
STORED: dict[Place, tuple[bytes | None, ...]] = {
    Place(): RAW,
    Place(of_database="LATIN1"): TWICE,
    Place(of_role="LATIN1"): TWICE,
    Place(of_role="UTF8", of_database="LATIN1"): RAW,
    Place("LATIN1"): RAW,
    Place("WIN1252"): RAW,
    Place("EUC_JP"): (RAW[0], None, None),
    Place("SQL_ASCII"): RAW,
    Place("SQL_ASCII", of_database="LATIN1"): RAW,
    Place("LATIN1", of_database="UTF8"): (FRENCH.encode("latin-1"), None, None),
}


def create(server: str, name: str, place: Place, owner: str | None = None) -> db.Target:
    """A new database with these settings, for its owner: the role of the DSN if none is named."""
    identifier = sql.Identifier(name)
    role = sql.Identifier(owner) if owner else sql.SQL("CURRENT_USER")
    kind = sql.SQL(" ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").format(
        sql.Literal(place.encoding)
    )
    belongs = sql.SQL(" OWNER {}").format(role) if owner else sql.SQL("")
    creation = sql.SQL("CREATE DATABASE {}").format(identifier) + belongs + kind
    statements: list[sql.Composable] = []
    if place.of_database:
        statements.append(
            sql.SQL("ALTER DATABASE {} SET client_encoding = {}").format(
                identifier, sql.Literal(place.of_database)
            )
        )
    if place.of_role:
        statements.append(
            sql.SQL("ALTER ROLE {} IN DATABASE {} SET client_encoding = {}").format(
                role, identifier, sql.Literal(place.of_role)
            )
        )
    with closing(psycopg2.connect(server)) as conn:
        conn.autocommit = True
        with conn.cursor() as cur:
            for statement in (creation + sql.SQL(libc(conn)), *statements):
                cur.execute(statement)
    return db.Target(make_dsn(server, dbname=name))


def stored(target: db.Target, table: str = "maindicomtags", tag: int = 0x80) -> set[bytes]:
    """The bytes of a tag of group 8, as they lie in the database."""
    with closing(psycopg2.connect(target.dsn, client_encoding="UTF8")) as conn, conn.cursor() as cur:
        cur.execute(
            sql.SQL(
                "SELECT DISTINCT convert_to(value, getdatabaseencoding()) FROM {} WHERE taggroup = 8"
                " AND tagelement = %s"
            ).format(sql.Identifier(table)),
            (tag,),
        )
        return {bytes(value) for (value,) in cur.fetchall()}


def read_by_orthanc(target: db.Target) -> set[str]:
    """What a session gets that sets no client encoding and takes the bytes for UTF-8, as Orthanc does."""
    dsn = make_dsn(**{**parse_dsn(target.dsn), "client_encoding": ""})
    with closing(psycopg2.connect(dsn)) as conn:
        session = str(conn.info.parameter_status("client_encoding"))
        with conn.cursor() as cur:
            cur.execute("SET client_encoding = 'UTF8'")
            cur.execute(
                "SELECT DISTINCT convert_to(value, %s) FROM maindicomtags WHERE taggroup = 8 AND tagelement = 128",
                (session,),
            )
            return {bytes(value).decode() for (value,) in cur.fetchall()}
