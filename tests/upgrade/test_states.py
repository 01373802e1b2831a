"""The states in which other tools leave an index (UPSTREAM_DEFECTS.md): `upgrade` works from each."""

from __future__ import annotations

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import steps
from tests.support import indexstate
from tests.support.schemas import CURRENT, rows, run
from tests.upgrade.changing import (
    Filled,
    connected,
    invoke,
    require_revision,
    run_downgrade,
    run_upgrade,
    state,
)

BEFORE_REVISIONS = (
    "ALTER TABLE metadata DROP revision",
    "ALTER TABLE attachedfiles DROP revision",
    "DROP TABLE labels, serverproperties",
)
_WITHOUT_PREPARE_INDEX = (
    "DROP TABLE auditlogs",
    "DROP FUNCTION protectpatient, unprotectpatient, deleteattachment, createinstance",
    "DROP INDEX invalidchildcountsid",
)


def stamp(number: int | None) -> str:
    if number is None:
        return "DELETE FROM globalproperties WHERE property = 4"
    return f"UPDATE globalproperties SET value = '{number}' WHERE property = 4"


def function(head: str, body: str = "NULL;") -> str:
    return f"CREATE OR REPLACE FUNCTION {head} LANGUAGE plpgsql AS $$ BEGIN {body} END $$"


# A name from UPSTREAM_DEFECTS, the revision at which the state is made, and what makes it.
STATES: dict[str, tuple[int, tuple[str, ...]]] = {
    "A1 official 10 to 6": (6, ("ALTER TABLE queues ADD reserveduntil bigint",)),
    "A2 official 6 to 5": (
        5,
        (
            function("patientaddedorupdated(patient_id bigint) RETURNS void"),
            "CREATE INDEX invalidchildcountsid ON invalidchildcounts (id)",
            "DELETE FROM globalproperties WHERE property = 11",
        ),
    ),
    "A2 official 6 to 3": (
        3,
        (
            function("patientaddedorupdated(patient_id bigint) RETURNS void"),
            "CREATE TABLE invalidchildcounts (id bigint REFERENCES resources ON DELETE CASCADE,"
            " updatedat timestamp DEFAULT now())",
            "INSERT INTO invalidchildcounts (id) SELECT internalid FROM resources LIMIT 3",
            function("updateinvalidchildcounts(OUT updated_rows_count bigint)"),
            "DELETE FROM globalproperties WHERE property = 11",
        ),
    ),
    "A3 5 to 6 without PrepareIndex": (6, (stamp(5), *_WITHOUT_PREPARE_INDEX)),
    "A3 1 to 6 without PrepareIndex": (6, (stamp(1), *_WITHOUT_PREPARE_INDEX)),
    "A3 6 to 10 without PrepareIndex": (10, (stamp(6),)),
    "A3 1 to 2 run again": (4, ("DROP FUNCTION createinstance", stamp(2))),
    "A3 5 to 6 run again": (6, ("DROP FUNCTION patientaddedorupdated(bigint)",)),
    "B1 lost statistics": (1, ("UPDATE globalintegers SET value = value + 33 WHERE key < 6",)),
    "B2 the serial is behind": (1, ("SELECT setval('patientrecyclingorder_seq_seq', 1)",)),
    "B3 stale counter 7": (2, ("UPDATE globalintegers SET value = 1 WHERE key = 7",)),
    "B3 counter 7 at 10": (10, ("INSERT INTO globalintegers VALUES (7, 700)",)),
    "B6 wrong child counts of 3": (3, ("UPDATE resources SET childcount = 1 WHERE resourcetype = 2",)),
    "B7 plugin 3.3": (1, BEFORE_REVISIONS),
    "B7 plugin 3.3 without a stamp": (1, (*BEFORE_REVISIONS, stamp(None))),
    "B7 plugin 3.3 taken for 1 by plugin 7.2": (4, BEFORE_REVISIONS),
    "B7 plugin 3.3 taken for 1 by plugin 8.0": (5, BEFORE_REVISIONS),
    "B8 a counter is missing": (4, ("DELETE FROM globalintegers WHERE key = 5",)),
    "B9 NULL counters": (1, ("UPDATE globalintegers SET value = NULL WHERE key < 2",)),
    "B10 garbage deltas": (
        10,
        (
            stamp(6),
            "INSERT INTO globalintegerschanges VALUES (-2, 1, NULL), (-3, 1, NULL)",
            function(
                "incrementresourcestrackerfunc() RETURNS trigger",
                "INSERT INTO globalintegerschanges VALUES (NEW.resourcetype + 2, 1); RETURN NULL;",
            ),
        ),
    ),
    "F2 4 to 3 on 2": (2, (stamp(3),)),
    "F2 4 to 3 on 10": (10, (stamp(3),)),
    "F3 10 to 6 on 3": (3, (stamp(6),)),
    "F3 6 to 5 on 10": (
        5,
        (
            "ALTER TABLE globalintegerschanges ADD pk bigserial PRIMARY KEY",
            "ALTER TABLE invalidchildcounts ADD pk bigserial PRIMARY KEY",
            "ALTER TABLE queues ADD reserveduntil bigint",
        ),
    ),
    "F3 5 to 4 on 10": (
        10,
        (stamp(4), "ALTER TABLE attachedfiles DROP customdata", "DROP TABLE queues, keyvaluestores"),
    ),
    "F3 3 to 2 on 5": (
        5,
        (
            stamp(2),
            "DROP TRIGGER incrementchildcount ON resources",
            "DROP TRIGGER decrementchildcount ON resources",
            "DROP FUNCTION updatechildcount, computemissingchildcount",
            "ALTER TABLE resources DROP childcount",
        ),
    ),
    "F3 PrepareIndex of 10 on 6": (6, (stamp(10),)),
    "G2 property 10 is missing": (6, ("DELETE FROM globalproperties WHERE property IN (10, 13)",)),
    "G5 rows without a patient": (
        1,
        ("INSERT INTO patientrecyclingorder (patientid) VALUES (NULL), (NULL)",),
    ),
    "G5 a patient twice": (
        1,
        ("INSERT INTO patientrecyclingorder (patientid) SELECT max(patientid) FROM patientrecyclingorder",),
    ),
    "G6 renamed foreign key": (
        5,
        ("ALTER TABLE resources RENAME CONSTRAINT resources_parentid_fkey TO of_an_administrator",),
    ),
    "G9 invalid index": (
        2,
        (
            "CREATE INDEX childrenindex2 ON resources (parentid) INCLUDE (publicid, internalid)",
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'childrenindex2'::regclass",
        ),
    ),
    "H orphan function": (4, (function("countresourcestrackerfunc() RETURNS trigger", "RETURN NULL;"),)),
    "H official 3 to 2": (
        2,
        (
            function("computestatisticsreadonly(statistics_key integer, OUT accumulated_value bigint)"),
            "CREATE INDEX childrenindex2 ON resources (parentid) INCLUDE (publicid, internalid)",
            "CREATE INDEX dicomidentifiersindex3 ON dicomidentifiers (taggroup, tagelement, value)",
            "DROP INDEX childrenindex",
            "INSERT INTO globalproperties VALUES (14, '1')",
        ),
    ),
    "H official 2 to 1": (
        1,
        (
            function("patientaddedorupdated(patient_id bigint, is_update bigint) RETURNS void"),
            "INSERT INTO globalintegers VALUES (7, 3)",
            "INSERT INTO globalproperties VALUES (14, '1')",
        ),
    ),
}
# What such a state has lost by itself.
LOST = {
    "A3 5 to 6 without": {"audit logs"},
    "A3 1 to 6 without": {"audit logs"},
    "B7": {"labels", "server properties", "metadata", "attachments"},
    "F3 5 to 4 on 10": {"custom data", "key-value stores", "queues", "reservations", "next of queues_id_seq"},
}


