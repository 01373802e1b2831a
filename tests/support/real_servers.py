"""Real PostgreSQL servers of their own for tests: pg_hba.conf, TLS certificates and standbys as a test needs them."""

from __future__ import annotations

import atexit
import datetime
import functools
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pgorthanc_cli.server import programs

Names = list[x509.GeneralName]
LOCALHOST: Names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


def wait_until(
    condition: Callable[[], bool], complaint: str = "it did not happen in time", *, timeout_s: float = 20.0
) -> None:
    """Poll a condition that another process makes true, and leave it some time to do so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.005)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def memory() -> Path:
    """The place for folders of servers: in memory, where there is enough, because fsync costs most of their time."""
    place = Path("/dev/shm")
    return place if place.is_dir() and shutil.disk_usage(place).free > 2_000_000_000 else Path("/tmp")


@functools.cache
def _initialised(of: programs.Programs, account: programs.Account) -> Path:
    """A data folder as initdb leaves it, made once for each run: a copy costs a tenth of another one."""
    folder = Path(tempfile.mkdtemp(prefix="pgorthanc-server-", dir=memory()))
    account.own(folder)
    atexit.register(shutil.rmtree, folder)
    words = ("-U", "postgres", "-A", "trust", "-N", "--locale=C", "-E", "UTF8")
    done = programs.run(of, "initdb", ("-D", str(folder / "data"), *words), folder, account)
    assert done.returncode == 0, f"initdb: {done.stdout}{done.stderr}"
    return folder / "data"


class Server:
    """A server in a folder of its own; `place` is its DSN through the socket, `tcp` that through 127.0.0.1."""

    def __init__(self, hba: str, settings: str, major: int | None = None) -> None:
        self.programs = programs.find(major)
        self.account = programs.service_account() if os.geteuid() == 0 else _myself()
        self.programs = programs.usable_by(self.account, self.programs)
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="pgorthanc-server-", dir=memory()))
        self.account.own(self.folder)
        self.data = self.folder / "data"
        self.hba = hba
        self.settings = settings

    @property
    def place(self) -> str:
        return f"host={self.folder} port={self.port} user=postgres dbname=postgres"

    @property
    def tcp(self) -> str:
        return f"host=127.0.0.1 port={self.port} dbname=postgres"

    @property
    def has_tls(self) -> bool:
        return bool(self.run("postgres", "-C", "ssl_library", "-D", str(self.data)).stdout.strip())

    def run(self, name: str, *arguments: str) -> programs.Completed:
        done = programs.run(self.programs, name, arguments, self.folder, self.account)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done

    def create(self) -> Server:
        subprocess.run(["/bin/cp", "-a", _initialised(self.programs, self.account), self.data], check=True)
        self.configure()
        return self

    def copy_of(self, primary: Server) -> Server:
        """A standby of another server."""
        self.run(
            "pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "-d", primary.place
        )
        self.configure()
        return self

    def configure(self) -> None:
        self.write("pg_hba.conf", self.hba)
        place = f"port={self.port}\nunix_socket_directories='{self.folder}'\nlisten_addresses='127.0.0.1'\nfsync=off\n"
        conf = self.data / "postgresql.conf"
        self.write("postgresql.conf", conf.read_text() + place + self.settings)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.data / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o600)
        self.account.own(path)
        return path

    def start(self, *options: str) -> Server:
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", log, "-o", " ".join(options))
        return self

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-m", "immediate", "-D", str(self.data))

    def kill(self, *, session: int | None = None) -> None:
        """Send SIGKILL to one process of the server, or to all of them."""
        if session is not None:
            with suppress(ProcessLookupError):
                os.kill(session, signal.SIGKILL)
            return
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def revive(self) -> None:
        """Wait until a server that may have crashed answers; start it if it does not by itself."""
        pid_file = self.data / "postmaster.pid"

        def is_up() -> bool:
            if self.answers():
                return True
            if not pid_file.exists() or not Path("/proc", pid_file.read_text().split()[0]).exists():
                # Refused as long as one of its killed processes is still ending.
                words = ("start", "-w", "-D", str(self.data), "-l", str(self.folder / "log"))
                programs.run(self.programs, "pg_ctl", words, self.folder, self.account)
            return False

        wait_until(is_up, "the server does not start again", timeout_s=60)

    def answers(self) -> bool:
        try:
            return self.sql("SELECT 1") == "1"
        except psycopg2.OperationalError:
            return False

    def remove(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder)

    def sql(self, *statements: str) -> str:
        """Run statements as administrator; the first value of the last one."""
        conn = psycopg2.connect(self.place)
        conn.autocommit = True
        try:
            with conn.cursor() as cur:
                for statement in statements:
                    cur.execute(statement)
                return str(cur.fetchone()[0]) if cur.description else ""  # type: ignore[index]
        finally:
            conn.close()

    def set(self, name: str, value: str) -> None:
        """Change a setting of the running server, and wait until new connections see it."""
        self.sql(f"ALTER SYSTEM SET {name} = '{value}'", "SELECT pg_reload_conf()")
        wait_until(lambda: self.sql(f"SHOW {name}") == value)


def _myself() -> programs.Account:
    return programs.Account(os.geteuid(), os.getegid())


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, PEM."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def certificate(
    name: str, issuer: Pair | None = None, names: Names | None = None, *, since_days: int = 9, days: int = 2
) -> Pair:
    """A certificate signed by the issuer or, as an authority, by itself; valid from 9 days ago for 11 days."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=since_days))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Pair(builder.sign((issuer or Pair(None, key)).key, hashes.SHA256()), key)  # type: ignore[arg-type]
