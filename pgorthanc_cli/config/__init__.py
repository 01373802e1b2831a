"""Settings of the tool, and Orthanc's own configuration.

`resolve` merges options, environment and Orthanc's configuration into one `db.Target`; `load` reads
that configuration. Every command needs these two, so that they import little: `jsontext` and
`documents` read files, `options` and `validation` know the options. For `pgorthanc config`:
`image` (the container image), `deployment`, `plugins`, `check`, `startup`, `database`, `conninfo`,
`template`, `compare` and `edit`.
"""

from pgorthanc_cli.config.advanced_storage import AdvancedStorage
from pgorthanc_cli.config.documents import ConfigurationError
from pgorthanc_cli.config.orthanc import OrthancConfiguration, load, storage_folder
from pgorthanc_cli.config.resolution import Resolved, Setting, resolve

__all__ = [
    "AdvancedStorage",
    "ConfigurationError",
    "OrthancConfiguration",
    "Resolved",
    "Setting",
    "load",
    "resolve",
    "storage_folder",
]
