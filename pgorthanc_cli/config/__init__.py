"""Where the settings come from, and what Orthanc's own configuration says.

`resolve` merges options, environment and Orthanc's configuration into one `db.Target`; `load` reads that
configuration. What examines and changes it is not imported here, since every command needs only these two:
`check`, `conninfo`, `container`, `edit`, `live`, `plugins`, `show`.
"""

from pgorthanc_cli.config.documents import ConfigurationError
from pgorthanc_cli.config.orthanc import OrthancConfiguration, load
from pgorthanc_cli.config.resolution import Resolved, Setting, resolve

__all__ = ["ConfigurationError", "OrthancConfiguration", "Resolved", "Setting", "load", "resolve"]
