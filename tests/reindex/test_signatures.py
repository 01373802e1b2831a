"""What the signatures of an index say, and what the Housekeeper is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, dicom, reindex
from pgorthanc_cli.reindex.model import ALL_LEVELS, INSTANCE
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import drop_database, rows
from tests.support.schemas import run as execute

PROFILE = dicom.Profile(extra_main_dicom_tags={"Study": ["PatientAge"], "Series": ["KVP"]})
# As the Housekeeper of 1.13.0 writes it.
RECORD = {
    "CurrentlyProcessingConfiguration": None,
    "LastChangeToProcess": -1,
    "LastProcessedChange": -1,
    "LastProcessedConfiguration": {
        "DicomWebVersion": "",
        "IngestTranscoding": "",
        "MainDicomTagsSignature": {"Instance": "1", "Patient": "2", "Series": "3", "Study": "4"},
        "OrthancVersion": "1.13.0",
        "StorageCompressionEnabled": False,
    },
    "LastTimeStarted": "20261125T231447.477255",
    "Version": 1,
}


@pytest.fixture(scope="module")
def imported(
    admin: Connection, server_dsn: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The name of a database with 4 instances, and their area."""
    name, folder = f"pgorthanc_signatures_{os.getpid()}", tmp_path_factory.mktemp("signatures")
    with admin.cursor() as cur:
        cur.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    target = db.Target(make_dsn(server_dsn, dbname=name))
    import_files(target, samples.folder(folder / "in", 4, per_series=2), folder / "area")
    yield name, folder / "area"
    drop_database(admin, name)


@pytest.fixture
def fresh(imported: tuple[str, Path], new_database: Callable[..., db.Target]) -> db.Target:
    """A copy of the database."""
    return new_database(imported[0])


@pytest.fixture
def area(imported: tuple[str, Path]) -> Path:
    """The area, which a test must not change."""
    return imported[1]


def record(target: db.Target, server: str, document: object) -> None:
    text = json.dumps(document).replace("'", "''")
    execute(target, f"INSERT INTO serverproperties VALUES ('{server}', 1025, '{text}')")


def recorded(target: db.Target) -> dict[str, dict[str, object]]:
    found = rows(target, "SELECT server, value FROM serverproperties WHERE property = 1025")
    return {server: json.loads(value) for server, value in found}


def test_a_check_counts_each_resource_by_its_own_signature(fresh: db.Target, area: Path) -> None:
    assert reindex.check(fresh, dicom.Profile()).outdated == 0
    execute(
        fresh,
        """DELETE FROM metadata WHERE type = 15 AND id =
               (SELECT min(internalid) FROM resources WHERE resourcetype = 3)""",
    )
    found = reindex.check(fresh, PROFILE)
    counts = {
        each.level: (each.resources, each.other_signature, each.without_signature) for each in found.levels
    }
    assert counts == {"patient": (2, 0, 0), "study": (2, 2, 0), "series": (2, 2, 0), "instance": (4, 0, 1)}
    missing = {(each.level, each.name): each.resources for each in found.missing}
    assert missing["study", "PatientAge"] == missing["series", "KVP"] == 2
    assert missing["instance", "SOPInstanceUID"] == 1
    reindex.reindex(fresh, reindex.Settings(area, PROFILE, jobs=1))
    assert reindex.check(fresh, PROFILE).outdated == 0


def test_a_check_of_signatures_that_levels_share(fresh: db.Target) -> None:
    execute(fresh, "UPDATE metadata SET value = '0008,0018' WHERE type = 15 AND id > 1")
    first_instance = "(SELECT min(internalid) FROM resources WHERE resourcetype = 3)"
    execute(fresh, f"UPDATE metadata SET value = NULL WHERE type = 15 AND id = {first_instance}")
    found = {each.level: each for each in reindex.check(fresh, dicom.Profile()).levels}
    assert [(each.resources, each.without_signature) for each in found.values()] == [
        (2, 0), (2, 0), (2, 0), (4, 1)
    ]  # fmt: skip
    signatures = """SELECT count(*) FROM resources JOIN metadata ON id = internalid
                    WHERE type = 15 AND value = '0008,0018'"""
    for number, level in enumerate(found):
        [(expected,)] = rows(fresh, f"{signatures} AND resourcetype = {number}")
        assert found[level].other_signature == expected