@pytest.mark.parametrize("name", STATES)
def test_upgrade_works_from_it(filled: Filled, name: str) -> None:
    number, statements = STATES[name]
    target = filled(number)
    before = state(target)
    run(target, *statements)

    run_upgrade(target)

    require_revision(target, CURRENT)
    lost = next((parts for beginning, parts in LOST.items() if name.startswith(beginning)), set())
    assert set(indexstate.differing(before, state(target))) <= lost


def test_it_says_what_it_mended(filled: Filled) -> None:
    target = filled(6)
    run(target, stamp(5), *_WITHOUT_PREPARE_INDEX)
    repaired = run_upgrade(target).repaired
    for words in ("property 4", "table auditlogs", "function createinstance", "index invalidchildcountsid"):
        assert any(words in what for what in repaired), words


def test_the_stamp_alone_is_mended_at_the_newest_revision(filled: Filled) -> None:
    target = filled(CURRENT)
    run(target, stamp(6))
    changed = run_upgrade(target)
    assert (changed.before, changed.revision) == (CURRENT, CURRENT)
    assert any("property 4" in what for what in changed.repaired)
    require_revision(target, CURRENT)


@pytest.mark.parametrize(
    ("number", "statements", "words"),
    [
        (6, ("ALTER TABLE resources ADD note text",), "resources.note"),
        (
            6,
            ("ALTER TABLE invalidchildcounts ADD CONSTRAINT mine CHECK (id > 0)",),
            "invalidchildcounts.mine",
        ),
        (5, ("CREATE VIEW recycling AS SELECT patientid FROM patientrecyclingorder",), "view recycling"),
        (6, ("CREATE VIEW pending AS SELECT * FROM globalintegerschanges",), None),
    ],
)
def test_what_only_an_administrator_can_settle(
    filled: Filled, number: int, statements: tuple[str, ...], words: str | None
) -> None:
    """Refused before anything is done, or no obstacle at all."""
    target = filled(number)
    run(target, *statements)
    before = state(target)
    if words is None:
        assert run_upgrade(target).revision == CURRENT
        return
    with pytest.raises(RevisionError, match=words) as refusal:
        run_upgrade(target)
    assert refusal.value.hint
    assert state(target) == before


