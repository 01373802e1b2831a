"""Shares of several machines: every file in exactly one, patients or folders never split, the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from pgorthanc_cli import db, dicom, ingest
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.ingest.walk import ShardBy, bucket
from tests.support import samples
from tests.support.importing import check_area, dumped


def shares(folder: Path, count: int, by: ShardBy) -> list[list[str]]:
    return [[s.path for s in ingest.Shard(n, count, by).walk([str(folder)])] for n in range(1, count + 1)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for patient in range(40):
        for visit in range(2):
            where = folder / f"{visit}" / f"{patient:03}"
            where.mkdir(parents=True)
            uid = f"1.2.{patient}.{visit}"
            for number in (1, 2):
                (where / f"{number}.dcm").write_bytes(
                    samples.instance(f"P{patient}", uid, f"{uid}.1", number)
                )
    (folder / "odd.txt").write_text("no DICOM")
    (folder / "circle").symlink_to(folder / "circle")
    return folder


@pytest.mark.parametrize("by", list(ShardBy))
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_file_is_in_one_share(archive: Path, by: ShardBy, count: int) -> None:
    parts = shares(archive, count, by)
    everything = [source.path for source in ingest.walk([str(archive)])]
    assert sorted(path for part in parts for path in part) == sorted(everything)
    assert all(parts)
    assert all(part == [path for path in everything if path in set(part)] for part in parts)


def test_a_patient_is_in_one_share(archive: Path) -> None:
    for part in shares(archive, 4, ShardBy.PATIENT):
        patients = {Path(path).parent.name for path in part if path.endswith(".dcm")}
        assert len([path for path in part if path.endswith(".dcm")]) == len(patients) * 4


def test_a_folder_is_in_one_share_wherever_it_is_mounted(archive: Path, tmp_path: Path) -> None:
    other = tmp_path / "mounted"
    other.symlink_to(archive)
    parts = shares(archive, 4, ShardBy.FOLDER)
    relative = [[os.path.relpath(path, archive) for path in part] for part in parts]
    assert relative == [
        [os.path.relpath(path, other) for path in part] for part in shares(other, 4, ShardBy.FOLDER)
    ]
    for part in parts:
        folders = {Path(path).parent for path in part if path.endswith(".dcm")}
        assert len([path for path in part if path.endswith(".dcm")]) == len(folders) * 2


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_no_such_share(text: str) -> None:
    with pytest.raises(UsageError, match="expected one of 1/N to N/N"):
        ingest.Shard.parse(text)


# --- whose file it is, by its first bytes --------------------------------------------------------------------------


def written(data: bytes, *, implicit: bool) -> bytes:
    read = pydicom.dcmread(BytesIO(data))
    out = BytesIO()
    if implicit:
        read.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    pydicom.dcmwrite(out, read, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("patient", ["", "P", "P1", "1234567890" * 5])
def test_patient_keys(tmp_path: Path, patient: str, implicit: bool) -> None:
    path = tmp_path / "file.dcm"
    path.write_bytes(written(samples.instance(patient), implicit=implicit))
    assert dicom.patient_key(str(path)) == patient.encode()


@pytest.mark.parametrize(
    "content", [b"", b"no DICOM", bytes(132), bytes(128) + b"DICM", bytes(128) + b"DICM\x02\x00"]
)
def test_no_patient_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert dicom.patient_key(str(path)) is None
    assert dicom.patient_key(str(tmp_path / "absent")) is None


def test_real_files_have_the_key_of_their_patient() -> None:
    """For every file that tells it in the plain way, it is what pydicom reads."""
    compared = 0
    for path in sorted(samples.REAL.parent.glob("*.dcm")):
        key = dicom.patient_key(str(path))
        if key is not None:
            raw = pydicom.dcmread(path, force=True, specific_tags=["PatientID"]).get_item("PatientID")
            assert key == (b"" if raw is None else bytes(raw.value or b"").strip(b" \0")), path
            compared += 1
    assert compared > 40


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["folder", "patient"])
def test_shares_imported_at_once_are_the_whole(
    new_database: Callable[..., db.Target], template: str, archive: Path, tmp_path: Path, by: str
) -> None:
    """No --concurrent is needed: shares are made to work side by side."""
    target, reports = new_database(template), []

    def work(n: int) -> None:
        command = [
            sys.executable, "-m", "pgorthanc_cli", "import", "--json", "--uri", target.dsn, "-j1",
            "--storage-dir", str(tmp_path / "area"), "--shard", f"{n}/3", "--shard-by", by, str(archive),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode in (0, 6), done.stderr
        reports.append(json.loads(done.stdout))

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report["imported"] for report in reports) == 160
    assert sum(report["refused"] for report in reports) == 2
    resources = dumped(target)["resources"]
    assert [len([r for r in resources if r[1] == level]) for level in range(4)] == [40, 80, 80, 160]
    check_area(target, tmp_path / "area")


def test_the_key_of_a_share_is_pinned() -> None:
    """Machines with different versions of this program must agree: a change here loses files."""
    assert [bucket(key, 100) for key in (b"", b"a", b"P1", "Ä".encode())] == [76, 43, 6, 74]
