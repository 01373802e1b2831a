"""Counters, numbers of children and the recycling order after an import: with the triggers, and without them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db, doctor, index, ingest
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.schema import catalog
from tests.support import samples
from tests.support.importing import check_area, dumped, ends, run
from tests.support.real_servers import wait_until
from tests.support.schemas import REVISIONS, as_role, init
from tests.support.schemas import run as run_sql

# Somebody's own trigger: it has to fire, so none is switched off.
OWN_TRIGGER = (
    "CREATE TABLE seen (id bigint)",
    """CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO seen VALUES (NEW.internalid); RETURN NULL; END$$""",
    "CREATE TRIGGER mine AFTER INSERT ON resources FOR EACH ROW EXECUTE FUNCTION see()",
)


def value(conn: Connection, query: str) -> Any:
    with conn, conn.cursor() as cur:
        cur.execute(query)
        ((result,),) = cur.fetchall()
        return result


def check(target: db.Target) -> None:
    """What SCHEMA.md 5 says of every index, counted anew."""
    with db.session(target) as conn:
        layout = index.Capabilities.read(conn)
        for key, truth in enumerate(
            [
                *(
                    f"SELECT sum({column}) FROM attachedfiles"
                    for column in ("compressedsize", "uncompressedsize")
                ),
                *(f"SELECT count(*) FROM resources WHERE resourcetype = {level}" for level in range(4)),
                "SELECT max(seq) FROM changes",
            ]
        ):
            counted = value(conn, f"SELECT value FROM globalintegers WHERE key = {key}")
            if layout.statistics_deltas:
                counted += value(
                    conn, f"SELECT coalesce(sum(value), 0) FROM globalintegerschanges WHERE key = {key}"
                )
            assert counted == value(conn, truth), key
        if layout.child_counts:
            marked = (
                "false" if layout.direct_child_counts else "internalid IN (SELECT id FROM invalidchildcounts)"
            )
            wrong = f"""SELECT count(*) FROM resources p WHERE NOT {marked} AND childcount IS DISTINCT FROM
                        (SELECT count(*) FROM resources c WHERE c.parentid = p.internalid)"""
            assert value(conn, wrong) == 0
        if layout.recycling_table:
            twice = "SELECT count(*) - count(DISTINCT patientid) FROM patientrecyclingorder"
            assert value(conn, twice) == 0


def lives(target: db.Target, folder: Path) -> list[tuple[int, int, int, int]]:
    """New patients; one is protected; more of each; everything again, over the old."""
    first = samples.folder(folder / "first", 12, patients=3, per_series=2)
    more = samples.folder(folder / "more", 24, patients=3, per_series=4)
    results = [ends(run(target, first, folder / "area"))]
    with db.session(target) as conn, conn, conn.cursor() as cur:
        cur.execute("SELECT internalid FROM resources WHERE resourcetype = 0 ORDER BY internalid LIMIT 1")
        if index.Capabilities.read(conn).recycling_table:
            cur.execute("DELETE FROM patientrecyclingorder WHERE patientid = %s", cur.fetchone())
        else:
            cur.execute("SELECT protectpatient(%s)", cur.fetchone())
    results.append(ends(run(target, [*more, *more[:3]], folder / "area", batch_files=5)))
    results.append(ends(run(target, more, folder / "area", overwrite=index.Overwrite.ALWAYS, batch_files=5)))
    check(target)
    check_area(target, folder / "area")
    return results


def owned(target: db.Target, role: str) -> db.Target:
    """The database, as a role that owns the index and is no superuser."""
    run_sql(target, f"GRANT ALL ON SCHEMA public TO {role}")
    return as_role(target, role)


def triggers(target: db.Target) -> tuple[dict[int, str], set[str]]:
    """The last transaction that switched each trigger, and what they are set to."""
    with db.session(target) as conn:
        rows = db.rows(conn, "SELECT oid, xmin::text, tgenabled FROM pg_trigger WHERE NOT tgisinternal")
    return {oid: xmin for oid, xmin, _ in rows}, {enabled for _, _, enabled in rows}


@pytest.mark.parametrize("revision", REVISIONS)
def test_with_and_without_triggers(
    new_database: Callable[..., db.Target], tmp_path: Path, role: str, revision: int
) -> None:
    without, with_ = new_database(), new_database()
    for target in (without, with_):
        init(target, revision=revision)
    run_sql(with_, *OWN_TRIGGER)
    with db.session(without) as conn:
        assert index.Capabilities.read(conn).triggers_off
    with db.session(with_) as conn:
        assert not index.Capabilities.read(conn).triggers_off
    lives_with = lives(with_, tmp_path / "with")
    assert lives(without, tmp_path / "without") == lives_with
    assert dumped(without) == dumped(with_)
    if revision in (1, 3, catalog.newest()):
        ours = owned(new_database(), role)
        init(ours, revision=revision)
        before, _ = triggers(ours)
        assert lives(ours, tmp_path / "owner") == lives_with
        assert dumped(ours) == dumped(with_)
        after, enabled = triggers(ours)
        # Row triggers were off, and are on again.
        assert after.keys() == before.keys()
        assert not after.items() & before.items()
        assert enabled == {"O"}
    with db.session(with_) as conn:
        assert value(conn, "SELECT count(*) >= (SELECT count(*) FROM resources) FROM seen")
    with db.session(without) as conn:
        assert value(conn, "SELECT current_setting('session_replication_role')") == "origin"


def test_a_role_that_may_not_switch_triggers_off(fresh: db.Target, role: str) -> None:
    ours = db.Target(f"{fresh.dsn} options='-c role={role}'")
    run_sql(fresh, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    with db.session(ours) as conn:
        assert not index.Capabilities.read(conn).triggers_off
    with db.session(fresh) as conn:
        modern = conn.server_version >= 150000
    if modern:
        run_sql(fresh, f"GRANT SET ON PARAMETER session_replication_role TO {role}")
        try:
            with db.session(ours) as conn:
                assert index.Capabilities.read(conn).triggers_off
        finally:
            run_sql(fresh, f"REVOKE SET ON PARAMETER session_replication_role FROM {role}")


def test_an_owner_switches_triggers_off_only_while_nobody_else_works(
    empty: db.Target, tmp_path: Path, role: str
) -> None:
    ours = owned(empty, role)
    init(ours)
    before, _ = triggers(ours)
    files = samples.folder(tmp_path / "in", 4)
    # Others write meanwhile: an Orthanc might.
    assert run(ours, files[:1], tmp_path / "area", concurrent=True).imported == 1
    # Somebody works on a table, such as autovacuum: nobody waits for the other.
    with db.session(db.Target(empty.dsn, application="other")) as conn, conn.cursor() as cur:
        cur.execute("LOCK TABLE changes IN SHARE UPDATE EXCLUSIVE MODE")
        assert run(ours, files[1:2], tmp_path / "area").imported == 1
    assert triggers(ours)[0] == before
    # Somebody has added a trigger since the import began.
    with db.session(ours) as conn, conn, conn.cursor() as cur:
        writer = index.Writer(conn, exclusive=True)
        run_sql(ours, *OWN_TRIGGER)
        with writer.triggers.off(cur) as are_off:
            assert not are_off
    run_sql(ours, "DROP TRIGGER mine ON resources")
    # A batch fails in the middle.
    with pytest.raises(PgOrthancError, match="division"), db.session(ours) as conn, conn.cursor() as cur:
        with index.Writer(conn, exclusive=True).triggers.off(cur) as are_off:
            assert are_off
            cur.execute("SELECT 1 / 0")
    assert triggers(ours) == (before, {"O"})
    assert run(ours, files, tmp_path / "area").imported == 2
    after, enabled = triggers(ours)
    assert after != before
    assert enabled == {"O"}
    check(ours)
    [rights] = doctor.examine(ours, ["rights"]).checks
    assert "row triggers off, but not those of foreign keys" in rights.message


@pytest.mark.parametrize("statements", [(), OWN_TRIGGER], ids=["without triggers", "with triggers"])
def test_a_series_that_is_deleted_while_it_gets_an_instance(
    fresh: db.Target, tmp_path: Path, statements: tuple[str, ...]
) -> None:
    """The batch waits for the deletion, as a foreign key would, and is then written again, series and all."""
    run_sql(fresh, *statements)
    one, two = samples.folder(tmp_path / "in", 2)
    run(fresh, [one], tmp_path / "area", concurrent=True)
    reports: list[ingest.ImportResult] = []
    work = threading.Thread(
        target=lambda: reports.append(run(fresh, [two], tmp_path / "area", concurrent=True))
    )
    with db.session(db.Target(fresh.dsn, application="other")) as conn, conn.cursor() as cur:
        cur.execute("SELECT uuid FROM attachedfiles")
        ((old,),) = cur.fetchall()
        cur.execute("SELECT deleteresource(internalid) FROM resources WHERE resourcetype = 0")
        work.start()
        wait_until(lambda: _somebody_waits(fresh))
        conn.commit()
    work.join()
    assert ends(reports[0]) == (1, 0, 0, 0)
    (tmp_path / "area" / old[:2] / old[2:4] / old).unlink()  # as Orthanc would
    check(fresh)
    check_area(fresh, tmp_path / "area")
    assert [row[1] for row in sorted(dumped(fresh)["resources"], key=lambda row: row[1])] == [0, 1, 2, 3]


def _somebody_waits(target: db.Target) -> bool:
    with db.session(target, readonly=True) as conn:
        query = """SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock')"""
        return bool(value(conn, query))


@pytest.mark.parametrize("revision", [1, 2, 10])
def test_two_imports_at_once(empty: db.Target, tmp_path: Path, revision: int) -> None:
    """Both import the same files from both ends: no duplicate, no lost row, right counters, at every revision."""
    init(empty, revision=revision)
    files = samples.folder(tmp_path / "in", 60, patients=3)
    reports: list[ingest.ImportResult] = []

    def work(order: int) -> None:
        reports.append(run(empty, files[::order], tmp_path / "area", concurrent=True, batch_files=5))

    threads = [threading.Thread(target=work, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.imported for report in reports) == 60
    assert sum(report.known for report in reports) == 60
    public_ids = [row[0] for row in dumped(empty)["resources"]]
    assert len(public_ids) == len(set(public_ids)) == 60 + 12 + 3 + 3
    check(empty)
    check_area(empty, tmp_path / "area")
