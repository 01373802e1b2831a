"""The functions of the revisions below 6, called as the plugin calls them (SCHEMA.md 6 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from psycopg2 import errors

from pgorthanc_cli import db
from tests.support.plugin import SERIES, STUDY, TREE, Session, flags, opening, waiting
from tests.support.stepwalk import at


class OldSession(Session):
    """At revision 1 the tables of what was deleted are permanent."""

    def create_temporary_tables(self) -> None:
        if self.rows("SELECT to_regprocedure('createdeletedfilestemporarytable()')") != [(None,)]:
            super().create_temporary_tables()
            self.rows("CREATE TEMPORARY TABLE deletedresources (resourcetype integer, publicid text)")


Sessions = Callable[[int], list[Session]]


@pytest.fixture
def sessions(fresh: db.Target) -> Iterator[Sessions]:
    """Three sessions on an empty index of a revision."""
    with ExitStack() as stack:

        def open_three(number: int) -> list[Session]:
            open_one = stack.enter_context(opening(at(fresh, number, filled=False), OldSession))
            return [open_one() for _ in range(3)]

        yield open_three


BELOW_6 = (2, 3, 4, 5)


@pytest.mark.parametrize("number", BELOW_6)
def test_only_what_is_missing_is_new(sessions: Sessions, number: int) -> None:
    plugin, *_ = sessions(number)

    first = plugin.instance("p.s.e.i")

    assert flags(first) == (1, 1, 1, 1)
    assert flags(plugin.instance("p.s.f.i")) == (0, 0, 1, 1)
    again = plugin.instance("p.s.e.i")
    assert flags(again) == (0, 0, 0, 0)
    assert list(again.values())[4:] == list(first.values())[4:]
    assert plugin.statistics()[:4] == (1, 1, 2, 2)


@pytest.mark.parametrize("number", BELOW_6)
@pytest.mark.parametrize(
    ("other", "victim", "parent", "gone"),
    [
        ("p.s.e.j", "p.s.e.i", (SERIES, "p.s.e"), 1),
        ("p.s.f.i", "p.s.e", (STUDY, "p.s"), 2),
        ("p.s.f.i", "p.s.e.i", (None, None), 2),
        ("q.s.e.i", "p.s", (None, None), 4),
    ],
)
def test_deleting_takes_descendants_and_childless_ancestors(
    sessions: Sessions, number: int, other: str, victim: str, parent: tuple[int | None, str | None], gone: int
) -> None:
    plugin, *_ = sessions(number)
    plugin.instance(other)
    kept = plugin.public_ids()
    plugin.instance("p.s.e.i")

    assert plugin.delete(victim) == parent

    assert plugin.public_ids() == kept
    assert plugin.deleted() == [(level, TREE[level]) for level in range(4 - gone, 4)]
    assert plugin.rows("SELECT * FROM deleteresource(-1)") == [(None, None)]
    assert plugin.deleted() == []


@pytest.mark.parametrize("number", [1, *BELOW_6])
@pytest.mark.parametrize("second", ["p.s.e.j", "p.s.f.i", "p.t.e.i"])
def test_deleting_siblings_at_once_leaves_no_childless_ancestor(
    sessions: Sessions, number: int, second: str
) -> None:
    one, two, watcher = sessions(number)
    one.instance("p.s.e.i")
    one.instance(second)
    delete = "DELETE FROM resources WHERE publicid = %s"
    one.conn.autocommit = False
    one.rows(delete, "p.s.e.i")
    with waiting(watcher, two, delete, second) as deleted:
        one.conn.commit()
    assert deleted.result() == []
    assert watcher.public_ids() == []


@pytest.mark.parametrize("number", BELOW_6)
def test_two_sessions_that_store_for_one_patient(sessions: Sessions, number: int) -> None:
    one, two, watcher = sessions(number)
    for path in ("p.s.e.i", "q.s.e.i"):
        one.instance(path)
    one.conn.autocommit = False
    one.instance("p.s.e.j")
    with waiting(watcher, two, "SELECT createinstance('p', 'p.t', 'p.t.e', 'p.t.e.i')"):
        one.conn.commit()
    query = "SELECT publicid FROM patientrecyclingorder JOIN resources ON internalid = patientid ORDER BY seq"
    assert watcher.rows(query) == [("q",), ("p",)]


@pytest.mark.parametrize("number", [1, *BELOW_6])
def test_a_protected_patient_stays_protected(sessions: Sessions, number: int) -> None:
    plugin, *_ = sessions(number)
    plugin.instance("p.s.e.i")
    plugin.rows("DELETE FROM patientrecyclingorder")
    plugin.instance("p.s.e.j")
    assert plugin.rows("SELECT * FROM patientrecyclingorder") == []


@pytest.mark.parametrize("first", ["count", "store"])
def test_a_number_of_children_is_right_whoever_comes_first(sessions: Sessions, first: str) -> None:
    """At revision 3, where nothing marks it as out of date."""
    one, two, watcher = sessions(3)
    one.instance("p.s.e.i")
    one.rows("UPDATE resources SET childcount = NULL")
    calls = ["SELECT computemissingchildcount(50)", "SELECT createinstance('p', 'p.s', 'p.s.e', 'p.s.e.j')"]
    if first == "store":
        calls.reverse()
    one.conn.autocommit = False
    one.rows(calls[0])
    with waiting(watcher, two, calls[1]):
        one.conn.commit()
    assert watcher.child_counts() == {"p": 1, "p.s": 1, "p.s.e": 2}


# --- revision 1 ----------------------------------------------------------------------------------------------


def test_creating_at_revision_1(sessions: Sessions) -> None:
    plugin, *_ = sessions(1)

    first = plugin.instance("p.s.e.i")

    assert list(first)[:4] == ["isnewpatient", "isnewstudy", "isnewseries", "isnewinstance"]
    assert list(first.values())[:4] == [1, 1, 1, 1]
    assert list(plugin.instance("p.s.f.i").values())[:4] == [0, 0, 1, 1]
    assert list(plugin.instance("p.s.e.i").values()) == [None] * 3 + [0] + [None] * 3 + [first["instancekey"]]
    with pytest.raises(errors.RaiseException, match="Broken invariant"):
        plugin.create("unknown", "p.s", "new", "new")
    with pytest.raises(errors.RaiseException, match="Broken invariant"):
        plugin.create("p", "unknown", "p.s.e", "new")


def test_counters_and_deletions_at_revision_1(sessions: Sessions) -> None:
    plugin, *_ = sessions(1)
    for path in ("p.s.e.i", "p.s.f.i"):
        plugin.instance(path)
    plugin.rows("INSERT INTO attachedfiles SELECT internalid, 1, publicid, NULL, 7 FROM resources")
    counters = "SELECT value FROM globalintegers WHERE key < 6 ORDER BY key"
    assert plugin.rows(counters) == [(0,), (42,), (1,), (1,), (2,), (2,)]

    plugin.rows("DELETE FROM resources WHERE publicid = 'p.s.e.i'")

    assert plugin.rows(counters) == [(0,), (28,), (1,), (1,), (1,), (1,)]
    assert plugin.rows("SELECT * FROM remainingancestor") == [(STUDY, "p.s")]
    assert plugin.deleted() == [(SERIES, "p.s.e"), (SERIES + 1, "p.s.e.i")]
    assert plugin.rows("SELECT uuid FROM deletedfiles ORDER BY 1") == [("p.s.e",), ("p.s.e.i",)]
