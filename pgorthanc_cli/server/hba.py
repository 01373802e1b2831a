"""pg_hba.conf: the rules as the server reads them, and which of them matches a client.

Facts: PostgreSQL, "The pg_hba.conf File". `hba_file` reads and edits the bytes of one
file.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_ENCRYPTIONS = {
    "hostssl": ("tls",),
    "hostnossl": ("none", "gss"),
    "hostgssenc": ("gss",),
    "hostnogssenc": ("none", "tls"),
}
# Without the privilege, current_setting() raises; pg_settings only lacks the row.
_HBA_FILE = "coalesce((SELECT setting FROM pg_catalog.pg_settings WHERE name = 'hba_file'), '')"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class IndeterminateMatch(PgOrthancError):
    """Whether a line matches depends on something that only the server knows."""


@dataclass(frozen=True)
class Rule:
    """A line that accepts or rejects clients.

    Attributes:
        file: The file of the line; empty if the server does not report it.
        line: Number of its (first) line, from 1.
        kind: local, host, hostssl, hostnossl, hostgssenc or hostnogssenc.
        databases: Names and keywords; a quoted name that could be read as a keyword keeps
            its quotes.
        roles: Likewise.
        address: An address with its length (10.0.0.0/8), a name, all, samehost or
            samenet; None for local.
        method: trust, reject, md5, scram-sha-256, ...
        options: Such as `clientcert=verify-full`.
    """

    file: str
    line: int
    kind: str
    databases: tuple[str, ...]
    roles: tuple[str, ...]
    address: str | None
    method: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the line as an administrator would write it."""
        fields = (self.kind, ",".join(self.databases), ",".join(self.roles), self.address or "", self.method)
        return " ".join(field for field in (*fields, *self.options) if field)


@dataclass(frozen=True)
class Client:
    """A connection as the server sees it.

    Attributes:
        role: The requested role.
        database: The requested database; none with `replication=True`.
        address: Its address, as inet_client_addr() reports it; None through a Unix
            socket.
        encryption: none, tls or gss.
        groups: The roles that this one is a member of, see `groups`.
        replication: Whether it is a physical replication connection, such as
            pg_basebackup's.
        server: The server's address of the connection, if known.
    """

    role: str
    database: str
    address: str | None
    encryption: str = "none"
    groups: frozenset[str] = frozenset()
    replication: bool = False
    server: str | None = None


def rules(conn: Connection) -> list[Rule]:
    """Return the current lines of the files in order, without those that have errors.

    Raises:
        psycopg2.errors.InsufficientPrivilege: The role may not see `pg_hba_file_rules`;
        superusers may.
    """
    # Since PostgreSQL 16 the file may include others, and rules are numbered through all.
    file = "file_name" if conn.server_version >= 160000 else _HBA_FILE
    order = "rule_number" if conn.server_version >= 160000 else "line_number"
    query = f"""SELECT {file}, line_number, type, database, user_name, address, netmask, auth_method, options
                FROM pg_catalog.pg_hba_file_rules WHERE error IS NULL ORDER BY {order}"""  # noqa: S608
    lines = []
    for name, line, kind, databases, roles, address, mask, method, options in db.rows(conn, query):
        lines.append(
            Rule(
                file=name,
                line=line,
                kind=kind,
                databases=tuple(databases),
                roles=tuple(roles),
                address=cidr(address, mask),
                method=method,
                options=tuple(options or ()),
            )
        )
    return lines


def errors(conn: Connection) -> list[str]:
    """Return the errors in the current files, which the server would not load."""
    query = """SELECT format('line %s: %s', line_number, error) FROM pg_catalog.pg_hba_file_rules
               WHERE error IS NOT NULL ORDER BY line_number"""
    return [text for (text,) in db.rows(conn, query)]


def groups(conn: Connection, role: str) -> frozenset[str]:
    """Return all roles that a role is a member of, itself included, as for `+group`."""
    query = """WITH RECURSIVE member (oid) AS (
                   SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s
                   UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN member ON m.member = member.oid
               ) SELECT rolname FROM pg_catalog.pg_roles JOIN member USING (oid)"""
    return frozenset(name for (name,) in db.rows(conn, query, role))


