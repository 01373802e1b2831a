"""In databases and under settings of every encoding, text is stored and read as the real Orthanc does it."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.server import embedded
from tests.interop.archive import Archive
from tests.interop.orthanc import Program
from tests.support import samples
from tests.support.schemas import run
from tests.support.text_places import FRENCH, JAPANESE, MIXED, STORED, Place, create, stored

pytestmark = pytest.mark.interop
TEXTS = (FRENCH, JAPANESE, MIXED)
FAILS = 503  # of a text that the database cannot hold, Orthanc says that the transaction should be retried


def dicom(number: int, text: str) -> bytes:
    return samples.instance(
        f"P{number}", f"1.{number}", f"1.{number}.1", SpecificCharacterSet="ISO_IR 192", InstitutionName=text
    )


@pytest.mark.parametrize("place", STORED, ids=str)
def test_the_same_bytes(
    program: Program, database_server: embedded.RunningServer, tmp_path: Path, place: Place
) -> None:
    server, name = database_server, "text_place"
    with embedded.attach(Path(server.directory), superuser=True) as admin:
        create(admin.dsn, name, place, owner=server.role)
        try:
            target = db.Target(make_dsn(server.dsn, dbname=name))
            section = {**server.orthanc["PostgreSQL"], "Database": name, "EnableStorage": False}
            check(Archive(program, tmp_path, target, section, {}), place)
        finally:
            run(admin, f"DROP DATABASE {name} WITH (FORCE)")


def check(archive: Archive, place: Place) -> None:
    expected = {text: raw for text, raw in zip(TEXTS, STORED[place], strict=True) if raw is not None}
    archive.done("init", "--revision", "1")
    files = []
    for number, text in enumerate(TEXTS):
        files.append(archive.folder / f"{number}.dcm")
        files[-1].write_bytes(dicom(number, text))
    result = archive.pgorthanc(
        "import", "--json", "--orthanc-version", archive.program.version(), "--jobs", "1", *files
    )
    assert json.loads(result.stdout)["imported"] == len(expected)
    imported = stored(archive.target)
    assert imported == set(expected.values())
    with archive.orthanc() as rest:
        assert {
            rest.get(f"/studies/{s}")["MainDicomTags"]["InstitutionName"] for s in rest.get("/studies")
        } == set(expected)
        for text in expected:
            assert len(rest.find("Study", InstitutionName=text)) == 1
        for study in rest.get("/studies"):
            rest.delete(f"/studies/{study}")
        assert stored(archive.target) == set()
        for number, text in enumerate(TEXTS, 10):
            if text in expected:
                rest.post("/instances", dicom(number, text))
            else:
                with pytest.raises(urllib.error.HTTPError) as refused:
                    rest.post("/instances", dicom(number, text))
                assert refused.value.code == FAILS
                rest.refused.append(text.encode())
        assert stored(archive.target) == imported
