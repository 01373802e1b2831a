"""Two configurations compared: what Orthancs that share a database must have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pgorthanc_cli.config import conninfo, plugins, validation
from pgorthanc_cli.config.deployment import Deployment, masked
from pgorthanc_cli.config.options import POSTGRESQL_KEYS, ROOT_KEYS, SECTION, STARTING_KEYS
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import catalog

Verdict = Literal["must agree", "must differ", "should agree", "note", "may differ"]

_OWN_INDEX = "Each of them would use an index of its own, with other studies."
_OWN_FILES = "They would store DICOM files in different places, and not find those of the other one."
_OTHER_LIMIT = "The one with the lower limit deletes, or refuses, studies that the other one would keep."
_OTHER_NUMBERS = "The same number in the database would mean something else to each of them."
_UNKNOWN = "They may treat studies differently, depending on which Orthanc receives or shows them."
_SHOULD_AGREE = {
    "TransactionMode": "Serializable protects an Orthanc only against others that use it, too.",
    "AllowInconsistentChildCounts": "They may report different numbers of children.",
    "StorageCompression": "Only the files that one of them receives would be compressed; both can read all.",
}
_MUST_AGREE = {
    "EnableIndex": _OWN_INDEX,
    "Schema": _OWN_INDEX,
    "EnableStorage": _OWN_FILES,
    "Lock": "Only one Orthanc can hold the lock: several Orthancs need false in all of them.",
    "StorageDirectory": _OWN_FILES,
    **{section: _OWN_FILES for section, _ in plugins.STORAGES.values()},
    "StoreDicom": "Only one of them would store DICOM files.",
    "OverwriteInstances": "If an instance is sent again, the Orthanc that receives it decides which one stays.",
    "ExtraMainDicomTags": "The tags in the index would depend on which Orthanc receives a study: searches for "
    "them would miss studies.",
    "DefaultEncoding": "Names without a character set would be stored in two spellings: searches would miss "
    "studies.",
    "UserMetadata": _OTHER_NUMBERS,
    "UserContentType": _OTHER_NUMBERS,
    "MaximumPatientCount": _OTHER_LIMIT,
    "MaximumStorageMode": _OTHER_LIMIT,
    "MaximumStorageSize": _OTHER_LIMIT,
}
_DEFAULTS = {"MaximumPatientCount": 0, "MaximumStorageMode": "Recycle", "MaximumStorageSize": 0}
# Compared together: they name one database.
_CONNECTION = ("ConnectionUri", "Host", "Port", "Database")
_MAY_DIFFER = re.compile(
    # the "PostgreSQL" section
    r"PostgreSQL\.(Username|Password|EnableSsl|ApplicationName|MaximumConnectionRetries|ConnectionRetryInterval"
    r"|IndexConnectionsCount|EnableVerboseLogs|HousekeepingInterval|UseDynamicConnectionPool)"
    # identity, network, login, and how hard an Orthanc works
    r"|Name|Plugins|ReadOnly|Locale|MallocArenaMax|MetricsEnabled|ConcurrentJobs|JobsHistorySize|SaveJobs"
    r"|DatabaseServerIdentifier|IndexDirectory|TemporaryDirectory|RemoteAccessAllowed|RegisteredUsers"
    r"|AuthenticationEnabled|OrthancExplorerEnabled|DicomAet|DicomPort|DicomServerEnabled|KeepAlive|TcpNoDelay"
    r"|(Http|Https|Ssl|WebDav|DicomTls)\w*"
    r"|\w+(Timeout|ThreadsCount|ZipLoaderThreads|Capacity|CacheSize|WindowSize)|Pkcs11|ZipLoaderThreads"
)
_ORDER: tuple[Verdict, ...] = ("must agree", "must differ", "should agree", "note", "may differ")


@dataclass(frozen=True)
class Difference:
    """An option, and what it means that it differs, or does not.

    Attributes:
        verdict: `must agree`, `must differ`: the two cannot share a database; `should agree`: they can, but
            probably not as intended; `note`, `may differ`: worth knowing.
        consequence: What happens; empty if the option may differ.
        key: The option, as in `PostgreSQL.EnableIndex`; `database` for those of the connection.
        a: Its value in the first configuration, defaults included; secrets are masked; None: not set.
        b: The same in the second one.
        place_a: File and line; empty for a default.
        place_b: The same in the second one.
    """

    verdict: Verdict
    consequence: str
    key: str
    a: Any
    b: Any
    place_a: str
    place_b: str


@dataclass(frozen=True)
class Compared:
    """Two configurations and their differences.

    Attributes:
        a: The first one.
        b: The second one.
        differences: Those that forbid a shared database first.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]

    @property
    def forbidding(self) -> tuple[Difference, ...]:
        """The differences with which the two must not share a database."""
        return tuple(each for each in self.differences if each.verdict in ("must agree", "must differ"))


