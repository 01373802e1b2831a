"""Fills an index at revision 1 with as many instances as are wanted, set-based: a million in some seconds.

The rows are those that the plugin writes: 1 patient, 2 studies, 8 series and 240 instances belong together (archives
of which sizes are published hold some 400 instances per study); 1 identifier, 2 main DICOM tags and 5 metadata for
each resource, 1 attachment for each instance. With `full_rows` there are as many identifiers, tags and metadata as
Orthanc keeps for a CT, of its lengths, and a change for each instance: 2.5 kB per instance.
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

# Level, group, element, value; # stands for the id of the resource.
_TAGS = """
    (0, 16, 16, 'FAMILY#^GIVEN'), (0, 16, 32, 'PAT#'), (0, 16, 48, '19600101'), (0, 16, 64, 'F'),
    (1, 16, 16, 'FAMILY#^GIVEN'), (1, 16, 32, 'PAT#'), (1, 16, 48, '19600101'), (1, 16, 64, 'F'),
    (1, 8, 32, '20240501'), (1, 8, 48, '101010'), (1, 8, 80, 'ACC#'), (1, 8, 128, 'General Hospital'),
    (1, 8, 144, 'Doctor^Who'), (1, 8, 4144, 'CT CHEST W CONTRAST'), (1, 32, 13, '{root}.1.#'), (1, 32, 16, '1'),
    (2, 8, 33, '20240501'), (2, 8, 49, '101010'), (2, 8, 96, 'CT'), (2, 8, 112, 'Maker'), (2, 8, 4112, 'CT01'),
    (2, 8, 4158, 'AXIAL 1.0'), (2, 24, 21, 'CHEST'), (2, 24, 4144, 'ChestRoutine'), (2, 32, 14, '{root}.2.#'),
    (2, 32, 17, '2'), (2, 32, 55, '1\\0\\0\\0\\1\\0'),
    (3, 8, 18, '20240501'), (3, 8, 19, '101112.123456'), (3, 8, 24, '{root}.3.#'), (3, 32, 18, '1'), (3, 32, 19, '17'),
    (3, 32, 50, '-180\\-180\\17.5'), (3, 32, 55, '1\\0\\0\\0\\1\\0')
""".format(root="1.2.826.0.1.3680043.8.498.103422781")
_IDENTIFIERS = "(0, 32), (1, 13), (1, 32), (1, 80), (1, 4144), (2, 14), (3, 24)"
_METADATA = """
    (0, 7, '20240501T101112'), (0, 15, '0010,0010;0010,0020;0010,0030;0010,0040;0010,1000'),
    (1, 3, 'CT01'), (1, 7, '20240501T101112'), (1, 15, '0008,0020;0008,0030;0008,0050;0008,0080;0008,0090;0008,1030'),
    (2, 3, 'CT01'), (2, 7, '20240501T101112'), (2, 15, '0008,0021;0008,0031;0008,0060;0008,0070;0008,1010;0008,103e'),
    (3, 1, '17'), (3, 2, '20240501T101112'), (3, 3, 'CT01'), (3, 8, 'DicomProtocol'), (3, 9, '1.2.840.10008.1.2.1'),
    (3, 10, '1.2.840.10008.5.1.4.1.1.2'), (3, 14, '1348'),
    (3, 15, '0008,0012;0008,0013;0008,0018;0020,0012;0020,0013;0020,0032;0020,0037;0020,0100;0020,4000')
"""
# Table -> its statement, instead of that above.
_FULL_ROWS = {
    "dicomidentifiers": f"""INSERT INTO dicomidentifiers (id, taggroup, tagelement, value)
        SELECT internalid, taggroup, tagelement, upper(replace(value, '#', internalid::text))
            FROM resources JOIN (VALUES {_TAGS}) tags (level, taggroup, tagelement, value) ON level = resourcetype
            WHERE (level, tagelement) IN ({_IDENTIFIERS}) AND (level <> 1 OR taggroup <> 16)""",
    "maindicomtags": f"""INSERT INTO maindicomtags (id, taggroup, tagelement, value)
        SELECT internalid, taggroup, tagelement, replace(value, '#', internalid::text)
            FROM resources JOIN (VALUES {_TAGS}) tags (level, taggroup, tagelement, value) ON level = resourcetype""",
    "metadata": f"""INSERT INTO metadata (id, type, value, revision)
        SELECT internalid, kind, value, 0
            FROM resources JOIN (VALUES {_METADATA}) kinds (level, kind, value) ON level = resourcetype""",
    "attachedfiles": """INSERT INTO attachedfiles
        SELECT internalid, 1, md5(internalid::text)::uuid, 524288, 524288, 1, md5('a' || internalid),
               md5('a' || internalid), 0
            FROM resources WHERE resourcetype = 3""",
    "changes": """INSERT INTO changes (changetype, internalid, resourcetype, date)
        SELECT 2, internalid, 3, '20260101T000000' FROM resources WHERE resourcetype = 3""",
}


def fill(conn: Connection, instances: int, *, full_rows: bool = False) -> None:
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
        # Tables that were emptied in the same transaction need no WAL where wal_level is minimal.
        cur.execute(
            "TRUNCATE resources, maindicomtags, dicomidentifiers, metadata, attachedfiles, changes CASCADE"
        )
        indexes = _drop_indexes(cur)
        for level, statement in enumerate(_STATEMENTS):
            if full_rows:  # the third word is the table
                statement = _FULL_ROWS.get(statement.split()[2], statement)
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
