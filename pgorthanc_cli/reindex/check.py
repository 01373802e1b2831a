"""Which resources have the tags of another configuration, by their signatures; no file is read.

Each resource is judged by its own signature: that of a study says nothing about its series and
instances, as an interrupted reconstruction leaves new signatures on the parents (STORAGE.md B7).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pgorthanc_cli import db, dicom, index
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.reindex.model import SIGNATURE
from pgorthanc_cli.reindex.requirements import require_configured_tags

# Signatures by level above the instances, then those of all levels together (without a level), and the number of
# instances. One statement, hence one snapshot. A join of all instances with their metadata would take four times as
# long, and as much disk as their ids and signatures.
_SIGNATURES = """
    SELECT r.resourcetype, m.value, count(*)
        FROM index.resources r LEFT JOIN index.metadata m ON m.id = r.internalid AND m.type = %s
        WHERE r.resourcetype < 3 GROUP BY 1, 2
    UNION ALL
    SELECT NULL, value, count(*) FROM index.metadata WHERE type = %s AND value IS NOT NULL GROUP BY 2
    UNION ALL
    SELECT 3, NULL, count(*) FROM index.resources WHERE resourcetype = 3
"""


@dataclass(frozen=True)
class LevelCheck:
    """The resources of a level.

    Attributes:
        level: patient, study, series or instance.
        resources: All of them.
        other_signature: Those with another list of tags than the configuration.
        without_signature: Those that an Orthanc before 1.11 has stored.
    """

    level: str
    resources: int
    other_signature: int
    without_signature: int


@dataclass(frozen=True)
class MissingTag:
    """A tag of the configuration.

    Attributes:
        level: Where it is configured.
        key: As `0008,0080`.
        name: Its keyword.
        resources: How many were stored without it in their list.
    """

    level: str
    key: str
    name: str
    resources: int


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        levels: Patients, studies, series, instances.
        missing: Tags that are missing somewhere.
        endpoint: Where we looked.
    """

    levels: tuple[LevelCheck, ...]
    missing: tuple[MissingTag, ...]
    endpoint: db.Endpoint

    @property
    def outdated(self) -> int:
        """How many resources need a reindex."""
        return sum(level.other_signature + level.without_signature for level in self.levels)


def check(
    target: db.Target, profile: dicom.Profile, *, is_configured: bool = True, report: Report = silent
) -> Checked:
    """Compare the signatures of all resources with a profile; only reads.

    Args:
        target: The index.
        profile: The configuration.
        is_configured: As in `Settings`.
        report: If the tables are large: receives that they will be read.

    Raises:
        RevisionError: There is no index.
        UsageError: The tag lists are not known.
    """
    with db.session(target, readonly=True) as conn:
        index.Capabilities.read(conn)
        if not is_configured:
            require_configured_tags(conn, profile)
        report = db.announce_scans(conn, ("resources", "metadata"), report)
        report(Progress("", "counting signatures", 1, 1))
        counts = _signatures(conn)
        conn.rollback()
        levels, missing = [], []
        for number, tags in enumerate(dicom.indexed_tags(profile).levels):
            count_of = counts[number]
            without = count_of.get(None, 0) if tags.signature else 0
            others = Counter({v: n for v, n in count_of.items() if v is not None and v != tags.signature})
            levels.append(LevelCheck(LEVELS[number], count_of.total(), others.total(), without))
            configured = (tags.signature or "").split(";")
            for key in configured:
                count = without + sum(n for value, n in others.items() if key not in value.split(";"))
                if key and count:
                    name = dicom.name_of(int(key.replace(",", ""), 16))
                    missing.append(MissingTag(LEVELS[number], key, name, count))
        return Checked(tuple(levels), tuple(missing), db.endpoint(conn))


def _signatures(conn: db.Session) -> list[Counter[str | None]]:
    """Return how many resources of each level have which signature; None: those without one."""
    counts: list[Counter[str | None]] = [Counter() for _ in LEVELS]
    everywhere: Counter[str | None] = Counter()
    for level, value, count in db.rows(conn, _SIGNATURES, SIGNATURE, SIGNATURE):
        (everywhere if level is None else counts[level])[value] = count
    instances = counts[-1].total()
    for above in counts[:-1]:
        everywhere.subtract({value: count for value, count in above.items() if value is not None})
    counts[-1] = +everywhere  # without those of which none is left
    counts[-1][None] = instances - counts[-1].total()
    return counts
