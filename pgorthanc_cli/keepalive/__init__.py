"""After how long an idle connection dies, how, and which keep-alive parameters prevent it: by experiment.

Connections stay idle for different times: silent ones, ones with keep-alive probes from this client, ones with
probes from the server. A probe is an empty TCP segment, which a firewall or load balancer counts as traffic.
"""

from __future__ import annotations

from pgorthanc_cli.keepalive.model import (
    Age,
    KeepAlive,
    Probes,
    SocketOptions,
    TrialPlan,
    TrialResult,
    ages_up_to,
    format_duration,
)
from pgorthanc_cli.keepalive.trial import Trial

__all__ = [
    "Age", "KeepAlive", "Probes", "SocketOptions", "Trial", "TrialPlan", "TrialResult", "ages_up_to",
    "format_duration",
]  # fmt: skip
