"""A client that overwrites and deletes instances while `reindex` runs again and again."""

from __future__ import annotations

import random
import threading
import urllib.error
from collections import Counter
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

from pgorthanc_cli import dicom, reindex
from pgorthanc_cli.reindex.model import Decided
from pgorthanc_cli.reindex.write import rows_of
from tests.interop.archive import Archive
from tests.interop.orthanc import Rest
from tests.support import samples
from tests.support.schemas import rows

INSTANCES = 12
Rows = dict[tuple[str, int], str]

_ROWS = """
    SELECT r.publicid, r.resourcetype, t.relation, t.key, t.value FROM resources r JOIN (
        SELECT 'maindicomtags' AS relation, id, taggroup * 65536::bigint + tagelement AS key, value FROM maindicomtags
        UNION ALL SELECT 'dicomidentifiers', id, taggroup * 65536::bigint + tagelement, value FROM dicomidentifiers
        UNION ALL SELECT 'metadata', id, type, value FROM metadata WHERE type IN (9, 10, 15, 16)
    ) t ON t.id = r.internalid"""


@dataclass
class Outcome:
    """What has happened; `problems` must stay empty."""

    actions: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)


def version(number: int, edition: int) -> bytes:
    """An instance of two patients, four series; its editions differ at all levels."""
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = f"9.{edition}"
    return samples.instance(
        f"P{number // 6}", f"1.2.{number // 6}", f"1.2.1.{number // 3}", number + 1,
        StudyDescription=f"d{number} {edition}", SeriesDescription=f"s{number} {edition}",
        PatientSex="MFO"[edition % 3], PatientComments=f"c{edition}", PatientAge=f"{edition:03}Y",
        ReferencedImageSequence=[reference], PixelData=bytes(40_000 + 2 * edition),
    )  # fmt: skip


def storm(
    archive: Archive, rest: Rest, settings: reindex.Settings, editions: int, *, seed: int = 1
) -> Outcome:
    """Reindex while each instance is sent in some editions, and some are deleted; then once in peace."""
    outcome, ended = Outcome(), threading.Event()
    failed: list[BaseException] = []

    def client() -> None:
        chance = random.Random(seed)
        try:
            for edition in range(editions):
                for number in chance.sample(range(INSTANCES), INSTANCES):
                    identifier = rest.upload(version(number, edition))
                    outcome.actions["uploads"] += 1
                    if chance.random() < 0.2:
                        rest.delete(f"/instances/{identifier}")
                        outcome.actions["deletions"] += 1
        except (OSError, urllib.error.HTTPError) as error:
            failed.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=client)
    thread.start()
    while not ended.is_set():
        result = reindex.reindex(archive.target, settings)
        outcome.runs += 1
        outcome.changed += sum(result.rows_changed.values())
        outcome.problems += [f"unreadable: {each.reason}" for each in result.unreadable]
    thread.join()
    outcome.problems += [str(error) for error in failed]
    outcome.problems += mixed(archive, rest, settings, editions)
    reindex.reindex(archive.target, settings)
    outcome.problems += [str(each) for each in reindex.reindex(archive.target, settings).changes]
    return outcome


def mixed(archive: Archive, rest: Rest, settings: reindex.Settings, editions: int) -> list[str]:
    """Resources whose rows are not those that one file alone gives, of an instance: the file that is stored."""
    possible: dict[str, list[Rows]] = {}
    for number in range(INSTANCES):
        for edition in range(editions):
            _add(possible, version(number, edition), settings, range(3))
    for identifier in rest.get("/instances"):
        _add(possible, rest.send("GET", f"/instances/{identifier}/file"), settings, [3])
    actual: dict[str, Rows] = {}
    for public_id, _, relation, key, value in rows(archive.target, _ROWS):
        actual.setdefault(public_id, {})[relation, key] = value
    return [
        f"{public_id}: {values}"
        for public_id, values in actual.items()
        if values not in possible.get(public_id, [])
    ]


def _add(
    possible: dict[str, list[Rows]], content: bytes, settings: reindex.Settings, levels: range | list[int]
) -> None:
    instance = dicom.parse(content, settings.profile)
    for level in levels:
        public_id = instance.levels[level].public_id
        decided = rows_of(Decided(level, 0, public_id), instance, settings)
        possible.setdefault(public_id, []).append(decided.values)