@dataclass(frozen=True, repr=False)
class Side:
    """One of two configurations: where it is, and what it says."""

    path: Path
    deployment: Deployment

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the configuration start from."""
        return (self.path if self.path.is_dir() else self.path.parent).absolute()


def compare(a: Side, b: Side) -> Compared:
    """Return the differences of two configurations whose Orthancs share a database, or are to share one."""
    differences = [*_database(a, b), *_plugins(a, b), *_section(a, b), *_root(a, b), *_identity(a, b)]
    differences.sort(key=lambda each: _ORDER.index(each.verdict))
    return Compared(str(a.path), str(b.path), tuple(differences))


def _database(a: Side, b: Side) -> Iterator[Difference]:
    """Yield a difference if the two connect to different databases."""
    sides = (a.deployment, b.deployment)
    if not all(side.option("EnableIndex") or side.option("EnableStorage") for side in sides):
        return
    first, second = (conninfo.address(side.section) for side in sides)
    if first == second:
        return
    consequence = _OWN_INDEX
    if first.partition(" at ")[0] == second.partition(" at ")[0]:
        consequence += " Only if both addresses mean the same server, this is right."
    key = "ConnectionUri"
    yield Difference(
        "must agree", consequence, "database", first, second,
        *(side.location(key if key in side.section else "Database") for side in sides),
    )  # fmt: skip


def _plugins(a: Side, b: Side) -> Iterator[Difference]:
    """Yield a difference if the plugins are of releases that need different revisions."""
    releases: list[Any] = [side.deployment.release for side in (a, b)]
    if None in releases or releases[0] == releases[1]:
        return
    try:
        revisions = [catalog.revision_of_plugin(str(release)) for release in releases]
    except RevisionError:  # newer than this program, perhaps
        revisions = releases
    if revisions[0] != revisions[1]:
        yield Difference(
            "must agree",
            "They need different revisions of the index: one of them fails, or writes wrong values.",
            "release of the PostgreSQL plugin",
            *releases,
            *(side.deployment.document.location("Plugins") for side in (a, b)),
        )


def _section(a: Side, b: Side) -> Iterator[Difference]:
    """Yield the options of the "PostgreSQL" section that differ, but for the address of the database."""
    sides = (a.deployment, b.deployment)
    for name in dict.fromkeys((*POSTGRESQL_KEYS, *sides[0].section, *sides[1].section)):
        if name in _CONNECTION:
            continue
        first, second = (
            side.option(name) if name in POSTGRESQL_KEYS else side.section.get(name) for side in sides
        )
        # The plugin looks for the schema in lower case.
        if name == "Schema":
            first, second = str(first).lower(), str(second).lower()
        if first != second:
            yield _judged(a, b, (SECTION, name), first, second)
    if sides[0].option("Lock") and sides[1].option("Lock"):
        consequence = "Only one of them can run at a time, which is right for a cold standby only."
        places = (side.location("Lock") for side in sides)
        yield Difference("note", consequence, f"{SECTION}.Lock", True, True, *places)


def _root(a: Side, b: Side) -> Iterator[Difference]:
    """Yield the options of Orthanc itself, and the sections of other plugins, that differ."""
    names = dict.fromkeys((*a.deployment.document.values, *b.deployment.document.values))
    for name in names:
        if name == SECTION or (name == "StorageDirectory" and _in_postgresql(a, b)):
            continue
        first, second = _value(a, name), _value(b, name)
        if first != second:
            yield _judged(a, b, (name,), first, second)
    if "StorageDirectory" not in names and a.folder != b.folder and not _in_postgresql(a, b):
        yield _judged(a, b, ("StorageDirectory",), *(_value(side, "StorageDirectory") for side in (a, b)))


def _in_postgresql(a: Side, b: Side) -> bool:
    return bool(a.deployment.option("EnableStorage") and b.deployment.option("EnableStorage"))


def _value(side: Side, name: str) -> Any:
    """Return an option of the root in a form that can be compared."""
    key = (ROOT_KEYS | STARTING_KEYS).get(name)
    value = side.deployment.document.values.get(name, key.default if key else _DEFAULTS.get(name))
    if name == "StorageDirectory":
        return str((side.folder / str(value)).resolve())
    # Since 1.13.0 the two booleans have names.
    if name == "OverwriteInstances":
        return {False: "Never", True: "Always"}.get(value, value) if isinstance(value, bool) else value
    if name == "ExtraMainDicomTags" and isinstance(value, dict):
        return {k: sorted(map(str, tags)) for k, tags in value.items() if isinstance(tags, list) and tags}
    if name == "ExtraMainDicomTags":
        return value or {}
    return value


def _judged(a: Side, b: Side, keys: tuple[str, ...], first: Any, second: Any) -> Difference:
    """Return a difference with its verdict."""
    dotted = ".".join(keys)
    verdict: Verdict = "should agree"
    consequence = _SHOULD_AGREE.get(keys[-1], _UNKNOWN)
    if keys[-1] in _MUST_AGREE:
        verdict, consequence = "must agree", _MUST_AGREE[keys[-1]]
    elif _MAY_DIFFER.fullmatch(dotted):
        verdict, consequence = "may differ", ""
    # Only its own place: that of the section would pass for the place of a default.
    places = (side.deployment.document.places.get(keys, "") for side in (a, b))
    return Difference(verdict, consequence, dotted, masked(keys, first), masked(keys, second), *places)


def _identity(a: Side, b: Side) -> Iterator[Difference]:
    """Yield a name that both have, although each needs one of its own."""
    name = "DatabaseServerIdentifier"
    first, second = (side.deployment.document.values.get(name) for side in (a, b))
    if first is not None and first == second:
        consequence = "They would overwrite each other's list of jobs and other properties in the database."
        places = (side.deployment.document.location(name) for side in (a, b))
        yield Difference("must differ", consequence, name, first, second, *places)


def problems(side: Side) -> Iterator[str]:
    """Yield what makes the comparison unreliable: unset variables, values of a wrong type."""
    document = side.deployment.document
    for problem in (*document.problems, *validation.values(document)):
        if problem.severity == "error":
            yield problem.warning
