"""The embedded server: real servers of every PostgreSQL on this machine, real crashes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server import embedded, programs
from pgorthanc_cli.server.private import PrivateCluster
from tests.support.servers import ROOT, as_ordinary_user, ask, attached, fill, kill_server, leave, user

INSTALLED = list({found.version: found for found in programs.installed()}.values())
only_root = pytest.mark.skipif(
    not ROOT, reason="about what root meets; continuous integration runs the suite as root, too"
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a server may be made; as root, no other account reaches it (pytest's folders are 0700)."""
    return tmp_path / "server"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a server that is stopped: a copy of it costs less than making another one."""
    folder = tmp_path_factory.mktemp("template") / "server"
    with embedded.attach(folder):
        pass
    return folder


@pytest.fixture
def made(template: Path, directory: Path) -> Path:
    """A folder with a server that is stopped."""
    subprocess.run(["/bin/cp", "-a", template, directory], check=True)
    return directory


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that belongs to an ordinary user, who can also run PostgreSQL."""
    folder = Path(tempfile.mkdtemp())
    if ROOT:
        account = programs.service_account()
        account.own(folder)
        monkeypatch.setenv("PGORTHANC_PGBIN", str(programs.usable_by(account, programs.find()).bin))
    yield folder
    shutil.rmtree(folder)


# Making, starting, stopping


@pytest.mark.parametrize("found", INSTALLED, ids=lambda found: f"{found.version[0]}")
def test_first_use_makes_a_server_and_the_last_user_stops_it(
    found: programs.Programs, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGORTHANC_PGBIN", str(found.bin))
    with embedded.attach(directory) as target:
        facts = ask(
            target,
            """SELECT current_setting('server_version_num')::int / 10000, current_user::text, current_database()::text,
                      current_setting('server_encoding'), lower('ÄÖ'), 'Z' < 'a', current_setting('fsync'),
                      current_setting('listen_addresses'), current_setting('is_superuser')""",
        )
        assert facts == (found.version[0], "orthanc", "orthanc", "UTF8", "äö", True, "on", "", "off")
        ask(target, "CREATE TABLE kept AS SELECT 1 AS a")
        assert embedded.status(directory).state == "running"
    stopped = embedded.status(directory)
    assert (stopped.state, stopped.version, stopped.keep) == ("stopped", str(found.version[0]), False)
    with embedded.attach(directory) as target:
        assert ask(target, "SELECT a FROM kept") == 1


def test_only_the_owner_may_enter(directory: Path) -> None:
    with embedded.attach(directory):
        modes = {
            path: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.glob("pgorthanc.*"))
        }
        assert modes.pop(directory) == 0o700
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE((directory / "log").stat().st_mode) == 0o600
        assert stat.S_ISSOCK((directory / ".s.PGSQL.5432").stat().st_mode)


def test_the_superuser_may_do_everything(made: Path) -> None:
    with embedded.attach(made, superuser=True) as target:
        assert ask(target, "SELECT current_setting('is_superuser'), current_database()::text") == (
            "on",
            "postgres",
        )


def test_two_processes_at_the_same_moment(directory: Path) -> None:
    with user(directory) as first, user(directory) as second:
        assert attached(first)
        assert attached(second)
        leave(first)
        assert embedded.status(directory).state == "running"
        leave(second)
        assert embedded.status(directory).state == "stopped"


def test_one_process_may_attach_twice(made: Path) -> None:
    with embedded.attach(made):
        with embedded.attach(made):
            pass
        assert embedded.status(made).state == "running"
    assert embedded.status(made).state == "stopped"


@pytest.mark.parametrize("name", ["with a space", "Ünïcode, 'quote", '$HOME "double" `id` \\', "x" * 200])
def test_any_name(directory: Path, name: str) -> None:
    before = set(Path(tempfile.gettempdir()).glob(f"pgorthanc-{os.geteuid()}-*"))
    with embedded.attach(directory / name) as target:
        assert ask(target, "SELECT 1") == 1
    assert set(Path(tempfile.gettempdir()).glob(f"pgorthanc-{os.geteuid()}-*")) <= before


def test_the_environment_does_not_lead_elsewhere(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGDATABASE": "other",
        "PGDATA": "/other",
    }.items():
        monkeypatch.setenv(name, value)
    with embedded.attach(made) as target:
        assert ask(target, "SELECT current_database()::text") == "orthanc"


