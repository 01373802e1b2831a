"""The functions and triggers of the index, called as the plugin calls them (SCHEMA.md 6 and 7)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg2
import pytest
from psycopg2 import errorcodes, errors

from pgorthanc_cli import db
from tests.support.plugin import PATIENT, SERIES, STUDY, TREE, Session, flags, opening


@pytest.fixture
def plugin(fresh: db.Target) -> Iterator[Session]:
    """A session on a new index."""
    with opening(fresh) as open_one:
        yield open_one()


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
