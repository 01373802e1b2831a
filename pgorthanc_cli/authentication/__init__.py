"""How a client logs in, what that means for Orthanc's plugin, and the move of one role to another method."""

from pgorthanc_cli.authentication.examine import check
from pgorthanc_cli.authentication.model import Fixed, Plugin, Report, SslMode, Tls
from pgorthanc_cli.authentication.move import METHODS, Plan, fix, plan, steps

__all__ = [
    "METHODS", "Fixed", "Plan", "Plugin", "Report", "SslMode", "Tls", "check", "fix", "plan", "steps",
]  # fmt: skip
