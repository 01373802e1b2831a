"""How many files a run will read, and how long that takes, by trying some of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.reindex.heads import Heads
from pgorthanc_cli.reindex.model import INSTANCE, Estimate, Item, Settings
from pgorthanc_cli.reindex.plan import Planner
from pgorthanc_cli.reindex.selection import Selected

_TRIED_PATIENTS, _TRIED_FILES, _TRIED_S = 16, 128, 1.0
_TRIED_SHARE = 64  # of all files one in so many is read twice, but for a few
_FEW_FILES = 8
# Comparing and writing rows takes about as long as reading files (bench/reindex.py).
_WRITING = 2.0


def estimate(
    conn: db.Session, planner: Planner, selected: Selected, patients: Sequence[int], settings: Settings
) -> Estimate:
    """Count the files that will be read, and read some of them to see how long one takes."""
    files = _count(conn, selected, patients, settings)
    tries = min(_TRIED_FILES, max(_FEW_FILES, files // _TRIED_SHARE))
    step = max(1, len(patients) // _TRIED_PATIENTS)
    sample: list[Item] = []
    for batch in planner.batches(list(patients[::step])[:_TRIED_PATIENTS]):
        usable = [item for item in batch.items if not item.problem]
        sample += usable[:: max(1, len(usable) // tries)]
        if len(sample) >= tries:
            break
    tried, size, started = 0, 0, time.monotonic()
    took = 0.0
    for read in Heads(settings).read(sample[:tries], conn, lambda: None):
        took = time.monotonic() - started
        tried += bool(read.bytes)
        size += read.bytes
        if took > _TRIED_S:
            break
    conn.rollback()
    if not tried:
        return Estimate(files, 0, None)
    expected_bytes, limits = files * size / tried, settings.limits
    seconds = max(
        files * took / tried * _WRITING / settings.jobs,
        files / limits.max_files_per_s if limits.max_files_per_s else 0.0,
        expected_bytes / limits.max_bytes_per_s if limits.max_bytes_per_s else 0.0,
    )
    return Estimate(files, round(expected_bytes), round(seconds, 1))


def _count(conn: db.Session, selected: Selected, patients: Sequence[int], settings: Settings) -> int:
    """Return how many files decide something: one for each resource of the lowest level."""
    if settings.limit_to_level and selected.roots:
        return len(selected.roots)
    level = max(settings.levels)
    if settings.selection.is_everything:
        ((of_level, all_of_level),) = db.rows(
            conn,
            """SELECT count(*) FILTER (WHERE resourcetype = %s), count(*) FILTER (WHERE resourcetype = 0)
               FROM index.resources WHERE resourcetype IN (0, %s)""",
            level,
            level,
        )
        # After an interruption: the share of the patients that are left.
        count = round(of_level * len(patients) / max(all_of_level, 1))
    else:
        alias = ("p", "st", "se", "i")[level]
        what = "count(*)" if level == INSTANCE else f"count(DISTINCT {alias}.internalid)"
        counting = sql.SQL(
            f"""SELECT {what} FROM index.resources p
                JOIN index.resources st ON st.parentid = p.internalid
                JOIN index.resources se ON se.parentid = st.internalid
                JOIN index.resources i ON i.parentid = se.internalid
                WHERE p.internalid = ANY(%s) AND {{}}"""  # noqa: S608 - constants
        ).format(selected.condition)
        count = db.value(conn, counting, list(patients))
    conn.rollback()
    return int(count)
