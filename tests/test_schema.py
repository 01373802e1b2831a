"""The functions and triggers of the index, called as the plugin calls them (SCHEMA.md 6 and 7)."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2 import errorcodes, errors, sql
from psycopg2.extensions import ISOLATION_LEVEL_SERIALIZABLE, make_dsn
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db, revision

PATIENT, STUDY, SERIES, INSTANCE = range(4)
SCHEMA = 'Or th"anc'
TREE = ("p", "p.s", "p.s.e", "p.s.e.i")


class Session:
    """A session of the plugin: each call is a transaction of its own, unless `conn.autocommit` is off."""

    def __init__(self, target: db.Target) -> None:
        self.conn = db.connect(target, autocommit=True)
        self.create_temporary_tables()

    def rows(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        with self.conn.cursor() as cur:
            cur.execute(query, arguments or None)
            return cur.fetchall() if cur.description else []

    def value(self, query: str, *arguments: object) -> Any:
        return self.rows(query, *arguments)[0][0]

    def create_temporary_tables(self) -> None:
        self.rows("SELECT createdeletedfilestemporarytable()")

    def create(self, *public_ids: str | None) -> dict[str, int | None]:
        """Create an instance; the public ids stand for themselves and their ancestors."""
        with self.conn.cursor() as cur:
            cur.execute("SELECT * FROM createinstance(%s, %s, %s, %s)", public_ids)
            row = cur.fetchone()
            assert row
            assert cur.description
            return dict(zip((column.name for column in cur.description), row, strict=True))

    def instance(self, path: str) -> dict[str, int | None]:
        """Create an instance by its path: `p.s.e.i` lies in `p.s.e`, and so on."""
        return self.create(*itertools.accumulate(path.split("."), "{}.{}".format))

    def id(self, public_id: str) -> int:
        return int(self.value("SELECT internalid FROM resources WHERE publicid = %s", public_id))

    def attach(self, resource: int, kind: int, size: int | None) -> None:
        values = (resource, kind, f"uuid-{resource}-{kind}", size, size and 2 * size)
        self.rows(
            "INSERT INTO attachedfiles VALUES (%s, %s, %s, %s, %s, 1, 'md5', 'md5', 0, 'custom')", *values
        )

    def delete(self, public_id: str) -> tuple[int | None, str | None]:
        kind, parent = self.rows("SELECT * FROM deleteresource(%s)", self.id(public_id))[0]
        return kind, parent

    def public_ids(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT publicid FROM resources ORDER BY 1")]

    def deleted(self) -> list[tuple[int, str]]:
        return [(kind, name) for kind, name in self.rows("SELECT * FROM deletedresources ORDER BY 1, 2")]

    def statistics(self) -> tuple[int, ...]:
        """Patients, studies, series, instances, compressed and uncompressed size, brought up to date."""
        return self.rows("SELECT * FROM updatestatistics()")[0]

    def statistics_read_only(self) -> tuple[int, ...]:
        keys = (2, 3, 4, 5, 0, 1)
        return tuple(self.value("SELECT * FROM computestatisticsreadonly(%s)", key) for key in keys)

    def child_counts(self) -> dict[str, int | None]:
        return dict(self.rows("SELECT publicid, childcount FROM resources WHERE resourcetype < 3"))

    def metadata(self, resource: int, kind: int) -> str | None:
        found = self.rows("SELECT value FROM metadata WHERE id = %s AND type = %s", resource, kind)
        return found[0][0] if found else None


@pytest.fixture(scope="module")
def template(admin: Connection, server_dsn: str) -> Iterator[db.Target]:
    """An index that the tests clone; what works in a schema of this name works in public."""
    name = f"pgorthanc_template_{os.getpid()}"
    target = db.Target(make_dsn(server_dsn, dbname=name), schema=SCHEMA)
    with admin.cursor() as cur:
        cur.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with db.session(target, need_schema=False) as conn:
        with conn.cursor() as cur:
            cur.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
        revision.init(conn, schema=SCHEMA)
    yield target
    with admin.cursor() as cur:
        cur.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


Open = Callable[[], Session]


@pytest.fixture
def sessions(template: db.Target, new_database: Callable[[str], db.Target]) -> Iterator[Open]:
    """Opens sessions on one new index."""
    clone = new_database(db.parse(template.dsn)["dbname"])
    target = db.Target(clone.dsn, schema=template.schema)
    opened: list[Session] = []

    def open_one() -> Session:
        opened.append(Session(target))
        return opened[-1]

    yield open_one
    for session in opened:
        session.conn.close()


@pytest.fixture
def plugin(sessions: Open) -> Session:
    """A session on a new index."""
    return sessions()


def flags(created: dict[str, int | None]) -> tuple[int | None, ...]:
    return tuple(value for name, value in created.items() if name.startswith("is_new"))


def test_a_new_instance_brings_its_ancestors(plugin: Session) -> None:
    created = plugin.instance("p.s.e.i")

    assert list(created) == [
        "is_new_patient", "is_new_study", "is_new_series", "is_new_instance",
        "patient_internal_id", "study_internal_id", "series_internal_id", "instance_internal_id",
    ]  # fmt: skip
    assert flags(created) == (1, 1, 1, 1)
    rows = plugin.rows(
        "SELECT resourcetype, publicid, parentid, childcount FROM resources ORDER BY resourcetype"
    )
    ids = [created[f"{level}_internal_id"] for level in ("patient", "study", "series", "instance")]
    assert rows == [(n, TREE[n], ids[n - 1] if n else None, 0) for n in range(4)]
    assert [plugin.id(name) for name in TREE] == ids


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("p.s.e.i", (0, 0, 0, 0)),
        ("p.s.e.j", (0, 0, 0, 1)),
        ("p.s.f.i", (0, 0, 1, 1)),
        ("p.t.e.i", (0, 1, 1, 1)),
        ("q.s.e.i", (1, 1, 1, 1)),
    ],
)
def test_only_what_is_missing_is_new(plugin: Session, path: str, new: tuple[int, ...]) -> None:
    plugin.instance("p.s.e.i")

    created = plugin.instance(path)

    assert flags(created) == new
    names = list(itertools.accumulate(path.split("."), "{}.{}".format))
    assert list(created.values())[4:] == [plugin.id(name) for name in names]


def test_a_known_series_keeps_its_ancestors(plugin: Session) -> None:
    plugin.instance("p.s.e.i")
    plugin.instance("q.s.e.i")

    created = plugin.create("q", "unknown", "p.s.e", "new")

    assert flags(created) == (0, 0, 0, 1)
    assert created["study_internal_id"] is None
    assert created["patient_internal_id"] == plugin.id("q")
    assert plugin.value("SELECT parentid FROM resources WHERE publicid = 'new'") == plugin.id("p.s.e")
    assert "unknown" not in plugin.public_ids()


@pytest.mark.parametrize(
    ("public_ids", "sqlstate"),
    [
        ((None, "s", "e", "i"), errorcodes.NOT_NULL_VIOLATION),
        (("p", None, "e", "i"), errorcodes.NOT_NULL_VIOLATION),
        (("p", "s", None, "i"), errorcodes.NOT_NULL_VIOLATION),
        (("p", "s", "e", None), errorcodes.NOT_NULL_VIOLATION),
        (("x" * 65, "s", "e", "i"), errorcodes.STRING_DATA_RIGHT_TRUNCATION),
        (("p", "s", "e", "x" * 65), errorcodes.STRING_DATA_RIGHT_TRUNCATION),
        (("unknown", "p.s", "p.s.e", "new"), errorcodes.NOT_NULL_VIOLATION),
    ],
)
def test_a_bad_identifier_creates_nothing(
    plugin: Session, public_ids: tuple[str | None, ...], sqlstate: str
) -> None:
    plugin.instance("p.s.e.i")
    before = plugin.public_ids()

    with pytest.raises(psycopg2.Error) as failure:
        plugin.create(*public_ids)

    assert failure.value.pgcode == sqlstate
    assert plugin.public_ids() == before


def test_the_recycling_order_follows_the_newest_instance(plugin: Session) -> None:
    def order() -> list[str]:
        query = "SELECT publicid FROM metadata JOIN resources ON internalid = id WHERE type = 19 ORDER BY value::bigint"
        return [row[0] for row in plugin.rows(query)]

    for path in ("p.s.e.i", "q.s.e.i", "p.s.e.i"):
        plugin.instance(path)
    assert order() == ["p", "q"]
    plugin.instance("p.s.e.j")
    assert order() == ["q", "p"]

    plugin.rows("SELECT protectpatient(%s)", plugin.id("q"))
    plugin.rows("SELECT protectpatient(%s)", plugin.id("q"))
    assert plugin.metadata(plugin.id("q"), 18) == "true"
    plugin.rows("SELECT unprotectpatient(%s)", plugin.id("q"))
    assert plugin.metadata(plugin.id("q"), 18) is None
    assert order() == ["p", "q"]


@pytest.mark.parametrize("function", ["protectpatient", "unprotectpatient", "patientaddedorupdated"])
def test_an_unknown_patient_is_refused(plugin: Session, function: str) -> None:
    with pytest.raises(errors.ForeignKeyViolation):
        plugin.rows(f"SELECT {function}(-1)")


UPSERT = "SELECT insertorupdatemetadata(%s::bigint[], %s::integer[], %s::text[], %s::integer[])"


def test_metadata_of_many_resources_at_once(plugin: Session) -> None:
    created = plugin.instance("p.s.e.i")
    p, i = created["patient_internal_id"], created["instance_internal_id"]

    plugin.rows(UPSERT, [p, i, p], [7, 7, 7], ["first", "other", "last"], [0, 0, 3])
    plugin.rows(UPSERT, [i], [7], ["again"], [1])
    plugin.rows(UPSERT, [p, i], [8, 8], ["only"], [0])

    found = plugin.rows("SELECT id, type, value, revision FROM metadata WHERE type < 18 ORDER BY 1, 2")
    assert found == [(p, 7, "last", 3), (p, 8, "only", 0), (i, 7, "again", 1), (i, 8, None, None)]


@pytest.mark.parametrize(
    ("arguments", "sqlstate"),
    [
        (([], [], [], []), "22004"),
        ((None, [1], ["v"], [0]), "22004"),
        (([-1], [1], ["v"], [0]), errorcodes.FOREIGN_KEY_VIOLATION),
    ],
)
def test_metadata_that_is_refused(plugin: Session, arguments: tuple[object, ...], sqlstate: str) -> None:
    with pytest.raises(psycopg2.Error) as failure:
        plugin.rows(UPSERT, *arguments)
    assert failure.value.pgcode == sqlstate


@pytest.mark.parametrize(
    ("others", "victim", "parent", "gone"),
    [
        (["p.s.e.j"], "p.s.e.i", (SERIES, "p.s.e"), 1),
        (["p.s.f.i"], "p.s.e.i", (None, None), 2),
        (["p.s.f.i"], "p.s.e", (STUDY, "p.s"), 2),
        (["p.t.e.i"], "p.s.e", (None, None), 3),
        (["p.t.e.i"], "p.s", (PATIENT, "p"), 3),
        (["q.s.e.i"], "p", (None, None), 4),
        ([], "p.s.e.i", (None, None), 4),
    ],
)
def test_deleting_takes_descendants_and_childless_ancestors(
    plugin: Session, others: list[str], victim: str, parent: tuple[int | None, str | None], gone: int
) -> None:
    for other in others:
        plugin.instance(other)
    kept = plugin.public_ids()
    instance = plugin.instance("p.s.e.i")["instance_internal_id"]
    assert instance
    plugin.attach(instance, 1, 100)

    assert plugin.delete(victim) == parent

    assert plugin.public_ids() == kept
    assert plugin.deleted() == [(level, TREE[level]) for level in range(4 - gone, 4)]
    columns = (
        "uuid, filetype, compressedsize, uncompressedsize, compressiontype, uncompressedhash, compressedhash"
    )
    assert plugin.rows(f"SELECT {columns}, revision, convert_from(customdata, 'UTF8') FROM deletedfiles") == [
        (f"uuid-{instance}-1", 1, 100, 200, 1, "md5", "md5", 0, "custom")
    ]
    assert plugin.rows("SELECT * FROM attachedfiles") == []


def test_the_temporary_tables_hold_the_last_deletion_only(plugin: Session) -> None:
    plugin.instance("p.s.e.i")
    plugin.instance("q.s.e.i")
    plugin.rows("SET client_min_messages TO error")

    plugin.delete("p")
    plugin.delete("q.s.e.i")

    assert {name for _, name in plugin.deleted()} == {"q", "q.s", "q.s.e", "q.s.e.i"}
    assert plugin.value("SHOW client_min_messages") == "error"


def test_deleting_what_is_not_there(plugin: Session) -> None:
    with pytest.raises(errors.NotNullViolation):
        plugin.rows("SELECT * FROM deleteresource(-1)")


def test_deleting_one_attachment(plugin: Session) -> None:
    instance = plugin.instance("p.s.e.i")["instance_internal_id"]
    assert instance
    plugin.attach(instance, 1, 10)
    plugin.attach(instance, 1024, 20)

    plugin.rows("SELECT deleteattachment(%s, 1024)", instance)
    assert plugin.value("SELECT uuid FROM deletedfiles") == f"uuid-{instance}-1024"
    plugin.rows("SELECT deleteattachment(%s, 1024)", instance)

    assert plugin.rows("SELECT * FROM deletedfiles") == []
    assert plugin.statistics()[4:] == (10, 20)


def test_attachments_need_the_temporary_table(plugin: Session) -> None:
    instance = plugin.instance("p.s.e.i")["instance_internal_id"]
    assert instance
    plugin.attach(instance, 1, 10)
    plugin.rows("DISCARD TEMP")

    with pytest.raises(errors.UndefinedTable, match='relation "deletedfiles" does not exist'):
        plugin.rows("DELETE FROM attachedfiles")

    plugin.delete("p")
    assert plugin.value("SELECT count(*) FROM deletedfiles") == 1


def test_statistics(plugin: Session) -> None:
    for path in ("p.s.e.i", "p.s.e.j", "p.s.f.i", "q.s.e.i"):
        instance = plugin.instance(path)["instance_internal_id"]
        assert instance
        plugin.attach(instance, 1, 100)
    plugin.attach(plugin.id("p"), 1024, None)
    plugin.delete("p.s.f")

    assert plugin.statistics_read_only() == (2, 2, 2, 3, 300, 600)
    assert plugin.statistics() == (2, 2, 2, 3, 300, 600)
    assert plugin.rows("SELECT * FROM globalintegerschanges") == []
    assert plugin.statistics_read_only() == (2, 2, 2, 3, 300, 600)


def test_statistics_are_readable_on_a_standby(plugin: Session) -> None:
    plugin.instance("p.s.e.i")
    plugin.rows("SET default_transaction_read_only TO on")

    assert plugin.statistics_read_only() == (1, 1, 1, 1, 0, 0)


def test_a_backlog_of_statistics_is_worked_off_in_portions(plugin: Session) -> None:
    plugin.rows("INSERT INTO globalintegerschanges (key, value) SELECT 5, 1 FROM generate_series(1, 25000)")

    totals = [plugin.value("SELECT updatesinglestatistic(5)") for _ in range(4)]

    assert totals == [10000, 20000, 25000, 25000]


def test_without_its_counter_a_statistic_keeps_its_deltas(plugin: Session) -> None:
    plugin.instance("p.s.e.i")
    plugin.rows("DELETE FROM globalintegers WHERE key = 5")

    assert plugin.value("SELECT updatesinglestatistic(5)") is None
    assert plugin.value("SELECT computestatisticsreadonly(5)") is None
    assert plugin.value("SELECT sum(value) FROM globalintegerschanges WHERE key = 5") == 1


def test_the_last_change_never_goes_back(plugin: Session) -> None:
    instance = plugin.instance("p.s.e.i")["instance_internal_id"]
    plugin.rows("INSERT INTO changes VALUES (DEFAULT, 2, %s, 3, 'now')", instance)
    plugin.rows("INSERT INTO changes VALUES (7, 2, %s, 3, 'now')", instance)
    plugin.rows("INSERT INTO changes VALUES (4, 2, %s, 3, 'now')", instance)
    plugin.rows("DELETE FROM changes")

    assert plugin.value("SELECT value FROM globalintegers WHERE key = 6") == 7


def test_child_counts(plugin: Session) -> None:
    for path in ("p.s.e.i", "p.s.e.j", "p.s.f.i"):
        plugin.instance(path)
    assert set(plugin.child_counts().values()) == {0}

    assert plugin.value("SELECT updateinvalidchildcounts()") == 4
    assert plugin.child_counts() == {"p": 1, "p.s": 2, "p.s.e": 2, "p.s.f": 1}
    assert plugin.rows("SELECT * FROM invalidchildcounts") == []

    plugin.delete("p.s.e.i")
    plugin.delete("p.s.f.i")
    assert plugin.value("SELECT updateinvalidchildcounts()") == 2
    assert plugin.child_counts() == {"p": 1, "p.s": 1, "p.s.e": 1}


def test_missing_child_counts_are_filled_in_portions(plugin: Session) -> None:
    for path in ("p.s.e.i", "p.s.e.j", "q.s.e.i"):
        plugin.instance(path)
    plugin.rows("UPDATE resources SET childcount = NULL")

    assert [plugin.value("SELECT computemissingchildcount(4)") for _ in range(3)] == [4, 2, 0]
    assert plugin.child_counts() == {"p": 1, "p.s": 1, "p.s.e": 2, "q": 1, "q.s": 1, "q.s.e": 1}
    assert plugin.value("SELECT count(*) FROM resources WHERE childcount IS NULL") == 3
    with pytest.raises(psycopg2.Error) as failure:
        plugin.rows("SELECT computemissingchildcount(-1)")
    assert failure.value.pgcode == errorcodes.INVALID_ROW_COUNT_IN_LIMIT_CLAUSE


# --- two sessions at once ------------------------------------------------------------------------------------


@contextmanager
def waiting(watcher: Session, session: Session, query: str, *arguments: object) -> Iterator[Future[Any]]:
    """Run a query in another session, and come back when it waits for a lock; then the block lets it go on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(session.rows, query, *arguments)
        pause = threading.Event()
        state = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s"
        while not future.done() and watcher.value(state, session.conn.info.backend_pid) != "Lock":
            pause.wait(0.005)
        assert not future.done(), future.result()
        yield future


