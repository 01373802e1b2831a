"""A place where everything may break: a server of its own, disks that can be filled, a network that can be cut."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, locks
from pgorthanc_cli.schema import catalog, initialize
from tests.support.real_servers import Server

ROLE = "importer"  # owns its databases, and has no other rights: the triggers stay on
REVISIONS = (1, catalog.newest())
_ADDRESSES = ip_network("198.18.0.0/15")  # of RFC 2544, for tests of networks
_HBA = f"local all all trust\nhost all all {_ADDRESSES} trust\n"
# The server, too, is to notice soon that a client is gone.
_SETTINGS = """
listen_addresses = '*'
shared_buffers = 16MB
max_wal_size = 128MB
tcp_keepalives_idle = 1
tcp_keepalives_interval = 1
tcp_keepalives_count = 2
tcp_user_timeout = 3000
"""
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Site:
    """A server with a template database of an empty index for each of the `REVISIONS`."""

    server: Server

    @contextmanager
    def database(
        self, number: int, *, superuser: bool, tablespace: str = "pg_default"
    ) -> Iterator[db.Target]:
        """A new database with an empty index of that revision, and who logs in."""
        name = f"archive_{next(_numbers)}"
        create = f"CREATE DATABASE {name} TEMPLATE revision_{number} OWNER {ROLE} TABLESPACE {tablespace}"
        self.server.sql(create)
        try:
            yield db.Target(self._dsn(name, "postgres" if superuser else ROLE))
        finally:
            self.server.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def _dsn(self, name: str, role: str) -> str:
        return make_dsn(self.server.place, dbname=name, user=role)

    def make_templates(self) -> None:
        self.server.sql(f"CREATE ROLE {ROLE} LOGIN")
        for number in REVISIONS:
            self.server.sql(f"CREATE DATABASE revision_{number} OWNER {ROLE}")
            with db.session(db.Target(self._dsn(f"revision_{number}", ROLE))) as conn:
                initialize.init(conn, schema="public", require_idle=locks.require_idle, revision=number)

    def answers(self) -> bool:
        return self.server.answers()


@contextmanager
def site() -> Iterator[Site]:
    """The server, for the length of the block."""
    server = Server(_HBA, _SETTINGS)
    try:
        new_site = Site(server.create().start())
        new_site.make_templates()
        yield new_site
    finally:
        server.remove()


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """A small file system of its own in that folder; None where this user may not make one."""
    size = f"size={megabytes}m"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@dataclass(frozen=True)
class Network:
    """A client in a namespace of its own, and a cable to the server that can be pulled out."""

    namespace: str
    device: str
    server: str

    def command(self, *words: str) -> list[str]:
        """That command, run on the client's side."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def pull(self) -> None:
        ip("link", "set", self.device, "down")

    def plug_in(self) -> None:
        ip("link", "set", self.device, "up")


@contextmanager
def network() -> Iterator[Network | None]:
    """A cable (a pair of virtual devices) with addresses of its own; None where this user may not lay one."""
    name = f"pgf{os.getpid()}"
    first = 4 * os.getpid() % _ADDRESSES.num_addresses
    server, client = (f"{_ADDRESSES[first + n]}/30" for n in (1, 2))
    with ExitStack() as stack:
        try:
            if os.geteuid() or shutil.which("ip") is None:
                yield None
                return
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("link", "add", f"{name}s", "type", "veth", "peer", "name", f"{name}c", "netns", name)
        except subprocess.CalledProcessError:
            yield None
            return
        ip("address", "add", server, "dev", f"{name}s")
        ip("link", "set", f"{name}s", "up")
        ip("-n", name, "address", "add", client, "dev", f"{name}c")
        ip("-n", name, "link", "set", f"{name}c", "up")
        yield Network(name, f"{name}s", server.partition("/")[0])


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
