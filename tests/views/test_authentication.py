"""The pages of `check-auth` in the states that a person can meet."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.authentication import LoginReport, MethodChanged, PluginVerdict, Remedy, SslMode, Tls
from pgorthanc_cli.views import authentication as views
from tests.support import golden

GOLDEN = Path(__file__).parent / "golden" / "authentication"
OLD = PluginVerdict("up to 3.2", False, "its libpq 9.6 does not know SCRAM")
NEW = PluginVerdict("3.3 and later", True, "knows scram-sha-256")
ROOT = (
    "TLS failed: connection to server at db1, port 5432 failed: root certificate file "
    '"/home/orthanc/.postgresql/root.crt" does not exist'
)
MODES = (
    *(
        SslMode(name, True, name != "disable", "nothing", "")
        for name in ("disable", "allow", "prefer", "require")
    ),
    SslMode("verify-ca", False, None, "authority", ROOT),
    SslMode("verify-full", False, None, "authority and host name", ROOT),
)
WORKS = LoginReport(
    role="orthanc", server="db1:5432", login="works", refusal="", method="scram-sha-256",
    before_tls="scram-sha-256", after_tls="scram-sha-256",
    tls=Tls(
        True, True, "TLSv1.3", "TLS_AES_256_GCM_SHA384", "CN=db1", "CN=Hospital CA", ("db1.hospital.local",),
        datetime(2026, 1, 1, tzinfo=timezone.utc), datetime(2027, 1, 1, tzinfo=timezone.utc), 36, False,
    ),
    channel_binding="not offered", sslmodes=MODES, stored="scram-sha-256", password_encryption="scram-sha-256",
    valid_until="never", hba_line="/etc/postgresql/pg_hba.conf:97: host orthanc orthanc 10.0.0.0/24 scram-sha-256",
    libpq="17.11", plugins=(OLD, NEW), notes=("plugins up to 3.2 cannot log in this way",),
    endpoint=db.Endpoint("orthanc", "db1", 5432, "orthanc", "15.18"),
)  # fmt: skip
HIDDEN = (
    "without a login nothing is known of the stored password and pg_hba.conf; --admin names another login"
)
REFUSED = replace(
    WORKS, login="refused", sslmodes=tuple(replace(mode, works=False) for mode in MODES), endpoint=None,
    refusal='cannot log in to db1:5432 as orthanc: FATAL:  password '
    'authentication failed for user "orthanc"',
    plugins=tuple(replace(plugin, works=False) for plugin in (OLD, NEW)), notes=(HIDDEN,),
    fixes=(Remedy('check the password of role "orthanc", and whether that role exists'),),
    stored=None, hba_line=None,
)  # fmt: skip
STATES = {
    "works": WORKS,
    "works-for-all": replace(
        WORKS, method="md5", before_tls="md5", after_tls="md5", stored="md5",
        plugins=(replace(OLD, works=True, why="knows md5"), replace(NEW, why="knows md5")),
        fixes=(Remedy("md5 is weak. To see the steps", ("check-auth", "--fix", "scram", "--print-sql")),),
    ),
    "old-plugin": replace(
        WORKS, plugin="3.2", plugins=(replace(OLD, release="3.2"),),
        fixes=(
            Remedy("upgrade the plugin to 3.3 or later"),
            Remedy("if you cannot upgrade it, see the steps", ("check-auth", "--fix", "md5", "--print-sql")),
        ),
    ),
    "peer": replace(
        WORKS, server="/var/run/postgresql:5432", method="peer", before_tls="peer", after_tls=None,
        tls=Tls(False, False), sslmodes=(), hba_line="/etc/postgresql/pg_hba.conf:3: local all all peer",
        plugins=(replace(NEW, works=None, why="works if Orthanc runs under the account that pg_hba.conf wants"),),
    ),
    "wrong-password": REFUSED,
    "no-password": replace(
        REFUSED, login="password needed", refusal="", sslmodes=MODES, plugins=(OLD, NEW),
        fixes=(Remedy("put it into ~/.pgpass"),),
    ),
    "expired-password": replace(
        REFUSED, valid_until="2026-11-01T00:00:00Z",
        fixes=(Remedy("the password has expired; as administrator", statement="ALTER ROLE orthanc VALID UNTIL '…';"),),
    ),
    "no-line": replace(
        REFUSED, method="no line", before_tls="no line", after_tls="no line",
        refusal='the server refuses this client: FATAL:  no pg_hba.conf entry for host "10.0.0.5"',
        fixes=(Remedy("the administrator adds or changes the line for this client in pg_hba.conf"),),
    ),
    "pooler": replace(WORKS, notes=("line 97 does not explain it",), doubts=("line 97 does not explain it",)),
    "expired-certificate": replace(
        WORKS, tls=replace(WORKS.tls, days_left=-3, self_signed=True),
        fixes=(Remedy("the server's certificate has expired", statement="SELECT pg_reload_conf();"),),
    ),
}  # fmt: skip


def command_line(*words: str) -> str:
    return shlex.join(["pgorthanc", *words, "--config", "/etc/orthanc"])


@pytest.mark.parametrize("state", STATES)
def test_pages(state: str) -> None:
    golden.check_view(GOLDEN, state, views.page(STATES[state], command_line))


def test_details() -> None:
    golden.check_view(GOLDEN, "verbose", views.page(WORKS, command_line, verbose=True))


def test_a_changed_method() -> None:
    changed = MethodChanged(
        "orthanc", "scram-sha-256", "md5", "scram-sha-256", "md5", "scram-sha-256",
        "/etc/postgresql/pg_hba.conf:97: host orthanc orthanc 10.0.0.0/24 scram-sha-256",
        "/etc/postgresql/pg_hba.conf.2026", ("line 4 stays at md5",),
    )  # fmt: skip
    undo = command_line("check-auth", "--fix", "md5", "--print-sql")
    golden.check_view(GOLDEN, "changed", views.changed_page(changed, undo))
