"""Where the file of a row with customdata lies (STORAGE.md A2, A7, H1)."""

from __future__ import annotations

from pgorthanc_cli.index import customdata
from pgorthanc_cli.scrub import model
from pgorthanc_cli.scrub.model import Difference, Row, Settings


def resolve(row: Row, settings: Settings) -> Row | Difference:
    """Return a row with the path of its file, or why Orthanc does not get that far.

    With the advanced-storage plugin, one access to a row whose customdata it cannot read
    aborts the whole Orthanc.
    """
    data = bytes(row.customdata or b"")
    try:
        path = customdata.locate(row.uuid, data, settings.storage_dir, settings.storages)
    except customdata.NotLocated as reason:
        kind = {"storage": model.ABORTING_CUSTOMDATA, "folder": model.UNREADABLE}.get(reason.kind)
        return Difference(kind or _of_unknown_plugin(data, settings), str(reason), row)
    return row._replace(path=path, customdata=data)  # bytes can be pickled


def _of_unknown_plugin(data: bytes, settings: Settings) -> str:
    is_known = bool(customdata.read(data).plugin)
    if settings.advanced_storage or (settings.advanced_storage is None and not is_known):
        return model.ABORTING_CUSTOMDATA
    return model.UNKNOWN_CUSTOMDATA
