"""What never stops the program: large files that are no DICOM, files that become FIFOs, workers that do not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import db, dicom, files, ingest, signals, storage, workers
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.ingest import content, known_files
from pgorthanc_cli.ingest.journal import FOLDER
from pgorthanc_cli.ingest.link import Linker
from pgorthanc_cli.ingest.settings import Link
from pgorthanc_cli.ingest.walk import Source, members
from tests.support import migrating, samples, sqliteindex
from tests.support.importing import check_area, ends, run
from tests.support.real_servers import wait_until

TERABYTE = 1 << 40
SOON_S = 30  # on a busy machine; what is tested took for ever


@pytest.fixture
def alarm() -> Iterator[None]:
    """A test that waits for ever fails."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SOON_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# --- large files -------------------------------------------------------------------------------------------------


def large(path: Path, head: bytes, size: int = TERABYTE) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def marked(data_set: bytes = b"") -> bytes:
    """The start of a DICOM file."""
    return bytes(128) + b"DICM" + data_set


NO_DICOM = [
    b"", b"no DICOM at all", b"\x89PNG\r\n\x1a\n", b"QFI\xfb\0\0\0\3", b"\0\0\0\x20ftypisom", b"%PDF-1.7\n",
    b"\x7fELF\2\1\1", b"\xff\xd8\xff\xe0\0\x10JFIF", bytes(range(255, 0, -1)), marked(),
    marked(b"\2\0\0\0UL\4\0\4\0\0\0"),
    marked(b"garbage!" * 100),
]  # fmt: skip


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("head", NO_DICOM, ids=lambda head: repr(head[-12:]))
def test_a_large_file_that_is_no_dicom_is_never_copied(tmp_path: Path, head: bytes) -> None:
    path = large(tmp_path / "large", head)

    def spool() -> object:
        raise AssertionError("it is copied")

    with pytest.raises(content.UnreadableError, match=r"DICOM|identif|ends behind"):
        content.read(Source(str(path), size=TERABYTE), spool)  # type: ignore[arg-type]


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_import_refuses_it_and_goes_on(fresh: db.Target, tmp_path: Path, jobs: int) -> None:
    large(tmp_path / "in" / "a", b"no DICOM")
    large(tmp_path / "in" / "b", samples.instance()[:-16], TERABYTE)
    large(tmp_path / "in" / "c.dcm", samples.instance(), 2000)
    (tmp_path / "in" / "d.dcm").write_bytes(samples.instance())
    report = run(fresh, [tmp_path / "in"], tmp_path / "area", jobs)
    assert ends(report) == (1, 0, 0, 3)
    check_area(fresh, tmp_path / "area")


@pytest.mark.usefixtures("alarm")
def test_a_large_dicom_file_is_copied_only_if_there_is_space(tmp_path: Path) -> None:
    image = samples.instance()
    status = os.statvfs(tmp_path)
    path = large(
        tmp_path / "large", image[:-12] + b"OB\0\0\xff\xff\xff\xff" + image[-4:], 16 * TERABYTE - 4096
    )
    if status.f_bavail * status.f_frsize > 16 * TERABYTE:
        path = large(tmp_path / "large", image, 2 * status.f_bavail * status.f_frsize)
    with pytest.raises(content.UnreadableError, match="no space: it takes"):
        content.read(Source(str(path), size=path.stat().st_size), copies=2)


def test_real_large_files_are_read_as_before(tmp_path: Path) -> None:
    for number, size in enumerate((5000, 70_000, 200_000)):
        data = samples.instance(PixelData=bytes(size))
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(data)
        source = Source(str(path), size=len(data))
        assert bytes(content.read(source, memory_bytes=1000)) == data
    for path in sorted(samples.REAL.parent.glob("*.dcm")):
        data = path.read_bytes()
        reason = dicom.reject_reason(lambda start, size, data=data: data[start : start + size], len(data))  # type: ignore[misc]
        try:
            dicom.parse(data, dicom.Profile())
        except dicom.Refused:
            continue
        assert reason is None, path


