"""What check-auth tells of TLS: every sslmode, certificates of every kind, channel binding, client certificates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pgorthanc_cli import authentication, render
from pgorthanc_cli.authentication import LoginReport
from pgorthanc_cli.views import authentication as views
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
    with auth_servers.server(authority=authority) as cluster:
        if not cluster.has_tls:
            pytest.skip(f"{cluster.programs} was built without OpenSSL: no TLS server to test against")
        yield cluster


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


def modes(report: LoginReport) -> dict[str, tuple[bool, bool | None, str]]:
    return {mode.sslmode: (mode.works, mode.encrypted, mode.verifies) for mode in report.sslmodes}


def test_every_sslmode(server: Server, root: str) -> None:
    report = authentication.check(target(server, "scram", password=PASSWORD, sslrootcert=root))

    assert modes(report) == {
        "disable": (True, False, "nothing"),
        "allow": (True, False, "nothing"),
        "prefer": (True, True, "nothing"),
        "require": (True, True, "authority"),  # libpq does so if it has a root certificate
        "verify-ca": (True, True, "authority"),
        "verify-full": (True, True, "authority and host name"),
    }
    assert (report.method, report.before_tls, report.after_tls) == (
        "scram-sha-256-plus",
        "scram-sha-256",
        "scram-sha-256-plus",
    )
    assert report.channel_binding == "used"
    assert report.tls.used
    assert (report.tls.protocol, report.tls.subject, report.tls.issuer) == (
        "TLSv1.3",
        "CN=localhost",
        "CN=authority",
    )
    assert report.tls.cipher
    assert report.tls.names == ("localhost", "127.0.0.1")
    assert (report.tls.days_left, report.tls.self_signed) == (89, False)
    assert report.tls.not_before
    assert report.tls.expires
    assert report.tls.not_before < datetime.now(timezone.utc) < report.tls.expires


def test_require_does_not_verify(server: Server) -> None:
    report = authentication.check(target(server, "scram", password=PASSWORD, sslmode="require"))
    assert modes(report)["require"] == (True, True, "nothing")
    assert report.notes[0].startswith(
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
    report = authentication.check(target(server, "scram", password=PASSWORD, sslmode=sslmode))
    assert (report.method, report.tls.used, report.login) == (method, used, "works")
    assert report.channel_binding == ("used" if used else "not offered")


def test_channel_binding_that_the_client_does_not_want(server: Server) -> None:
    report = authentication.check(target(server, "scram", password=PASSWORD, channel_binding="disable"))
    assert (report.login, report.channel_binding) == ("works", "offered")


def test_a_line_for_tls_only(server: Server) -> None:
    report = authentication.check(target(server, "tls", password=PASSWORD), admin=admin(server))
    assert (report.before_tls, report.after_tls, report.login) == ("no line", "scram-sha-256-plus", "works")
    assert modes(report)["disable"][:2] == (False, None)
    assert modes(report)["allow"][:2] == (True, True)
    assert '"EnableSsl": true' in report.plugins[1].why
    assert ": hostssl all tls_role all scram-sha-256" in (report.hba_line or "")
    refused = authentication.check(target(server, "tls", password=PASSWORD, sslmode="disable"))
    assert (refused.login, refused.method) == ("refused", "no line")


def test_a_line_without_tls_only(server: Server) -> None:
    report = authentication.check(target(server, "plain", password=PASSWORD), admin=admin(server))
    assert (report.before_tls, report.after_tls, report.login, report.tls.used) == (
        "md5",
        "no line",
        "works",
        False,
    )
    assert '"EnableSsl": false' in report.plugins[0].why


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
    report = authentication.check(
        target(server, "scram", password=PASSWORD, sslrootcert=root, sslmode="prefer")
    )

    assert (report.tls.days_left, report.tls.self_signed, report.tls.issuer) == (days, self_signed, issuer)
    full = report.sslmodes[-1]
    assert full.works == (not fails)
    assert full.detail.startswith(fails)
    told = [remedy for remedy in report.remedies if remedy.startswith("the server's certificate")]
    assert bool(told) == (name != "good")
    assert (report.tls.used, report.method.endswith("-plus")) == (not fails, not fails)  # prefer falls back
    assert modes(report)["prefer"] == (True, not fails, "nothing")
    assert report.tls.detail.startswith(fails)
    screen = render.text(views.page(report, lambda *words: ""), render.Medium())
    assert ("EXPIRED" in screen) == (name == "expired")
    assert ("self-signed" in screen) == self_signed


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
        report = authentication.check(given, admin=admin(server) if chief else None)
    finally:
        auth_servers.load(server, content)
    assert (report.method, report.login) == ("scram-sha-256" if chief else "cert", "refused")
    assert report.remedies[0].startswith("set sslcert and sslkey")


@pytest.mark.parametrize("method", ["md5", "reject"])
def test_what_tls_would_change_is_tried(server: Server, method: str) -> None:
    """A role whose password is stored as md5 gets in by one kind of line, and not by another."""
    content = (server.data / "pg_hba.conf").read_text()
    try:
        lines = f"hostssl all md5_role all scram-sha-256\nhostnossl all md5_role all {method}\n"
        auth_servers.load(server, lines + content)
        report = authentication.check(target(server, "md5", password=PASSWORD, sslmode="require"))
    finally:
        auth_servers.load(server, content)
    assert (report.login, report.after_tls) == ("refused", "scram-sha-256-plus")
    assert {mode.sslmode for mode in report.sslmodes if mode.works} == (
        {"disable", "allow"} if method == "md5" else set()
    )


@pytest.mark.parametrize("kind", ["reject", "no line"])
def test_a_refusal_without_tls_gets_the_hint_of_tls(server: Server, kind: str) -> None:
    content = (server.data / "pg_hba.conf").read_text()
    try:
        if kind == "reject":
            auth_servers.load(server, "hostnossl all tls_role all reject\n" + content)
        report = authentication.check(target(server, "tls", password=PASSWORD, sslmode="disable"))
    finally:
        auth_servers.load(server, content)
    assert report.refusal.startswith("the server refuses connections without TLS: ")
    assert "--sslmode verify-full" in report.remedies[0]


def test_gss(server: Server) -> None:
    content = (server.data / "pg_hba.conf").read_text()
    try:
        auth_servers.load(server, "host all none_role all gss\n" + content)
        if server.sql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") != "0":
            pytest.skip(f"{server.programs} was built without GSSAPI")
        report = authentication.check(target(server, "none"), admin=admin(server))
    finally:
        auth_servers.load(server, content)
    assert (report.method, report.before_tls, report.login) == ("gss", "gss", "refused")
    assert report.tls.detail == ""
