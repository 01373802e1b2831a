"""How a role authenticates, which releases of Orthanc's plugin can, and moving one role to another method."""

from pgorthanc_cli.authentication.examine import check
from pgorthanc_cli.authentication.model import LoginReport, MethodChanged, PluginVerdict, SslMode, Tls
from pgorthanc_cli.authentication.move import METHODS, MethodPlan, fix, manual_steps, plan

__all__ = [
    "METHODS", "LoginReport", "MethodChanged", "MethodPlan", "PluginVerdict", "SslMode", "Tls", "check", "fix",
    "manual_steps", "plan",
]  # fmt: skip
