"""Which releases of Orthanc's plugin can log in by a method, and what to do about it.

The releases up to 3.2 carry libpq 9.6, which knows neither SCRAM nor channel binding (PostgreSQL 10 and 11
brought them) and reports `authentication method 10 not supported`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pgorthanc_cli.authentication.model import LoginReport, PluginVerdict, Remedy
from pgorthanc_cli.authentication.server_side import ServerSide, explains
from pgorthanc_cli.db import quote_ident
from pgorthanc_cli.errors import UsageError

_SCRAM_SINCE = (3, 3)
# About as long as a hospital's authority takes to issue another certificate.
_EXPIRES_SOON_DAYS = 30
_REFUSALS = ("reject", "no line", "refused")
_PASSWORDS = ("password", "md5", "scram-sha-256", "scram-sha-256-plus")
# What never leaves the machine needs no encryption.
_LOOPBACK = ("127.", "::1:", "localhost:")

_OLD = (
    'its libpq 9.6 does not know SCRAM ("authentication method 10 not supported"), unless a distribution has built it '
    "with libpq 10 or later"
)


@dataclass(frozen=True)
class Release:
    """A release of the plugin, or several that behave alike."""

    name: str
    knows_scram: bool


_ALL = (Release("up to 3.2", knows_scram=False), Release("3.3 and later", knows_scram=True))


def releases(plugin: str | None) -> tuple[Release, ...]:
    """Return all releases, or the one given.

    Raises:
        UsageError: It is not a release, such as `new`.
    """
    if plugin is None:
        return _ALL
    numbers = re.match(r"(\d+)\.(\d+)(?:\.|$)", plugin)
    if numbers is None:
        raise UsageError(
            f"--plugin is {plugin!r}, wanted a release of the plugin", "as in --plugin 3.2 or 10.3"
        )
    return (Release(plugin, (int(numbers[1]), int(numbers[2])) >= _SCRAM_SINCE),)


def stored_by(method: str) -> str | None:
    """Return the kind of the stored password that a successful login proves, None if it proves none."""
    plain = method.removesuffix("-plus")  # the method `password` works with both kinds
    return plain if plain in ("md5", "scram-sha-256") else None


def judged(report: LoginReport, server: ServerSide, hint: str | None, of: Sequence[Release]) -> LoginReport:
    """Return the report with verdicts, remedies and notes; `hint` is that of a refused login."""
    fixes = tuple(_remedies(report, server, hint, of))
    doubts = (*_doubts(report, server), *server.notes)
    return replace(
        report,
        plugins=tuple(PluginVerdict(release.name, *_judge(release, report)) for release in of),
        plugin=of[0].name if len(of) == 1 else "latest",
        # The texts are for --json; a page shows the statement of each, too.
        remedies=tuple(map(str, fixes)),
        notes=(*_doubts(report, server), *_notes(report, server, of), *server.notes),
        fixes=fixes,
        doubts=doubts,
    )


def _judge(release: Release, report: LoginReport) -> tuple[bool | None, str]:
    if report.method in _REFUSALS:
        return False, report.refusal
    if report.method.startswith("scram") and not release.knows_scram:
        return False, _OLD
    if report.refusal:
        return False, report.refusal
    # The account of Orthanc's process decides, and this command may run under another one.
    if report.method in ("peer", "ident", "trust or peer"):
        return None, "works if Orthanc runs under the account that pg_hba.conf wants"
    if report.method not in (*_PASSWORDS, "trust", "cert", "trust or cert"):
        return None, f"works if the plugin's libpq was built with {report.method}"
    return True, "; ".join([f"knows {report.method.removesuffix('-plus')}", *_needs(report)])


def _needs(report: LoginReport) -> Iterator[str]:
    """Yield what Orthanc's configuration needs."""
    if report.method in ("cert", "trust or cert"):
        yield "needs ConnectionUri with sslcert and sslkey"
    elif report.before_tls in _REFUSALS and report.after_tls not in (*_REFUSALS, None):
        yield 'needs TLS: "EnableSsl": true (3.0 and later), or ConnectionUri with sslmode'
    elif report.after_tls in _REFUSALS and report.before_tls not in _REFUSALS:
        yield 'the server wants no TLS here: "EnableSsl": false'


