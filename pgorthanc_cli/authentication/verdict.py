"""Which releases of Orthanc's plugin can log in by a method, and what to do about it.

The releases up to 3.2 carry libpq 9.6, which knows neither SCRAM nor channel binding (PostgreSQL 10 and 11
brought them) and reports `authentication method 10 not supported`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pgorthanc_cli.authentication.model import LoginReport, PluginVerdict
from pgorthanc_cli.authentication.server_side import ServerSide, explains
from pgorthanc_cli.db import quote_ident
from pgorthanc_cli.errors import UsageError

_SCRAM_SINCE = (3, 3)
_EXPIRES_SOON_DAYS = 30
_REFUSALS = ("reject", "no line", "refused")
_PASSWORDS = ("password", "md5", "scram-sha-256", "scram-sha-256-plus")
_LOOPBACK = ("127.", "::1:", "localhost:")

_OLD = (
    "carries libpq 9.6, which says: authentication method 10 not supported (a distribution's package that uses "
    "the system's libpq 10 or later works)"
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
    return replace(
        report,
        plugins=tuple(PluginVerdict(release.name, *_judge(release, report)) for release in of),
        plugin=of[0].name if len(of) == 1 else "latest",
        remedies=tuple(_remedies(report, server, hint, of)),
        notes=(*_notes(report, server, of), *server.notes),
    )


def _judge(release: Release, report: LoginReport) -> tuple[bool | None, str]:
    if report.method in _REFUSALS:
        return False, f"the server refuses this client: {report.refusal}"
    if report.method.startswith("scram") and not release.knows_scram:
        return False, _OLD
    if report.refusal:
        return False, report.refusal
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
) -> Iterator[str]:
    yield from _login_remedies(report, server, hint)
    works = report.login == "works"
    if works and report.method.startswith("scram") and not of[-1].knows_scram:
        yield "upgrade the plugin to 3.3 or later: it knows SCRAM, and nothing else has to change"
        yield (
            f"if that cannot be: pgorthanc check-auth --fix md5 moves role {report.role} alone to md5, keeps its "
            "password and all data, and can be undone with --fix scram (--print shows the steps)"
        )
    if works and (report.method == "md5" or report.stored == "md5"):
        yield (
            "md5 is weak, and whoever reads the stored value can log in with it: once every plugin is 3.3 or "
            "later, run: pgorthanc check-auth --fix scram"
        )
    if report.method == "trust" and not report.is_local:
        line = f" ({report.hba_line})" if report.hba_line else ""
        yield (
            f"everybody who reaches the server is let in without a password: write scram-sha-256 instead of trust "
            f"into the line of pg_hba.conf{line}, after setting a password"
        )
    if report.method == "password":
        yield "the server gets the password itself, not a proof of it: write scram-sha-256 into the line of pg_hba.conf"
    yield from _tls_remedies(report)


def _login_remedies(report: LoginReport, server: ServerSide, hint: str | None) -> Iterator[str]:
    """Yield remedies for a login that fails: problems seen on the server, then the hint of the error."""
    if report.login == "works":
        return
    role = quote_ident(report.role)
    if server.expired:
        yield (
            f"the password has expired ({report.valid_until}); as administrator: "
            f"ALTER ROLE {role} VALID UNTIL 'infinity'"
        )
    if not server.role_exists:
        yield f"there is no such role; as administrator: CREATE ROLE {role} LOGIN; then in psql: \\password {role}"
    elif report.method in _PASSWORDS and report.stored == "none":
        yield f"the role has no password; as administrator, in psql: \\password {role}"
    if report.stored == "md5" and server.rule and server.rule.method == "scram-sha-256":
        yield (
            "pg_hba.conf wants SCRAM, and the stored password is md5: run pgorthanc check-auth --fix scram, which "
            "sets the same password again (or --fix md5 for a plugin up to 3.2)"
        )
    if hint:
        yield hint


def _tls_remedies(report: LoginReport) -> Iterator[str]:
    tls = report.tls
    if tls.offered and tls.used is False and not report.server.startswith(_LOOPBACK):
        yield (
            "nothing is encrypted although the server offers TLS: use ConnectionUri with sslmode=verify-full and "
            'sslrootcert, or at least "EnableSsl": true'
        )
    if tls.days_left is not None and tls.days_left < _EXPIRES_SOON_DAYS:
        what = "has expired" if tls.days_left < 0 else f"expires in {tls.days_left} days"
        yield f"the server's certificate {what}: have it renewed, then SELECT pg_reload_conf()"


def _notes(report: LoginReport, server: ServerSide, of: Sequence[Release]) -> Iterator[str]:
    if server.rule and not explains(server.rule, report.method):
        yield (
            f"line {server.rule.line} of pg_hba.conf does not explain why {report.method} is asked: a pooler stands "
            "between, or the server works with an older file"
        )
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
