"""Where the file of a row with customdata lies (STORAGE.md A2, A7, H1)."""

from __future__ import annotations

import os

from pgorthanc_cli.index import customdata
from pgorthanc_cli.scrub import model
from pgorthanc_cli.scrub.model import Difference, Row, Settings


def resolve(row: Row, settings: Settings) -> Row | Difference:
    """Return a row with the path of its file, or why Orthanc does not get that far.

    With the advanced-storage plugin, one access to a row whose customdata it cannot read
    aborts the whole Orthanc.
    """
    data = bytes(row.customdata or b"")
    custom = customdata.read(data)
    if custom.plugin != customdata.ADVANCED_STORAGE:
        name = custom.plugin or "an unknown format"
        if settings.advanced_storage is not False and not (
            custom.plugin and settings.advanced_storage is None
        ):
            return Difference(model.ABORTING_CUSTOMDATA, f"customdata of {name}", row)
        return Difference(model.UNKNOWN_CUSTOMDATA, f"customdata of {name}", row)
    root = settings.storage_dir
    if custom.storage:
        if settings.storages is None:
            if custom.path is None or not os.path.isabs(custom.path):
                return Difference(
                    model.UNREADABLE, "its storage is named in Orthanc's configuration only", row
                )
        elif custom.storage not in settings.storages:
            return Difference(model.ABORTING_CUSTOMDATA, "its storage is not among MultipleStorages", row)
        else:
            root = settings.storages[custom.storage]
    path = custom.path or f"{row.uuid[:2]}/{row.uuid[2:4]}/{row.uuid}"
    if root is None and not os.path.isabs(path):
        return Difference(model.UNREADABLE, "it is a file; name the folder with --storage-dir", row)
    return row._replace(path=os.path.join(root or "/", path), customdata=data)  # bytes can be pickled
