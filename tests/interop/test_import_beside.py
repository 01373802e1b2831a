"""Imports beside a running Orthanc that stores and deletes at the same moment, and what is left of it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pgorthanc_cli import db, dicom
from pgorthanc_cli.errors import InUseError
from tests.faults.importer import COMMAND
from tests.interop import lifecycle
from tests.interop.archive import Archive
from tests.interop.orthanc import Rest
from tests.support import indexstate, samples
from tests.support.importing import dumped, run
from tests.support.real_servers import wait_until
from tests.support.schemas import rows

pytestmark = pytest.mark.interop

COUNT = 240


@pytest.fixture(params=[False, True], ids=["filesystem", "postgresql"])
def beside(request: pytest.FixtureRequest, new_archive: Callable[..., Archive]) -> Archive:
    return new_archive(postgresql_storage=request.param)


@pytest.fixture
def wanted(beside: Archive, fresh: db.Target, files: list[Path], tmp_path: Path) -> dict[str, Any]:
    """The index after an import that was alone."""
    major, minor, patch = map(int, beside.program.version().split("."))
    run(fresh, files, tmp_path / "alone", profile=dicom.Profile((major, minor, patch)))
    return dumped(fresh)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return samples.folder(tmp_path / "in", COUNT, patients=4, per_series=6)


@contextmanager
def working(archive: Archive) -> Iterator[Rest]:
    """An Orthanc that leaves room for others."""
    section = {**archive.configuration()["PostgreSQL"], "Lock": False}
    with archive.orthanc(PostgreSQL=section) as rest:
        yield rest


@contextmanager
def importing(
    archive: Archive, files: Sequence[Path], *more: str, concurrent: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """The program at work, in small batches."""
    archive.folder.joinpath("orthanc.json").chmod(0o600)
    options = ["--config", archive.folder / "orthanc.json", "--orthanc-version", archive.program.version()]
    beside = ["--concurrent"] if concurrent else []
    command = [*COMMAND, "--json", "--quiet", *beside, *options, *more, *files]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(list(map(str, command)), text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def report(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Of an import that came through."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """It is done in a thread; an error of its own is raised at the end."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise failed[0]


def stored(archive: Archive) -> int:
    return int(rows(archive.target, "SELECT count(*) FROM attachedfiles WHERE filetype = 1")[0][0])


def check(archive: Archive) -> None:
    """No duplicate, counters and numbers of children right, no attachment without a row, no row without one."""
    with db.session(archive.target) as conn:
        assert indexstate.problems(conn) == []
    orphans = "SELECT publicid FROM resources WHERE parentid IS NULL AND resourcetype > 0"
    assert rows(archive.target, orphans) == []
    lifecycle.check_storage(archive)


def check_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """But for the order in which the files came."""
    assert [name for name in wanted if sorted(found[name]) != sorted(wanted[name])] == []


def test_an_orthanc_and_two_imports_with_the_same_files(
    beside: Archive, files: list[Path], wanted: dict[str, Any]
) -> None:
    uploaded: list[str | None] = []
    with working(beside) as rest, ExitStack() as stack:
        first = stack.enter_context(importing(beside, files))
        second = stack.enter_context(importing(beside, files[COUNT // 2 :] + files[: COUNT // 2]))
        with meanwhile(lambda: uploaded.extend(rest.upload(f.read_bytes()) for f in reversed(files))):
            reports = [report(first), report(second)]
        assert len(set(uploaded)) == COUNT
        assert [each["imported"] + each["known"] for each in reports] == [COUNT, COUNT]
        assert sum(each["imported"] for each in reports) <= COUNT
        assert rest.get("/statistics")["CountInstances"] == COUNT
        assert len(lifecycle.served(rest)) == COUNT
    check(beside)
    check_same(beside.dump(), wanted)


def test_an_import_is_killed_beside_an_orthanc(
    beside: Archive, files: list[Path], wanted: dict[str, Any]
) -> None:
    with working(beside) as rest:
        with importing(beside, files) as process:
            with meanwhile(lambda: [rest.upload(f.read_bytes()) for f in files[::-3]]):
                wait_until(lambda: process.poll() is not None or stored(beside) > COUNT // 3, timeout_s=60)
                process.kill()
                process.communicate()
        with importing(beside, files) as process:
            found = report(process)
        assert found["imported"] + found["known"] == COUNT
        assert len(lifecycle.served(rest)) == COUNT
    check(beside)
    check_same(beside.dump(), wanted)


def test_orthanc_deletes_the_patients_that_an_import_adds_to(
    beside: Archive, files: list[Path], wanted: dict[str, Any]
) -> None:
    """What a deletion meets is gone, the rest is there; a second import brings back what is missing."""
    with working(beside) as rest:
        with importing(beside, files) as process:

            def delete() -> None:
                while process.poll() is None:
                    for patient in rest.get("/patients"):
                        rest.delete(f"/patients/{patient}")

            with meanwhile(delete):
                first = report(process)
        assert first["imported"] + first["known"] == COUNT
        check(beside)
        left = rest.get("/statistics")["CountInstances"]
        assert left == stored(beside) < COUNT
        with importing(beside, files) as process:
            second = report(process)
        assert (second["imported"], second["known"]) == (COUNT - left, left)
        assert len(lifecycle.served(rest)) == COUNT
    check(beside)
    found = beside.dump()
    del found["changes"], wanted["changes"]  # some patients are new again
    check_same(found, wanted)


def test_an_import_that_expects_to_be_alone_is_refused(beside: Archive, files: list[Path]) -> None:
    """The Orthanc holds no lock, but it is seen, and named with what to do."""
    with working(beside) as rest:
        rest.upload(files[0].read_bytes())
        with importing(beside, files, concurrent=False) as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == InUseError.exit_code
        said = json.loads(errors)
        assert "Orthanc at 127.0.0.1" in said["message"]
        assert "without a lock" in said["message"]
        assert "--concurrent" in said["hint"]
        assert rest.get("/statistics")["CountInstances"] == 1
    check(beside)


def test_an_orthanc_that_starts_in_the_middle_makes_no_duplicates(
    beside: Archive, files: list[Path], wanted: dict[str, Any]
) -> None:
    """Without --concurrent the import has looked once, and then an Orthanc without a lock starts."""
    with working(beside):
        pass  # it makes its index
    first, rest_of_files = (
        files[: COUNT // 2],
        files[COUNT // 2 :],
    )  # enough for more batches than workers hold
    with importing(beside, [], "--files-from", "-", concurrent=False) as process:
        assert process.stdin
        process.stdin.writelines(f"{path}\n" for path in first)
        process.stdin.flush()
        wait_until(lambda: process.poll() is not None or stored(beside) > 0, timeout_s=60)
        with working(beside) as rest:
            with meanwhile(lambda: [rest.upload(f.read_bytes()) for f in reversed(files)]):
                process.stdin.writelines(f"{path}\n" for path in rest_of_files)
                found = report(process)
            assert found["imported"] + found["known"] == COUNT
            assert len(lifecycle.served(rest)) == COUNT
    check(beside)
    check_same(beside.dump(), wanted)
