"""What people and official scripts do to an index (UPSTREAM_DEFECTS.md), one thing at a time."""

from __future__ import annotations

from dataclasses import dataclass

from pgorthanc_cli.schema import catalog


@dataclass(frozen=True)
class Damage:
    """What somebody did to an index, and what the report must say."""

    revision: int
    statements: tuple[str, ...]
    name: str
    matters: bool
    mended: bool = True

    def __str__(self) -> str:
        return f"{self.revision}-{self.name}".replace(" ", "_")


def damage(revision: int, name: str, *statements: str, matters: bool = True, mended: bool = True) -> Damage:
    return Damage(revision, statements, name, matters, mended)


def invalid(index: str) -> str:
    return f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass"


CASCADING = "FOREIGN KEY (parentid) REFERENCES resources ON DELETE CASCADE"
ONE = "AS 'SELECT 1::bigint'"
NOTHING = "RETURNS void LANGUAGE sql AS ''"
EMPTY_BODY = "CREATE OR REPLACE FUNCTION {} LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
PLACE = "UPDATE metadata SET value = '{}' WHERE type = 19"

DAMAGES = [
    damage(10, "table labels", "DROP TABLE labels"),
    damage(10, "table queues", "DROP TABLE queues"),
    damage(10, "table queues", "ALTER TABLE queues SET UNLOGGED"),
    damage(10, "column queues.reserveduntil", "ALTER TABLE queues DROP reserveduntil"),
    damage(10, "column resources.childcount", "ALTER TABLE resources DROP childcount"),
    damage(10, "column metadata.value", "ALTER TABLE metadata ALTER value SET NOT NULL"),
    damage(10, "column auditlogs.ts", "ALTER TABLE auditlogs ALTER ts DROP DEFAULT"),
    damage(10, "column auditlogs.ts", "ALTER TABLE auditlogs ALTER ts SET DEFAULT '2000-01-01'"),
    damage(
        10, "column globalintegers.value", "ALTER TABLE globalintegers ALTER value TYPE integer", mended=False
    ),
    damage(10, "column labels.extra", "ALTER TABLE labels ADD extra text", matters=False, mended=False),
    damage(
        10,
        "column labels.extra",
        "ALTER TABLE labels ADD extra text DEFAULT '' NOT NULL",
        matters=False,
        mended=False,
    ),
    damage(10, "column maindicomtags.extra", "ALTER TABLE maindicomtags ADD extra text", mended=False),
    damage(10, "constraint resources.uniquepublicid", "ALTER TABLE resources DROP CONSTRAINT uniquepublicid"),
    damage(10, "constraint labels.labels_pkey", "ALTER TABLE labels DROP CONSTRAINT labels_pkey"),
    damage(10, "constraint labels.labels_id_fkey", "ALTER TABLE labels DROP CONSTRAINT labels_id_fkey"),
    damage(
        10,
        "constraint labels.labels_id_fkey",
        "ALTER TABLE labels DROP CONSTRAINT labels_id_fkey",
        "ALTER TABLE labels ADD FOREIGN KEY (id) REFERENCES resources ON DELETE CASCADE NOT VALID",
    ),
    damage(
        10,
        "constraint resources.resources_parentid_fkey",
        "ALTER TABLE resources DROP CONSTRAINT resources_parentid_fkey",
        f"ALTER TABLE resources ADD {CASCADING}",
    ),
    damage(
        10,
        "constraint resources.old",
        f"ALTER TABLE resources ADD CONSTRAINT old {CASCADING}",
    ),
    damage(
        10,
        "constraint labels.short",
        "ALTER TABLE labels ADD CONSTRAINT short CHECK (length(label) < 9)",
        mended=False,
    ),
    damage(10, "index childrenindex2", "DROP INDEX childrenindex2"),
    damage(10, "index childrenindex2", invalid("childrenindex2")),
    damage(10, "index changesindex", "DROP INDEX changesindex", "CREATE INDEX changesindex ON changes (seq)"),
    damage(10, "index publicindex", "DROP INDEX publicindex", matters=False, mended=False),
    damage(
        10,
        "index changesindex_ccnew",
        "CREATE INDEX changesindex_ccnew ON changes (internalid)",
        invalid("changesindex_ccnew"),
    ),
    damage(10, "index mine", "CREATE INDEX mine ON changes (date)", matters=False, mended=False),
    damage(10, "index mine", "CREATE UNIQUE INDEX mine ON labels (id)", mended=False),
    damage(10, f"index {catalog.TRIGRAM_INDEX}", f"DROP INDEX {catalog.TRIGRAM_INDEX}", matters=False),
    damage(10, f"index {catalog.TRIGRAM_INDEX}", invalid(catalog.TRIGRAM_INDEX), matters=False),
    damage(
        10, f"index {catalog.TRIGRAM_INDEX}", "DROP EXTENSION pg_trgm CASCADE", matters=False, mended=False
    ),
    damage(10, "sequence patientrecyclingordersequence", "DROP SEQUENCE patientrecyclingordersequence"),
    damage(10, "sequence queues_id_seq", "DROP SEQUENCE queues_id_seq CASCADE"),
    damage(10, "sequence queues_id_seq", "ALTER SEQUENCE queues_id_seq MAXVALUE 7"),
    damage(10, "trigger changes.insertedchange", "DROP TRIGGER insertedchange ON changes"),
    damage(10, "trigger changes.insertedchange", "ALTER TABLE changes DISABLE TRIGGER insertedchange"),
    damage(
        10,
        "trigger resources.decrementchildcount",
        "DROP TRIGGER decrementchildcount ON resources",
        "CREATE TRIGGER decrementchildcount AFTER DELETE ON resources FOR EACH ROW EXECUTE FUNCTION updatechildcount()",
    ),
    damage(
        10,
        "trigger resources.mine",
        "CREATE TRIGGER mine AFTER DELETE ON resources FOR EACH ROW EXECUTE FUNCTION updatechildcount()",
        mended=False,
    ),
    damage(10, "rule storagearea.storageareadelete", "DROP RULE storageareadelete ON storagearea"),
    damage(
        10,
        "function deleteattachment(resource_id bigint, file_type integer)",
        "DROP FUNCTION deleteattachment",
    ),
    damage(
        10,
        "function deleteattachment(resource_id bigint, file_type integer)",
        "ALTER FUNCTION deleteattachment SECURITY DEFINER",
    ),
    damage(
        10,
        "function protectpatient(patient_id bigint)",
        "DROP FUNCTION protectpatient",
        f"CREATE FUNCTION protectpatient(patient_id bigint) RETURNS bigint LANGUAGE sql {ONE}",
    ),
    damage(
        10,
        "function protectpatient(patient_id bigint)",
        "DROP FUNCTION protectpatient",
        f"CREATE FUNCTION protectpatient(id bigint) {NOTHING}",
    ),
    damage(
        10,
        "function protectpatient(patient_id text)",
        f"CREATE FUNCTION protectpatient(patient_id text) {NOTHING}",
    ),
    damage(10, "function mine()", f"CREATE FUNCTION mine() {NOTHING}", matters=False, mended=False),
    damage(10, "body of updatechildcount", EMPTY_BODY.format("updatechildcount() RETURNS trigger")),
    damage(10, "property 13", "DELETE FROM globalproperties WHERE property = 13"),
    damage(10, "property 10", "UPDATE globalproperties SET value = '0' WHERE property = 10"),
    damage(10, "property 4", "UPDATE globalproperties SET value = '6' WHERE property = 4"),
    damage(10, "property 4", "DELETE FROM globalproperties WHERE property = 4"),
    damage(10, "property 11", "DELETE FROM globalproperties WHERE property = 11", matters=False),
    damage(10, "counter 5", "DELETE FROM globalintegers WHERE key = 5"),
    damage(10, "counter 0", "UPDATE globalintegers SET value = NULL WHERE key = 0"),
    damage(10, "counter 7", "INSERT INTO globalintegers VALUES (7, 5)", matters=False),
    damage(10, "table mine", "CREATE TABLE mine (id bigserial PRIMARY KEY)", matters=False, mended=False),
    damage(
        10,
        "function countresourcestrackerfunc()",
        EMPTY_BODY.format("countresourcestrackerfunc() RETURNS trigger"),
        matters=False,
    ),
    damage(10, "value of sequence patientrecyclingordersequence", PLACE.format(5000)),
    damage(10, "metadata 19", PLACE.format(2**31)),
    damage(10, "metadata 19", "SELECT setval('patientrecyclingordersequence', 2147483648)"),
    damage(10, "metadata 19", PLACE.format("n/a"), mended=False),
    damage(10, "value of counter 5 (instances)", "UPDATE globalintegers SET value = value + 3 WHERE key = 5"),
    damage(
        10,
        "child counts",
        "SELECT updateinvalidchildcounts()",
        "UPDATE resources SET childcount = 9 WHERE publicid = 'e'",
    ),
    damage(10, "parents", "UPDATE resources SET parentid = NULL WHERE publicid = 's'", mended=False),
    damage(
        10,
        "resources without a child",
        "INSERT INTO resources VALUES (DEFAULT, 0, 'lonely', NULL)",
        mended=False,
    ),
    # what the official scripts leave behind
    damage(6, "column queues.reserveduntil", "ALTER TABLE queues ADD reserveduntil bigint"),
    damage(6, "counter 7", "INSERT INTO globalintegers VALUES (7, 5)", matters=False),
    damage(
        5,
        "function patientaddedorupdated(patient_id bigint)",
        f"CREATE FUNCTION patientaddedorupdated(patient_id bigint) {NOTHING}",
    ),
    damage(
        5,
        "index invalidchildcountsid",
        "CREATE INDEX invalidchildcountsid ON invalidchildcounts (id)",
        matters=False,
    ),
    damage(
        4, "value of sequence patientrecyclingorder_seq_seq", "UPDATE patientrecyclingorder SET seq = 1000"
    ),
    damage(4, "rows of patientrecyclingorder", "INSERT INTO patientrecyclingorder VALUES (DEFAULT, NULL)"),
    damage(
        3,
        "table invalidchildcounts",
        "UPDATE resources SET childcount = 7 WHERE publicid = 'e'",
        "CREATE TABLE invalidchildcounts (id bigint REFERENCES resources, updatedat timestamp DEFAULT now())",
        f"CREATE FUNCTION updateinvalidchildcounts(OUT updated_rows_count bigint) LANGUAGE sql {ONE}",
        "INSERT INTO invalidchildcounts SELECT internalid FROM resources WHERE publicid = 'e'",
        matters=False,
    ),
    damage(3, "child counts", "UPDATE resources SET childcount = NULL WHERE publicid = 'e'"),
    damage(2, "property 14", "INSERT INTO globalproperties VALUES (14, '1')", matters=False),
    damage(
        2,
        "index childrenindex2",
        "CREATE INDEX childrenindex2 ON resources (parentid) INCLUDE (publicid, internalid)",
        "DROP INDEX childrenindex",
        matters=False,
        mended=False,
    ),
    damage(
        2,
        "index childrenindex",
        "CREATE INDEX childrenindex2 ON resources (parentid) INCLUDE (publicid, internalid)",
        invalid("childrenindex2"),
        "DROP INDEX childrenindex",
    ),
    damage(2, "counter 7", "DELETE FROM globalintegers WHERE key = 7"),
    damage(2, "value of counter 7", "UPDATE patientrecyclingorder SET seq = 1000"),
    damage(
        2,
        "function computestatisticsreadonly(statistics_key integer, OUT accumulated_value bigint)",
        "CREATE FUNCTION computestatisticsreadonly(statistics_key integer, OUT accumulated_value bigint) "
        f"LANGUAGE sql {ONE}",
        matters=False,
    ),
    damage(1, "counter 7", "INSERT INTO globalintegers VALUES (7, 5)", matters=False),
    damage(
        1,
        "function patientaddedorupdated(patient_id bigint, is_update bigint)",
        f"CREATE FUNCTION patientaddedorupdated(patient_id bigint, is_update bigint) {NOTHING}",
        matters=False,
    ),
    damage(1, "property 11", "UPDATE globalproperties SET value = '3' WHERE property = 11", matters=False),
    damage(
        1,
        "patients of patientrecyclingorder",
        "INSERT INTO patientrecyclingorder (patientid) SELECT internalid FROM resources WHERE resourcetype = 0",
    ),
    damage(1, "public ids", "UPDATE resources SET publicid = 'i' WHERE publicid = 'j'", mended=False),
]
