"""A real middle box: a router between two network namespaces that forgets idle TCP connections, as a firewall does.

It is made of two TUN devices, one in each namespace, and a thread that carries the packets from one to the other.
Packets of a connection that was silent for too long are thrown away, and nobody is told.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

SERVER, CLIENT = "198.51.100.1", "198.51.100.2"  # TEST-NET-2 of RFC 5737

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_TCP = 6


@dataclass(frozen=True)
class MiddleBox:
    """The server is at `SERVER` in our own namespace, a client is to run in the other one."""

    namespace: str

    def command(self, *words: str) -> list[str]:
        """That command, run on the client's side."""
        return ["ip", "netns", "exec", self.namespace, *words]


@contextmanager
def middle_box(idle_s: float) -> Iterator[MiddleBox]:
    """A way from `CLIENT` to `SERVER` that forgets connections after `idle_s` without a packet."""
    name = f"pgo{os.getpid()}"
    with ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "delete", name)
        ends = []
        for device in (f"{name}s", f"{name}c"):
            ends.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
            stack.callback(os.close, ends[-1])
            fcntl.ioctl(ends[-1], _TUNSETIFF, struct.pack("16sH14x", device.encode(), _IFF_TUN | _IFF_NO_PI))
        _ip("link", "set", f"{name}c", "netns", name)
        _ip("address", "add", SERVER, "peer", CLIENT, "dev", f"{name}s")
        _ip("link", "set", f"{name}s", "up")
        _ip("-n", name, "address", "add", CLIENT, "peer", SERVER, "dev", f"{name}c")
        _ip("-n", name, "link", "set", f"{name}c", "up")
        stack.enter_context(_carrying(ends[0], ends[1], idle_s))
        yield MiddleBox(name)


@contextmanager
def _carrying(server: int, client: int, idle_s: float) -> Iterator[None]:
    stop, stopped = os.pipe()
    thread = threading.Thread(target=_carry, args=(server, client, stopped, idle_s), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(stop)
        thread.join()
        os.close(stopped)


def _carry(server: int, client: int, stopped: int, idle_s: float) -> None:
    last: dict[frozenset[bytes], float] = {}
    other = {server: client, client: server}
    with selectors.DefaultSelector() as selector:
        for fd in (server, client, stopped):
            selector.register(fd, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == stopped:
                    return
                packet = os.read(key.fd, 65536)
                if _passes(packet, last, idle_s):
                    os.write(other[key.fd], packet)


def _passes(packet: bytes, last: dict[frozenset[bytes], float], idle_s: float) -> bool:
    """Whether the packet belongs to a connection that is known, or begins one; IPv4 and TCP only."""
    if packet[0] >> 4 != 4 or packet[9] != _TCP:
        return False
    tcp = packet[(packet[0] & 15) * 4 :]
    flow = frozenset((packet[12:16] + tcp[0:2], packet[16:20] + tcp[2:4]))
    now = time.monotonic()
    begins = bool(tcp[13] & 2)  # SYN
    if not begins and now - last.get(flow, 0) > idle_s:
        return False
    last[flow] = now
    return True


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