CREATE = "SELECT * FROM createinstance(%s, %s, %s, %s)"


def test_the_second_creator_of_a_resource_finds_that_of_the_first(sessions: Open) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    one.conn.autocommit = False
    first = one.instance("p.s.e.i")
    with waiting(watcher, two, CREATE, *TREE) as second:
        one.conn.commit()
    assert second.result() == [(0, 0, 0, 0, *list(first.values())[4:])]


def test_the_second_creator_takes_over_when_the_first_gives_up(sessions: Open) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    one.conn.autocommit = False
    one.instance("p.s.e.i")
    with waiting(watcher, two, CREATE, *TREE) as second:
        one.conn.rollback()
    assert second.result()[0][:4] == (1, 1, 1, 1)
    assert watcher.statistics()[:4] == (1, 1, 1, 1)


def test_serializable_sessions_do_not_create_twice(sessions: Open) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    for session in (one, two):
        session.conn.autocommit = False
        session.conn.set_isolation_level(ISOLATION_LEVEL_SERIALIZABLE)
    one.instance("p.s.e.i")
    with waiting(watcher, two, CREATE, *TREE) as second:
        one.conn.commit()
    assert isinstance(second.exception(), errors.SerializationFailure)


def test_different_patients_do_not_wait_for_each_other(sessions: Open) -> None:
    one, two = sessions(), sessions()
    one.conn.autocommit = False
    one.instance("p.s.e.i")
    assert flags(two.instance("q.s.e.i")) == (1, 1, 1, 1)
    one.conn.rollback()