def test_a_primary_key_of_an_administrator(filled: Filled) -> None:
    target = filled(6)
    run(
        target,
        "ALTER TABLE globalintegerschanges ADD mine bigserial",
        "ALTER TABLE globalintegerschanges ADD CONSTRAINT mine PRIMARY KEY (mine)",
    )
    with pytest.raises(RevisionError, match="mine"):
        run_upgrade(target)


DUPLICATES = (
    "INSERT INTO resources (resourcetype, publicid) SELECT 0, publicid FROM resources WHERE publicid = 'p1'",
    "INSERT INTO resources (resourcetype, publicid, parentid)"
    " SELECT 1, 'p1.twice', max(internalid) FROM resources WHERE publicid = 'p1'",
)


@pytest.mark.parametrize("phases", [("prepare",), ("switch",), ("prepare", "switch", "finish")])
def test_duplicates_are_refused_and_listed(filled: Filled, phases: tuple[str, ...]) -> None:
    target = filled(1)
    run(target, *DUPLICATES)
    before = state(target)
    with pytest.raises(RevisionError, match=r"more than once.*p1") as refusal:
        run_upgrade(target, phases=phases)
    assert "--repair-duplicates" in (refusal.value.hint or "")
    assert state(target) == before
    assert rows(target, "SELECT FROM pg_index WHERE NOT indisvalid") == []


def test_duplicates_are_merged_when_asked(filled: Filled) -> None:
    target = filled(1)
    run(target, *DUPLICATES)
    changed = run_upgrade(target, repair_duplicates=True)
    assert [duplicate.public_id for duplicate in changed.merged] == ["p1"]
    require_revision(target, CURRENT)
    query = "SELECT p.publicid FROM resources c JOIN resources p ON p.internalid = c.parentid"
    assert rows(target, f"{query} WHERE c.publicid = 'p1.twice'") == [("p1",)]


def test_nothing_is_merged_where_nothing_is_double(filled: Filled) -> None:
    target = filled(1)
    assert run_upgrade(target, repair_duplicates=True).merged == ()
    require_revision(target, CURRENT)


def test_a_script_that_loses_something_is_rolled_back(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = filled(6)
    before = state(target)
    text = steps.text
    for statement, words in (
        ("DELETE FROM labels WHERE label = 'label1'", "rows of labels"),
        ("UPDATE globalintegers SET value = value - 1 WHERE key = 5", "counter of instances"),
        (
            "INSERT INTO metadata SELECT internalid, 18, 'true' FROM resources WHERE publicid = 'p1' "
            "ON CONFLICT DO NOTHING",
            "recycling order",
        ),
        ("DROP INDEX publicindex", "index publicindex is missing"),
    ):
        monkeypatch.setattr(steps, "text", lambda script, s=statement: f"{text(script)};\n{s};")
        with pytest.raises(RevisionError, match=words):
            run_upgrade(target, phases=("switch",))
        assert state(target) == before
    monkeypatch.setattr(steps, "text", text)
    assert run_upgrade(target).revision == CURRENT


def test_the_wrong_direction(filled: Filled) -> None:
    target = filled(6)
    with pytest.raises(RevisionError, match="revision 6, and 5") as refusal:
        run_upgrade(target, to=5)
    assert refusal.value.hint == "run: pgorthanc downgrade --to 5"
    with pytest.raises(RevisionError, match="revision 6, and 10") as refusal:
        run_downgrade(target, 10)
    assert refusal.value.hint == "run: pgorthanc upgrade --to 10"


def test_no_index(empty: db.Target) -> None:
    with pytest.raises(RevisionError, match="holds no Orthanc index"):
        run_upgrade(empty)
    assert invoke("upgrade", "--uri", empty.dsn, "--plan").exit_code == 4


def test_a_session_that_reads_while_duplicates_are_looked_for(filled: Filled) -> None:
    target = filled(1)
    with connected(target) as other, other.cursor() as cur:
        cur.execute("BEGIN; SELECT count(*) FROM resources")
        planned = invoke("upgrade", "--uri", target.dsn, "--plan", "--json")
    assert planned.exit_code == 0
