"""`replication plan`: what a primary lacks for a standby, and what is recommended."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, UsageError
from pgorthanc_cli.replication import upstream
from pgorthanc_cli.replication.survey import Facts, networks, survey
from pgorthanc_cli.server import hba

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

OLDEST_MAJOR = 12
_SIZE = re.compile(r"[1-9]\d*(?:MB|GB|TB)")
_FACTORS = {"MB": 2**20, "GB": 2**30, "TB": 2**40}
_SENDERS = 10  # PostgreSQL's default since version 10
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
_SPARE = 2  # a base backup takes two at once


@dataclass(frozen=True)
class Requirements:
    """What a standby requires of its primary.

    Attributes:
        allow: Addresses and networks from which it may connect.
        role: The role of its login.
        slot: Its slot.
        limit: How much WAL a slot may hold back before it is invalidated
            (max_slot_wal_keep_size).
        synchronous: Whether commits wait for it.
    """

    allow: tuple[str, ...] = ()
    role: str = upstream.ROLE
    slot: str = upstream.SLOT
    limit: str = "10GB"
    synchronous: bool = False

    def check(self) -> None:
        """Raise UsageError for a value that is invalid, or lets every address in."""
        networks(self.allow)
        upstream.check_slot_name(self.slot)
        if not _SIZE.fullmatch(self.limit):
            raise UsageError(f"--slot-limit is {self.limit!r}, wanted a size such as 500MB or 10GB")

    def options(self) -> list[str]:
        """Return the options of a command line that mean the same."""
        default = Requirements()
        words = [word for address in self.allow for word in ("--allow", address)]
        for name, value, usual in (
            ("--role", self.role, default.role),
            ("--slot", self.slot, default.slot),
            ("--slot-limit", self.limit, default.limit),
        ):
            words += [name, value] if value != usual else []
        return [*words, "--synchronous"] if self.synchronous else words

    def endpoint_for_standby(self, server: str) -> tuple[str, str]:
        """Return host and port of the primary for the standby; PRIMARY is to be replaced.

        A socket, or a loopback address, leads the standby to its own machine, unless it is this one.
        """
        host, _, port = server.rpartition(":")
        is_here = any(network.is_loopback for network in networks(self.allow))
        if host.startswith("/") or host == "local socket" or (host in _LOOPBACK and not is_here):
            host = "PRIMARY"
        return host, port

    @property
    def limit_bytes(self) -> int:
        """Return the limit in bytes."""
        return int(self.limit[:-2]) * _FACTORS[self.limit[-2:]]


@dataclass(frozen=True)
class PlanItem:
    """One setting, or one other property, that was checked.

    Attributes:
        name: Of the setting or property.
        found: The actual value.
        wanted: The required value; the recommended one where `state` is `advice`.
        state: `ok`, `missing` (no standby without it), `advice`, or `hidden` from this
            login.
        needs: `restart` or `reload` of the server before it takes effect, else empty.
        statement: The SQL, or the line of pg_hba.conf, that sets it.
    """

    name: str
    found: str
    wanted: str
    state: str
    needs: str = ""
    statement: str = ""


@dataclass(frozen=True)
class PrimaryPlan:
    """The state of a primary, compared with the requirements.

    Attributes:
        server: Host and port.
        version: Of PostgreSQL.
        ready: Whether a standby can follow it now; False while its line in pg_hba.conf is
            unknown.
        restart: Whether a setting that is missing needs a restart.
        items: All that was checked.
        data_bytes: What a base backup copies, at least.
        free_bytes: Free on the primary's disk for WAL that a slot holds back; None if it
            is not on this machine.
        endpoint: Where the connection leads, and its login.
    """

    server: str
    version: str
    ready: bool
    restart: bool
    items: tuple[PlanItem, ...]
    data_bytes: int | None
    free_bytes: int | None
    endpoint: db.Endpoint


def plan(conn: Connection, requirements: Requirements) -> PrimaryPlan:
    """Compare the server of an autocommit connection with the requirements.

    Raises:
        ConnectError: It is a standby.
        UsageError: The requirements are invalid.
    """
    requirements.check()
    facts = survey(conn, requirements.role)
    if facts.standby:
        raise ConnectError(
            f"the server {facts.endpoint} is a standby itself",
            "name the primary with --host, or list all hosts in the URI beside target_session_attrs=read-write",
        )
    items = (
        _version(facts),
        *_required_settings(facts, requirements),
        _role(facts, requirements, conn),
        *_hba(facts, requirements),
        _slot(facts, requirements),
        *_recommended_settings(facts, requirements),
        *_open_lines(facts),
    )
    missing = [item for item in items if item.state == "missing"]
    unknown = any(
        item.name == "pg_hba.conf" or (item.name.startswith("pg_hba.conf for") and item.state == "hidden")
        for item in items
    )
    return PrimaryPlan(
        server=facts.endpoint,
        version=facts.version,
        ready=not missing and not unknown,
        restart=any(item.needs == "restart" for item in missing),
        items=items,
        data_bytes=facts.data_bytes,
        free_bytes=facts.free_bytes,
        endpoint=db.endpoint(conn),
    )


def _version(facts: Facts) -> PlanItem:
    state = "ok" if facts.major >= OLDEST_MAJOR else "missing"
    return PlanItem("version", facts.version, f"{OLDEST_MAJOR} or newer", state)


# Settings


def _required_settings(facts: Facts, requirements: Requirements) -> Iterator[PlanItem]:
    get = facts.settings.get
    level = get("wal_level", "")
    yield _setting("wal_level", level, "replica", level in ("replica", "logical"), "restart")
    expected = facts.senders + 1 + _SPARE
    senders = int(get("max_wal_senders", "0"))
    yield _setting(
        "max_wal_senders", str(senders), str(max(expected, _SENDERS)), senders >= expected, "restart"
    )
    expected = len(facts.slots.keys() | {requirements.slot})
    slots = int(get("max_replication_slots", "0"))
    yield _setting(
        "max_replication_slots", str(slots), str(max(expected, _SENDERS)), slots >= expected, "restart"
    )
    yield _listen(facts, requirements)
    # PostgreSQL 12 cannot limit what a slot holds back.
    if facts.major >= 13:
        limit = get("max_slot_wal_keep_size", "")
        # -1 is no limit: a standby that stays away then fills the disk of the primary,
        # which stops.
        yield _setting("max_slot_wal_keep_size", limit, requirements.limit, limit != "-1", "reload")
    for name in ("fsync", "full_page_writes"):
        yield _setting(name, get(name, ""), "on", get(name) == "on", "reload")


def _listen(facts: Facts, requirements: Requirements) -> PlanItem:
    listens = {word.strip() for word in facts.settings.get("listen_addresses", "").split(",")} - {""}
    remote = not all(network.is_loopback for network in networks(requirements.allow))
    only_here = all(word in ("localhost", "127.0.0.1", "::1") for word in listens)
    good = bool(listens) and not (remote and only_here)
    actual = ", ".join(sorted(listens)) or "only the socket"
    if good:
        return PlanItem("listen_addresses", actual, actual, "ok")
    expected = "the address of this server that the standby reaches"
    statement = "ALTER SYSTEM SET listen_addresses = 'localhost,ADDRESS-OF-THIS-SERVER'"
    if facts.is_private:
        folder = shlex.quote(str(facts.folder))
        statement = f"pgorthanc server start --embedded {folder} --listen ADDRESS-OF-THIS-SERVER"
    return PlanItem("listen_addresses", actual, expected, "missing", "restart", statement)


def _recommended_settings(facts: Facts, requirements: Requirements) -> Iterator[PlanItem]:
    get = facts.settings.get
    rewindable = "on" in (get("data_checksums"), get("wal_log_hints"))
    actual = f"{get('wal_log_hints')}, data checksums {get('data_checksums')}"
    # Without one of them pg_rewind cannot make a standby of this server after a failover.
    yield _advice(
        "wal_log_hints", actual, "on, or data checksums", rewindable, "wal_log_hints", "on", "restart"
    )
    yield from _synchronous(facts, requirements)
    archive = get("archive_mode", "hidden")
    yield PlanItem(
        "archive_mode", archive, "off will do with a slot; on for backups to a point in time", "ok"
    )
    retained = get("wal_keep_size") or f"{get('wal_keep_segments')} segments"
    yield PlanItem("wal_keep_size", retained, "0 will do with a slot", "ok")
    tls = get("ssl", "off")
    yield _advice("ssl", tls, "on", tls == "on", "ssl", "on", "reload, and a certificate")
    yield _disk(facts, requirements)


def _synchronous(facts: Facts, requirements: Requirements) -> Iterator[PlanItem]:
    names = facts.settings.get("synchronous_standby_names", "")
    commit = facts.settings.get("synchronous_commit", "")
    if not requirements.synchronous:
        yield PlanItem(
            "synchronous_standby_names", names or "none", names or "none: commits do not wait", "ok"
        )
        return
    expected = f'FIRST 1 ("{requirements.slot}")'
    streams = requirements.slot in facts.streaming
    good = names == expected
    # A commit waits for ever while no standby of that name streams.
    yield PlanItem(
        "synchronous_standby_names",
        names or "none",
        expected,
        "ok" if good else "advice",
        "" if good else "reload",
        _alter("synchronous_standby_names", expected) if streams and not good else "",
    )
    safe = commit in ("on", "remote_apply")
    yield _advice(
        "synchronous_commit", commit, "on or remote_apply", safe, "synchronous_commit", "on", "reload"
    )


def _disk(facts: Facts, requirements: Requirements) -> PlanItem:
    expected = f"more than {requirements.limit}, the most that slots hold back"
    if facts.free_bytes is None:
        return PlanItem("disk", "not on this machine", expected, "hidden")
    state = "ok" if facts.free_bytes > requirements.limit_bytes else "advice"
    return PlanItem("disk", f"{facts.free_bytes / 1e9:.1f} GB free", expected, state)


def _setting(name: str, actual: str, expected: str, good: bool, needs: str) -> PlanItem:
    if good:
        return PlanItem(name, actual, actual, "ok")
    return PlanItem(name, actual, expected, "missing", needs, _alter(name, expected))


def _advice(
    name: str, actual: str, expected: str, good: bool, setting: str, value: str, needs: str
) -> PlanItem:
    if good:
        return PlanItem(name, actual, expected, "ok")
    return PlanItem(name, actual, expected, "advice", needs, _alter(setting, value))


def _alter(name: str, value: str) -> str:
    quoted = value.replace("'", "''")
    return f"ALTER SYSTEM SET {name} = '{quoted}'"


# The role, its lines of pg_hba.conf, the slot


def _role(facts: Facts, requirements: Requirements, conn: Connection) -> PlanItem:
    expected = "LOGIN, REPLICATION, nothing else"
    identifier = sql.Identifier(requirements.role).as_string(conn)
    if facts.role is None:
        create = f"CREATE ROLE {identifier} LOGIN REPLICATION"
        return PlanItem(f"role {requirements.role}", "none", expected, "missing", "", create)
    granted = [name for name in ("login", "replication") if getattr(facts.role, name)]
    actual = ", ".join((*map(str.upper, granted), *facts.role.excess)) or "nothing"
    if len(granted) == 2 and not facts.role.excess:
        return PlanItem(f"role {requirements.role}", actual, expected, "ok")
    alter = " ".join(("LOGIN REPLICATION", *(f"NO{right}" for right in facts.role.excess)))
    return PlanItem(
        f"role {requirements.role}", actual, expected, "missing", "", f"ALTER ROLE {identifier} {alter}"
    )


def _hba(facts: Facts, requirements: Requirements) -> Iterator[PlanItem]:
    """Yield for each address the current line, and the one to insert."""
    tls = facts.settings.get("ssl") == "on"
    if not requirements.allow:
        yield _hba_without_address(facts)
    for network in networks(requirements.allow):
        line = hba.password_line("replication", requirements.role, network, tls=tls)
        if facts.rules is None:
            yield PlanItem(f"pg_hba.conf for {network}", "hidden", line, "hidden", "reload", line)
            continue
        rule = _matching_rule(facts.rules, requirements.role, network, tls=tls)
        good = rule is not None and rule.method in ("scram-sha-256", "cert")
        actual = f"line {rule.line}: {rule}" if rule else "no line"
        yield PlanItem(
            f"pg_hba.conf for {network}",
            actual,
            line,
            "ok" if good else "missing",
            *(() if good else ("reload", line)),
        )


def _hba_without_address(facts: Facts) -> PlanItem:
    """Return an item that is never `ok`: the address of the standby is unknown."""
    expected = "a line for the standby: give its address with --allow"
    if facts.rules is None:
        return PlanItem("pg_hba.conf", "hidden", expected, "hidden")
    lines = [f"line {rule.line}" for rule in facts.rules if "replication" in rule.databases and rule.address]
    if not lines:
        return PlanItem("pg_hba.conf", "no line for replication over the network", expected, "missing")
    return PlanItem("pg_hba.conf", f"unknown: {', '.join(lines)} may be for it", expected, "advice")


def _matching_rule(
    rules: tuple[hba.Rule, ...], role: str, network: hba.Network, *, tls: bool
) -> hba.Rule | None:
    """Return the line that matches the first address of a network."""
    client = hba.Client(
        role=role,
        database="",
        address=str(network.network_address),
        encryption="tls" if tls else "none",
        replication=True,
    )
    # Other addresses may have another line, but ours will come before all of them.
    try:
        return hba.match(rules, client)
    except hba.IndeterminateMatch:
        return None


def _slot(facts: Facts, requirements: Requirements) -> PlanItem:
    active = facts.slots.get(requirements.slot)
    if active is None:
        create = f"SELECT pg_create_physical_replication_slot('{requirements.slot}', true)"
        return PlanItem(f"slot {requirements.slot}", "none", "one for each standby", "missing", "", create)
    return PlanItem(f"slot {requirements.slot}", "in use" if active else "free", "one for each standby", "ok")


def _open_lines(facts: Facts) -> Iterator[PlanItem]:
    """Report lines that let every client replicate, that is, read all patients' data."""
    for rule in facts.rules or ():
        every_client = rule.address in ("all", "0.0.0.0/0", "::/0")
        if "replication" in rule.databases and rule.address and (every_client or rule.method == "trust"):
            effect = "trusts" if rule.method == "trust" else "lets every client try a password"
            yield PlanItem(
                f"pg_hba.conf line {rule.line}",
                str(rule),
                "one address, and scram-sha-256",
                "advice",
                "reload",
                f"this line {effect}: remove it",
            )
