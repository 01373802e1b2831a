"""The pages about a primary before a standby follows it: what it lacks, what was prepared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pgorthanc_cli.replication import PlanItem, Prepared, PrimaryPlan
from pgorthanc_cli.text import plural, printable, size
from pgorthanc_cli.views.page import Block, Note, Page, Status

_STATUS: dict[str, Status] = {"missing": "problem", "advice": "warning", "hidden": "unknown"}
_SQL = ("ALTER ", "CREATE ", "SELECT ")
# Why it matters, instead of the bare value.
_TEXTS = {
    "max_slot_wal_keep_size": "max_slot_wal_keep_size is unlimited: a standby that stays away would fill the disk",
    "fsync": "fsync is off: a crash would destroy the database",
    "full_page_writes": "full_page_writes is off: a crash could destroy the database",
    "wal_log_hints": "without data checksums or wal_log_hints this server could not be rewound after a failover",
    "ssl": "ssl is off: the standby would receive all data unencrypted",
}
_DETAILS = {
    "ssl": "Turning it on needs a certificate and a key (ssl_cert_file, ssl_key_file) first.",
    "synchronous_standby_names": "It is set once the standby streams; before, all commits would wait for it.",
}


@dataclass(frozen=True)
class Commands:
    """The commands that a page suggests, with the connection options of the call."""

    plan: str
    primary: str
    steps: str


# The plan


def plan_page(plan: PrimaryPlan, allow: tuple[str, ...], commands: Commands) -> Page:
    """Return the page of a plan; `allow` are the addresses of the standby."""
    findings = [_finding(item) for item in plan.items if item.state != "ok"]
    passed = ", ".join(printable(item.name) for item in plan.items if item.state == "ok")
    blocks: list[Block] = [*findings, Note(f"in order: {passed}", "ok")]
    missing = [item for item in plan.items if item.state == "missing"]
    if missing and not plan.restart:
        blocks.append(Note("No restart is needed."))
    if plan.data_bytes:
        blocks.append(Note(f"The standby will copy at least {size(plan.data_bytes)}."))
    status: Status = "ok" if plan.ready else "problem" if missing else "unknown"
    headline = _headline(plan, allow, len(missing))
    where = (*plan.endpoint.login, "nothing was changed")
    return Page(headline, where, tuple(blocks), tuple(_steps(plan, allow, commands)), status)


def _headline(plan: PrimaryPlan, allow: tuple[str, ...], missing: int) -> str:
    standby = f"a standby at {', '.join(allow)}" if allow else "a standby"
    server = plan.endpoint.address
    if plan.ready:
        advice = sum(item.state == "advice" for item in plan.items)
        noted = f", with {plural(advice, 'recommendation')}" if advice else ""
        return f"{server} is ready for {standby}{noted}."
    if missing:
        verb = "is" if missing == 1 else "are"
        return f"{server} is not ready for {standby}: {plural(missing, 'requirement')} {verb} missing."
    return f"It is not known whether {server} is ready for {standby}."


def _finding(item: PlanItem) -> Note:
    details = [_DETAILS[item.name]] if item.name in _DETAILS else []
    paste = ""
    if item.name.startswith("pg_hba.conf line "):
        details.append(f"{item.statement[0].upper()}{item.statement[1:]}.")
    elif item.name == "pg_hba.conf":
        details.append(f"Needed: {printable(item.wanted)}")
    elif item.name.startswith("pg_hba.conf for "):
        details.append("Insert this as its first line, then run SELECT pg_reload_conf():")
        paste = item.statement
    elif item.name not in _DETAILS:
        paste = f"{item.statement};" if item.statement.startswith(_SQL) else item.statement
        if item.name.startswith("role ") and paste.startswith("CREATE"):
            # psql sends only a verifier, so that no log has the password
            paste += f'\n\\password "{item.name.removeprefix("role ")}"'
        if paste and item.needs == "reload":
            paste += "\nSELECT pg_reload_conf();"
    if item.needs.startswith("restart"):
        details.append("It takes effect when the server is restarted.")
    return Note(_text(item), _STATUS[item.state], tuple(details), paste)


def _text(item: PlanItem) -> str:
    name, found, wanted = map(printable, (item.name, item.found, item.wanted))
    if name.startswith("pg_hba.conf for "):
        network = name.removeprefix("pg_hba.conf for ")
        if item.state == "hidden":
            return f"pg_hba.conf is hidden from this login; it needs a line for {network}"
        if found == "no line":
            return f"pg_hba.conf has no line for {network}"
        return f"pg_hba.conf does not require scram-sha-256 from {network}: {found}"
    if name.startswith("pg_hba.conf"):
        hidden = "pg_hba.conf is hidden from this login: log in as a superuser"
        return hidden if item.state == "hidden" else f"{name}: {found}"
    if name == "disk" and item.state == "hidden":
        return f"the disk is not on this machine; it needs {wanted}"
    if item.name in _TEXTS:
        return _TEXTS[item.name]
    if found == "none":
        return f"{name} does not exist" if name.startswith(("role ", "slot ")) else f"{name} is not set"
    return f"{name} is {found}; needed: {wanted}"


def _steps(plan: PrimaryPlan, allow: tuple[str, ...], commands: Commands) -> Iterator[Note]:
    if not allow:
        yield Note("Next, give the address of the standby:", paste=commands.plan)
    elif plan.ready:
        yield Note("Next, test the login, and get the command for the standby:", paste=commands.primary)
    else:
        yield Note("Next, as a superuser, let pgorthanc apply what it can:", paste=commands.primary)
        yield Note("Or print all steps, to be run by hand:", paste=commands.steps)


# Prepared


def prepared_page(prepared: Prepared, again: str) -> Page:
    """Return the page of a primary after its preparation; `again` continues it."""
    where = (f"role {printable(prepared.role)}", f"slot {printable(prepared.slot)}")
    blocks: list[Block] = [Note(f"changed: {printable(change)}", "ok") for change in prepared.changed]
    blocks += _login(prepared)
    blocks += map(_left, prepared.left)
    if prepared.restart:
        names = ", ".join(prepared.restart)
        status: Status = "warning" if prepared.ready else "problem"
        blocks.append(Note(f"{names}: the change takes effect when the server is restarted", status))
    blocks += _standbys(prepared)
    if prepared.backup != "none":
        blocks.append(Note(f"pg_hba.conf as it was before is in {printable(prepared.backup)}."))
    if prepared.ready:
        text = (
            f"Next, copy {printable(prepared.passfile)} to the standby's machine (mode 0600), and run there:"
        )
        step = Note(text, paste=prepared.standby_command)
    else:
        step = Note("Next, do what is marked above, then run this again:", paste=again)
    statuses = {block.status for block in blocks if isinstance(block, Note)}
    worst: Status = "problem" if "problem" in statuses else "warning" if "warning" in statuses else "ok"
    return Page(_prepared(prepared), where, tuple(blocks), (step,), worst)


def _prepared(prepared: Prepared) -> str:
    server = printable(prepared.server)
    if not prepared.ready:
        return f"{server} is not ready for a standby yet: something is left to be done by hand."
    if not prepared.changed:
        return f"Nothing to do: {server} is ready for a standby."
    return f"Prepared {server} for a standby: {plural(len(prepared.changed), 'change')}."


def _login(prepared: Prepared) -> Iterator[Note]:
    if prepared.login == "works":
        yield Note(f"role {printable(prepared.role)} can log in for replication (tried)", "ok")
    else:
        yield Note(f"the login of the standby was {printable(prepared.login)}", "unknown")


def _left(text: str) -> Note:
    """Return what is left to do; a line of pg_hba.conf stands alone, to be copied."""
    task, colon, line = text.partition(": ")
    if text.startswith("insert ") and colon:
        return Note(f"{printable(task)}:", "problem", paste=line)
    return Note(printable(text), "problem")


def _standbys(prepared: Prepared) -> Iterator[Note]:
    for standby in prepared.standbys:
        if not standby.needs_command:
            yield Note(f"standby {standby} has the new password", "ok", (printable(standby.password),))
            continue
        advice, _, command = standby.password.partition(": ")
        text = f"standby {standby} still has the old password, and cannot connect again"
        yield Note(text, "problem", (f"{advice[:1].upper()}{printable(advice[1:])}:",), command)
