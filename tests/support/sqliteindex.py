"""SQLite indexes as the releases of Orthanc lay them out, with rows of every kind, made without an Orthanc.

The tables are written from the facts in their own words (no trigger: nothing here deletes), the rows are those that an
Orthanc writes: ids in the order of arrival, instance, series, study, patient.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

# What the releases added, oldest first; the label of a release is the first one with that layout.
RELEASES = ("1.10", "1.12.0", "1.12.8", "1.12.10")
SERIES, STUDY, PATIENT = 30, 4, 2  # instances per series, series per study, studies per patient

_OWN = "id INTEGER REFERENCES Resources(internalId) ON DELETE CASCADE"
_TAGS = f"({_OWN}, tagGroup INTEGER, tagElement INTEGER, value TEXT, PRIMARY KEY(id, tagGroup, tagElement))"
_TABLES = {
    "GlobalProperties": "(property INTEGER PRIMARY KEY, value TEXT)",
    "Resources": """(internalId INTEGER PRIMARY KEY AUTOINCREMENT, resourceType INTEGER, publicId TEXT,
        parentId INTEGER REFERENCES Resources(internalId) ON DELETE CASCADE)""",
    "MainDicomTags": _TAGS,
    "DicomIdentifiers": _TAGS,
    "Metadata": f"({_OWN}, type INTEGER, value TEXT, PRIMARY KEY(id, type))",
    "AttachedFiles": f"""({_OWN}, fileType INTEGER, uuid TEXT, compressedSize INTEGER, uncompressedSize INTEGER,
        compressionType INTEGER, uncompressedMD5 TEXT, compressedMD5 TEXT, PRIMARY KEY(id, fileType))""",
    "Changes": """(seq INTEGER PRIMARY KEY AUTOINCREMENT, changeType INTEGER,
        internalId INTEGER REFERENCES Resources(internalId) ON DELETE CASCADE, resourceType INTEGER, date TEXT)""",
    "ExportedResources": """(seq INTEGER PRIMARY KEY AUTOINCREMENT, resourceType INTEGER, publicId TEXT,
        remoteModality TEXT, patientId TEXT, studyInstanceUid TEXT, seriesInstanceUid TEXT, sopInstanceUid TEXT,
        date TEXT)""",
    "PatientRecyclingOrder": """(seq INTEGER PRIMARY KEY AUTOINCREMENT,
        patientId INTEGER REFERENCES Resources(internalId) ON DELETE CASCADE)""",
    "GlobalIntegers": "(key INTEGER PRIMARY KEY, value INTEGER)",
}
_ADDED = {
    "1.12.0": (
        "CREATE TABLE Labels(id INTEGER REFERENCES Resources(internalId) ON DELETE CASCADE, label TEXT NOT NULL,"
        " PRIMARY KEY(id, label))",
    ),
    "1.12.8": (
        "ALTER TABLE Metadata ADD COLUMN revision INTEGER",
        "ALTER TABLE AttachedFiles ADD COLUMN revision INTEGER",
        "ALTER TABLE AttachedFiles ADD COLUMN customData BLOB",
        "CREATE TABLE DeletedFiles(uuid TEXT NOT NULL, customData BLOB)",
        "CREATE TABLE KeyValueStores(storeId TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,"
        " PRIMARY KEY(storeId, key))",
        "CREATE TABLE Queues(id INTEGER PRIMARY KEY AUTOINCREMENT, queueId TEXT NOT NULL, value BLOB NOT NULL)",
        "INSERT INTO GlobalProperties VALUES (7, '1')",
    ),
    "1.12.10": ("ALTER TABLE Queues ADD COLUMN reservedUntil INTEGER",),
}
_INDEXES = (
    "ChildrenIndex ON Resources(parentId)",
    "PublicIndex ON Resources(publicId)",
    "ResourceTypeIndex ON Resources(resourceType)",
    "PatientRecyclingIndex ON PatientRecyclingOrder(patientId)",
    "MainDicomTagsIndex1 ON MainDicomTags(id)",
    "DicomIdentifiersIndex1 ON DicomIdentifiers(id)",
    "DicomIdentifiersIndex2 ON DicomIdentifiers(tagGroup, tagElement)",
    "DicomIdentifiersIndexValues ON DicomIdentifiers(value COLLATE BINARY)",
    "ChangesIndex ON Changes(internalId)",
)

# A number -> 5 groups of 8 digits, as Orthanc writes a SHA-1; odd multipliers, so that no two are equal.
_PUBLIC_ID = """printf('%08x-%08x-%08x-%08x-%08x', id * 2654435761 & 4294967295, id * 2246822519 & 4294967295,
    id * 3266489917 & 4294967295, id * 668265263 & 4294967295, id)"""
_UUID = """printf('%08x-%04x-4%03x-8%03x-%012x', id * 2654435761 & 4294967295, id & 65535, id & 4095, id & 4095,
    id * 2246822519 & 281474976710655)"""
_MD5 = "printf('%016x%016x', id * 2654435761, id * 2246822519)"
# As many ids as rows that came before it: n instances, and their parents when the first instance of each arrived.
_ID = f"""(1 + n + (n + {SERIES - 1}) / {SERIES} + (n + {SERIES * STUDY - 1}) / {SERIES * STUDY}
    + (n + {SERIES * STUDY * PATIENT - 1}) / {SERIES * STUDY * PATIENT})"""
_FILL = (
    # level, the number of instances below one, its place after its first instance
    *(
        f"""INSERT INTO Resources
            SELECT id, {level}, {_PUBLIC_ID}, parent FROM (
                SELECT {_ID} + {place} AS id, {parent} AS parent FROM (SELECT n FROM numbers WHERE n % {below} = 0))"""
        for level, below, place, parent in (
            (4, 1, 0, _ID.replace("n", f"(n / {SERIES} * {SERIES})") + " + 1"),
            (3, SERIES, 1, _ID.replace("n", f"(n / {SERIES * STUDY} * {SERIES * STUDY})") + " + 2"),
            (
                2,
                SERIES * STUDY,
                2,
                _ID.replace("n", f"(n / {SERIES * STUDY * PATIENT} * {SERIES * STUDY * PATIENT})") + " + 3",
            ),
            (1, SERIES * STUDY * PATIENT, 3, "NULL"),
        )
    ),
    """INSERT INTO MainDicomTags
        SELECT internalId, g, e, CASE v WHEN 'uid' THEN '1.2.840.' || internalId WHEN 'n' THEN internalId % 7 ELSE v END
            FROM Resources JOIN tags USING (resourceType) ORDER BY internalId""",
    """INSERT INTO DicomIdentifiers
        SELECT internalId, 32, CASE resourceType WHEN 1 THEN 32 WHEN 2 THEN 13 WHEN 3 THEN 14 ELSE 24 END,
            '1.3.6.1.4.1.5962.1.1.' || internalId || '.1.20040119072730.12322' FROM Resources ORDER BY internalId""",
    """INSERT INTO Metadata
        SELECT internalId, type, value {null} FROM Resources JOIN types USING (resourceType) ORDER BY internalId""",
    f"""INSERT INTO AttachedFiles SELECT id, 1, {_UUID}, 39206 + id, 39206 + id, 1, {_MD5}, {_MD5} {{nulls}}
        FROM (SELECT internalId AS id FROM Resources WHERE resourceType = 4)""",
    """INSERT INTO Changes (changeType, internalId, resourceType, date)
        SELECT CASE resourceType WHEN 1 THEN 3 WHEN 2 THEN 5 WHEN 3 THEN 4 ELSE 2 END, internalId, resourceType,
            '20260101T000000' FROM Resources ORDER BY internalId""",
    """INSERT INTO PatientRecyclingOrder (seq, patientId)
        SELECT internalId * 2, internalId FROM Resources WHERE resourceType = 1 AND internalId % 5 <> 0""",
    """INSERT INTO GlobalIntegers SELECT 0, coalesce(sum(compressedSize), 0) FROM AttachedFiles
        UNION ALL SELECT 1, coalesce(sum(uncompressedSize), 0) FROM AttachedFiles""",
)
_TAG_VALUES = (
    (1, 16, 16, "Doe^John"), (1, 16, 32, "n"), (1, 16, 48, ""), (1, 16, 64, "O"),
    (2, 8, 32, "20040119"), (2, 8, 48, "072730"), (2, 8, 80, ""), (2, 8, 4144, "Chest [a]"), (2, 32, 13, "uid"),
    (2, 16, 16, "Doe^John"), (2, 16, 32, "n"),
    (3, 8, 33, "19970430"), (3, 8, 96, "CT"), (3, 8, 112, "GE MEDICAL SYSTEMS"), (3, 32, 14, "uid"),
    (3, 32, 17, "n"), (3, 24, 16, "ISOVUE300/100"),
    (4, 8, 18, "20040119"), (4, 8, 19, "072731"), (4, 8, 24, "uid"), (4, 32, 18, "2"), (4, 32, 19, "n"),
    (4, 32, 50, "-158.135803\\-179.035797\\-75.699997"),
    (4, 32, 55, "1.000000\\0.000000\\0.000000\\0.000000\\1.000000\\0.000000"),
    (4, 32, 16384, "Uncompressed"),
)  # fmt: skip
_METADATA_VALUES = (
    (1, 7, "20261122T031744"), (2, 7, "20261122T031744"), (3, 7, "20261122T031744"), (3, 3, ""),
    (4, 1, "1"), (4, 2, "20261122T031744"), (4, 3, ""), (4, 8, "RestApi"), (4, 9, "1.2.840.10008.1.2.1"),
    (4, 10, "1.2.840.10008.5.1.4.1.1.2"), (4, 11, "127.0.0.1"), (4, 13, ""), (4, 14, "6288"),
)  # fmt: skip


def create(path: Path, release: str = RELEASES[-1]) -> sqlite3.Connection:
    """An empty index of the layout of a release; the connection commits each statement."""
    path.parent.mkdir(parents=True, exist_ok=True)
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA synchronous = OFF")
    for name, columns in _TABLES.items():
        conn.execute(f"CREATE TABLE {name}{columns}")
    for index in _INDEXES:
        conn.execute(f"CREATE INDEX {index}")
    conn.execute("INSERT INTO GlobalProperties VALUES (1, '6'), (6, '1')")
    for added in RELEASES[1 : RELEASES.index(release) + 1]:
        for statement in _ADDED[added]:
            conn.execute(statement)
    return conn


def fill(conn: sqlite3.Connection, instances: int) -> None:
    """So many instances with their parents, set-based: a million in some 40 seconds."""
    conn.execute("CREATE TEMP TABLE tags (resourceType, g, e, v)")
    conn.executemany("INSERT INTO tags VALUES (?, ?, ?, ?)", _TAG_VALUES)
    conn.execute("CREATE TEMP TABLE types (resourceType, type, value)")
    conn.executemany("INSERT INTO types VALUES (?, ?, ?)", _METADATA_VALUES)
    conn.execute("CREATE TEMP TABLE numbers (n INTEGER PRIMARY KEY)")
    conn.execute(
        """INSERT INTO numbers WITH RECURSIVE counted (n) AS (
            SELECT 0 UNION ALL SELECT n + 1 FROM counted WHERE n + 1 < ?) SELECT n FROM counted""",
        (instances,),
    )
    extended = bool(
        conn.execute("SELECT 1 FROM pragma_table_info('Metadata') WHERE name = 'revision'").fetchall()
    )
    null, nulls = (", 0", ", 0, NULL") if extended else ("", "")
    conn.execute("BEGIN")
    for statement in _FILL:
        conn.execute(statement.format(null=null, nulls=nulls))
    conn.execute("COMMIT")


# Values that a text of DICOM or of a user may hold, and that mean something to COPY.
ODD_VALUES = (
    "back\\slash", "\\N", "\\.", "", " ", "line\nbreak", "carriage\r\nreturn", "tab\tulator", "quotes \" '' \x1e",
    "\x1d", "\x1f", "\x01", "Ünï^çødé=山田^太郎", "\U0001f9e0", "\ufffd", "x" * 5000,
)  # fmt: skip


def enrich(conn: sqlite3.Connection) -> None:
    """Rows of every kind beside those of `fill`, as far as the layout has a place for them."""
    tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    [(study,), (other,), *_] = conn.execute(
        "SELECT internalId FROM Resources WHERE resourceType = 2 ORDER BY 1"
    )
    extended = "KeyValueStores" in tables
    conn.execute("BEGIN")
    for number, value in enumerate(ODD_VALUES):
        conn.execute(
            f"INSERT INTO Metadata VALUES (?, ?, ? {', ?' if extended else ''})",
            (study, 1024 + number, value, *([None if number % 2 else number] if extended else [])),
        )
        conn.execute("INSERT INTO MainDicomTags VALUES (?, 9, ?, ?)", (study, number, value))
        conn.execute(
            "INSERT INTO ExportedResources VALUES (NULL, ?, ?, ?, ?, '1.2', '1.2.3', '1.2.3.4', '20260101T000000')",
            (number % 4 + 1, f"{number:044}", value, value[:64]),
        )
    conn.execute(
        f"INSERT INTO AttachedFiles VALUES (?, 1024, ?, 4, 9, 2, ?, ? {', 3, ?' if extended else ''})",
        (study, "00000000-0000-4000-8000-000000000001", "a" * 32, "b" * 32, *([b"{}"] if extended else [])),
    )
    conn.executemany(
        "INSERT INTO GlobalProperties VALUES (?, ?)",
        [
            (2, "1"),
            (3, "7"),
            (5, '{"Jobs": {}}'),
            (20, '{"pacs": ["A", "b", 104]}'),
            (21, "{}"),
            (1025, "plugin's"),
        ],
    )
    conn.execute("UPDATE sqlite_sequence SET seq = seq + 1000")
    conn.execute("INSERT INTO Changes VALUES (NULL, 13, ?, 2, '20260102T000000')", (other,))
    if "Labels" in tables:
        conn.execute(
            "INSERT INTO Labels VALUES (?, 'seen'), (?, 'to-do'), (?, 'seen')", (study, study, other)
        )
    if extended:
        conn.execute("INSERT INTO DeletedFiles VALUES ('left behind', NULL)")
        conn.execute(
            "INSERT INTO KeyValueStores VALUES ('s', 'k', CAST('v1' AS BLOB)), ('s', 'k2', CAST('' AS BLOB))"
        )
        conn.execute(
            "INSERT INTO Queues (queueId, value) VALUES ('q', CAST('first' AS BLOB)), ('q', CAST('2' AS BLOB))"
        )
    if conn.execute("SELECT 1 FROM pragma_table_info('Queues') WHERE name = 'reservedUntil'").fetchone():
        conn.execute("UPDATE Queues SET reservedUntil = 1800000000 WHERE id = 1")
    conn.execute("UPDATE GlobalIntegers SET value = value + CASE key WHEN 0 THEN 4 ELSE 9 END")
    conn.execute("COMMIT")


def rich(path: Path, release: str = RELEASES[-1], instances: int = 250) -> Path:
    """An index with rows of every kind, closed."""
    conn = create(path, release)
    fill(conn, instances)
    enrich(conn)
    conn.close()
    return path


def change(path: Path, *statements: str) -> None:
    """What no Orthanc would do to an index."""
    conn = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        conn.execute(statement)
    conn.close()
