"""What is left to the administrator, with the lines of Orthanc's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgorthanc_cli import db
from pgorthanc_cli.migrate.model import Settings

# The rows were written under them (SQLITE.md 5).
_KEPT = (
    "StorageDirectory", "StorageCompression", "StoreMD5ForAttachments", "ExtraMainDicomTags", "UserMetadata",
    "UserContentType", "DefaultEncoding",
)  # fmt: skip


def remaining(
    options: Mapping[str, Any],
    target: db.Target,
    path: Path,
    server_identifier: str,
    plugins: str,
    settings: Settings,
) -> tuple[str, ...]:
    """Return the steps, in order.

    Args:
        options: The connection as the "PostgreSQL" section says it, without the password; of `conninfo.orthancs`.
        target: The new index.
        path: The SQLite index.
        server_identifier: Whose the server properties are.
        plugins: The releases of the plugin that work with the new index.
        settings: Of the conversion.
    """
    section = {
        "EnableIndex": True,
        "EnableStorage": settings.large_objects,
        **options,
        **({"Schema": target.schema} if target.schema != "public" else {}),
    }
    lines = json.dumps({"PostgreSQL": section, "DatabaseServerIdentifier": server_identifier}, indent=2)
    kept = "StorageDirectory stays until Orthanc works; " if settings.large_objects else ""
    return (
        f"add to Orthanc's configuration, with the password (plugin {plugins}): {lines}",
        'add the library libOrthancPostgreSQLIndex.so to "Plugins"'
        + (", and libOrthancPostgreSQLStorage.so" if settings.large_objects else ""),
        f"{kept}leave as they are: {', '.join(_KEPT)}",
        f"move {path} out of the way, so that nobody starts Orthanc on it again; keep it as a backup of this moment",
        "start Orthanc, compare /statistics with the figures above, look at a study",
        "run: pgorthanc verify schema --deep",
    )
