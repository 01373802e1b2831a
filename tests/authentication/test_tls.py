"""What check-auth tells of TLS: every sslmode, certificates of every kind, channel binding, client certificates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pgorthanc_cli import authentication
from pgorthanc_cli.authentication import LoginReport
from tests.support import auth_servers
from tests.support.auth_servers import PASSWORD, admin, target
from tests.support.real_servers import Pair, Server, certificate


@pytest.fixture(autouse=True)
def no_libpq_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def authority() -> Pair:
    return certificate("authority")


@pytest.fixture(scope="module")
def server(authority: Pair) -> Iterator[Server]:
    with auth_servers.server(authority=authority) as made:
        if not made.has_tls:
            pytest.skip(f"{made.found} was built without OpenSSL: no TLS server to test against")
        yield made


@pytest.fixture
def root(authority: Pair, tmp_path: Path) -> str:
    """The authority's certificate, as sslrootcert."""
    path = tmp_path / "root.pem"
    path.write_bytes(authority.certificate_pem)
    return str(path)


@pytest.fixture
def show(server: Server) -> Iterator[Callable[[str], None]]:
    """Makes the server show another certificate."""

    def change(name: str) -> None:
        server.sql(f"ALTER SYSTEM SET ssl_key_file = '{name}.pem'")
        server.set("ssl_cert_file", f"{name}.pem")

    yield change
    change("good")


def modes(found: LoginReport) -> dict[str, tuple[bool, bool | None, str]]:
    return {mode.sslmode: (mode.works, mode.encrypted, mode.verifies) for mode in found.sslmodes}


def test_every_sslmode(server: Server, root: str) -> None:
    found = authentication.check(target(server, "scram", password=PASSWORD, sslrootcert=root))

    assert modes(found) == {
        "disable": (True, False, "nothing"),
        "allow": (True, False, "nothing"),
        "prefer": (True, True, "nothing"),
        "require": (True, True, "authority"),  # libpq does so if it has a root certificate
        "verify-ca": (True, True, "authority"),
        "verify-full": (True, True, "authority and host name"),
    }
    assert (found.method, found.before_tls, found.after_tls) == (
        "scram-sha-256-plus",
        "scram-sha-256",
        "scram-sha-256-plus",
    )
    assert found.channel_binding == "used"
    assert found.tls.used
    assert (found.tls.protocol, found.tls.subject, found.tls.issuer) == (
        "TLSv1.3",
        "CN=localhost",
        "CN=authority",
    )
    assert found.tls.cipher
    assert found.tls.names == ("localhost", "127.0.0.1")
    assert (found.tls.days_left, found.tls.self_signed) == (89, False)
    assert found.tls.not_before
    assert found.tls.expires
    assert found.tls.not_before < datetime.now(timezone.utc) < found.tls.expires


def test_require_does_not_verify(server: Server) -> None:
    found = authentication.check(target(server, "scram", password=PASSWORD, sslmode="require"))
    assert modes(found)["require"] == (True, True, "nothing")
    assert found.notes[0].startswith(
        'sslmode=require ("EnableSsl": true) encrypts, but does not verify the server'
    )


@pytest.mark.parametrize(
    ("sslmode", "method", "used"),
    [
        ("disable", "scram-sha-256", False),
        ("allow", "scram-sha-256", False),
        ("require", "scram-sha-256-plus", True),
    ],
)
def test_the_method_is_that_of_the_sslmode(server: Server, sslmode: str, method: str, used: bool) -> None:
    found = authentication.check(target(server, "scram", password=PASSWORD, sslmode=sslmode))
    assert (found.method, found.tls.used, found.login) == (method, used, "works")
    assert found.channel_binding == ("used" if used else "not offered")


def test_channel_binding_that_the_client_does_not_want(server: Server) -> None:
    found = authentication.check(target(server, "scram", password=PASSWORD, channel_binding="disable"))
    assert (found.login, found.channel_binding) == ("works", "offered")


def test_a_line_for_tls_only(server: Server) -> None:
    found = authentication.check(target(server, "tls", password=PASSWORD), admin=admin(server))
    assert (found.before_tls, found.after_tls, found.login) == ("no line", "scram-sha-256-plus", "works")
    assert modes(found)["disable"][:2] == (False, None)
    assert modes(found)["allow"][:2] == (True, True)
    assert '"EnableSsl": true' in found.plugins[1].why
    assert ": hostssl all tls_role all scram-sha-256" in (found.hba_line or "")
    refused = authentication.check(target(server, "tls", password=PASSWORD, sslmode="disable"))
    assert (refused.login, refused.method) == ("refused", "no line")


def test_a_line_without_tls_only(server: Server) -> None:
    found = authentication.check(target(server, "plain", password=PASSWORD), admin=admin(server))
    assert (found.before_tls, found.after_tls, found.login, found.tls.used) == (
        "md5",
        "no line",
        "works",
        False,
    )
    assert '"EnableSsl": false' in found.plugins[0].why


