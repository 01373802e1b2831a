"""A plan without obstacles is followed by a switch that succeeds, and what the switch would refuse is an obstacle."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import InUseError, RevisionError
from pgorthanc_cli.schema import catalog, verify
from tests.support import fillindex
from tests.support.real_servers import Server
from tests.support.schemas import CURRENT, init, rows, run, snapshot
from tests.support.stepwalk import walk
from tests.upgrade.changing import Filled, change, connected, invoke, require_revision, state, until
from tests.upgrade.test_plan import planned

FUNCTION = "CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"


@dataclass(frozen=True)
class Obstacle:
    """What an administrator has done, what the plan says about it, and what removes it."""

    start: int
    to: int
    statements: tuple[str, ...]
    said: str
    remedy: str | None = None  # None: the statement in the plan

    def __str__(self) -> str:
        return f"{self.start}-{self.to}-{self.said}".replace(" ", "_")[:70]


OBSTACLES = [
    Obstacle(6, 10, ("ALTER TABLE resources ADD foo int",), "extra column resources.foo"),
    Obstacle(10, 6, ("ALTER TABLE metadata ADD hospital text DEFAULT 'x' NOT NULL",), "extra column metadata.hospital"),
    Obstacle(10, 4, ("ALTER TABLE resources ADD foo int",), "extra column resources.foo"),
    Obstacle(1, 10, ("ALTER TABLE labels ADD foo int",), "extra column labels.foo"),
    Obstacle(6, 10, ("CREATE TABLE old () INHERITS (resources)",), "table old, which inherits from resources"),
    Obstacle(6, 10, (FUNCTION, "CREATE TRIGGER own BEFORE INSERT ON resources FOR EACH ROW EXECUTE FUNCTION mine()"),
             "extra trigger resources.own"),
    Obstacle(6, 10, ("CREATE RULE own AS ON DELETE TO labels DO ALSO NOTHING",), "extra rule labels.own"),
    Obstacle(6, 10, ("ALTER TABLE labels ADD CONSTRAINT own CHECK (length(label) < 99)",),
             "extra constraint labels.own"),
    Obstacle(6, 10, ("CREATE TABLE k (id bigint PRIMARY KEY)", "INSERT INTO k SELECT internalid FROM resources",
                     "ALTER TABLE metadata ADD CONSTRAINT own FOREIGN KEY (id) REFERENCES k"),
             "extra constraint metadata.own"),
    Obstacle(6, 10, ("CREATE UNIQUE INDEX own ON resources (internalid, publicid)",), "extra index own"),
    Obstacle(6, 10, ("ALTER TABLE resources ENABLE ROW LEVEL SECURITY",), "row level security of resources"),
    Obstacle(6, 10, ("ALTER TABLE resources FORCE ROW LEVEL SECURITY",
                     "ALTER TABLE resources ENABLE ROW LEVEL SECURITY"),
             "row level security of resources"),
    Obstacle(6, 10, ("ALTER TABLE globalintegers ALTER value TYPE integer",), "column globalintegers.value",
             "ALTER TABLE globalintegers ALTER value TYPE bigint"),
    Obstacle(6, 10, ("CREATE PUBLICATION own FOR TABLE globalintegerschanges, invalidchildcounts",),
             "publication own publishes changes of table globalintegerschanges",
             "ALTER TABLE globalintegerschanges REPLICA IDENTITY FULL;"
             "ALTER TABLE invalidchildcounts REPLICA IDENTITY FULL"),
    Obstacle(5, 6, ("CREATE VIEW own AS SELECT * FROM patientrecyclingorder",),
             "view own depends on column patientrecyclingorder.", "DROP VIEW own"),
    Obstacle(5, 6, ("CREATE TABLE own (seq bigint REFERENCES patientrecyclingorder)",),
             "constraint own_seq_fkey on table own depends on", "DROP TABLE own"),
    Obstacle(5, 6, ("CREATE TABLE own (LIKE patientrecyclingorder)", "ALTER TABLE own INHERIT patientrecyclingorder"),
             "table own depends on table patientrecyclingorder", "ALTER TABLE own NO INHERIT patientrecyclingorder"),
    Obstacle(5, 6, ("CREATE TABLE own (entry patientrecyclingorder)",),
             "column entry of table own depends on the row type", "DROP TABLE own"),
    Obstacle(10, 1, ("CREATE MATERIALIZED VIEW own AS SELECT internalid, childcount FROM resources",),
             "materialized view own depends on column resources.childcount", "DROP MATERIALIZED VIEW own"),
    Obstacle(10, 1, ("CREATE TABLE own (id bigint)", "CREATE TRIGGER t AFTER INSERT ON own FOR EACH ROW "
                     "EXECUTE FUNCTION updatechildcount()"),
             "trigger t on table own depends on function updatechildcount", "DROP TABLE own"),
    Obstacle(10, 1, ("CREATE VIEW own AS SELECT s.* FROM updatestatistics() AS s",),
             "view own depends on function updatestatistics", "DROP VIEW own"),
    Obstacle(10, 4, ("CREATE TABLE own (id bigint)", "CREATE POLICY p ON own USING (EXISTS (SELECT FROM queues))"),
             "policy p on table own depends on table queues", "DROP TABLE own"),
]  # fmt: skip
HARMLESS = [
    (6, 10, ("CREATE VIEW own AS SELECT * FROM resources JOIN metadata ON id = internalid",)),
    (6, 10, ("CREATE INDEX own ON changes (date)",)),
    (6, 10, ("CREATE TABLE own (id bigint REFERENCES resources ON DELETE CASCADE)",)),
    (6, 10, ("CREATE PUBLICATION own FOR TABLE resources, metadata",)),
    (5, 6, ("CREATE STATISTICS own ON resourcetype, parentid FROM resources",)),
    (10, 6, ("DROP INDEX publicindex",)),
    (10, 1, ("CREATE VIEW own AS SELECT internalid, publicid FROM resources",)),
    (6, 10, (FUNCTION.replace("mine() RETURNS trigger", "mine(resources) RETURNS int").replace("NEW", "1"),)),
    (6, 10, ("CREATE POLICY own ON resources USING (true)",)),
]


@pytest.mark.parametrize("one", OBSTACLES, ids=str)
def test_what_the_switch_would_refuse_is_an_obstacle(filled: Filled, one: Obstacle) -> None:
    target = filled(one.start)
    run(target, *one.statements)
    before = state(target)

    plan = planned(target, one.to, down=one.to < one.start)
    named = [obstacle for obstacle in plan.blockers if one.said in obstacle.text.replace("public.", "")]

    assert named, plan.obstacles
    with pytest.raises(RevisionError, match=re.escape(one.said)):
        change(target, one.to)
    assert state(target) == before
    run(target, one.remedy or named[0].statements[0])
    assert planned(target, one.to, down=one.to < one.start).obstacles == ()
    assert change(target, one.to).revision == one.to
    assert catalog.deviations(snapshot(target), one.to) == []


@pytest.mark.parametrize(("start", "to", "statements"), HARMLESS)
def test_what_is_no_obstacle_does_not_stop_the_switch(
    filled: Filled, start: int, to: int, statements: tuple[str, ...]
) -> None:
    target = filled(start)
    run(target, *statements)
    assert planned(target, to, down=to < start).obstacles == ()
    assert change(target, to).revision == to


@pytest.mark.parametrize("one", [one for one in OBSTACLES if one.said.startswith("extra")], ids=str)
def test_verify_calls_nothing_harmless_that_blocks(filled: Filled, one: Obstacle) -> None:
    target = filled(one.start)
    run(target, *one.statements)
    with db.session(target, readonly=True) as conn:
        found = verify.schema(conn, target.schema).findings
    name = one.said.removeprefix("extra ")
    [finding] = [finding for finding in found if finding.name == name]
    assert finding.matters or finding.blocks
    assert not str(finding).startswith("harmless")
    if finding.blocks:
        assert (
            str(finding)
            == f"note: extra {name} (not created by the plugin); it blocks upgrades and downgrades"
        )


def test_a_child_table_matters(filled: Filled) -> None:
    target = filled(CURRENT)
    run(target, "CREATE TABLE old () INHERITS (resources)")
    with db.session(target, readonly=True) as conn:
        found = {finding.name: finding for finding in verify.schema(conn, target.schema).findings}
    assert found["child resources.old"].matters
    assert (
        found["child resources.old"].advice
        == "detach it: ALTER TABLE old NO INHERIT resources; or, for a partition, "
        "restore the table from a backup"
    )


# Prepared transactions: no session, and locks all the same


@pytest.fixture(scope="module")
def preparing() -> Iterator[Server]:
    server = Server("local all all trust\n", "max_prepared_transactions = 5\n")
    try:
        yield server.create().start()
    finally:
        server.remove()


@pytest.fixture
def index(preparing: Server) -> Iterator[db.Target]:
    preparing.sql("CREATE DATABASE prepared")
    target = db.Target(make_dsn(preparing.place, dbname="prepared"))
    init(target)
    with db.session(target) as conn:
        walk(conn, CURRENT, 1)
        fillindex.fill(conn)
    yield target
    for (gid,) in rows(
        target, "SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = current_database()"
    ):
        run(target, f"ROLLBACK PREPARED {gid}")
    preparing.sql("DROP DATABASE prepared")


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT"])
def test_a_prepared_transaction_is_named_with_what_ends_it(index: db.Target, end: str) -> None:
    run(
        index,
        "BEGIN; UPDATE resources SET publicid = publicid WHERE internalid = 1; PREPARE TRANSACTION 'it''s mine'",
    )
    [named] = planned(index, CURRENT).obstacles
    assert "prepared transaction 'it''s mine' of role postgres has held locks on the index since " in named
    for phase in ("prepare", "switch"):
        with pytest.raises(RevisionError, match="prepared transaction"):
            change(index, CURRENT, phases=(phase,))
    [statement] = re.findall(rf"{end} PREPARED 'it''s mine'", named)
    run(index, statement)
    assert planned(index, CURRENT).obstacles == ()
    assert change(index, CURRENT).revision == CURRENT


def test_a_prepared_transaction_of_other_tables_is_left_alone(index: db.Target) -> None:
    run(
        index,
        "CREATE TABLE other (id int)",
        "BEGIN; INSERT INTO other VALUES (1); PREPARE TRANSACTION 'other'",
    )
    assert planned(index, CURRENT).obstacles == ()
    assert change(index, CURRENT).revision == CURRENT


def test_a_prepared_transaction_that_comes_while_it_waits_is_named(index: db.Target) -> None:
    """`CREATE INDEX CONCURRENTLY` waits for it for ever, so the progress has to say for what."""
    from pgorthanc_cli import upgrade

    settings = upgrade.Settings(phases=("prepare",))
    with connected(index) as other, other.cursor() as cur, ThreadPoolExecutor(1) as pool:
        cur.execute("BEGIN; UPDATE resources SET publicid = publicid WHERE internalid = 1")
        progress: list[str] = []

        def report(step: upgrade.Progress) -> None:
            progress.append(str(step))

        done = pool.submit(upgrade.upgrade, index, settings=settings, report=report)
        until(lambda: any("waiting for pid" in line and "application Orthanc" in line for line in progress))
        cur.execute("PREPARE TRANSACTION 'late'")
        try:
            until(
                lambda: any(
                    "prepared transaction 'late', until ROLLBACK PREPARED 'late'" in line for line in progress
                )
            )
        finally:
            cur.execute("ROLLBACK PREPARED 'late'")
        done.result()


# Clients that connect again and again


@contextmanager
def reconnecting(target: db.Target, clients: int) -> Iterator[list[int]]:
    """Clients that connect again as soon as they are thrown out, and work with the index: containers that restart."""
    stop, counts = threading.Event(), [0]

    def client() -> None:
        while not stop.wait(0.01):
            with suppress(psycopg2.Error):
                conn = psycopg2.connect(make_dsn(target.dsn, application_name="Orthanc"))
                try:
                    conn.autocommit = True
                    counts[0] += 1
                    with conn.cursor() as cur:
                        while not stop.is_set():
                            cur.execute("SELECT pg_try_advisory_lock(42), pg_try_advisory_lock(43)")
                            cur.execute("SELECT count(*) FROM resources")
                finally:
                    conn.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: counts[0] >= clients)
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_sessions_that_connect_again_do_not_stop_terminate(filled: Filled) -> None:
    target = filled(6)
    with reconnecting(target, 64) as counts:
        changed = change(target, CURRENT, terminate=True, phases=("switch",))
        assert counts[0] > 64
    assert changed.revision == CURRENT
    change(target, CURRENT)
    require_revision(target, CURRENT)


def test_without_terminate_they_do(filled: Filled) -> None:
    target = filled(6)
    with reconnecting(target, 3), pytest.raises(InUseError) as refusal:
        change(target, CURRENT, phases=("switch",))
    assert "--terminate" in (refusal.value.hint or "")


def test_a_lock_of_a_session_that_serves_no_client_is_named(filled: Filled) -> None:
    """Such as autovacuum against a wraparound, which gives way to nobody; here, a background worker of the server."""
    from pgorthanc_cli.upgrade import sessions

    target = filled(6)
    with db.session(target) as conn:
        [(pid,)] = [*rows(target, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")]
        [named] = sessions.sessions_of(conn, [pid])
    assert f"pid {pid}, application checkpointer" in str(named)


def test_the_command_names_the_obstacle(filled: Filled) -> None:
    target = filled(6)
    run(target, "ALTER TABLE resources ADD COLUMN foo int")
    assert "extra column resources.foo" in invoke("upgrade", "--uri", target.dsn, "--plan").stdout
    refused = invoke("upgrade", "--uri", target.dsn)
    assert refused.exit_code == 4
    assert "extra column resources.foo" in refused.stderr