def _remedies(
    report: LoginReport, server: ServerSide, hint: str | None, of: Sequence[Release]
) -> Iterator[Remedy]:
    yield from _login_remedies(report, server, hint)
    works = report.login == "works"
    if works and report.method.startswith("scram") and not of[-1].knows_scram:
        yield Remedy("upgrade the plugin to 3.3 or later: it knows SCRAM, and nothing else has to change")
        yield Remedy(
            f"if you cannot upgrade it, move only role {report.role} to md5: its password and all data stay, and "
            "--fix scram leads back. To see the steps",
            ("check-auth", "--fix", "md5", "--print-sql"),
        )
    if works and (report.method == "md5" or report.stored == "md5"):
        yield Remedy(
            "md5 is weak, and whoever reads the stored value can log in with it. Once every plugin is 3.3 or later, "
            "move the role to SCRAM. To see the steps",
            ("check-auth", "--fix", "scram", "--print-sql"),
        )
    if report.method == "trust" and not report.is_local:
        line = f" ({report.hba_line})" if report.hba_line else ""
        yield Remedy(
            "every client that reaches the server can log in without a password: set one, then write scram-sha-256 "
            f"instead of trust into the line of pg_hba.conf{line}"
        )
    if report.method == "password":
        yield Remedy(
            "the client sends the password itself, not a proof of it: write scram-sha-256 into the line of pg_hba.conf"
        )
    yield from _tls_remedies(report)


def _login_remedies(report: LoginReport, server: ServerSide, hint: str | None) -> Iterator[Remedy]:
    """Yield remedies for a login that fails: causes seen on the server, else the hint of the error."""
    if report.login == "works":
        return
    role = quote_ident(report.role)
    # The server's own reason is exact; libpq's hint can only guess from the message.
    known = list(_causes_on_the_server(report, server, role))
    yield from known
    if hint and not known:
        yield Remedy(hint)


def _causes_on_the_server(report: LoginReport, server: ServerSide, role: str) -> Iterator[Remedy]:
    if server.expired:
        yield Remedy(
            f"the password has expired ({report.valid_until}); as administrator",
            statement=f"ALTER ROLE {role} VALID UNTIL 'infinity';",
        )
    if not server.role_exists:
        yield Remedy(
            f"role {role} does not exist; as administrator, in psql",
            statement=f"CREATE ROLE {role} LOGIN;\n\\password {role}",
        )
    elif report.method in _PASSWORDS and report.stored == "none":
        yield Remedy("the role has no password; as administrator, in psql", statement=f"\\password {role}")
    if report.stored == "md5" and server.rule and server.rule.method == "scram-sha-256":
        yield Remedy(
            "pg_hba.conf requires SCRAM, but the stored password is md5: it has to be set again. To see the steps",
            ("check-auth", "--fix", "scram", "--print-sql"),
        )


def _tls_remedies(report: LoginReport) -> Iterator[Remedy]:
    tls = report.tls
    if tls.offered and tls.used is False and not report.server.startswith(_LOOPBACK):
        yield Remedy(
            "nothing is encrypted although the server offers TLS: use ConnectionUri with sslmode=verify-full and "
            'sslrootcert, or at least "EnableSsl": true'
        )
    if tls.days_left is not None and tls.days_left < _EXPIRES_SOON_DAYS:
        what = "has expired" if tls.days_left < 0 else f"expires in {tls.days_left} days"
        yield Remedy(
            f"the server's certificate {what}; once it is renewed, as administrator",
            # Since PostgreSQL 10, a reload reads the certificate again.
            statement="SELECT pg_reload_conf();",
        )


def _doubts(report: LoginReport, server: ServerSide) -> Iterator[str]:
    if server.rule and not explains(server.rule, report.method):
        yield (
            f"line {server.rule.line} of pg_hba.conf does not explain why {report.method} is asked: a pooler stands "
            "between, or the server works with an older file"
        )


def _notes(report: LoginReport, server: ServerSide, of: Sequence[Release]) -> Iterator[str]:
    if report.tls.offered:
        yield (
            'sslmode=require ("EnableSsl": true) encrypts, but does not verify the server: only verify-full does, '
            "which needs ConnectionUri and sslrootcert"
        )
    if report.login == "works" and report.method.startswith("scram") and of[-1].knows_scram:
        yield from (
            f"plugins {old.name} cannot log in this way: they carry libpq 9.6, which does not know SCRAM"
            for old in of
            if not old.knows_scram
        )
    if server.viewer is None:
        yield (
            "without a login nothing is known of the stored password and pg_hba.conf; --admin names another login "
            "that may see them"
        )
        return
    if report.stored is None:
        yield f"the kind of the stored password is hidden from role {server.viewer}: it takes a superuser (--admin)"
    if not server.sees_rules:
        yield f"pg_hba.conf is hidden from role {server.viewer}: it takes a superuser (--admin)"
