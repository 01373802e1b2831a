"""Who is let in: addresses, and lines of pg_hba.conf that open nothing wider than asked."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from pgorthanc_cli.errors import UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_LOCAL = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104 - how to reach them from here


def networks(addresses: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks, 10.1.2.3 or 10.1.2.0/24.

    Raises:
        UsageError: One is neither, or means everybody.
    """
    return tuple(map(_network, addresses))


def _network(text: str) -> Network:
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(
            f"--allow {text}: {error}", "give one address (10.1.2.3) or one network (10.1.2.0/24)"
        ) from None
    if found.prefixlen == 0:
        raise UsageError(
            f"--allow {text} would open the server to every machine that reaches it",
            "give the address of the standby, or the network of the servers",
        )
    return found


def line(database: str, role: str, network: Network, *, tls: bool) -> str:
    """A line of pg_hba.conf: with a password, and only over TLS where the server has it."""
    who = role if role == "all" else quoted(role)
    return f"{'hostssl' if tls else 'host'} {database} {who} {network} scram-sha-256"


def quoted(name: str) -> str:
    """A role's name, that none of the file's own words can be meant."""
    return (
        name
        if name.replace("_", "").isalnum() and name not in ("all",)
        else '"' + name.replace('"', '""') + '"'
    )


def reachable(listen: str) -> str:
    """An address by which this machine reaches a server that listens so."""
    first = listen.split(",")[0].strip()
    return _LOCAL.get(first, first)
