"""A middle box in user space: forwards TCP connections, and ends those that are idle for too long.

A real one counts packets, keep-alive probes included. A proxy never reads a probe, but its kernel counts the
segments that arrive (`tcpi_segs_in` of TCP_INFO), so this one sees them as well.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

# Offset in struct tcp_info of linux/tcp.h.
_SEGS_IN = 140
_LOOK_EVERY_S = 0.02

End = Literal["reset", "reset late", "drop", "close"]
Side = Literal["client", "server"]
BOTH: tuple[Side, ...] = ("client", "server")


class Link:
    """A connection through the proxy: the client's socket and the server's."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = (client, server)
        self.dead = False
        self._segments: list[int] = []
        self._last = time.monotonic()

    def other(self, sock: socket.socket) -> socket.socket:
        client, server = self.ends
        return server if sock is client else client

    def used(self) -> None:
        self._last = time.monotonic()

    def look(self, sides: Sequence[Side]) -> None:
        """Whether segments have arrived from there, if only probes."""
        segments = [_segments_in(self.ends[BOTH.index(side)]) for side in sides]
        if segments != self._segments:
            self._segments = segments
            self.used()

    def idle_s(self) -> float:
        return time.monotonic() - self._last


class Proxy:
    """Forwards 127.0.0.1:`port` to the server until a connection has been idle for `idle_s`, and then ends it.

    reset: both ends get RST. reset late: as soon as it is used again, as AWS does it. drop: nothing is forwarded
    any more, nobody is told. close: both ends get FIN. `probes`: whose probes count; data always do.
    """

    def __init__(self, server: tuple[str, int], idle_s: float, end: End, probes: Sequence[Side]) -> None:
        self.idle_s = idle_s
        self._server = server
        self._end = end
        self._probes = probes
        self._links: list[Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.close()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._stopped, self._listener:
            selector.register(self._stopped, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(_LOOK_EVERY_S):
                    if key.fileobj is self._stopped:
                        break
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif selector.get_map().get(key.fd) is key:
                        self._forward(selector, key)
                else:
                    self._age(selector)
                    continue
                break
            for link in self._links:
                for sock in link.ends:
                    sock.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        client, _ = self._listener.accept()
        link = Link(client, socket.create_connection(self._server))
        self._links.append(link)
        for sock in link.ends:
            selector.register(sock, selectors.EVENT_READ, link)

    def _forward(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        link: Link = key.data
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        if link.dead:  # only those that are to be reset late are still heard
            self._finish(selector, link, reset=True)
            return
        try:
            data = sock.recv(65536)
            link.other(sock).sendall(data)
        except OSError:
            data = b""
        link.used()
        if not data:
            self._finish(selector, link, reset=False)

    def _age(self, selector: selectors.BaseSelector) -> None:
        for link in self._links:
            if link.dead:
                continue
            link.look(self._probes)
            if link.idle_s() >= self.idle_s:
                self._die(selector, link)

    def _die(self, selector: selectors.BaseSelector, link: Link) -> None:
        link.dead = True
        if self._end in ("reset", "close"):
            self._finish(selector, link, reset=self._end == "reset")
        elif self._end == "drop":
            for sock in link.ends:
                selector.unregister(sock)

    def _finish(self, selector: selectors.BaseSelector, link: Link, *, reset: bool) -> None:
        link.dead = True
        for sock in link.ends:
            selector.unregister(sock)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


@contextmanager
def proxy(port: int, idle_s: float, end: End, probes: Sequence[Side] = BOTH) -> Iterator[Proxy]:
    """A proxy before the server at that port."""
    made = Proxy(("127.0.0.1", port), idle_s, end, probes)
    made.start()
    try:
        yield made
    finally:
        made.close()


def _segments_in(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (count,) = struct.unpack_from("I", info, _SEGS_IN)
    return int(count)
