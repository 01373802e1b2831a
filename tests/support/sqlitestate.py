"""What an SQLite index must become, row by row and as plainly as possible, in the shape of `indexstate.state`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.indexstate import State

_OWN = "SELECT r.publicId, {} FROM {} t JOIN Resources r ON r.internalId = t.id ORDER BY 1, 2, 3"
_DROPPED = (1, 2, 6, 7)


def expected(path: Path, server: str) -> State:
    """The state of the PostgreSQL index that an undamaged index is converted to, without its own properties."""
    with closing(sqlite3.connect(path)) as conn:
        return _expected(conn, server)


def _expected(conn: sqlite3.Connection, server: str) -> State:
    tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    columns = {
        f"{table}.{name}"
        for table in tables
        for (name,) in conn.execute(f"SELECT name FROM pragma_table_info('{table}')")
    }

    def rows(query: str) -> list[tuple[Any, ...]]:
        return conn.execute(query).fetchall()

    def revision(table: str) -> str:
        return "coalesce(t.revision, 0)" if f"{table}.revision" in columns else "0"

    properties = [
        (number, value) for number, value in rows("SELECT * FROM GlobalProperties") if number not in _DROPPED
    ]
    order = rows(
        "SELECT publicId FROM PatientRecyclingOrder JOIN Resources ON internalId = patientId ORDER BY seq"
    )
    patients = [name for (name,) in rows("SELECT publicId FROM Resources WHERE resourceType = 1")]
    highest = dict(rows("SELECT name, seq FROM sqlite_sequence"))
    found: State = {
        "resources": rows(
            """SELECT r.internalId, r.publicId, r.resourceType - 1, p.publicId FROM Resources r
               LEFT JOIN Resources p ON p.internalId = r.parentId ORDER BY 1"""
        ),
        "main DICOM tags": rows(_OWN.format("tagGroup, tagElement, value", "MainDicomTags")),
        "identifiers": rows(_OWN.format("tagGroup, tagElement, value", "DicomIdentifiers")),
        "metadata": rows(_OWN.format(f"type, value, {revision('Metadata')}", "Metadata")),
        "attachments": rows(
            _OWN.format(
                f"""fileType, uuid, compressedSize, uncompressedSize, compressionType, uncompressedMD5,
                    compressedMD5, {revision("AttachedFiles")}""",
                "AttachedFiles",
            )
        ),
        "changes": rows(
            """SELECT seq, changeType, publicId, c.resourceType - 1, date FROM Changes c
               JOIN Resources r USING (internalId) ORDER BY 1"""
        ),
        "exported": [
            (s, t - 1, *rest) for s, t, *rest in rows("SELECT * FROM ExportedResources ORDER BY seq")
        ],
        "server properties": [(server, number, value) for number, value in properties if number != 3],
        "last change": [(highest["Changes"],)],
        "recycling": [name for (name,) in order],
        "protected": sorted(set(patients) - {name for (name,) in order}),
        "statistics": [
            *rows("SELECT key, value FROM GlobalIntegers ORDER BY key"),
            *rows("SELECT resourceType + 1, count(*) FROM Resources GROUP BY 1 ORDER BY 1"),
        ],
        "next of resources_internalid_seq": [(highest["Resources"] + 1,)],
        "next of changes_seq_seq": [(highest["Changes"] + 1,)],
        "next of exportedresources_seq_seq": [(highest["ExportedResources"] + 1,)],
    }
    found["labels"] = rows(_OWN.format("label, 0", "Labels")) if "Labels" in tables else []
    if "KeyValueStores" in tables:
        found |= {
            "custom data": [
                (name, kind, None if data is None else data.decode())
                for name, kind, data in rows(_OWN.format("fileType, customData", "AttachedFiles"))
            ],
            "key-value stores": [
                (s, k, v.decode()) for s, k, v in rows("SELECT * FROM KeyValueStores ORDER BY 1, 2")
            ],
            "queues": [
                (i, q, v.decode()) for i, q, v in rows("SELECT id, queueId, value FROM Queues ORDER BY 1")
            ],
            "next of queues_id_seq": [(highest["Queues"] + 1,)],
        }
        reserved = "reservedUntil" if "Queues.reservedUntil" in columns else "NULL"
        found["reservations"] = rows(f"SELECT id, {reserved} FROM Queues ORDER BY 1")
    return found