DELETE = "SELECT * FROM deleteresource(%s)"


@pytest.mark.parametrize(
    ("paths", "kept"),
    [
        (("p.s.e.i", "p.s.e.j"), []),
        (("p.s.e.i", "p.s.f.i"), []),
        (("p.s.e.i", "p.t.e.i"), []),
        (("p.s.e.i", "p.t.e.i", "p.t.e.j"), ["p", "p.t", "p.t.e", "p.t.e.j"]),
    ],
)
def test_deleting_siblings_at_once_leaves_no_childless_ancestor(
    sessions: Open, paths: tuple[str, ...], kept: list[str]
) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    for path in paths:
        one.instance(path)
    second_victim = one.id(paths[1])
    one.conn.autocommit = False
    one.delete(paths[0])
    if kept:
        two.delete(paths[1])
        one.conn.commit()
    else:
        with waiting(watcher, two, DELETE, second_victim) as second:
            one.conn.commit()
        assert second.result() == [(None, None)]
    assert watcher.public_ids() == kept


def test_creating_in_a_series_that_is_being_deleted(sessions: Open) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    one.instance("p.s.e.i")
    one.conn.autocommit = False
    one.delete("p.s.e")
    with waiting(watcher, two, CREATE, *TREE[:3], "p.s.e.j") as second:
        one.conn.commit()
    assert isinstance(second.exception(), errors.ForeignKeyViolation)
    assert watcher.public_ids() == []


