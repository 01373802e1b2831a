"""What the versioned scripts make of states that the plugin and other tools have left behind."""

from __future__ import annotations

import itertools

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.schema import catalog, steps
from tests.support import fillindex, indexstate
from tests.support.schemas import CURRENT, REVISIONS, run
from tests.support.stepwalk import at, kept, require_revision, step, walk

_EVERYWHERE = (
    "CREATE FUNCTION countresourcestrackerfunc() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "DELETE FROM globalproperties WHERE property IN (6, 13)",
    "UPDATE globalproperties SET value = '0' WHERE property = 10",
)
_BELOW_6 = (
    "CREATE FUNCTION patientaddedorupdated(patient_id bigint) RETURNS void LANGUAGE sql AS ''",
    "DELETE FROM globalproperties WHERE property = 11",
)
_BELOW_4 = (
    "CREATE TABLE invalidchildcounts (id bigint REFERENCES resources ON DELETE CASCADE, updatedat timestamp)",
    "INSERT INTO invalidchildcounts SELECT internalid, now() FROM resources",
    "CREATE FUNCTION updateinvalidchildcounts(OUT updated_rows_count bigint) LANGUAGE sql AS 'SELECT 1::bigint'",
)
_BELOW_3 = (
    "CREATE FUNCTION computestatisticsreadonly(statistics_key integer, OUT accumulated_value bigint)"
    " LANGUAGE sql AS 'SELECT 1::bigint'",
    "INSERT INTO globalproperties VALUES (14, '1')",
    "CREATE INDEX childrenindex2 ON resources (parentid) INCLUDE (publicid, internalid)",
    "CREATE INDEX dicomidentifiersindex3 ON dicomidentifiers (taggroup, tagelement, value)",
    "DROP INDEX childrenindex",
)
_STALE_COUNTER = "INSERT INTO globalintegers VALUES (7, 3) ON CONFLICT (key) DO UPDATE SET value = 3"
# By the scripts of the plugin (UPSTREAM_DEFECTS.md, A and H), at each revision.
LEFT_BEHIND = {
    1: (
        *_BELOW_6, *_BELOW_4, *_BELOW_3, _STALE_COUNTER,
        "CREATE FUNCTION patientaddedorupdated(patient_id bigint, is_update bigint) RETURNS void LANGUAGE sql AS ''",
        "INSERT INTO globalproperties VALUES (11, '2')",
    ),
    2: (*_EVERYWHERE, *_BELOW_6, *_BELOW_4, *_BELOW_3, "UPDATE globalintegers SET value = 3 WHERE key = 7"),
    3: (*_EVERYWHERE, *_BELOW_6, *_BELOW_4, _STALE_COUNTER),
    4: (*_EVERYWHERE, *_BELOW_6, _STALE_COUNTER, "CREATE INDEX invalidchildcountsid ON invalidchildcounts (id)"),
    5: (
        *_EVERYWHERE, *_BELOW_6, _STALE_COUNTER, "CREATE INDEX invalidchildcountsid ON invalidchildcounts (id)",
        "ALTER TABLE queues ADD reserveduntil bigint", "UPDATE queues SET reserveduntil = 1",
    ),
    6: (*_EVERYWHERE, _STALE_COUNTER, "ALTER TABLE queues ADD reserveduntil bigint"),
}  # fmt: skip
NEIGHBOURS = [pair for pair in itertools.permutations(REVISIONS, 2) if len(steps.path(*pair)) == 1]


@pytest.mark.parametrize(("start", "end"), NEIGHBOURS)
def test_what_older_scripts_left_behind_is_gone_after_a_step(fresh: db.Target, start: int, end: int) -> None:
    target = at(fresh, start)
    run(target, *LEFT_BEHIND.get(start, (*_EVERYWHERE, _STALE_COUNTER)))
    with db.session(target) as conn:
        before = indexstate.state(conn)
        walk(conn, start, end)
        found = catalog.snapshot(conn, "public")
        extra = {"index childrenindex2", "index dicomidentifiersindex3"} if (start, end) == (1, 2) else set()
        differences = catalog.differences(found, catalog.expected(end, with_storage=True))
        assert {difference.name for difference in differences} == extra
        assert indexstate.problems(conn) == []
        after = indexstate.state(conn)
        assert set(indexstate.differing(before, after)) <= {"properties"}


