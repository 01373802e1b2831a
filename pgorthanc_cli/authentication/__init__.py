"""How a role authenticates, which releases of Orthanc's plugin can, and moving one role to another method."""

from pgorthanc_cli.authentication.examine import check
from pgorthanc_cli.authentication.method_change import fix
from pgorthanc_cli.authentication.method_plan import METHODS, MethodPlan, manual_steps, plan
from pgorthanc_cli.authentication.model import LoginReport, MethodChanged, PluginVerdict, Remedy, SslMode, Tls

__all__ = [
    "METHODS", "LoginReport", "MethodChanged", "MethodPlan", "PluginVerdict", "Remedy", "SslMode", "Tls", "check",
    "fix", "manual_steps", "plan",
]  # fmt: skip
