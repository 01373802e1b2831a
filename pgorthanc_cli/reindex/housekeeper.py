"""What the Housekeeper plugin remembers of its last run, in ServerProperties (STORAGE.md B10).

It compares the tag lists there with those of Orthanc when it starts, and reconstructs
everything if they differ.
"""

from __future__ import annotations

import json
from typing import Literal

from pgorthanc_cli import db, dicom
from pgorthanc_cli.constants import LEVELS

_PROPERTY = 1025
_VERSION = 1  # of the format that is known here

State = Literal["", "absent", "updated", "up-to-date", "busy", "several", "unknown"]
"""absent: there is no such row; busy: the plugin has not finished a run; several: of more than
one Orthanc, and none is named; unknown: another format. Empty: not looked at."""


def bring_up_to_date(target: db.Target, profile: dicom.Profile, server: str | None) -> State:
    """Record that everything has the tags of a profile; return what became of it.

    Args:
        target: The index.
        profile: Decides the tag lists.
        server: DatabaseServerIdentifier of Orthanc, if it is known.
    """
    with db.session(target) as conn, conn, conn.cursor() as cur:
        cur.execute(
            """SELECT server, value FROM index.serverproperties
               WHERE property = %s AND (%s IS NULL OR server = %s) ORDER BY server FOR UPDATE""",
            (_PROPERTY, server, server),
        )
        records = cur.fetchall()
        if len(records) != 1:
            return "several" if records else "absent"
        ((name, text),) = records
        try:
            document = json.loads(text)
            last = document["LastProcessedConfiguration"]
            before = last["MainDicomTagsSignature"]
        except (ValueError, KeyError, TypeError):
            return "unknown"
        if document.get("Version") != _VERSION:
            return "unknown"
        # It would write its own record at the end, over ours.
        if document.get("CurrentlyProcessingConfiguration") is not None:
            return "busy"
        lists = dicom.indexed_tags(profile).levels
        signatures = {level.capitalize(): tags.signature for level, tags in zip(LEVELS, lists, strict=True)}
        if before == signatures:
            return "up-to-date"
        last["MainDicomTagsSignature"] = signatures
        cur.execute(
            "UPDATE index.serverproperties SET value = %s WHERE server = %s AND property = %s",
            (json.dumps(document), name, _PROPERTY),
        )
    return "updated"