def test_deleting_a_series_that_gets_a_new_instance(sessions: Open) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    one.instance("p.s.e.i")
    victim = one.id("p.s.e.i")
    one.conn.autocommit = False
    one.instance("p.s.e.j")
    with waiting(watcher, two, DELETE, victim) as second:
        one.conn.commit()
    assert second.result() == [(SERIES, "p.s.e")]
    assert watcher.public_ids() == ["p", "p.s", "p.s.e", "p.s.e.j"]


def test_deleting_the_same_resource_twice(sessions: Open) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    one.instance("p.s.e.i")
    victim = one.id("p.s.e.i")
    one.conn.autocommit = False
    one.delete("p.s.e.i")
    with waiting(watcher, two, DELETE, victim) as second:
        one.conn.commit()
    assert isinstance(second.exception(), errors.NotNullViolation)


def test_statistics_brought_up_to_date_twice_at_once_count_once(sessions: Open) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    one.instance("p.s.e.i")
    one.conn.autocommit = False
    one.statistics()
    watcher.instance("q.s.e.i")
    with waiting(watcher, two, "SELECT * FROM updatestatistics()"):
        one.conn.commit()
    assert watcher.statistics()[:4] == (2, 2, 2, 2)


def test_child_counts_of_locked_resources_are_left_for_later(sessions: Open) -> None:
    one, two = sessions(), sessions()
    one.instance("p.s.e.i")
    one.conn.autocommit = False
    one.rows("SELECT FROM resources WHERE publicid = 'p.s' FOR UPDATE")

    assert two.value("SELECT updateinvalidchildcounts()") == 2
    assert two.child_counts() == {"p": 1, "p.s": 0, "p.s.e": 1}
    one.conn.commit()
    assert two.value("SELECT updateinvalidchildcounts()") == 1
    assert two.child_counts() == {"p": 1, "p.s": 1, "p.s.e": 1}