def test_the_housekeeper_is_told_when_everything_was_done(fresh: db.Target, area: Path) -> None:
    record(fresh, "ours", RECORD)
    settings = reindex.Settings(area, PROFILE, jobs=1)
    above = reindex.Settings(area, PROFILE, jobs=1, levels=ALL_LEVELS - {INSTANCE})
    assert reindex.reindex(fresh, above).housekeeper == ""
    assert recorded(fresh) == {"ours": RECORD}
    assert reindex.reindex(fresh, settings).housekeeper == "updated"
    after = recorded(fresh)["ours"]
    last = after["LastProcessedConfiguration"]
    assert isinstance(last, dict)
    signatures = last.pop("MainDicomTagsSignature")
    assert signatures["Study"].split(";")[-1] == "0032,1060"
    assert "0010,1010" in signatures["Study"]
    assert signatures.keys() == {"Patient", "Study", "Series", "Instance"}
    expected = {**RECORD["LastProcessedConfiguration"]}  # type: ignore[dict-item]
    del expected["MainDicomTagsSignature"]
    assert last == expected
    assert {k: v for k, v in after.items() if k != "LastProcessedConfiguration"} == {
        k: v for k, v in RECORD.items() if k != "LastProcessedConfiguration"
    }
    assert reindex.reindex(fresh, settings).housekeeper == "up-to-date"


def test_the_housekeeper_is_not_told_what_is_not_certain(fresh: db.Target, area: Path) -> None:
    settings = reindex.Settings(area, PROFILE, jobs=1)
    assert reindex.reindex(fresh, settings).housekeeper == "absent"
    record(fresh, "ours", {**RECORD, "CurrentlyProcessingConfiguration": {"OrthancVersion": "1.13.0"}})
    assert reindex.reindex(fresh, settings).housekeeper == "busy"
    record(fresh, "other", {**RECORD, "Version": 2})
    assert reindex.reindex(fresh, settings).housekeeper == "several"
    named = reindex.Settings(area, PROFILE, jobs=1, server="other")
    assert reindex.reindex(fresh, named).housekeeper == "unknown"
    gone = "00000000-0000-0000-0000-000000000000"
    execute(fresh, f"UPDATE attachedfiles SET uuid = '{gone}' WHERE id = (SELECT max(id) FROM attachedfiles)")
    result = reindex.reindex(fresh, settings)
    assert (len(result.unreadable), result.housekeeper) == (1, "")


# --- repairs --------------------------------------------------------------------------------

ODD = "  a_b%c\tÄé\u0001z  "


def identifiers(target: db.Target) -> list[tuple[object, ...]]:
    return rows(target, "SELECT * FROM dicomidentifiers ORDER BY id, taggroup, tagelement")


def test_identifiers_are_made_from_the_tags(fresh: db.Target, area: Path) -> None:
    right = identifiers(fresh)
    assert reindex.repair(fresh, "identifiers", dicom.Profile()).changes == ()
    execute(
        fresh,
        "UPDATE dicomidentifiers SET value = 'x' WHERE taggroup = 16 AND tagelement = 16",
        "DELETE FROM dicomidentifiers WHERE taggroup = 32",
    )
    wrong = identifiers(fresh)
    rehearsal = reindex.repair(fresh, "identifiers", dicom.Profile(), dry_run=True)
    assert identifiers(fresh) == wrong
    done = reindex.repair(fresh, "identifiers", dicom.Profile())
    assert rehearsal.changes == done.changes
    assert done.rows_changed == {"patient": 2, "study": 2, "series": 2, "instance": 0}
    assert identifiers(fresh) == right
    # In SQL as in Python.
    text = ODD.replace("'", "''")
    execute(fresh, f"UPDATE maindicomtags SET value = '{text}' WHERE taggroup = 16 AND tagelement = 16")
    reindex.repair(fresh, "identifiers", dicom.Profile())
    found = rows(fresh, "SELECT DISTINCT value FROM dicomidentifiers WHERE taggroup = 16 AND tagelement = 16")
    assert found == [(dicom.normalized(ODD),)]


def test_studies_get_the_tags_of_their_patient(fresh: db.Target, area: Path) -> None:
    tags = "SELECT * FROM maindicomtags ORDER BY id, taggroup, tagelement"
    right, searched = rows(fresh, tags), identifiers(fresh)
    of_a_study = "id = (SELECT min(internalid) FROM resources WHERE resourcetype = 1) AND taggroup = 16"
    execute(
        fresh,
        f"UPDATE maindicomtags SET value = 'Somebody^Else' WHERE {of_a_study} AND tagelement = 16",
        f"UPDATE dicomidentifiers SET value = 'SOMEBODY^ELSE' WHERE {of_a_study} AND tagelement = 16",
    )
    assert reindex.repair(fresh, "patients", dicom.Profile(), dry_run=True).rows_changed["study"] == 1
    done = reindex.repair(fresh, "patients", dicom.Profile())
    assert [(each.level, each.table, each.name, each.different) for each in done.changes] == [
        ("study", "dicomidentifiers", "PatientName", 1),
        ("study", "maindicomtags", "PatientName", 1),
    ]
    assert (rows(fresh, tags), identifiers(fresh)) == (right, searched)
    assert reindex.repair(fresh, "patients", dicom.Profile()).changes == ()