def match(lines: Iterable[Rule], client: Client) -> Rule | None:
    """Return the first line that matches a client; None: the server refuses it.

    Raises:
        IndeterminateMatch: A line before it names `samenet`, or names in another file.
    """
    return next((rule for rule in lines if _matches(rule, client)), None)


def is_for(rule: Rule, role: str, groups: frozenset[str]) -> bool:
    """Return whether a line may decide for a role, for some address and some database.

    Raises:
        IndeterminateMatch: The line takes its roles from another file.
    """
    client = Client(role, "", None, groups=groups)
    return any(_is_role(rule, word, client) for word in rule.roles)


def _matches(rule: Rule, client: Client) -> bool:
    if (rule.kind == "local") != (client.address is None):
        return False
    if client.encryption not in _ENCRYPTIONS.get(rule.kind, (client.encryption,)):
        return False
    return (
        any(_is_role(rule, word, client) for word in rule.roles)
        and any(_is_database(rule, word, client) for word in rule.databases)
        and (client.address is None or _is_address(rule, ipaddress.ip_address(client.address), client.server))
    )


def _is_database(rule: Rule, word: str, client: Client) -> bool:
    # For the server, `all` does not include replication (The pg_hba.conf File).
    if client.replication or word == "replication":
        return client.replication and word == "replication"
    if word == "sameuser":
        return client.database == client.role
    if word in ("samerole", "samegroup"):
        return client.database in client.groups
    return word == "all" or _is_name(rule, word, client.database)


def _is_role(rule: Rule, word: str, client: Client) -> bool:
    if word.startswith("+"):
        return word[1:] in client.groups
    return word == "all" or _is_name(rule, word, client.role)


def _is_name(rule: Rule, word: str, name: str) -> bool:
    if word.startswith("@"):
        raise IndeterminateMatch(f"line {rule.line} of pg_hba.conf takes names from the file {word[1:]}")
    if word.startswith("/"):  # since PostgreSQL 16
        try:
            return re.search(word[1:], name) is not None
        except re.error:
            raise IndeterminateMatch(
                f"line {rule.line} of pg_hba.conf has a regular expression: {word}"
            ) from None
    return word in (name, f'"{name}"')


def _is_address(rule: Rule, address: Address, server: str | None) -> bool:
    word = rule.address or ""
    if word == "all":
        return True
    if word in ("samehost", "samenet"):
        if address.is_loopback or (server and address == ipaddress.ip_address(server)):
            return True
        if word == "samenet" or server is None:
            raise IndeterminateMatch(
                f"line {rule.line} of pg_hba.conf depends on the networks of the server ({word})"
            )
        return False
    if "/" in word:
        network = ipaddress.ip_network(word, strict=False)
        return address.version == network.version and address in network
    return _has_name(address, word)


def _has_name(address: Address, name: str) -> bool:
    """Look up the address's name, and that name's addresses, as the server does."""
    try:
        host = socket.gethostbyaddr(str(address))[0].lower()
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    matches = host.endswith(name.lower()) if name.startswith(".") else host == name.lower()
    return matches and str(address) in addresses


def cidr(address: str | None, mask: str | None) -> str | None:
    """Return an address with its prefix length, such as 10.0.0.0/8; a name unchanged."""
    if address is None or mask is None:
        return address
    return f"{address}/{int(ipaddress.ip_address(mask)).bit_count()}"


# New lines


def password_line(database: str, role: str, network: Network, *, tls: bool) -> str:
    """Return a new line that requires a password, and TLS if the server has it."""
    name = role if role == "all" else quote(role)
    return f"{'hostssl' if tls else 'host'} {database} {name} {network} scram-sha-256"


def quote(role: str) -> str:
    """Return the name of a role, quoted where it could be read as a keyword."""
    if role.replace("_", "").isalnum() and role != "all":
        return role
    return '"' + role.replace('"', '""') + '"'
