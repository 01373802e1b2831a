"""After how long an idle connection dies, how, and what keeps it alive: tried, not guessed.

Connections are left idle, each for another time, in three ways at once: silent; with keep-alive probes from this
client; with probes from the server. A probe is an empty TCP segment: what stands between sees traffic.
"""

from __future__ import annotations

from pgorthanc_cli.keepalive.model import (
    Age,
    KeepAlive,
    Plan,
    Report,
    SocketOptions,
    Started,
    ages,
    ages_up_to,
    duration,
)
from pgorthanc_cli.keepalive.trial import Trial

__all__ = [
    "Age", "KeepAlive", "Plan", "Report", "SocketOptions", "Started", "Trial", "ages", "ages_up_to", "duration",
]  # fmt: skip
