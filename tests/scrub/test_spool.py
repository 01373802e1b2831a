"""Millions of differences do not need memory: they are looked at group by group, and not all are listed."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.scrub import bulk, model, run, spool
from pgorthanc_cli.scrub.model import Difference, Row
from pgorthanc_cli.scrub.spool import Spool
from tests.scrub.injected import BOTH, FILES, Store, missing, orphan_other, shared
from tests.support import samples
from tests.support.importing import run as import_files


@pytest.fixture
def store(fresh: db.Target, tmp_path: Path) -> Store:
    import_files(fresh, samples.folder(tmp_path / "in", 50), tmp_path / "area")
    return Store(fresh, tmp_path / "area", compress=False)


def test_what_comes_out_is_what_went_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "GROUP", 2)
    row = Row("ab01", 1, 1, 1, "x", 1, "x", 1, memoryview(b"{}"))  # type: ignore[arg-type]
    given = [
        Difference("missing", "why", row),
        Difference("orphan-other", "", None, "AB02", "ab/02/AB02", "instance"),
        Difference("foreign-file", "", None, "", "00/x"),
        Difference("unreadable", "", None, "", "ff"),
    ]
    several = Spool()
    several.extend(given)
    groups = list(several.groups())
    assert [len(group) for group in groups] == [3, 1]
    assert sorted(map(repr, chain(*groups))) == sorted(
        map(repr, [given[0]._replace(row=row._replace(customdata=b"{}")), *given[1:]])
    )
    assert (len(several), list(Spool().groups())) == (4, [])


def test_groups_do_not_change_the_findings(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {damage(store): kind for damage, kind in {**BOTH, **FILES}.items()}
    for size in (10_000, 1):
        monkeypatch.setattr(spool, "GROUP", size)
        report = store.check()
        assert {each.uuid or Path(each.path or "").name: each.kind for each in report.findings} == expected
        assert sum(report.counts.values()) == len(expected)


def test_not_all_are_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MAX_FINDINGS", 2)
    for _ in range(3):
        missing(store), orphan_other(store)
    report = store.check()
    assert report.counts == {"missing": 3, "orphan-other": 3}
    assert [each.kind for each in report.findings] == ["missing"] * 2 + ["orphan-other"] * 2
    assert (report.damaged, report.affected_studies > 0) == (3, True)


@pytest.mark.parametrize("depth", ["exists", "size"])
def test_whole_parts_and_single_rows_give_one_result(
    store: Store, depth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for damage in (*BOTH, *FILES):
        if damage is not shared:
            damage(store)
    for name in ("zz", "00zz", "AB/x"):
        store.update(store.take(), f"uuid = '{name}'")
    compared = []
    compare = bulk.compare

    def observed(*given: Any) -> bulk.Bulk | None:
        compared.append(compare(*given))
        return compared[-1]

    monkeypatch.setattr(bulk, "compare", observed)
    in_bulk = store.check(depth=depth)
    assert compared[0] is not None
    monkeypatch.setattr(bulk, "MAX_DIFFERENCES", 0)
    one_by_one = store.check(depth=depth)
    assert compared[1] is None
    assert in_bulk.findings == one_by_one.findings
    assert in_bulk.counts["invalid-uuid"] == 4
    assert (in_bulk.checked, in_bulk.bytes) == (one_by_one.checked, one_by_one.bytes)
    store.update(store.take(), "uuid = 'with a space'")
    assert store.check(depth=depth).counts["invalid-uuid"] == 5


def test_hashes_of_whole_parts_and_of_single_rows_give_one_result(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for damage in (*BOTH, *FILES):
        damage(store)
    for name in ("zz", "00zz", "AB/x"):
        store.update(store.take(), f"uuid = '{name}'")
    reports = []
    # All parts, none, and those before the differences are too many.
    for part_bytes, most in ((1 << 20, 20_000), (0, 20_000), (1 << 20, 30), (1 << 20, 40)):
        monkeypatch.setattr(run, "_PART_BYTES", part_bytes)
        monkeypatch.setattr(bulk, "MAX_DIFFERENCES", most)
        reports.append(store.check())
    first = reports[0]
    for other in reports[1:]:
        assert other.findings == first.findings
        assert (other.checked, other.bytes, other.without_md5) == (
            first.checked,
            first.bytes,
            first.without_md5,
        )
    store.update(store.take(), "uuid = 'with a space'")
    assert store.check().counts["invalid-uuid"] == first.counts["invalid-uuid"] + 1
