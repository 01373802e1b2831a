"""A real PgBouncer before a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from pgorthanc_cli.server import programs
from tests.support.real_servers import free_port, wait_until


@contextmanager
def bouncer(server_dsn: str, pool_mode: str, **settings: str | int) -> Iterator[str]:
    """The DSN of a PgBouncer that leads to the server, with its database and role."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("needs pgbouncer (apt-get install pgbouncer)")
    behind = parse_dsn(server_dsn)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pgorthanc-bouncer-", dir="/tmp") as name:
        folder = Path(name)
        users = folder / "users"
        users.write_text(f'"{behind.get("user", "postgres")}" ""\n')
        options = {
            "listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "trust",
            "auth_file": users, "admin_users": behind.get("user", "postgres"),
            "pool_mode": pool_mode, **settings,
        }  # fmt: skip
        lines = "\n".join(f"{key} = {value}" for key, value in options.items())
        ini = folder / "pgbouncer.ini"
        ini.write_text(f"[databases]\n* = {make_dsn(**behind)}\n[pgbouncer]\n{lines}\n")
        account = programs.service_account() if os.geteuid() == 0 else None  # it refuses to run as root
        if account:
            for path in (folder, ini, users):
                account.own(path)
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(
                [program, str(ini)],
                stdout=log,
                stderr=log,
                user=account.uid if account else None,
                group=account.gid if account else None,
            ) as process,
        ):
            dsn = make_dsn("", host="127.0.0.1", port=port, user=behind.get("user", "postgres"),
                           dbname=behind.get("dbname", "postgres"))  # fmt: skip
            try:
                wait_until(lambda: _answers(dsn) or process.poll() is not None)
                assert process.poll() is None, (folder / "log").read_text()
                yield dsn
            finally:
                process.kill()


def _answers(dsn: str) -> bool:
    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError:
        return False
    return True