def test_missing_child_counts_do_not_overwrite_newer_ones(sessions: Open) -> None:
    one, two, watcher = sessions(), sessions(), sessions()
    one.instance("p.s.e.i")
    one.rows("UPDATE resources SET childcount = NULL WHERE publicid = 'p.s.e'")
    one.conn.autocommit = False
    one.rows("UPDATE resources SET childcount = 7 WHERE publicid = 'p.s.e'")
    with waiting(watcher, two, "SELECT computemissingchildcount(50)") as second:
        one.conn.commit()
    assert second.result() == [(0,)]
    assert watcher.child_counts()["p.s.e"] == 7


# --- what the plugin does with an index ----------------------------------------------------------------------


def test_the_life_of_an_instance(plugin: Session) -> None:
    """Store, find, read and delete, by the statements that the plugin sends (positional inserts included)."""
    created = plugin.instance("p.s.e.i")
    series, instance = created["series_internal_id"], created["instance_internal_id"]
    assert instance
    plugin.rows(
        "INSERT INTO maindicomtags VALUES (%s, 8, 24, '1.2.3'), (%s, 32, 19, '1')", instance, instance
    )
    plugin.rows(
        "INSERT INTO dicomidentifiers VALUES (%s, 8, 24, '1.2.3'), (%s, 32, 14, '1.2')", instance, series
    )
    plugin.rows(UPSERT, [instance, instance], [2, 9], ["20260101T000000", "1.2.840.10008.1.2.1"], [0, 0])
    plugin.attach(instance, 1, 1000)
    plugin.rows("INSERT INTO changes VALUES (DEFAULT, 2, %s, 3, '20260101T000000')", instance)
    plugin.rows("INSERT INTO labels VALUES (%s, 'seen') ON CONFLICT DO NOTHING", instance)
    plugin.rows(
        "INSERT INTO exportedresources VALUES (DEFAULT, 3, 'p.s.e.i', 'PACS', 'P', 'S', 'E', 'I', 'now')"
    )
    plugin.rows("INSERT INTO keyvaluestores VALUES ('store', 'key', 'value')")
    plugin.rows("INSERT INTO queues VALUES (DEFAULT, 'queue', 'value')")
    plugin.rows("INSERT INTO serverproperties VALUES ('server', 5, '{}')")
    plugin.rows(
        "INSERT INTO auditlogs (sourceplugin, userid, resourcetype, resourceid, action) VALUES ('', '', 3, '', '')"
    )

    found = plugin.rows(
        """SELECT r.internalid, r.publicid FROM dicomidentifiers d JOIN resources r ON r.internalid = d.id
           WHERE d.taggroup = 8 AND d.tagelement = 24 AND d.value = '1.2.3' AND r.resourcetype = 3"""
    )
    assert found == [(instance, "p.s.e.i")]
    assert plugin.metadata(instance, 9) == "1.2.840.10008.1.2.1"
    assert plugin.rows("SELECT * FROM maindicomtags WHERE id = %s ORDER BY 2", instance) == [
        (instance, 8, 24, "1.2.3"),
        (instance, 32, 19, "1"),
    ]
    attachment = plugin.rows(
        "SELECT uuid, uncompressedsize, revision FROM attachedfiles WHERE id = %s", instance
    )
    assert attachment == [(f"uuid-{instance}-1", 2000, 0)]
    assert plugin.value("SELECT value FROM globalintegers WHERE key = 6") == plugin.value(
        "SELECT seq FROM changes"
    )
    assert plugin.statistics() == (1, 1, 1, 1, 1000, 2000)

    assert plugin.delete("p.s.e.i") == (None, None)

    assert plugin.statistics() == (0, 0, 0, 0, 0, 0)
    for table in ("resources", "maindicomtags", "dicomidentifiers", "metadata", "changes", "labels"):
        assert plugin.rows(f"SELECT * FROM {table}") == []
    plugin.rows("SELECT updateinvalidchildcounts()")
    assert plugin.rows("SELECT * FROM invalidchildcounts") == []
