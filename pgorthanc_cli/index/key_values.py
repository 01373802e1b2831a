"""Rows of the key-value stores in which the advanced-storage plugin keeps paths (STORAGE.md F1.3).

A key is a path in raw UTF-8, written as Orthanc writes text in this database (see
`db.encoding`): it is sent as bytes, and becomes text on the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor

    from pgorthanc_cli.index.lookup import Capabilities

ADOPTED, INDEXED = "advst-adopted-path", "advst-indexer-path"
_INSERT = """
    INSERT INTO index.keyvaluestores (storeid, key, value)
    SELECT store, pg_catalog.convert_from(path, %s), value
    FROM ROWS FROM (
        pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::bytea[]), pg_catalog.unnest(%s::bytea[])
    ) AS row (store, path, value)
    ON CONFLICT (storeid, key) DO """


class KeyValue(NamedTuple):
    """A row: the store, the path, the JSON text."""

    store: str
    path: str
    value: str


def adopted(path: str, public_id: str) -> KeyValue:
    """Return the row of an adopted file: DICOM (c 1), at the level of the instance (t 3)."""
    return KeyValue(ADOPTED, path, _json({"c": 1, "r": public_id, "t": 3, "v": 1}))


def indexed(path: str, size: int, mtime_s: int, *, is_dicom: bool) -> KeyValue:
    """Return the state of a file in the folder indexer.

    Not as `is_dicom` counts also what the index had already: the indexer does not try such a
    file again before it changes.
    """
    return KeyValue(INDEXED, path, _json({"d": is_dicom, "r": False, "s": size, "t": mtime_s, "v": 1}))


def put(cur: Cursor, capabilities: Capabilities, rows: Iterable[KeyValue]) -> None:
    """Insert rows, or replace those of the same keys, in the caller's transaction."""
    _insert(cur, capabilities, rows, "UPDATE SET value = excluded.value")


def put_new(cur: Cursor, capabilities: Capabilities, rows: Iterable[KeyValue]) -> None:
    """Insert rows whose keys do not exist yet, in the caller's transaction."""
    _insert(cur, capabilities, rows, "NOTHING")


def _insert(cur: Cursor, capabilities: Capabilities, rows: Iterable[KeyValue], on_conflict: str) -> None:
    # The last row of a key counts; in one order, so that two writers cannot deadlock.
    unique = {(row.store, row.path): row for row in rows}
    if unique:
        ordered = [unique[key] for key in sorted(unique)]
        stores, paths = [row.store for row in ordered], [_bytes(row.path) for row in ordered]
        contents = [row.value.encode() for row in ordered]
        cur.execute(_INSERT + on_conflict, (capabilities.encoding, stores, paths, contents))


def values(
    cur: Cursor, capabilities: Capabilities, store: str, paths: Sequence[str], *, lock: bool = False
) -> dict[str, bytes]:
    """Return the values of those of the paths that have a row in a store; `lock` locks the rows."""
    query = """SELECT path.number, stored.value
        FROM pg_catalog.unnest(%s::bytea[]) WITH ORDINALITY path (name, number)
        JOIN index.keyvaluestores stored
            ON stored.storeid = %s AND stored.key = pg_catalog.convert_from(path.name, %s)"""
    cur.execute(
        f"{query} FOR UPDATE OF stored" if lock else query,
        ([_bytes(path) for path in paths], store, capabilities.encoding),
    )
    return {paths[number - 1]: bytes(value) for number, value in cur.fetchall()}


def instance(value: bytes) -> str:
    """Return the public id that the row of an adopted path names; empty if it is unreadable."""
    try:
        content = json.loads(value)
    except ValueError:
        return ""
    return str(content.get("r", "")) if isinstance(content, dict) else ""


def delete(cur: Cursor, capabilities: Capabilities, store: str, path: str) -> None:
    """Delete the row of a path, if there is one."""
    cur.execute(
        "DELETE FROM index.keyvaluestores WHERE storeid = %s AND key = pg_catalog.convert_from(%s, %s)",
        (store, _bytes(path), capabilities.encoding),
    )


def _bytes(path: str) -> bytes:
    # Customdata may name a lone surrogate, which is no UTF-8: the server refuses it.
    return path.encode("utf-8", "surrogatepass")


def _json(content: dict[str, object]) -> str:
    # The plugin writes keys in this order, without blanks; its rows are compared by bytes.
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
