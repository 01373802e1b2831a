"""Fills an index at revision 1 with as many instances as are wanted, set-based: a million in some seconds.

The rows are those that the plugin writes: 1 patient, 2 studies, 8 series and 240 instances belong together (archives
of which sizes are published hold some 400 instances per study); 1 identifier, 2 main DICOM tags and 5 metadata for
each resource, 1 attachment for each instance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

SERIES, STUDY, PATIENT = 30, 4, 2  # instances per series, series per study, studies per patient

# 5 groups of 8 digits, as Orthanc writes the SHA-1.
_PUBLIC_ID = """substr(md5({seed}), 1, 8) || '-' || substr(md5({seed}), 9, 8) || '-' || substr(md5({seed}), 17, 8)
    || '-' || substr(md5({seed}), 25, 8) || '-' || lpad(to_hex(n), 8, '0')"""

# Parents before their children; ids run through all levels, as if everything had been stored level by level.
_STATEMENTS = (
    """INSERT INTO resources (internalid, resourcetype, publicid, parentid)
        SELECT n, 0, {publicid}, NULL FROM generate_series(1, {patients}) n""",
    """INSERT INTO resources (internalid, resourcetype, publicid, parentid)
        SELECT {patients} + n, 1, {publicid}, 1 + (n - 1) / {per_patient}
            FROM generate_series(1, {studies}) n""",
    """INSERT INTO resources (internalid, resourcetype, publicid, parentid)
        SELECT {patients} + {studies} + n, 2, {publicid}, {patients} + 1 + (n - 1) / {per_study}
            FROM generate_series(1, {series}) n""",
    """INSERT INTO resources (internalid, resourcetype, publicid, parentid)
        SELECT {first} + n, 3, {publicid}, {patients} + {studies} + 1 + (n - 1) / {per_series}
            FROM generate_series(1, {instances}) n""",
    "SELECT setval('resources_internalid_seq', {first} + {instances})",
    """INSERT INTO dicomidentifiers (id, taggroup, tagelement, value)
        SELECT internalid, 32, CASE resourcetype WHEN 0 THEN 32 WHEN 1 THEN 13 ELSE 14 END, '1.2.840.' || publicid
            FROM resources""",
    """INSERT INTO maindicomtags (id, taggroup, tagelement, value)
        SELECT internalid, 8, 32 + t, 'value ' || t FROM resources, generate_series(0, 1) t""",
    """INSERT INTO metadata (id, type, value, revision)
        SELECT internalid, t, '20260101T000000', 0 FROM resources, generate_series(2, 6) t""",
    """INSERT INTO attachedfiles
        SELECT internalid, 1, md5(internalid::text), 500000, 524288, 1, md5('a'), md5('b'), 0
            FROM resources WHERE resourcetype = 3""",
    """INSERT INTO changes (changetype, internalid, resourcetype, date)
        SELECT 2, internalid, 3, '20260101T000000' FROM resources WHERE resourcetype = 3 AND internalid % 10 = 0""",
    """INSERT INTO patientrecyclingorder (patientid)
        SELECT internalid FROM resources WHERE resourcetype = 0 AND internalid % 50 <> 0 ORDER BY md5(publicid)""",
    """UPDATE globalintegers SET value = CASE key
        WHEN 0 THEN 500000 * {instances}::bigint WHEN 1 THEN 524288 * {instances}::bigint
        WHEN 2 THEN {patients} WHEN 3 THEN {studies} WHEN 4 THEN {series} WHEN 5 THEN {instances}
        ELSE (SELECT coalesce(max(seq), 0) FROM changes) END""",
)


def fill(conn: Connection, instances: int) -> None:
    """Fill the empty index in the first schema of search_path; the role has to be a superuser.

    Triggers and checks of foreign keys are off meanwhile, indexes are built at the end.
    """
    series = -(-instances // SERIES)
    studies = -(-series // STUDY)
    patients = -(-studies // PATIENT)
    sizes = {
        "patients": patients, "studies": studies, "series": series, "instances": instances,
        "first": patients + studies + series, "per_series": SERIES, "per_study": STUDY, "per_patient": PATIENT,
    }  # fmt: skip
    with conn, conn.cursor() as cur:
        cur.execute("SET LOCAL session_replication_role = replica; SET LOCAL maintenance_work_mem = '512MB'")
        indexes = _drop_indexes(cur)
        for level, statement in enumerate(_STATEMENTS):
            cur.execute(statement.format(publicid=_PUBLIC_ID.format(seed=f"'{level}/' || n"), **sizes))
        for index in indexes:
            cur.execute(index)
    conn.autocommit = True
    with conn.cursor() as cur:
        cur.execute("VACUUM ANALYZE")
        cur.execute("CHECKPOINT")
    conn.autocommit = False


def _drop_indexes(cur: Cursor) -> list[str]:
    """Drop all indexes that belong to no constraint; returns what makes them again."""
    cur.execute(
        """SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid)
            FROM pg_index JOIN pg_class c ON c.oid = indrelid
            WHERE c.relnamespace = quote_ident(current_schema())::regnamespace
                AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)"""
    )
    found = cur.fetchall()
    for name, _ in found:
        cur.execute(f"DROP INDEX {name}")
    return [definition for _, definition in found]
