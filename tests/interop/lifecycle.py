"""What the real Orthanc must answer, and be able to do, on an archive that holds certain files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.interop import files
from tests.interop.archive import Archive
from tests.interop.files import Dicom
from tests.interop.orthanc import Rest
from tests.support.importing import check_area
from tests.support.schemas import rows

# What the plugins 4.0 and 5.0 log when they make an index, or add to one what it lacks.
CHANGED = re.compile("Trying to enable trigram|Installing the")
LEVELS = ("patients", "studies", "series", "instances")


def read(rest: Rest, held: Sequence[Dicom]) -> None:
    """Orthanc lists, counts, finds and serves exactly these files."""
    counted(rest, held)
    for file in held:
        _served(rest, file)
    for file in {file.ids[1]: file for file in held}.values():
        _found(rest, file)
    added = [change["ID"] for change in changes(rest) if change["ChangeType"] == "NewInstance"]
    assert sorted(added) == sorted(file.ids[3] for file in held)


def counted(rest: Rest, held: Sequence[Dicom]) -> None:
    """Orthanc lists exactly these files, and its statistics agree."""
    wanted_ids = {name: {file.ids[level] for file in held} for level, name in enumerate(LEVELS)}
    assert {name: set(rest.get(f"/{name}")) for name in LEVELS} == wanted_ids
    found = rest.get("/statistics")
    counts = {f"Count{name.capitalize()}": len(ids) for name, ids in wanted_ids.items()}
    size = str(sum(len(file.content) for file in held))
    wanted = {**counts, "TotalDiskSize": size, "TotalUncompressedSize": size}
    assert {name: found[name] for name in wanted} == wanted


def _served(rest: Rest, file: Dicom) -> None:
    place = f"/instances/{file.ids[3]}"
    assert rest.send("GET", f"{place}/file") == file.content
    assert (
        rest.send("GET", f"{place}/attachments/dicom/md5").decode() == hashlib.md5(file.content).hexdigest()
    )
    assert rest.get(f"{place}/simplified-tags")["SOPInstanceUID"] == file.tags.SOPInstanceUID


def _found(rest: Rest, file: Dicom) -> None:
    patient, study = file.ids[:2]
    tags = file.tags
    assert rest.find("Study", StudyInstanceUID=tags.StudyInstanceUID) == {study}
    assert rest.find("Patient", PatientID=tags.PatientID) == {patient}
    assert study in rest.find("Study", PatientName=f"{str(tags.PatientName)[:4].lower()}*")
    assert study in rest.find("Study", PatientID=f"*{tags.PatientID[1:]}", PatientName="*")


def changes(rest: Rest) -> list[dict[str, Any]]:
    found = rest.get("/changes?limit=100000")
    assert found["Done"]
    listed: list[dict[str, Any]] = found["Changes"]
    return listed


def work(archive: Archive, rest: Rest, held: Sequence[Dicom]) -> list[Dicom]:
    """Read, delete an instance, a series and a study, add them and a new patient; what is held afterwards."""
    read(rest, held)
    left = list(held)
    for level in (3, 2, 1):
        [(biggest, _)] = Counter(file.ids[1] for file in left).most_common(1)
        gone = next(file.ids[level] for file in left if file.ids[1] == biggest)
        rest.delete(f"/{LEVELS[level]}/{gone}")
        left = [file for file in left if file.ids[level] != gone]
        counted(rest, left)
        check_storage(archive)
    added = [*(file for file in held if file not in left), *files.patient("9001")]
    assert [rest.upload(file.content) for file in added] == [file.ids[3] for file in added]
    assert rest.post("/instances", added[0].content)["Status"] == "AlreadyStored"
    rest.put(f"/patients/{added[-1].ids[0]}/protected", "1")
    assert rest.send("GET", f"/patients/{added[-1].ids[0]}/protected") == b"1"
    rest.put(f"/patients/{added[-1].ids[0]}/metadata/1024", "of the user")
    read(rest, [*left, *added])
    check_storage(archive)
    return [*left, *added]


def recycled(rest: Rest, count: int) -> tuple[list[str], list[Dicom]]:
    """The patients that a full Orthanc gives up, in this order, for as many new ones; and the files of those."""
    added = [files.patient(str(9100 + number), 1, 1, 1)[0] for number in range(count)]
    victims: list[str] = []
    for file in added:
        before = set(rest.get("/patients"))
        assert rest.upload(file.content) == file.ids[3]
        victims += before - set(rest.get("/patients"))
    return victims, added


def answers(rest: Rest) -> dict[str, Any]:
    """Everything that Orthanc says about what it holds."""
    said: dict[str, Any] = {"statistics": rest.get("/statistics"), "changes": changes(rest)}
    for name in LEVELS:
        for public_id in sorted(rest.get(f"/{name}")):
            place = f"/{name}/{public_id}"
            said[place] = rest.get(place)
            said[f"{place}/metadata"] = rest.get(f"{place}/metadata?expand")
            said[f"{place}/attachments"] = rest.get(f"{place}/attachments")
            if name == "patients":
                said[f"{place}/protected"] = rest.send("GET", f"{place}/protected")
    return said


def served(rest: Rest) -> dict[str, bytes]:
    """Public id -> DICOM file."""
    return {one: rest.send("GET", f"/instances/{one}/file") for one in rest.get("/instances")}


def check_storage(archive: Archive) -> None:
    """Each attachment of the index has its bytes in the storage area, and nothing else is there."""
    if not archive.section["EnableStorage"]:
        check_area(archive.target, archive.storage)
        return
    indexed = rows(
        archive.target, "SELECT uuid, compressedsize, compressedhash FROM attachedfiles ORDER BY 1"
    )
    stored = "SELECT uuid, length(lo_get(content)), md5(lo_get(content)) FROM storagearea ORDER BY 1"
    assert rows(archive.target, stored) == indexed
    assert rows(archive.target, "SELECT count(*) FROM pg_largeobject_metadata") == [(len(indexed),)]
