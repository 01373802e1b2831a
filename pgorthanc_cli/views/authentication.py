"""The pages about a login: whether Orthanc can log in, and if not, why; and a changed method."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pgorthanc_cli.authentication import LoginReport, MethodChanged, PluginVerdict, Remedy, SslMode
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views.page import Block, Facts, Note, Page, Status

# How libpq introduces the words of the server.
_ATTEMPT = re.compile(r'connection to server (?:at|on socket) "[^;]*? failed: ')
_REFUSALS = {
    "no line": "no line of pg_hba.conf matches this client",
    "reject": "pg_hba.conf rejects this client",
    "refused": "refused",
}
_WITH_PASSWORD = ("password", "md5", "scram-sha-256", "scram-sha-256-plus")
CommandLine = Callable[..., str]


def page(report: LoginReport, command_line: CommandLine, *, verbose: bool = False) -> Page:
    """Return the page; `command_line` adds the connection options to the words of a command."""
    works = report.login == "works"
    status: Status = "ok"
    if not works or not report.works_for_plugin:
        status = "problem"
    elif report.fixes or report.doubts:
        status = "warning"
    blocks: list[Block] = [Note(_sentence(doubt), "warning") for doubt in report.doubts]
    blocks += [_remedy(fix, status, command_line) for fix in report.fixes]
    if report.refusal:
        # The words of libpq and of the server, once and unchanged.
        said = _ATTEMPT.sub("", report.refusal.partition(": ")[2])
        blocks.append(Note(f"PostgreSQL: {printable(said)}"))
    blocks.append(Facts(tuple(_facts(report, verbose=verbose))))
    for note in report.notes:
        # Of a refused login, it matters who could see more.
        if note not in report.doubts and (verbose or (not works and "--admin" in note)):
            blocks.append(Note(_sentence(note)))
    return Page(_headline(report), tuple(_where(report)), tuple(blocks), status=status)


def changed_page(changed: MethodChanged, undo: str) -> Page:
    """Return the page of a changed method; `undo` shows the steps that lead back, or is empty."""
    role = printable(changed.role)
    rows = [("Password", _change(changed.stored_before, changed.stored))]
    rows.append(("Server asks for", _change(changed.method_before, changed.method)))
    if changed.hba_line:
        rows.append(("Rule", printable(changed.hba_line)))
    if changed.backup:
        rows.append(("Backup", printable(changed.backup)))
    notes = [Note(_sentence(note)) for note in changed.notes]
    steps = (Note("To go back, these are the steps:", paste=undo),) if undo else ()
    headline = f"Role {role} logs in by {changed.wanted} now, with the same password."
    return Page(headline, ("a login has proved it",), (Facts(tuple(rows)), *notes), steps, "ok")


def _change(before: str | None, after: str) -> str:
    if before == after:
        return f"{after}, as before"
    return f"{after}, before: {before}" if before else after


def _headline(report: LoginReport) -> str:
    role, server = printable(report.role), printable(report.server)
    if report.login == "password needed":
        return f"The server {server} asks role {role} for a password, and none was given."
    if report.login != "works":
        summary = report.refusal.partition(": ")[0]
        reason = "" if summary.startswith("cannot log in") else f": {summary}"
        return f"Role {role} cannot log in to {server}{reason}."
    plugin = "The current plugin" if report.plugin == "latest" else f"Plugin {report.plugin}"
    verdict = report.plugins[-1] if report.plugins else None
    if not report.works_for_plugin:
        return f"{plugin} cannot log in to {server} as role {role}, but this program can."
    if verdict and verdict.works is None:
        return f"Role {role} can log in to {server} from here; whether Orthanc can is not certain."
    password = " The password is correct." if report.method in _WITH_PASSWORD else ""
    return f"{plugin} can log in to {server} as role {role}.{password}"


def _where(report: LoginReport) -> Iterator[str]:
    tls = report.tls
    if report.is_local:
        how = "through the local socket"
    elif tls.used:
        how = f"over {tls.protocol or 'TLS'}"
    else:
        how = "without TLS"
    method = _REFUSALS.get(report.method)
    yield f"{method} ({how})" if method else f"{report.method} {how}"
    if report.endpoint:
        yield f"PostgreSQL {report.endpoint.server_version}"


def _remedy(remedy: Remedy, status: Status, command_line: CommandLine) -> Note:
    paste = command_line(*remedy.command) if remedy.command else remedy.statement
    text = f"{_capital(remedy.text)}:" if paste else _sentence(remedy.text)
    return Note(text, status, paste=paste)


def _facts(report: LoginReport, *, verbose: bool) -> Iterator[tuple[str, str]]:
    if report.hba_line:
        yield "Rule", printable(report.hba_line)
    methods = {report.after_tls or report.before_tls, report.before_tls}
    if len(methods) == 2 and not methods <= _REFUSALS.keys():
        yield "Method", f"{report.after_tls} with TLS, {report.before_tls} without"
    differs = report.stored != report.method.removesuffix("-plus")
    if report.stored and (verbose or (differs and report.method in _WITH_PASSWORD)):
        yield "Password", "none stored" if report.stored == "none" else f"stored as {report.stored}"
    if report.valid_until and report.valid_until != "never":
        yield "Expires", report.valid_until
    yield from _sslmodes(report, verbose=verbose)
    if report.tls.expires is not None:
        yield "Certificate", _certificate(report)
    elif report.tls.detail and not report.is_local and verbose:
        yield "TLS", printable(report.tls.detail)
    if report.login != "refused":
        yield from _plugins(report)
    if verbose:
        yield "Channel binding", report.channel_binding
        if report.password_encryption:
            yield "New passwords", f"are stored as {report.password_encryption} (password_encryption)"
        yield "libpq", report.libpq


def _sslmodes(report: LoginReport, *, verbose: bool) -> Iterator[tuple[str, str]]:
    """Yield which modes work, then which fail for the same reason; nothing if none works."""
    working = [_mode(report, mode) for mode in report.sslmodes if mode.works]
    if not working:
        return
    verb = "works" if len(working) == 1 else "work"
    asked = " as far as the password" if report.login == "password needed" else ""
    yield "sslmode", f"{', '.join(working)} {verb}{asked}"
    reasons: dict[str, list[str]] = {}
    for mode in report.sslmodes:
        if not mode.works:
            reason = mode.detail if verbose else _short(mode.detail)
            reasons.setdefault(reason, []).append(_mode(report, mode))
    for reason, modes in reasons.items():
        verb = "fails" if len(modes) == 1 else "fail"
        yield "", f"{', '.join(modes)} {verb}: {printable(reason)}"


def _short(detail: str) -> str:
    if "root certificate file" in detail and "does not exist" in detail:
        return "there is no root certificate here (sslrootcert)"
    return detail.partition(": ")[0]


def _mode(report: LoginReport, mode: SslMode) -> str:
    return f"{mode.sslmode} (in use)" if mode.sslmode == report.sslmode else mode.sslmode


def _certificate(report: LoginReport) -> str:
    tls = report.tls
    names = f" for {', '.join(map(printable, tls.names))}" if tls.names else ""
    kind = "self-signed" if tls.self_signed else f"signed by {printable(tls.issuer or '')}"
    left = tls.days_left or 0
    valid = f"valid for {plural(left, 'day')}" if left >= 0 else "EXPIRED"
    until = f", until {tls.expires:%Y-%m-%d}" if tls.expires else ""
    return f"{kind}{names}; {valid}{until}"


def _plugins(report: LoginReport) -> Iterator[tuple[str, str]]:
    """Yield the verdicts, the newest release first: it is what most have."""
    texts = [_verdict(plugin) for plugin in report.plugins]
    if len(texts) > 1 and len(set(texts)) == 1:
        yield "Plugins", f"all releases {texts[0]}"
        return
    name = "Plugins" if len(texts) > 1 else "Plugin"
    for plugin, text in zip(reversed(report.plugins), reversed(texts), strict=True):
        yield name, f"{plugin.release} {text}"
        name = ""


def _verdict(plugin: PluginVerdict) -> str:
    if plugin.works:
        _, _, needs = plugin.why.partition("; ")
        return f"can log in{'; ' if needs else ''}{needs}"
    if plugin.works is None:
        return plugin.why.replace("works if", "can log in if")
    return f"cannot log in: {plugin.why}"


def _capital(text: str) -> str:
    """Return a text with a capital first letter, unless it begins with an identifier such as md5."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,'-]", text) else text


def _sentence(text: str) -> str:
    return f"{_capital(text)}{'' if text.endswith(('.', ';')) else '.'}"
