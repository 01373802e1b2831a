"""`replication plan`: what a primary needs before a standby can follow it, and what would be wise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg2 import sql

from pgorthanc_cli.errors import ConnectError, UsageError
from pgorthanc_cli.replication import access, source, survey
from pgorthanc_cli.replication.survey import Facts
from pgorthanc_cli.server import hba

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

OLDEST_MAJOR = 12
_SIZE = re.compile(r"[1-9]\d*(?:MB|GB|TB)")
_FACTORS = {"MB": 2**20, "GB": 2**30, "TB": 2**40}
_SENDERS = 10  # PostgreSQL's default since version 10
_SPARE = 2  # a base backup takes two at once


@dataclass(frozen=True)
class Asked:
    """What the standby is to be like.

    Attributes:
        allow: Addresses and networks from where it may connect.
        role: The role that it logs in with.
        slot: Its slot.
        limit: How much WAL a slot may hold back before it is given up (max_slot_wal_keep_size).
        synchronous: Whether commits are to wait for it.
    """

    allow: tuple[str, ...] = ()
    role: str = source.ROLE
    slot: str = source.SLOT
    limit: str = "10GB"
    synchronous: bool = False

    def check(self) -> None:
        """Refuse what PostgreSQL would not take, or what opens too much.

        Raises:
            UsageError: Something is wrong with it.
        """
        access.networks(self.allow)
        source.check_slot_name(self.slot)
        if not _SIZE.fullmatch(self.limit):
            raise UsageError(f"--slot-limit is {self.limit!r}, wanted a size such as 500MB or 10GB")

    @property
    def limit_bytes(self) -> int:
        """The limit as a number."""
        return int(self.limit[:-2]) * _FACTORS[self.limit[-2:]]


@dataclass(frozen=True)
class Item:
    """One thing that was looked at.

    Attributes:
        name: A setting, or what else it is.
        found: As it is.
        wanted: As it has to be; as it would be wise, where `state` is `advice`.
        state: `ok`, `missing` (no standby without it), `advice`, or `hidden` from this login.
        needs: `restart` or `reload` of the server before it counts, else empty.
        statement: The SQL, or the line of pg_hba.conf, that does it.
    """

    name: str
    found: str
    wanted: str
    state: str
    needs: str = ""
    statement: str = ""


@dataclass(frozen=True)
class Plan:
    """What a primary needs.

    Attributes:
        server: Host and port.
        version: Of PostgreSQL.
        ready: Whether a standby can follow it now; False while nothing is known of its line in pg_hba.conf.
        restart: Whether a setting that is missing needs a restart.
        items: All that was looked at.
        data_bytes: What a base backup copies, at least.
        free_bytes: Free on the primary's disk for WAL that a slot holds back; None if it is not on this machine.
    """

    server: str
    version: str
    ready: bool
    restart: bool
    items: tuple[Item, ...]
    data_bytes: int | None
    free_bytes: int | None


def plan(conn: Connection, asked: Asked) -> Plan:
    """What the server of a connection in autocommit mode needs; nothing is changed.

    Raises:
        ConnectError: It is a standby.
        UsageError: What is asked makes no sense.
    """
    asked.check()
    facts = survey.look(conn, asked.role)
    refuse_standby(facts)
    items = tuple(_items(facts, asked, conn))
    missing = [item for item in items if item.state == "missing"]
    unknown = any(
        item.name == "pg_hba.conf" or (item.name.startswith("pg_hba.conf for") and item.state == "hidden")
        for item in items
    )
    return Plan(
        server=facts.place,
        version=facts.version,
        ready=not missing and not unknown,
        restart=any(item.needs == "restart" for item in missing),
        items=items,
        data_bytes=facts.data_bytes,
        free_bytes=facts.free_bytes,
    )


def refuse_standby(facts: Facts) -> None:
    """Make sure that it is a primary.

    Raises:
        ConnectError: It is not.
    """
    if facts.standby:
        raise ConnectError(
            f"the server {facts.place} is a standby itself",
            "name the primary with --host, or list all hosts in the URI beside target_session_attrs=read-write",
        )


def _items(facts: Facts, asked: Asked, conn: Connection) -> Iterator[Item]:
    yield _version(facts)
    yield from _required_settings(facts, asked)
    yield _role(facts, asked, conn)
    yield from _hba(facts, asked)
    yield _slot(facts, asked)
    yield from _wise_settings(facts, asked)
    yield from _wide_open(facts)


def _version(facts: Facts) -> Item:
    good = facts.major >= OLDEST_MAJOR
    return Item("version", facts.version, f"{OLDEST_MAJOR} or newer", "ok" if good else "missing")


# Settings


def _required_settings(facts: Facts, asked: Asked) -> Iterator[Item]:
    get = facts.settings.get
    level = get("wal_level", "")
    yield _setting("wal_level", level, "replica", level in ("replica", "logical"), "restart")
    wanted = facts.senders + 1 + _SPARE
    senders = int(get("max_wal_senders", "0"))
    yield _setting("max_wal_senders", str(senders), str(max(wanted, _SENDERS)), senders >= wanted, "restart")
    wanted = len(facts.slots.keys() | {asked.slot})
    slots = int(get("max_replication_slots", "0"))
    yield _setting(
        "max_replication_slots", str(slots), str(max(wanted, _SENDERS)), slots >= wanted, "restart"
    )
    yield _listen(facts, asked)
    if facts.major >= 13:
        limit = get("max_slot_wal_keep_size", "")
        # -1 is no limit: a standby that stays away then fills the disk of the primary, which stops.
        yield _setting("max_slot_wal_keep_size", limit, asked.limit, limit != "-1", "reload")
    for name in ("fsync", "full_page_writes"):
        yield _setting(name, get(name, ""), "on", get(name) == "on", "reload")


def _listen(facts: Facts, asked: Asked) -> Item:
    listens = {word.strip() for word in facts.settings.get("listen_addresses", "").split(",")} - {""}
    remote = not all(network.is_loopback for network in access.networks(asked.allow))
    only_here = all(word in ("localhost", "127.0.0.1", "::1") for word in listens)
    good = bool(listens) and not (remote and only_here)
    found = ", ".join(sorted(listens)) or "only the socket"
    if good:
        return Item("listen_addresses", found, found, "ok")
    wanted = "the address of this server that the standby reaches"
    statement = "ALTER SYSTEM SET listen_addresses = 'localhost,ADDRESS-OF-THIS-SERVER'"
    if facts.is_ours:
        statement = f"pgorthanc server start --dir {facts.folder} --listen ADDRESS-OF-THIS-SERVER"
    return Item("listen_addresses", found, wanted, "missing", "restart", statement)


def _wise_settings(facts: Facts, asked: Asked) -> Iterator[Item]:
    get = facts.settings.get
    rewindable = "on" in (get("data_checksums"), get("wal_log_hints"))
    found = f"{get('wal_log_hints')}, data checksums {get('data_checksums')}"
    # Without one of them pg_rewind cannot make a standby of this server after a failover.
    yield _advice(
        "wal_log_hints", found, "on, or data checksums", rewindable, "wal_log_hints", "on", "restart"
    )
    yield from _synchronous(facts, asked)
    archive = get("archive_mode", "hidden")
    yield Item("archive_mode", archive, "off will do with a slot; on for backups to a point in time", "ok")
    kept = get("wal_keep_size") or f"{get('wal_keep_segments')} segments"
    yield Item("wal_keep_size", kept, "0 will do with a slot", "ok")
    tls = get("ssl", "off")
    yield _advice("ssl", tls, "on", tls == "on", "ssl", "on", "reload, and a certificate")
    yield _disk(facts, asked)


def _synchronous(facts: Facts, asked: Asked) -> Iterator[Item]:
    names, commit = (facts.settings.get(f"synchronous_{what}", "") for what in ("standby_names", "commit"))
    if not asked.synchronous:
        yield Item("synchronous_standby_names", names or "none", names or "none: commits do not wait", "ok")
        return
    wanted = f'FIRST 1 ("{asked.slot}")'
    streams = asked.slot in facts.streaming
    good = names == wanted
    # A commit waits for ever while no standby of that name streams.
    yield Item(
        "synchronous_standby_names",
        names or "none",
        wanted,
        "ok" if good else "advice",
        "" if good else "reload",
        _alter("synchronous_standby_names", wanted) if streams and not good else "",
    )
    safe = commit in ("on", "remote_apply")
    yield _advice(
        "synchronous_commit", commit, "on or remote_apply", safe, "synchronous_commit", "on", "reload"
    )


def _disk(facts: Facts, asked: Asked) -> Item:
    wanted = f"more than {asked.limit}, the most that slots hold back"
    if facts.free_bytes is None:
        return Item("disk", "not on this machine", wanted, "hidden")
    state = "ok" if facts.free_bytes > asked.limit_bytes else "advice"
    return Item("disk", f"{facts.free_bytes / 1e9:.1f} GB free", wanted, state)


def _setting(name: str, found: str, wanted: str, good: bool, needs: str) -> Item:
    if good:
        return Item(name, found, found, "ok")
    return Item(name, found, wanted, "missing", needs, _alter(name, wanted))


def _advice(name: str, found: str, wanted: str, good: bool, setting: str, value: str, needs: str) -> Item:
    if good:
        return Item(name, found, wanted, "ok")
    return Item(name, found, wanted, "advice", needs, _alter(setting, value))


def _alter(name: str, value: str) -> str:
    quoted = value.replace("'", "''")
    return f"ALTER SYSTEM SET {name} = '{quoted}'"


# The role, its lines of pg_hba.conf, the slot


def _role(facts: Facts, asked: Asked, conn: Connection) -> Item:
    wanted = "LOGIN, REPLICATION, nothing else"
    identifier = sql.Identifier(asked.role).as_string(conn)
    if facts.role is None:
        create = f"CREATE ROLE {identifier} LOGIN REPLICATION"
        return Item(f"role {asked.role}", "none", wanted, "missing", "", create)
    has = [name for name in ("login", "replication") if getattr(facts.role, name)]
    found = ", ".join((*map(str.upper, has), *facts.role.excess)) or "nothing"
    if len(has) == 2 and not facts.role.excess:
        return Item(f"role {asked.role}", found, wanted, "ok")
    alter = " ".join(("LOGIN REPLICATION", *(f"NO{right}" for right in facts.role.excess)))
    return Item(f"role {asked.role}", found, wanted, "missing", "", f"ALTER ROLE {identifier} {alter}")


def _hba(facts: Facts, asked: Asked) -> Iterator[Item]:
    """For each address the line that decides now, and the one to be inserted before it."""
    tls = facts.settings.get("ssl") == "on"
    if not asked.allow:
        yield _hba_unasked(facts)
    for network in access.networks(asked.allow):
        line = access.line("replication", asked.role, network, tls=tls)
        if facts.rules is None:
            yield Item(f"pg_hba.conf for {network}", "hidden", line, "hidden", "reload", line)
            continue
        rule = _deciding(facts.rules, asked.role, network, tls=tls)
        good = rule is not None and rule.method in ("scram-sha-256", "cert")
        found = f"line {rule.line}: {rule}" if rule else "no line"
        yield Item(
            f"pg_hba.conf for {network}",
            found,
            line,
            "ok" if good else "missing",
            *(() if good else ("reload", line)),
        )


def _hba_unasked(facts: Facts) -> Item:
    """Without the address of a standby nothing can be said about its login; never `ok`."""
    expected = "a line for the standby: give its address with --allow"
    if facts.rules is None:
        return Item("pg_hba.conf", "hidden", expected, "hidden")
    lines = [f"line {rule.line}" for rule in facts.rules if "replication" in rule.databases and rule.address]
    if not lines:
        return Item("pg_hba.conf", "no line for replication over the network", expected, "missing")
    return Item("pg_hba.conf", f"unknown: {', '.join(lines)} may be for it", expected, "advice")


def _deciding(
    rules: tuple[hba.Rule, ...], role: str, network: access.Network, *, tls: bool
) -> hba.Rule | None:
    """The line for the first address of a network: where lines part it, ours is not needed or comes first anyway."""
    client = hba.Client(
        role=role,
        database="",
        address=str(network.network_address),
        encryption="tls" if tls else "none",
        replication=True,
    )
    try:
        return hba.match(rules, client)
    except hba.Undecided:
        return None


def _slot(facts: Facts, asked: Asked) -> Item:
    active = facts.slots.get(asked.slot)
    if active is None:
        create = f"SELECT pg_create_physical_replication_slot('{asked.slot}', true)"
        return Item(f"slot {asked.slot}", "none", "one for each standby", "missing", "", create)
    return Item(f"slot {asked.slot}", "in use" if active else "free", "one for each standby", "ok")


def _wide_open(facts: Facts) -> Iterator[Item]:
    """Lines that let anybody replicate, that is: read all patients' data. They are named, not changed."""
    for rule in facts.rules or ():
        everybody = rule.address in ("all", "0.0.0.0/0", "::/0")
        if "replication" in rule.databases and rule.address and (everybody or rule.method == "trust"):
            what = "trusts" if rule.method == "trust" else "lets everybody try"
            yield Item(
                f"pg_hba.conf line {rule.line}",
                str(rule),
                "one address, and scram-sha-256",
                "advice",
                "reload",
                f"this line {what}: remove it",
            )
