"""What the rows say about stored files, and what Orthanc cannot cope with: one query each.

Facts: STORAGE.md A2 (forms of customdata), A7 (others abort Orthanc), D1 (NULL hashes).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.schema.catalog import Catalog
from pgorthanc_cli.schema.verify.model import Finding, Fix, Phase

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_SHOWN = 3
_MOST = 10_000

# Whoever owns the table is taken for Orthanc's role. A superuser has the rights of all roles.
_LARGE_OBJECTS = """
    SELECT pg_catalog.count(*) FILTER (WHERE o.oid IS NULL),
           pg_catalog.count(*) FILTER (WHERE NOT pg_catalog.pg_has_role(t.relowner, o.lomowner, 'USAGE')),
           pg_catalog.min(pg_catalog.pg_get_userbyid(o.lomowner)::text)
               FILTER (WHERE NOT pg_catalog.pg_has_role(t.relowner, o.lomowner, 'USAGE')),
           pg_catalog.min(pg_catalog.pg_get_userbyid(t.relowner)::text),
           pg_catalog.current_setting('lo_compat_privileges') = 'on'
        FROM (SELECT content FROM {table} {limit}) AS stored
        LEFT JOIN pg_catalog.pg_largeobject_metadata o ON o.oid = stored.content
        JOIN pg_catalog.pg_class t ON t.oid = pg_catalog.to_regclass(%s)
"""
# A lock is held on each object until the end of a transaction, and there is room for some thousands of them.
_CHANGE_OWNER = (
    "DO $$DECLARE object pg_catalog.oid; done pg_catalog.int8 := 0; BEGIN FOR object IN SELECT o.oid FROM {table} s "
    "JOIN pg_catalog.pg_largeobject_metadata o ON o.oid = s.content JOIN pg_catalog.pg_class t ON t.oid = "
    "{name}::pg_catalog.regclass WHERE o.lomowner <> t.relowner LOOP EXECUTE pg_catalog.format('ALTER LARGE OBJECT %s "
    "OWNER TO %I', object, {owner}); done := done + 1; IF done % 1000 = 0 THEN COMMIT; END IF; END LOOP; END$$;"
)
_RESTORE = (
    "put them back from a dump with large objects: pg_restore --list DUMP | grep -E ' (BLOB|LARGE OBJECT)' > LIST; "
    "pg_restore --single-transaction --use-list LIST --dbname DATABASE DUMP; or import the files again"
)

# As pg_catalog.encode(..., 'escape') shows them: a backslash is doubled, a byte that is not ASCII is \nnn.
_TEXT = r'"([^"\\]|\\\\(\\\\|["/bfnrtu])|\\[0-7]{3})*"'
_FORMS = rf'^\{{"o":(true,("p":{_TEXT},)?("s":{_TEXT},)?|false,"p":{_TEXT},)"v":1\}}$'
_ODD_CUSTOMDATA = """
    SELECT id, filetype, customdata FROM (SELECT id, filetype, customdata FROM {table} {limit}) AS stored
        WHERE customdata IS NOT NULL AND pg_catalog.length(customdata) > 0
            AND pg_catalog.encode(customdata, 'escape') !~ %s LIMIT %s
"""
# Other storage plugins that keep their data in the same column, by the keys of their JSON (STORAGE.md F2).
_DIALECTS = {
    "python-s3-zip": {"storage", "local", "s3zip", "series-id", "size"},
    "the sample plugin AdoptDicomInstance": {"IsAdopted", "AdoptedPath"},
}
_ASIDE = "pgorthanc_unreadable_customdata"
_SET_ASIDE = (
    "CREATE TABLE IF NOT EXISTS {aside} AS SELECT id, filetype, uuid, customdata FROM {table} WITH NO DATA; "
    "INSERT INTO {aside} SELECT id, filetype, uuid, customdata FROM {table} WHERE {which}; "
    "UPDATE {table} SET customdata = NULL WHERE {which};"
)

_NULL_HASHES = """
    SELECT pg_catalog.count(*) FROM (SELECT uncompressedhash, compressedhash FROM {table} {limit}) AS stored
        WHERE uncompressedhash IS NULL OR compressedhash IS NULL
