"""An index with every kind of row that its revision can hold, and some work on it."""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import connection as Connection

_RESOURCES = """
    INSERT INTO resources (resourcetype, publicid)
        SELECT 0, 'p' || n FROM generate_series(1, 16) n;
    INSERT INTO resources (resourcetype, publicid, parentid)
        SELECT 1, publicid || '.s' || n, internalid FROM resources, generate_series(1, 2) n WHERE resourcetype = 0;
    INSERT INTO resources (resourcetype, publicid, parentid)
        SELECT 2, publicid || '.e' || n, internalid FROM resources, generate_series(1, 2) n WHERE resourcetype = 1;
    INSERT INTO resources (resourcetype, publicid, parentid)
        SELECT 3, publicid || '.i' || n, internalid FROM resources, generate_series(1, 3) n WHERE resourcetype = 2;
"""
_CONTENT = """
    INSERT INTO maindicomtags SELECT internalid, 8, 24, 'tag ' || publicid FROM resources;
    INSERT INTO dicomidentifiers SELECT internalid, 16, 32, upper(publicid) FROM resources;
    INSERT INTO metadata (id, type, value, revision)
        SELECT internalid, type, type || publicid, nullif(type, 1025)
            FROM resources, unnest(ARRAY[2, 7, 1024, 1025]) type;
    -- Protection means something for a patient only.
    INSERT INTO metadata (id, type, value, revision)
        SELECT internalid, 18, 'true', 0 FROM resources WHERE resourcetype = 1 AND internalid % 3 = 0;
    INSERT INTO attachedfiles (id, filetype, uuid, compressedsize, uncompressedsize, compressiontype, uncompressedhash,
                               compressedhash, revision)
        SELECT internalid, filetype, 'uuid-' || internalid || '-' || filetype, nullif(internalid % 7, 0) * 1000,
               nullif(internalid % 7, 0) * 2000, 2, 'h1', 'h2', nullif(internalid % 3, 0)
            FROM resources, unnest(ARRAY[1, 3, 1024]) filetype WHERE resourcetype = 3 OR filetype = 1024;
    INSERT INTO labels SELECT internalid, 'label' || n FROM resources, generate_series(1, 2) n WHERE internalid % 5 = 0;
    INSERT INTO changes (changetype, internalid, resourcetype, date)
        SELECT 2, internalid, resourcetype, '20260101T000000' FROM resources;
    INSERT INTO exportedresources (resourcetype, publicid, remotemodality, patientid, date)
        SELECT resourcetype, publicid, 'PACS', 'P', '20260101T000000' FROM resources WHERE internalid % 11 = 0;
    INSERT INTO serverproperties VALUES ('server', 5, '{}'), ('server', 20, '[1]'), ('other', 5, NULL);
    INSERT INTO globalproperties VALUES (3, '7'), (5, '{"Jobs": []}'), (21, '{}'), (1024, 'of a plugin');
"""
_STORES = """
    UPDATE attachedfiles SET customdata = convert_to('where ' || uuid, 'UTF8') WHERE id % 2 = 0;
    INSERT INTO keyvaluestores SELECT 'store' || n % 2, 'key' || n, convert_to('value' || n, 'UTF8')
        FROM generate_series(1, 20) n;
    INSERT INTO queues (queueid, value) SELECT 'queue' || n % 3, convert_to('value' || n, 'UTF8')
        FROM generate_series(1, 20) n;
    DELETE FROM queues WHERE id IN (1, 7, 20);
"""
_RESERVATIONS = "UPDATE queues SET reserveduntil = 4102444800 + id WHERE id % 4 = 0"
_AUDIT_LOGS = """
    INSERT INTO auditlogs (ts, sourceplugin, userid, resourcetype, resourceid, action, logdata)
        SELECT timestamp '2026-01-01' + n * interval '1 hour', 'plugin', 'user' || n, n % 5, 'p' || n, 'read',
               CASE WHEN n % 2 = 0 THEN 'data'::bytea END
            FROM generate_series(1, 30) n
"""
_STALE_COUNTS = """
    UPDATE resources SET childcount = 99 WHERE resourcetype = 2 AND internalid IN (SELECT id FROM invalidchildcounts);
    UPDATE resources SET childcount = NULL WHERE publicid IN ('p4', 'p4.s1', 'p5.s1.e1');
"""
# Beyond 32 bits, one protected patient without a place, and a metadata 18 that does not protect.
_ODD_RECYCLING = """
    UPDATE metadata SET value = value::bigint + 3000000000 FROM resources
        WHERE id = internalid AND resourcetype = 0 AND type = 19;
    SELECT setval('patientrecyclingordersequence', last_value + 3000000000) FROM patientrecyclingordersequence;
    DELETE FROM metadata USING resources WHERE id = internalid AND publicid = 'p4' AND type = 19;
    INSERT INTO metadata SELECT internalid, 18, 'false', 0 FROM resources WHERE publicid = 'p5';
"""
_SINCE = ((4, _STALE_COUNTS), (5, _STORES), (6, _AUDIT_LOGS), (6, _ODD_RECYCLING), (10, _RESERVATIONS))


