"""Only some attachments are checked: those of a study, or those that arrived after a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.views import scrub as views
from tests.scrub.injected import Store, orphan_other
from tests.scrub.test_journal import age
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import rows
from tests.support.schemas import run as execute


@pytest.fixture(params=["files", "large objects"])
def store(request: pytest.FixtureRequest, fresh: db.Target, tmp_path: Path) -> Store:
    """Two studies of ten instances each, and a file that no row names."""
    area = tmp_path / "area" if request.param == "files" else None
    import_files(fresh, samples.folder(tmp_path / "in", 20), area)
    store = Store(fresh, area, compress=False)
    orphan_other(store)
    return store


def studies(store: Store) -> list[str]:
    return [study for (study,) in rows(store.target, "SELECT publicid FROM resources WHERE resourcetype = 1")]


@pytest.mark.parametrize("depth", ["exists", "size", "hash", "identity"])
def test_a_study(store: Store, depth: str) -> None:
    first, second = studies(store)
    report = store.check(studies=(first,), depth=depth)
    assert (report.attachments, report.checked, report.counts) == (10, 10, {})
    assert store.check(studies=(first, second), depth=depth).checked == 20
    query = f"""SELECT a.uuid FROM attachedfiles a JOIN resources i ON i.internalid = a.id
        JOIN resources e ON e.internalid = i.parentid JOIN resources s ON s.internalid = e.parentid
        WHERE s.publicid = '{first}' LIMIT 1"""
    ((uuid,),) = rows(store.target, query)
    if store.area:
        store.path(uuid).unlink()
    else:
        execute(store.target, f"DELETE FROM storagearea WHERE uuid = '{uuid}'")
    assert store.check(studies=(first,), depth=depth).counts == {"missing": 1}
    assert store.check(studies=(second,), depth=depth).counts == {}


def test_a_study_that_does_not_exist(store: Store) -> None:
    with pytest.raises(UsageError, match="no study x"):
        store.check(studies=("x",))


def test_what_arrived_after_a_change(store: Store, tmp_path: Path) -> None:
    ((last,),) = rows(store.target, "SELECT max(seq) FROM changes")
    nothing = store.check(since=last)
    assert (nothing.attachments, nothing.partial, store.check().partial) == (0, True, False)
    assert "no attachment is selected" in views.page(nothing, views.Commands()).headline
    import_files(store.target, samples.folder(tmp_path / "more", 3, first=50), store.area)
    journal = tmp_path / "scrub.db"
    assert store.check(journal=journal).checked == 23
    age(journal, 10)
    report = store.check(since=last, journal=journal)
    assert (report.attachments, report.checked, report.counts) == (3, 3, {})
    # The checks of the others are not forgotten.
    assert store.check(journal=journal, max_age_s=86_400).skipped_recent == 23
