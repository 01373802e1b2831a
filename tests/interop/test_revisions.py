"""The real Orthanc opens at revision 1 what has been at revision 10, with everything in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import files, lifecycle
from tests.interop.archive import Archive
from tests.interop.files import Dicom
from tests.support.schemas import run

pytestmark = pytest.mark.interop

# Among the patients are five that are numbers; the second and the fourth are protected.
HELD = [*files.real(), *(file for number in "12345" for file in files.patient(number, 2, 1, 2))]
PROTECTED = sorted(files.patient(number)[0].ids[0] for number in "24")
# One more study of the first of them, which then is the last to be given up.
AGAIN = files.patient("1", 3, 1, 1)[2:]


def go(archive: Archive, command: str, revision: int) -> None:
    """To another revision: nothing that import or Orthanc decides changes, and nothing is lacking afterwards."""
    before = archive.dump(exact=True)
    archive.done(command, "--to", str(revision), "--yes")
    assert archive.done("status")["revision"] == revision
    archive.done("verify schema", "--deep")
    assert archive.dump(exact=True) == before


def check_order_and_work(archive: Archive, held: list[Dicom]) -> None:
    """Orthanc gives up the patients in the order of the index, none of the protected, and works with the rest."""
    dump = archive.dump()
    assert dump["protected"] == PROTECTED
    with archive.orthanc(MaximumPatientCount=len(dump["protected"] + dump["recycling"])) as rest:
        victims, new = lifecycle.recycled(rest, 4)
    assert victims == dump["recycling"][:4]
    left = [file for file in held if file.ids[0] not in victims]
    with archive.orthanc() as rest:
        lifecycle.work(archive, rest, [*left, *new])


def test_imported_at_10_and_opened_at_1(archive: Archive, tmp_path: Path) -> None:
    archive.done("init", "--revision", "10")
    archive.import_(files.write(tmp_path / "in", HELD))
    archive.import_(files.write(tmp_path / "more", AGAIN))
    run(
        archive.target,
        f"SELECT protectpatient(internalid) FROM resources WHERE publicid IN ('{PROTECTED[0]}', '{PROTECTED[1]}')",
        "INSERT INTO labels SELECT internalid, 'seen' FROM resources WHERE resourcetype = 1",
    )
    go(archive, "downgrade", 1)
    with archive.orthanc() as rest:
        lifecycle.read(rest, [*HELD, *AGAIN])
        protected = {
            one for one in rest.get("/patients") if rest.send("GET", f"/patients/{one}/protected") == b"1"
        }
        assert sorted(protected) == PROTECTED
    assert not lifecycle.CHANGED.search(archive.log())
    check_order_and_work(archive, [*HELD, *AGAIN])


def test_filled_at_1_upgraded_and_back(archive: Archive) -> None:
    gone, noted = HELD[0].ids[1], HELD[-1].ids[1]
    with archive.orthanc() as rest:
        for file in [*HELD, *AGAIN]:
            rest.upload(file.content)
        for patient in PROTECTED:
            rest.put(f"/patients/{patient}/protected", "1")
        rest.put(f"/studies/{noted}/metadata/1024", "of the user")
        rest.put(f"/studies/{noted}/attachments/1025", "attached by the user")
        rest.delete(f"/studies/{gone}")
    with archive.orthanc() as rest:  # a new one: only the running one knows what is not stable yet
        said, served = lifecycle.answers(rest), lifecycle.served(rest)
    go(archive, "upgrade", 10)
    go(archive, "downgrade", 1)
    with archive.orthanc() as rest:
        assert lifecycle.answers(rest) == said
        assert lifecycle.served(rest) == served
        assert rest.send("GET", f"/studies/{noted}/attachments/1025/data") == b"attached by the user"
        rest.send("DELETE", f"/studies/{noted}/attachments/1025")
    assert not lifecycle.CHANGED.search(archive.log())
    check_order_and_work(archive, [file for file in [*HELD, *AGAIN] if file.ids[1] != gone])