@pytest.mark.parametrize("magic", [content.GZIP, content.ZIP])
def test_a_preamble_may_begin_like_a_packed_file(fresh: db.Target, tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "1.dcm"
    path.write_bytes(magic + samples.instance(PixelData=bytes(5000))[len(magic) :])
    assert ends(run(fresh, [path], tmp_path / "area")) == (1, 0, 0, 0)
    again = run(fresh, [path], tmp_path / "area", memory_bytes=1000)
    assert ends(again) == (0, 1, 0, 0)


# The program, copying a large file in small steps.
SLOW_COPY = """
from pgorthanc_cli.cli import main
from pgorthanc_cli.ingest import content
content._CHUNK_BYTES = 512
main(prog_name="pgorthanc")
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_copy(fresh: db.Target, tmp_path: Path, jobs: str, number: signal.Signals) -> None:
    image = samples.instance()
    path = large(
        tmp_path / "large", image[:-16] + b"\x09\x00\x10\x00OB\0\0" + (3 << 30).to_bytes(4, "little"), 3 << 30
    )
    area = tmp_path / "area"
    command = [
        sys.executable,
        "-c",
        SLOW_COPY,
        "import",
        "--quiet",
        "--json",
        "--jobs",
        jobs,
        "--uri",
        fresh.dsn,
    ]
    with subprocess.Popen(
        [*command, "--storage-dir", str(area), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: process.poll() is not None or copying(process.pid, area))
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        asked = time.monotonic()
        _, stderr = process.communicate(timeout=SOON_S)
    assert process.returncode == 130, stderr
    assert time.monotonic() - asked < SOON_S / 2
    assert not (area / FOLDER).exists()


def copying(pid: int, area: Path) -> bool:
    """Whether the program, or a worker of it, has a file without a name in the area."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for number in [str(pid), *children]:
        for descriptor in Path(f"/proc/{number}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith(str(area)) and target.endswith("(deleted)"):
                return True
    return False


SWALLOWED = """
import os, sys
number = int(sys.argv.pop())
class Optional:  # stands for `except:` around an optional import, as third-party packages have it
    def find_spec(self, name, path, target=None):
        if name == "pgorthanc_cli.ingest":
            try:
                os.kill(os.getpid(), number)
            except:
                pass
sys.meta_path.insert(0, Optional())
from pgorthanc_cli.__main__ import run
run()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_whose_exception_is_swallowed_ends_the_import(
    fresh: db.Target, tmp_path: Path, number: int
) -> None:
    command = [sys.executable, "-c", SWALLOWED, "import", "--uri", fresh.dsn, "--storage-dir"]
    done = subprocess.run(
        [*command, tmp_path / "area", samples.REAL, str(int(number))], capture_output=True, text=True
    )
    assert done.returncode == 130, done
    assert "interrupted" in done.stderr
    assert not (tmp_path / "area").exists()


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stop_on_signal():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# --- files that become something else ----------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Source:
    """A FIFO where the walk has seen a file."""
    os.mkfifo(tmp_path / "1.dcm")
    return Source(str(tmp_path / "1.dcm"), size=1000, mtime_ns=1)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_fifo_in_place_of_a_file_is_refused(
    fresh: db.Target, tmp_path: Path, fifo: Source, jobs: int
) -> None:
    sources = [fifo, Source(str(samples.REAL), size=samples.REAL.stat().st_size)]
    tally = ingest.Tally()
    settings = ingest.Settings(storage_dir=tmp_path / "area")
    ingest.import_sources(fresh, sources, settings, jobs=jobs, report=tally.add)
    assert ends(tally.result()) == (1, 0, 0, 1)
    assert tally.result().refusals[0].reason == "a named pipe, not a regular file"


@pytest.mark.usefixtures("alarm")
def test_nothing_that_opens_files_from_outside_waits_for_a_fifo(tmp_path: Path, fifo: Source) -> None:
    area = storage.FilesystemArea(tmp_path / "area")
    area.prepare()
    (uuid,) = storage.new_uuids(1)
    assert Linker(area, Link.AUTO).place(uuid, fifo, b"") is False
    assert dicom.patient_key(fifo.path) is None
    for opens in (
        lambda: content.read(fifo._replace(member=0)),
        lambda: list(members(fifo.path)),
        lambda: files.open_regular(fifo.path),
        lambda: known_files.open_journal(Path(fifo.path), dicom.Profile()).__enter__(),
    ):
        with pytest.raises((content.UnreadableError, OSError, PgOrthancError), match="not a regular file"):
            opens()
    (tmp_path / "area" / uuid[:2] / uuid[2:4]).mkdir(parents=True)
    os.mkfifo(tmp_path / "area" / uuid[:2] / uuid[2:4] / uuid)
    with pytest.raises(OSError, match="not a regular file"):
        area.open(uuid)


# A program that takes a lease on a file, and gives it back a little later than it is asked to.
LEASED = """
import fcntl, os, signal, sys, threading, time
file = os.open(sys.argv[1], os.O_RDWR)
returned = threading.Event()
def give_back(*_):
    time.sleep(0.3)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    returned.set()
signal.signal(signal.SIGIO, give_back)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print(flush=True)
returned.wait()
"""


@pytest.mark.usefixtures("alarm")
def test_a_file_that_another_program_has_leased_is_waited_for_a_little(tmp_path: Path) -> None:
    """Samba and NFS servers give a lease back when they are asked to; some never do."""
    path = tmp_path / "1"
    path.write_bytes(b"content")
    with subprocess.Popen([sys.executable, "-c", LEASED, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        os.close(files.open_regular(path))


# --- workers -----------------------------------------------------------------------------------------------------


def answer(text: str) -> str:
    return text.upper()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_answering() -> None:
    """Begin a long answer, and be killed in the middle of it."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), (1 << 20).to_bytes(4, "big") + b"the beginning")
        except OSError:
            continue
    die()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def work_on() -> None:
    while True:
        workers.checkpoint()
        time.sleep(0.01)


def call(function: str, *arguments: object) -> object:
    return globals()[function](*arguments)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("fork", [True, False])
def test_workers_answer_and_end(fork: bool) -> None:
    with workers.pool(2, call, fork=fork) as pool:
        futures = [pool.submit("answer", str(n) + "x") for n in range(20)]
        assert [pool.result(f) for f in futures] == [f"{n}X" for n in range(20)]
        with pytest.raises(KeyError):
            pool.result(pool.submit("no such function"))
        assert pool.result(pool.submit("answer", "y")) == "Y"


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("death", ["die", "die_while_answering"])
def test_a_worker_that_is_killed_ends_the_work(death: str) -> None:
    with workers.pool(2, call) as pool:
        waiting = [pool.submit("answer", "x") for _ in range(5)]
        with pytest.raises(PgOrthancError, match="ended unexpectedly"):
            pool.result(pool.submit(death))
        assert pool.result(waiting[0]) == "X"


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("work", [("sleep", 1000), ("work_on",)])
def test_no_worker_is_waited_for_long_once_the_run_is_to_end(work: tuple[object, ...]) -> None:
    stop = threading.Event()
    with workers.pool(2, call, stop) as pool:
        futures = [pool.submit(*work) for _ in range(5)]
        threading.Timer(0.3, stop.set).start()
        for future in futures:
            with pytest.raises(workers.Stopped):
                pool.result(future)


@pytest.mark.usefixtures("alarm")
def test_an_error_ends_the_workers(tmp_path: Path) -> None:
    """As Ctrl-C does, wherever it strikes."""
    with pytest.raises(KeyboardInterrupt), workers.pool(2, call) as pool:
        for _ in range(4):
            pool.submit("sleep", 1000)
        raise KeyboardInterrupt


# --- migrate-sqlite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_workers_that_do_nothing_any_more_do_not_hold_up_a_conversion(
    tmp_path: Path, number: signal.Signals
) -> None:
    """For a worker that is killed while it answers see `die_while_answering`."""
    path = sqliteindex.rich(tmp_path / "index")
    command = [sys.executable, "-m", "pgorthanc_cli", "migrate-sqlite", "--check", "--quiet", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        wait_until(lambda: len(migrating.workers(program.pid)) == 2)
        for worker in migrating.workers(program.pid):
            os.kill(worker, signal.SIGSTOP)
        program.send_signal(number)
        try:
            _, stderr = program.communicate(timeout=SOON_S)
        finally:
            program.kill()
    assert program.returncode == 130, stderr
    assert "Traceback" not in stderr