class Plugin:
    """What the plugin of a revision does, in one transaction per call."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.revision = int(self.rows("SELECT value FROM globalproperties WHERE property = 4")[0][0])
        if self.revision > 1:
            self.run(
                "CREATE TEMPORARY TABLE IF NOT EXISTS deletedresources (resourcetype integer, publicid text)"
            )
            self.run("SELECT createdeletedfilestemporarytable()")

    def run(self, query: str, *arguments: object) -> None:
        with self.conn, self.conn.cursor() as cur:
            cur.execute(query, arguments or None)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.conn, self.conn.cursor() as cur:
            cur.execute(query)
            return cur.fetchall()

    def create(self, public_id: str) -> None:
        """Store an instance: `p1.s1.e1.i4` lies in `p1.s1.e1`, and so on."""
        parts = public_id.split(".")
        self.run("SELECT createinstance(%s, %s, %s, %s)", *(".".join(parts[:n]) for n in range(1, 5)))

    def delete(self, public_id: str) -> None:
        query = "SELECT deleteresource(internalid) FROM resources WHERE publicid = %s"
        self.run(query if self.revision > 1 else "DELETE FROM resources WHERE publicid = %s", public_id)

    def protect(self, public_id: str) -> None:
        query = (
            "DELETE FROM patientrecyclingorder USING resources WHERE internalid = patientid AND publicid = %s"
        )
        ours = "SELECT protectpatient(internalid) FROM resources WHERE publicid = %s"
        self.run(ours if self.revision >= 6 else query, public_id)

    def unprotect(self, public_id: str) -> None:
        queries = {
            1: "INSERT INTO patientrecyclingorder (patientid) SELECT internalid FROM resources WHERE publicid = %s",
            2: "SELECT patientaddedorupdated(internalid, 0) FROM resources WHERE publicid = %s",
            6: "SELECT unprotectpatient(internalid) FROM resources WHERE publicid = %s",
        }
        self.run(queries[max(n for n in queries if n <= self.revision)], public_id)

    def keep_house(self) -> None:
        """What the plugin does from time to time."""
        if self.revision >= 2:
            self.run("SELECT updatestatistics()")
        if self.revision >= 4:
            self.run("SELECT updateinvalidchildcounts()")

    def replace_attachment(self, public_id: str) -> None:
        """The DICOM file of an instance by another one."""
        found = "id = (SELECT internalid FROM resources WHERE publicid = %s) AND filetype = 1"
        self.run(f"DELETE FROM attachedfiles WHERE {found}", public_id)
        self.run(
            "INSERT INTO attachedfiles (id, filetype, uuid, compressedsize, uncompressedsize)"
            " SELECT internalid, 1, 'another', 5, 6 FROM resources WHERE publicid = %s",
            public_id,
        )


def fill(conn: Connection) -> None:
    """Every kind of row, deleted things, and work that waits to be done, into an empty index."""
    plugin = Plugin(conn)
    plugin.run(_RESOURCES)
    plugin.run(_CONTENT)
    if plugin.revision >= 6:
        plugin.run("SELECT patientaddedorupdated(internalid) FROM resources WHERE resourcetype = 0")
    for patient in ("p2", "p4", "p8", "p12", "p13", "p16"):
        plugin.protect(patient)
    for public_id in ("p1.s1.e1.i4", "p9.s1.e1.i4", "p12.s1.e1.i4", "new.s.e.i"):
        plugin.create(public_id)
    plugin.unprotect("p12")
    plugin.keep_house()
    for public_id in ("p3", "p16", "p6.s1", "p7.s1.e1", "p10.s1.e1.i1", "p1.s2.e1.i3"):
        plugin.delete(public_id)
    plugin.create("p1.s1.e2.i4")
    plugin.create("last.s.e.i")
    for since, statements in _SINCE:
        if plugin.revision >= since:
            plugin.run(statements)


def work(conn: Connection) -> None:
    """A day at a revision: patients come, go, and are protected."""
    plugin = Plugin(conn)
    plugin.delete("p1")  # with custom data, in the recycling order
    plugin.delete("p2")  # protected
    plugin.delete("p5.s1.e1.i1")
    plugin.protect("p9")
    plugin.unprotect("p8")
    plugin.create("p10.s1.e1.i9")
    plugin.create("p4.s1.e1.i9")
    plugin.create("later.s.e.i")
    plugin.replace_attachment("p11.s1.e1.i1")
    plugin.replace_attachment("p11.s1.e1.i2")
    plugin.keep_house()
