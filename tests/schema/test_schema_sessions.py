"""Two sessions on one index at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg2 import errors
from psycopg2.extensions import ISOLATION_LEVEL_SERIALIZABLE

from pgorthanc_cli import db
from tests.support.plugin import SERIES, TREE, Open, flags, opening, waiting


@pytest.fixture
def sessions(fresh: db.Target) -> Iterator[Open]:
    """Opens sessions on a new index."""
    with opening(fresh) as open_one:
        yield open_one


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