@pytest.mark.parametrize(
    ("name", "days", "self_signed", "issuer", "fails"),
    [
        ("good", 89, False, "CN=authority", ""),
        ("expired", -2, False, "CN=authority", "the server's certificate has expired"),
        ("self", 1, True, "CN=localhost", "the server's certificate cannot be verified"),
    ],
)
def test_certificates(
    server: Server,
    show: Callable[[str], None],
    root: str,
    name: str,
    days: int,
    self_signed: bool,
    issuer: str,
    fails: str,
) -> None:
    show(name)
    found = authentication.check(
        target(server, "scram", password=PASSWORD, sslrootcert=root, sslmode="prefer")
    )

    assert (found.tls.days_left, found.tls.self_signed, found.tls.issuer) == (days, self_signed, issuer)
    full = found.sslmodes[-1]
    assert full.works == (not fails)
    assert full.detail.startswith(fails)
    told = [remedy for remedy in found.remedies if remedy.startswith("the server's certificate")]
    assert bool(told) == (name != "good")
    assert (found.tls.used, found.method.endswith("-plus")) == (not fails, not fails)  # prefer falls back
    assert modes(found)["prefer"] == (True, not fails, "nothing")
    assert found.tls.detail.startswith(fails)
    assert ("EXPIRED" in str(found.tls)) == (name == "expired")
    assert ("self-signed" in str(found.tls)) == self_signed


def test_a_client_certificate(server: Server, authority: Pair, tmp_path: Path) -> None:
    def with_client(pair: Pair) -> LoginReport:
        path = tmp_path / "client.pem"
        path.write_bytes(pair.certificate_pem + pair.key_pem)
        path.chmod(0o600)
        more = {"sslcert": str(path), "sslkey": str(path)}
        return authentication.check(target(server, "cert", **more), admin=admin(server))

    good = with_client(certificate("cert_role", authority))
    assert (good.method, good.login, good.stored) == ("cert", "works", "none")
    assert "needs ConnectionUri with sslcert and sslkey" in good.plugins[0].why
    assert good.works_everywhere
    other = with_client(certificate("somebody_else", authority))
    assert (other.method, other.login) == ("cert", "refused")
    without = authentication.check(target(server, "cert"))
    assert (without.method, without.login) == ("cert", "refused")
    assert without.remedies[0].startswith("set sslcert and sslkey")
    stranger = with_client(certificate("cert_role", certificate("stranger")))
    assert (stranger.method, stranger.login) == ("cert", "refused")
    assert "client certificate" in stranger.refusal


@pytest.mark.parametrize("chief", [True, False])
def test_a_password_and_a_client_certificate(server: Server, chief: bool) -> None:
    """The method is that of the line; where no line can be seen, only the certificate is known to be missing."""
    content = (server.data / "pg_hba.conf").read_text()
    try:
        auth_servers.load(server, "hostssl all scram_role all scram-sha-256 clientcert=verify-ca\n" + content)
        given = target(server, "scram", password=PASSWORD, sslmode="require")
        found = authentication.check(given, admin=admin(server) if chief else None)
    finally:
        auth_servers.load(server, content)
    assert (found.method, found.login) == ("scram-sha-256" if chief else "cert", "refused")
    assert found.remedies[0].startswith("set sslcert and sslkey")


@pytest.mark.parametrize("method", ["md5", "reject"])
def test_what_tls_would_change_is_tried(server: Server, method: str) -> None:
    """A role whose password is stored as md5 gets in by one kind of line, and not by another."""
    content = (server.data / "pg_hba.conf").read_text()
    try:
        lines = f"hostssl all md5_role all scram-sha-256\nhostnossl all md5_role all {method}\n"
        auth_servers.load(server, lines + content)
        found = authentication.check(target(server, "md5", password=PASSWORD, sslmode="require"))
    finally:
        auth_servers.load(server, content)
    assert (found.login, found.after_tls) == ("refused", "scram-sha-256-plus")
    assert {mode.sslmode for mode in found.sslmodes if mode.works} == (
        {"disable", "allow"} if method == "md5" else set()
    )


@pytest.mark.parametrize("kind", ["reject", "no line"])
def test_a_refusal_without_tls_gets_the_hint_of_tls(server: Server, kind: str) -> None:
    content = (server.data / "pg_hba.conf").read_text()
    try:
        if kind == "reject":
            auth_servers.load(server, "hostnossl all tls_role all reject\n" + content)
        found = authentication.check(target(server, "tls", password=PASSWORD, sslmode="disable"))
    finally:
        auth_servers.load(server, content)
    assert found.refusal.startswith("the server refuses connections without TLS: ")
    assert "--sslmode verify-full" in found.remedies[0]


def test_gss(server: Server) -> None:
    content = (server.data / "pg_hba.conf").read_text()
    try:
        auth_servers.load(server, "host all none_role all gss\n" + content)
        if server.sql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") != "0":
            pytest.skip(f"{server.found} was built without GSSAPI")
        found = authentication.check(target(server, "none"), admin=admin(server))
    finally:
        auth_servers.load(server, content)
    assert (found.method, found.before_tls, found.login) == ("gss", "gss", "refused")
    assert found.tls.detail == ""
