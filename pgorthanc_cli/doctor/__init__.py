"""Health checks of a server, its database and the index in it. They only read.

A check is a function that `@check` registers, in the module that it belongs to; see `model`.
"""

from pgorthanc_cli.doctor.bundle import Bundle, bundle
from pgorthanc_cli.doctor.examine import check_names, examine
from pgorthanc_cli.doctor.model import Check, Health

__all__ = ["Bundle", "Check", "Health", "bundle", "check_names", "examine"]
