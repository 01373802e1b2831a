"""A server with a role for each way to log in, as the tests of check-auth need it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.server import programs
from tests.support.localized import Localized
from tests.support.real_servers import LOCALHOST, Pair, Server, certificate, wait_until

PASSWORD = "pl4nted s3cret'\\ö"
_INSTALLED = sorted({found.version[0] for found in programs.installed()})
MAJORS = [
    pytest.param(major, id=f"PostgreSQL-{major}", marks=[pytest.mark.once] if major != _INSTALLED[0] else [])
    for major in _INSTALLED
]
SERVERS = [
    *MAJORS,
    pytest.param("German", id="German"),
    pytest.param("Japanese, EUC-JP", id="Japanese", marks=pytest.mark.once),
]  # of a release, or of a language
HBA = """local all all trust
host all trust_role all trust
host all password_role all password
host all md5_role,mixed_role,admin_role all md5
host all scram_role,wrong_role,late_role,none_role,missing_role all scram-sha-256
host all reject_role all reject
"""
TLS_HBA = """hostssl all tls_role all scram-sha-256
hostssl all cert_role all cert
hostnossl all plain_role all md5
"""


@contextmanager
def server(
    major: int | None = None, authority: Pair | None = None, language: str = "English"
) -> Iterator[Server]:
    """A running server; with an authority it has TLS if it can, and certificates good, expired and self."""
    made = Localized(language, HBA, "log_statement = all\n", major)
    try:
        made.create()
        if authority and made.has_tls:
            _give_certificates(made, authority)
        made.start()
        for kind, names in {
            "scram-sha-256": "password scram mixed late tls",
            "md5": "md5 wrong plain",
        }.items():
            for name in names.split():
                made.sql(f"SET password_encryption = '{kind}'", f"CREATE ROLE {name}_role LOGIN {password()}")
        for name in ("trust", "reject", "cert", "none", "noline"):
            made.sql(f"CREATE ROLE {name}_role LOGIN")
        made.sql(f"CREATE ROLE admin_role SUPERUSER LOGIN {password()}")
        made.sql("ALTER ROLE late_role VALID UNTIL '2020-02-02 02:02:02Z'")
        yield made
    finally:
        made.remove()


def password() -> str:
    return "PASSWORD '{}'".format(PASSWORD.replace("'", "''"))


def _give_certificates(made: Server, authority: Pair) -> None:
    for name, pair in {
        "good": certificate("localhost", authority, LOCALHOST, days=90),
        "expired": certificate("localhost", authority, LOCALHOST, days=-1),
        "self": certificate("localhost", names=LOCALHOST),
    }.items():
        made.write(f"{name}.pem", pair.certificate_pem + pair.key_pem)
    made.write("pg_hba.conf", HBA + TLS_HBA)
    made.write("authority.pem", authority.certificate_pem)
    made.write(
        "postgresql.auto.conf",
        "ssl = on\nssl_ca_file = 'authority.pem'\nssl_cert_file = 'good.pem'\nssl_key_file = 'good.pem'\n",
    )


def target(made: Server, role: str, **more: str) -> db.Target:
    """The login of a role over TCP, without a password unless one is given."""
    return db.Target(make_dsn(made.tcp, **{"user": f"{role}_role", "passfile": "/nowhere", **more}))


def admin(made: Server) -> db.Target:
    return db.Target(made.place)


def load(made: Server, hba: str) -> None:
    """Give it another pg_hba.conf, and wait until it counts."""
    made.write("pg_hba.conf", hba)
    os.utime(made.data / "pg_hba.conf", (1e9, 1e9))
    with psycopg2.connect(made.place) as conn, conn.cursor() as cur:
        cur.execute("SELECT pg_conf_load_time()")
        before = cur.fetchone()
        cur.execute("SELECT pg_reload_conf()")

        def reloaded() -> bool:
            cur.execute("SELECT pg_conf_load_time()")
            return cur.fetchone() != before

        wait_until(reloaded)
    conn.close()