def test_an_error_of_the_user_is_not_translated(made: Path) -> None:
    with pytest.raises(FileNotFoundError), embedded.attach(made):
        (made / "missing").read_text()
    assert embedded.status(made).state == "stopped"


# Crashes


def test_a_killed_user_leaves_a_server_that_the_next_one_stops(made: Path) -> None:
    with user(made) as process:
        assert attached(process)
        process.kill()
        process.wait()
    left = embedded.status(made)
    assert left.state == "running"
    with embedded.attach(made):
        assert embedded.status(made).pid == left.pid
    assert embedded.status(made).state == "stopped"


def test_a_killed_server_recovers(made: Path) -> None:
    with embedded.attach(made) as target:
        ask(target, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS a")
        with db.session(target):
            kill_server(made)
    with embedded.attach(made) as target:
        assert ask(target, "SELECT count(*) FROM kept") == 1000


def test_a_killed_server_does_not_hinder_those_who_leave(made: Path) -> None:
    with embedded.attach(made):
        kill_server(made)
    assert embedded.status(made).state == "stopped"


def test_the_pid_of_a_killed_server_may_belong_to_another_program_by_now(made: Path) -> None:
    with embedded.attach(made):
        files = [made / "postmaster.pid", made / ".s.PGSQL.5432.lock"]
        contents = {file: file.read_text() for file in files}
        owner = made.stat()
        kill_server(made)
    # The new owner of the pid runs under the server's account: else PostgreSQL itself sees the difference.
    command = ["/bin/sh", "-c", "read line"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, user=owner.st_uid if ROOT else None, cwd="/"
    ) as other:
        for file, content in contents.items():
            file.write_text(f"{other.pid}\n{content.partition(chr(10))[2]}")
            os.chown(file, owner.st_uid, owner.st_gid)
        with embedded.attach(made) as target:
            assert ask(target, "SELECT 1") == 1
        assert other.poll() is None


def test_killed_while_the_folder_was_made(directory: Path) -> None:
    with user(directory) as process:
        while not list(directory.glob("pgorthanc.new.*/pg_wal")):
            assert process.poll() is None
        process.kill()
        process.wait()
    assert embedded.status(directory).state == "absent"
    with embedded.attach(directory) as target:
        assert ask(target, "SELECT 1") == 1


def test_killed_while_the_folder_was_filled(made: Path) -> None:
    with embedded.attach(made) as target:
        ask(target, "CREATE TABLE kept AS SELECT 1 AS a")
    (made / "pgorthanc.ready").mkdir()
    for name in ("base", "pg_wal", "PG_VERSION"):
        (made / name).rename(made / "pgorthanc.ready" / name)
    assert embedded.status(made).state == "absent"
    with embedded.attach(made) as target:
        assert ask(target, "SELECT a FROM kept") == 1
    assert not (made / "pgorthanc.ready").exists()


# Folders that are not ours, or not whole


def refused(directory: Path) -> PgOrthancError:
    """Why it is refused; nothing in it may change but the log."""
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    with pytest.raises(PgOrthancError) as refusal, embedded.attach(directory):
        pass
    changed = {path.name for path in directory.rglob("*") if before.get(path) != path.stat().st_mtime_ns}
    assert changed <= {"pgorthanc.lock", "pgorthanc.users", "log"}
    assert refusal.value.hint
    return refusal.value


def test_a_folder_of_something_else(directory: Path) -> None:
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    mode = directory.stat().st_mode
    assert "notes.txt" in refused(directory).message
    assert os.listdir(directory) == ["notes.txt"]
    assert directory.stat().st_mode == mode


def test_a_file(directory: Path) -> None:
    directory.write_text("")
    assert "is not a folder" in refused(directory).message


def test_a_data_folder_that_somebody_else_made(directory: Path) -> None:
    directory.mkdir()
    (directory / "PG_VERSION").write_text("9.6\n")
    assert "PostgreSQL 9.6" in refused(directory).message
    assert os.listdir(directory) == ["PG_VERSION"]


def test_damaged_folders(made: Path) -> None:
    version = (made / "PG_VERSION").read_text()
    (made / "PG_VERSION").write_text("11\n")
    refusal = refused(made)
    assert "data of PostgreSQL 11" in refusal.message
    assert f"PostgreSQL {version.strip()}." in refusal.message
    assert "postgresql-11" in str(refusal.hint)
    (made / "PG_VERSION").rename(made / "aside")
    assert "base" in refused(made).message
    (made / "aside").rename(made / "PG_VERSION")
    (made / "PG_VERSION").write_text("?")
    assert "not a version" in refused(made).message
    (made / "PG_VERSION").write_text(version)
    (made / "pgorthanc.json").write_text("{")
    assert "pgorthanc.json is damaged" in refused(made).message
    (made / "pgorthanc.json").unlink()
    (made / "postgresql.conf").write_text("no_such_setting = 1\n")
    assert "no_such_setting" in refused(made).message + (made / "log").read_text()


def test_no_postgresql(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGORTHANC_PGBIN", str(tmp_path))
    refusal = refused(directory)
    assert str(tmp_path) in refusal.message
    assert "pgorthanc[embedded]" in str(refusal.hint)


@only_root
def test_a_folder_of_another_account(open_folder: Path) -> None:
    os.chown(open_folder, 4711, 4711)
    open_folder.chmod(0o755)

    def attach() -> None:
        assert "uid 4711" in refused(open_folder).message

    as_ordinary_user(attach)


@only_root
def test_files_restored_by_root(made: Path) -> None:
    os.chown(made / "PG_VERSION", 0, 0)
    command = str(refused(made).hint).rpartition(": ")[2]
    assert command.startswith("chown -R ")
    subprocess.run(command, shell=True, check=True)  # noqa: S602 - the command as printed
    with embedded.attach(made) as target, db.session(target, need_schema=False) as conn:
        assert db.value(conn, "SELECT 1") == 1


@only_root
def test_a_full_disk(directory: Path) -> None:
    directory.mkdir()
    if subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", directory], check=False
    ).returncode:
        pytest.skip("needs the right to mount a file system; continuous integration has it")
    try:
        ballast = directory / "pgorthanc.ballast"
        ballast.write_bytes(bytes(50_000_000))
        refusal = refused(directory)
        assert "No space left on device" in refusal.message
        assert "the disk is full" in str(refusal.hint)
        ballast.unlink()
        with embedded.attach(directory) as target:
            ask(target, "CREATE TABLE kept AS SELECT 1 AS a")
        fill(ballast)
        assert "the disk is full" in str(refused(directory).hint)
        ballast.unlink()
        with embedded.attach(directory) as target:
            assert ask(target, "SELECT a FROM kept") == 1
    finally:
        subprocess.run(["/bin/umount", directory], check=True)


# Accounts


def test_an_ordinary_user(open_folder: Path) -> None:
    def attach() -> None:
        with embedded.attach(open_folder / "server") as target:
            assert ask(target, "SELECT 1") == 1
            assert (open_folder / "server" / "PG_VERSION").stat().st_uid == os.geteuid()
        assert embedded.status(open_folder / "server").state == "stopped"

    as_ordinary_user(attach)
    with embedded.attach(open_folder / "server") as target:  # root works with it as its owner does
        assert ask(target, "SELECT 1") == 1
    as_ordinary_user(attach)


@only_root
def test_programs_that_only_root_can_read_are_copied(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = next((p for p in INSTALLED if p.bin.parent.name.startswith("pginstall")), None)
    if not found:
        pytest.skip("needs the wheel of pgorthanc[embedded]")
    package = found.bin.parent.parent
    for source in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(source, tmp_path / "venv" / source.name)
    (tmp_path / "venv").chmod(0o700)
    hidden = tmp_path / "venv" / found.bin.relative_to(package.parent)
    monkeypatch.setenv("PGORTHANC_PGBIN", str(hidden))
    copy = programs.usable_by(programs.service_account(), programs.find())
    try:
        with embedded.attach(directory) as target:
            assert ask(target, "SELECT 1") == 1
            assert copy == programs.usable_by(programs.service_account(), programs.find())
            pid = embedded.status(directory).pid
            assert os.readlink(f"/proc/{pid}/exe") == str(copy.bin / "postgres")
    finally:
        shutil.rmtree(copy.bin.parent.parent.parent)


def test_the_log_does_not_grow_for_ever(made: Path) -> None:
    with open(made / "log", "ab") as log:
        log.truncate(11_000_000)
    with embedded.attach(made):
        assert (made / "log").stat().st_size < 100_000
        assert (made / "log.1").stat().st_size == 11_000_000


def test_looking_writes_nothing(directory: Path) -> None:
    assert embedded.status(directory).state == "absent"
    PrivateCluster(directory)
    assert not directory.exists()