@pytest.mark.parametrize(("start", "end"), [(1, 2), (2, 1), (6, 10)])
def test_counters_that_are_missing_are_counted(fresh: db.Target, start: int, end: int) -> None:
    target = at(fresh, start)
    with db.session(target) as conn:
        before = indexstate.state(conn)
    run(
        target,
        "DELETE FROM globalintegers WHERE key IN (2, 5, 6)",
        "UPDATE globalintegers SET value = NULL WHERE key IN (0, 3)",
        "DELETE FROM globalproperties WHERE property IN (6, 10, 12, 13)",
    )
    with db.session(target) as conn:
        walk(conn, start, end)
        assert indexstate.problems(conn) == []
        after = indexstate.state(conn)
        assert after["statistics"] == before["statistics"]
        assert after["last change"] == [(max(row[0] for row in before["changes"]),)]


@pytest.mark.parametrize(
    ("start", "end", "name", "definition"),
    [
        (1, 2, "uniquepublicid", "CREATE UNIQUE INDEX pgorthanc_uniquepublicid ON resources (publicid)"),
        (1, 2, "uniquepatientid", "CREATE UNIQUE INDEX pgorthanc_uniquepatientid ON patientrecyclingorder (patientid)"),
        (2, 3, "childrenindex2", "CREATE INDEX childrenindex2 ON resources (parentid) INCLUDE (publicid, internalid)"),
        (1, 3, "dicomidentifiersindex3",
         "CREATE INDEX dicomidentifiersindex3 ON dicomidentifiers (taggroup, tagelement, value)"),
        (3, 2, "childrenindex", "CREATE INDEX childrenindex ON resources (parentid)"),
        (5, 6, "invalidchildcountsid", "CREATE INDEX invalidchildcountsid ON invalidchildcounts (id)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("valid", [True, False])
def test_an_index_that_was_built_beforehand(
    fresh: db.Target, start: int, end: int, name: str, definition: str, valid: bool
) -> None:
    """A valid one is used, an invalid one (its construction failed) is built anew."""
    target = at(fresh, start, filled=False)
    built_name = definition.partition(" ON ")[0].split()[-1]
    run(
        target,
        definition,
        f"UPDATE pg_index SET indisvalid = {valid} WHERE indexrelid = '{built_name}'::regclass",
    )
    with db.session(target) as conn, conn.cursor() as cur:
        cur.execute("SELECT to_regclass(%s)::oid", (built_name,))
        built = cur.fetchone()
        walk(conn, start, end)
        cur.execute("SELECT to_regclass(%s)::oid", (name,))
        assert (cur.fetchone() == built) is valid
        require_revision(conn, end)


@pytest.mark.parametrize(
    ("start", "end", "name", "action"),
    [(6, 5, "pgorthanc_cascade", "ON DELETE CASCADE"), (5, 6, "pgorthanc_no_action", "")],
)
def test_a_foreign_key_that_was_made_beforehand(
    fresh: db.Target, start: int, end: int, name: str, action: str
) -> None:
    target = at(fresh, start)
    run(
        target,
        "ALTER TABLE resources RENAME CONSTRAINT resources_parentid_fkey TO of_an_administrator",
        f"ALTER TABLE resources ADD CONSTRAINT {name} FOREIGN KEY (parentid) REFERENCES resources {action} NOT VALID",
        f"ALTER TABLE resources VALIDATE CONSTRAINT {name}",
    )
    with db.session(target) as conn, conn.cursor() as cur:
        cur.execute("SELECT oid FROM pg_constraint WHERE conname = %s", (name,))
        made = cur.fetchone()
        walk(conn, start, end)
        cur.execute("SELECT oid FROM pg_constraint WHERE conname = 'resources_parentid_fkey'")
        assert cur.fetchone() == made
        require_revision(conn, end)


def test_numbers_of_children_that_revision_3_got_wrong(fresh: db.Target) -> None:
    target = at(fresh, 3)
    run(target, "UPDATE resources SET childcount = 1 WHERE publicid IN ('p9', 'p9.s1.e1')")
    with db.session(target) as conn:
        walk(conn, 3, 4)
        require_revision(conn, 4)


def test_numbers_of_children_can_be_counted_later(fresh: db.Target) -> None:
    target = at(fresh, 2)
    with db.session(target) as conn:
        with conn, conn.cursor() as cur:
            cur.execute("SET pgorthanc.childcounts TO later")
        walk(conn, 2, 3)
        fillindex.work(conn)
        with conn, conn.cursor() as cur:
            cur.execute("SELECT count(*) FROM resources WHERE resourcetype < 3 AND childcount IS NULL")
            missing = (cur.fetchone() or (0,))[0]
            assert missing > 50
            cur.execute("SELECT computemissingchildcount(10000)")
            assert cur.fetchone() == (missing,)
        require_revision(conn, 3)


def test_nothing_is_counted_for_a_revision_3_that_nobody_has_worked_with(fresh: db.Target) -> None:
    target = at(fresh, 2)
    with db.session(target) as conn, conn.cursor() as cur:
        cur.execute("SET pgorthanc.childcounts TO later")
        for found in steps.path(2, 4):
            cur.execute(steps.text(found.script))
        cur.execute("UPDATE resources SET childcount = 99 WHERE publicid = 'p9'")
        cur.execute("SELECT count(childcount) FROM resources")
        assert cur.fetchone() == (1,)


_AS_PLUGIN_2 = (
    "DROP TABLE globalintegers CASCADE",
    "DROP TRIGGER countresourcestracker ON resources",
    "DROP TRIGGER insertedchange ON changes",
    "DROP TRIGGER attachedfileincrementsize ON attachedfiles",
    "DROP TRIGGER attachedfiledecrementsize ON attachedfiles",
    "DROP FUNCTION createinstance, countresourcestrackerfunc, insertedchangefunc",
    "DROP FUNCTION attachedfileincrementsizefunc, attachedfiledecrementsizefunc",
    "DELETE FROM globalproperties WHERE property IN (6, 11, 12, 13)",
    "UPDATE globalproperties SET value = '0' WHERE property = 10",
)
_AS_PLUGIN_3 = (
    "ALTER TABLE metadata DROP revision",
    "ALTER TABLE attachedfiles DROP revision",
    "DROP TABLE serverproperties",
)
_AS_PLUGIN_4 = ("DROP TABLE labels",)


@pytest.mark.parametrize(
    "statements",
    [
        (*_AS_PLUGIN_2, *_AS_PLUGIN_3, *_AS_PLUGIN_4),
        (*_AS_PLUGIN_3, *_AS_PLUGIN_4),
        (*_AS_PLUGIN_3, *_AS_PLUGIN_4, "DELETE FROM globalproperties WHERE property = 4"),
        _AS_PLUGIN_4,
    ],
)
def test_the_layouts_before_plugin_5(fresh: db.Target, statements: tuple[str, ...]) -> None:
    target = at(fresh, 1)
    with db.session(target) as conn:
        before = indexstate.state(conn)
    run(target, *statements)
    step(target, "UnknownToRev1.sql")
    with db.session(target) as conn:
        require_revision(conn, 1)
        after = indexstate.state(conn)
        assert after["last change"] in (before["last change"], [(before["changes"][-1][0],)])
        same = before.keys() - {"labels", "server properties", "metadata", "attachments", "last change"}
        assert [part for part in same if before[part] != after[part]] == []
        for part in ("metadata", "attachments"):
            assert [row[:-1] for row in after[part]] == [row[:-1] for row in before[part]]
        walk(conn, 1, CURRENT)
        require_revision(conn, CURRENT)
        assert indexstate.differing(after, indexstate.state(conn)) == []


def test_plugin_4_needs_no_step_of_its_own(fresh: db.Target) -> None:
    target = at(fresh, 1)
    run(target, *_AS_PLUGIN_4)
    step(target, "Rev1ToRev2.sql")
    with db.session(target) as conn:
        require_revision(conn, 2)


def test_what_the_plugin_upgraded_in_between_is_kept_as_well(fresh: db.Target) -> None:
    """Then an earlier downgrade has kept something already, and both come back: the new behind or over the old."""
    target = at(fresh, 6)
    with db.session(target) as conn:
        before = indexstate.state(conn)
        walk(conn, 6, 4)
        names = kept(conn)
        with conn, conn.cursor() as cur:
            cur.execute("CREATE SCHEMA aside")
            for name in names:
                cur.execute(f"ALTER TABLE {name} SET SCHEMA aside")
        walk(conn, 4, 6)
        with conn, conn.cursor() as cur:
            for name in names:
                cur.execute(f"ALTER TABLE aside.{name} SET SCHEMA public")
            cur.execute("INSERT INTO keyvaluestores VALUES ('store0', 'key2', 'new'), ('new', 'new', 'new')")
            cur.execute("INSERT INTO queues (queueid, value) VALUES ('queue1', 'new'), ('queue1', 'newer')")
            cur.execute("INSERT INTO auditlogs VALUES ('2030-01-01', 'plugin', 'new', 0, '', '', NULL)")
            cur.execute("UPDATE attachedfiles SET customdata = 'new' WHERE uuid = 'uuid-200-1'")
        walk(conn, 6, 4)
        walk(conn, 4, 6)
        require_revision(conn, 6)
        assert kept(conn) == []
        after = indexstate.state(conn)
        assert [row[1:] for row in after["queues"]] == [
            *(row[1:] for row in before["queues"]), ("queue1", "new"), ("queue1", "newer"),
        ]  # fmt: skip
        assert set(before["key-value stores"]) ^ set(after["key-value stores"]) == {
            ("store0", "key2", "value2"), ("store0", "key2", "new"), ("new", "new", "new"),
        }  # fmt: skip
        assert after["audit logs"][:-1] == before["audit logs"]
        assert after["audit logs"][-1][2] == "new"
        assert len(set(before["custom data"]) ^ set(after["custom data"])) == 2
        assert after["recycling"] == before["recycling"]


def test_everything_belongs_to_the_owner_of_the_index(fresh: db.Target, role: str) -> None:
    target = at(fresh, CURRENT)
    run(
        target,
        f"ALTER SCHEMA public OWNER TO {role}",
        f"""DO $$ DECLARE name text; BEGIN
            FOR name IN SELECT oid::regclass FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
                LOOP EXECUTE format('ALTER TABLE %s OWNER TO {role}', name); END LOOP;
            FOR name IN SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_language l ON l.oid = prolang
                    WHERE pronamespace = 'public'::regnamespace AND lanname = 'plpgsql'
                LOOP EXECUTE format('ALTER FUNCTION %s OWNER TO {role}', name); END LOOP;
        END $$""",
        f"ALTER SEQUENCE patientrecyclingordersequence OWNER TO {role}",
    )
    with db.session(target) as conn, conn.cursor() as cur:
        walk(conn, CURRENT, 1)
        walk(conn, 1, CURRENT)
        cur.execute("SELECT current_user <> %s", (role,))
        assert cur.fetchone() == (True,)
        cur.execute(
            """SELECT relname FROM pg_class
                   WHERE relnamespace = 'public'::regnamespace AND pg_get_userbyid(relowner) <> %(role)s
               UNION ALL SELECT proname FROM pg_proc p JOIN pg_language l ON l.oid = prolang
                   WHERE pronamespace = 'public'::regnamespace AND lanname = 'plpgsql'
                       AND pg_get_userbyid(proowner) <> %(role)s""",
            {"role": role},
        )
        assert cur.fetchall() == []