"""
# An uncompressed file (compressiontype 1) has one hash under two names. '' says that none was computed.
_SET_HASHES = """UPDATE attachedfiles SET
        uncompressedhash = coalesce(uncompressedhash, CASE WHEN compressiontype = 1 THEN compressedhash END, ''),
        compressedhash = coalesce(compressedhash, CASE WHEN compressiontype = 1 THEN uncompressedhash END, '')
    WHERE uncompressedhash IS NULL OR compressedhash IS NULL;"""


def findings(conn: Connection, catalog: Catalog, schema: str, *, most: int | None = None) -> list[Finding]:
    """Return what Orthanc cannot cope with, in all rows or in the first `most` of each table."""
    return [
        *large_objects(conn, catalog, schema, most=most),
        *customdata(conn, catalog, schema, most=most),
        *hashes(conn, catalog, schema, most=most),
    ]


def large_objects(conn: Connection, catalog: Catalog, schema: str, *, most: int | None) -> list[Finding]:
    """Return large objects that are absent, or that Orthanc may not read and delete."""
    if "table storagearea" not in catalog:
        return []
    table = sql.Identifier(schema, "storagearea")
    name = table.as_string(conn)
    absent, foreign, other, owner, all_may = db.rows(conn, _limited(_LARGE_OBJECTS, table, most), name)[0]
    checks = []
    if absent:
        why = (
            "Orthanc answers 500 for these files, and cannot delete them; pg_dump -B leaves their content out"
        )
        checks.append(
            _wrong(
                "content of storagearea",
                f"{absent:,} large objects absent",
                "all there",
                why,
                advice=_RESTORE,
            )
        )
    if foreign and not all_may:
        why = f"role {owner} may neither read nor delete them, and Orthanc answers 500: another role restored them"
        statement = sql.SQL(_CHANGE_OWNER).format(
            table=table, name=sql.Literal(name), owner=sql.Literal(owner)
        )
        checks.append(
            _wrong(
                "owner of large objects",
                f"{other} for {foreign:,} of them",
                owner,
                why,
                advice=f"as a superuser, outside of a transaction: {statement.as_string(conn)}",
            )
        )
    return checks


def customdata(conn: Connection, catalog: Catalog, schema: str, *, most: int | None) -> list[Finding]:
    """Return customdata that the advanced-storage plugin cannot read: it aborts Orthanc."""
    if "column attachedfiles.customdata" not in catalog:
        return []
    table = sql.Identifier(schema, "attachedfiles")
    rows = db.rows(conn, _limited(_ODD_CUSTOMDATA, table, most), _FORMS, _MOST)
    # The pattern knows what the plugin writes; it reads other forms of JSON, too.
    odd = [row for row in rows if not readable(bytes(row[2]))]
    if not odd:
        return []
    count = f"{len(odd):,}{' or more' if len(rows) == _MOST else ''}"
    dialects = {dialect(bytes(row[2])) for row in odd}
    if dialects <= _DIALECTS.keys():
        plugins = " and ".join(sorted(map(str, dialects)))
        why = "only that plugin finds these files; advanced storage, or no plugin, aborts Orthanc or answers 500"
        return [Finding("customdata", f"that of {plugins} in {count} rows", None, False, why)]
    shown = ", ".join(f"resource {row[0]}, type {row[1]}" for row in odd[:_SHOWN])
    why = "the advanced-storage plugin aborts Orthanc at the first access to such a row"
    which = _other_forms() if len(rows) == len(odd) else _listed(odd)
    statement = sql.SQL(_SET_ASIDE).format(table=table, aside=sql.Identifier(schema, _ASIDE), which=which)
    return [
        _wrong(
            "customdata",
            f"unreadable in {count} rows ({shown}{', ...' if len(odd) > _SHOWN else ''})",
            "NULL, or the JSON of advanced storage",
            why,
            advice="stop Orthanc, and correct them by what the files are called; or keep them aside, so that Orthanc "
            f"runs and looks for these files in StorageDirectory: {statement.as_string(conn)}",
        )
    ]


def _other_forms() -> sql.Composed:
    text = "pg_catalog.length(customdata) > 0 AND pg_catalog.encode(customdata, 'escape') !~ {}"
    return sql.SQL(text).format(sql.Literal(_FORMS))


def _listed(rows: list[tuple[Any, ...]]) -> sql.Composed:
    pairs = (sql.SQL("({}, {})").format(sql.Literal(row[0]), sql.Literal(row[1])) for row in rows)
    return sql.SQL("(id, filetype) IN ({})").format(sql.SQL(", ").join(pairs))


def readable(customdata: bytes) -> bool:
    """Return whether the advanced-storage plugin 0.3 can read a value."""
    try:
        document = json.loads(customdata.decode("utf-8"))
    except ValueError:  # no UTF-8, no JSON
        return False
    if not isinstance(document, dict) or not _is(document.get("v"), int) or document["v"] != 1:
        return False
    owned = document.get("o", False)
    texts = [document[key] for key in ("p", "s") if key in document]
    if not _is(owned, bool) or not all(_is(text, str) for text in texts):
        return False
    return owned or bool(document.get("p"))


def dialect(customdata: bytes) -> str | None:
    """Return which other storage plugin wrote a value; None: unknown."""
    try:
        document = json.loads(customdata.decode("utf-8"))
    except ValueError:
        return None
    keys = set(document) if isinstance(document, dict) else set()
    return next((plugin for plugin, known in _DIALECTS.items() if keys and keys == known), None)


def hashes(conn: Connection, catalog: Catalog, schema: str, *, most: int | None) -> list[Finding]:
    """Return attachments whose MD5 is NULL instead of empty."""
    table = sql.Identifier(schema, "attachedfiles")
    count = db.value(conn, _limited(_NULL_HASHES, table, most))
    if not count:
        return []
    why = (
        "Orthanc answers 500 for every access to these files, and cannot delete them; with '' it can delete them, and "
        "read their tags, but not the file unless it is imported again"
    )
    repair = (Fix(Phase.DATA, _SET_HASHES),)
    return [Finding("hashes of attachedfiles", f"NULL in {count:,} rows", "MD5, or empty", True, why, repair)]


def _is(value: Any, kind: type) -> bool:
    return type(value) is kind


def _limited(query: str, table: sql.Composable, most: int | None) -> sql.Composed:
    return sql.SQL(query).format(table=table, limit=sql.SQL(f"LIMIT {most}" if most else ""))


def _wrong(name: str, found: str, wanted: str, why: str, *, advice: str | None = None) -> Finding:
    return Finding(name, found, wanted, matters=True, why=why, advice=advice)
