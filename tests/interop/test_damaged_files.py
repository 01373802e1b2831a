"""Damaged files: what Orthanc refuses, import refuses; and of what both take, the rows are the same."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from dicomfile import BIG_ENDIAN, EXPLICIT, IMPLICIT, JPEG, PIXELS, UNDEFINED, El, dicom_file
from importing import dumped, run
from test_dicom_same import mutated

from interop.archive import Archive
from pgorthanc_cli import db, dicom

pytestmark = pytest.mark.interop

COUNT = 600
ITEM = [El(0x00080100, "SH", "C"), El(0x00080104, "LO", "Meaning")]


def made(number: int) -> bytes:
    """A file of its own series: all have rows, and no row of one hides that of another."""
    uid = f"1.2.3.{number}"
    elements = [
        El(0x00080018, "UI", f"{uid}.1.1"), El(0x0020000D, "UI", uid), El(0x0020000E, "UI", f"{uid}.1"),
        El(0x00080020, "DA", "20240501"), El(0x00080060, "CS", "CT"), El(0x0008103E, "LO", "series"),
        El(0x00100010, "PN", "Some^Name"), El(0x00100020, "LO", f"P{number}"), El(0x00200013, "IS", "7"),
        El(0x00280008, "IS", "1"), El(0x00280010, "US", b"\2\0"), El(0x00400275, "SQ", [ITEM]),
    ]  # fmt: skip
    kind = number % 6
    if kind == 0:
        return dicom_file(*elements, El(PIXELS, "OB", (b"", b"1234")), syntax=JPEG)
    if kind == 1:
        elements[-1] = El(0x00400275, "SQ", [ITEM, ITEM], length=UNDEFINED, item_length=UNDEFINED)
    syntax = {2: IMPLICIT, 3: BIG_ENDIAN}.get(kind, EXPLICIT)
    return dicom_file(*elements, syntax=syntax)


def test_the_same_are_refused_and_the_rows_are_the_same(
    archive: Archive, fresh: db.Target, tmp_path: Path
) -> None:
    random = Random(4)
    folder = tmp_path / "in"
    folder.mkdir()
    refused = set()
    with archive.orthanc() as rest:
        for number in range(COUNT):
            path = folder / f"{number:05}.dcm"
            path.write_bytes(mutated(made(number), random))
            if rest.upload(path.read_bytes()) is None:
                refused.add(path.name)
        rest.refused.append(b"")  # its log holds errors in any case
    major, minor, patch = map(int, archive.program.version().split("."))
    report = run(fresh, [folder], tmp_path / "area", profile=dicom.Profile((major, minor, patch)))
    found, wanted = dumped(fresh), archive.dump()
    print("ONLY PGO refuses", {Path(r.path).name: r.reason for r in report.refusals if Path(r.path).name not in refused})
    print("ONLY ORTHANC refuses", sorted(refused - {Path(r.path).name for r in report.refusals}))
    for k in wanted:
        if k in ("changes", "statistics", "recycling"):
            continue
        print(k, "ORTHANC", [x for x in wanted[k] if x not in found[k]][:12])
        print(k, "PGO", [x for x in found[k] if x not in wanted[k]][:12])
    assert {Path(each.path).name for each in report.refusals} == refused
    assert [part for part in wanted if found[part] != wanted[part]] == []
