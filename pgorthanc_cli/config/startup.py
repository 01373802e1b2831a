"""Rules beyond the "PostgreSQL" section: what keeps Orthanc from starting, or stores its files elsewhere.

Observed with Orthanc 1.13.0 and the advanced storage plugin 0.3.1 (STORAGE.md A8, B9, F; CONFIGURATION.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pgorthanc_cli.config.documents import Problem
from pgorthanc_cli.config.options import LEVELS, STARTING_KEYS, validation_error, version
from pgorthanc_cli.config.plugins import ADVANCED, STORAGES

if TYPE_CHECKING:
    from pgorthanc_cli.config.deployment import Deployment

# The first plugin whose queues can reserve values, which delayed deletion needs.
_RESERVING = (10, 0)
_QUEUES = (8, 0)
_IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_TEXTS = (
    *_IDENTIFIERS, "UUID", ".ext", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyID",
    "StudyDescription", "AccessionNumber", "SeriesDate", "SeriesDescription", "SeriesNumber", "InstanceNumber",
    "InstitutionName",
)  # fmt: skip
_KEYWORD = re.compile(
    "|".join(map(re.escape, _TEXTS))
    + r"|pad[468]\((?:SeriesNumber|InstanceNumber)\)|split\((?:StudyDate|PatientBirthDate)\)"
    r"|Orthanc(?:Patient|Study|Series|Instance)ID|(?:01|23)\(Orthanc(?:Patient|Study|Series|Instance)ID\)"
)
_NUMBER = re.compile(r"[0-9A-Fa-f]{4}[,-]?[0-9A-Fa-f]{4}")
# Names that Orthanc 1.13.0 of Debian does not know, because DICOM has retired them, and their numbers.
_UNKNOWN_TAGS = {
    "EthnicGroup": "0010,2160", "ReasonForStudy": "0032,1030", "StudyArrivalDate": "0032,1040",
    "StudyIDIssuer": "0032,0012", "StudyStatusID": "0032,000A", "StudyVerifiedDate": "0032,0032",
}  # fmt: skip
_PRIVATE_TAGS = {"StudyComments": ("0032,4000", "0013,0026")}


def refusals(deployment: Deployment) -> Iterator[Problem]:
    """Yield options that contradict each other, so that Orthanc does not start."""
    values = deployment.document.values
    for name, option in STARTING_KEYS.items():
        message = validation_error(option, values[name]) if name in values else None
        if message:
            yield Problem(name, "error", message, place=deployment.document.location(name))
    if values.get("OverwriteInstances") == "IfChanged" and values.get("StoreMD5ForAttachments") is False:
        message = '"OverwriteInstances" is "IfChanged", which compares MD5 sums, but "StoreMD5ForAttachments" is false'
        yield _stops(deployment, "OverwriteInstances", message, 'set "StoreMD5ForAttachments" to true')
    if values.get("PatientLevelEnabled") is False:
        for name in ("MaximumPatientCount", "MaximumStorageSize"):
            if values.get(name, 0) != 0:
                message = (
                    f'"{name}" is {values[name]}, but it needs the patients: "PatientLevelEnabled" is false'
                )
                yield _stops(
                    deployment, name, message, f'set "{name}" to 0, or "PatientLevelEnabled" to true'
                )
    served = values.get("HttpServerEnabled") is not False and values.get("RemoteAccessAllowed") is True
    if served and values.get("AuthenticationEnabled") is not False and "RegisteredUsers" not in values:
        message = (
            'HTTP from other machines needs a login, but there is no "RegisteredUsers": Orthanc 1.13.0 and later '
            "does not start"
        )
        hint = 'add the users to "RegisteredUsers"'
        yield Problem(
            "RegisteredUsers", "warning", message, hint, deployment.document.location("RemoteAccessAllowed")
        )


def _stops(deployment: Deployment, key: str, message: str, hint: str) -> Problem:
    return Problem(
        key, "error", f"{message}: Orthanc does not start", hint, deployment.document.location(key)
    )


def storages(deployment: Deployment) -> Iterator[Problem]:
    """Yield storage plugins that are enabled at the same time; only one of them gets the files."""
    active = [name for name, (section, key) in STORAGES.items() if is_active(deployment, name, section, key)]
    if deployment.option("EnableStorage"):
        return  # the check of the PostgreSQL section compares with that one
    if len(active) > 1:
        sections = [STORAGES[name][0] for name in active]
        message = f"{len(active)} storage plugins are on: {', '.join(sections)}; only one of them will get the files"
        location = deployment.document.location(sections[0])
        yield Problem(sections[0], "error", message, "switch all but one off", location)


def is_active(deployment: Deployment, library: str, section: str, key: str) -> bool:
    """Return whether a plugin is loaded and enabled; the container image loads those with a section."""
    values = deployment.document.values.get(section)
    loaded = deployment.in_image or any(plugin.name == library for plugin in deployment.libraries)
    return loaded and isinstance(values, dict) and (not key or values.get(key) is True)


def advanced_storage(deployment: Deployment) -> Iterator[Problem]:
    """Yield what the advanced storage plugin cannot read, and names of files that fail."""
    section = deployment.document.values.get(ADVANCED)
    if not isinstance(section, dict) or not is_active(deployment, "libAdvancedStorage", ADVANCED, "Enable"):
        return
    overwrite = deployment.document.values.get("OverwriteInstances", False)
    if isinstance(overwrite, str):
        message = (
            f'"OverwriteInstances" is "{overwrite}", and the advanced storage plugin reads only true or false'
        )
        # The plugin has no word for IfChanged; `true` at least keeps what is newer.
        word = "false" if overwrite == "Never" else "true"
        yield _stops(deployment, "OverwriteInstances", message, f"write {word}, without quotes")
    else:
        yield from _naming(deployment, section, overwrite=overwrite is True)
    yield from _indexer(deployment, section)
    yield from _delayed_deletion(deployment, section)


def _indexer(deployment: Deployment, section: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield folders in which the folder indexer does harm (STORAGE.md A3, F1.4)."""
    indexer = section.get("Indexer")
    if not isinstance(indexer, dict) or indexer.get("Enable") is not True:
        return
    key, location = f"{ADVANCED}.Indexer", deployment.document.location(ADVANCED, "Indexer")
    several = section.get("MultipleStorages")
    storages = several.get("Storages") if isinstance(several, dict) else None
    own = [deployment.document.values.get("StorageDirectory")]
    own += storages.values() if isinstance(storages, dict) else ()
    folders = indexer.get("Folders")
    for folder in folders if isinstance(folders, list) else ():
        if not isinstance(folder, str):
            continue
        if not os.path.isabs(folder):
            message = f'the indexer watches "{folder}": Orthanc would look for its files in its own storage'
            yield Problem(key, "error", message, "write an absolute path", location)
        for root in own:
            if isinstance(root, str) and os.path.isabs(root) and _overlap(folder, root):
                message = f'the indexer watches "{folder}", and Orthanc stores its own files in "{root}"'
                yield Problem(key, "error", message, "let it watch another folder", location)


def _overlap(one: str, other: str) -> bool:
    """Whether one of two folders is the other one, or lies in it, as far as their names tell."""
    paths = sorted(os.path.join(os.path.normpath(path), "") for path in (one, other))
    return paths[1].startswith(paths[0])


def _naming(deployment: Deployment, section: Mapping[str, Any], *, overwrite: bool) -> Iterator[Problem]:
    scheme, key = section.get("NamingScheme", "OrthancDefault"), f"{ADVANCED}.NamingScheme"
    location = deployment.document.location(ADVANCED, "NamingScheme")
    if not isinstance(scheme, str) or scheme == "OrthancDefault":
        return
    words = re.findall(r"\{([^{}]*)\}", scheme)
    # The plugin's own text says the opposite; this is what it does (STORAGE.md A8).
    unique = "UUID" in words
    named = "OrthancInstanceID" in words or set(_IDENTIFIERS) <= set(words)
    if not unique and not (overwrite and named):
        message = (
            f'"NamingScheme" is "{scheme}" and does not name a file once: the advanced storage plugin does not '
            "load, and Orthanc does not start"
        )
        yield Problem(key, "error", message, "add {UUID}", location)
    elif not unique:
        message = (
            f'"NamingScheme" is "{scheme}", without {{UUID}}: with "OverwriteInstances" true an instance that is '
            "sent again is refused (the file is already there)"
        )
        yield Problem(key, "warning", message, "add {UUID}", location)
    strange = [word for word in words if not _KEYWORD.fullmatch(word)]
    if strange:
        listed = ", ".join(f"{{{word}}}" for word in strange)
        message = f'"NamingScheme" holds {listed}, which the plugin does not replace: folders get that name'
        yield Problem(key, "warning", message, "use the keywords of the plugin's documentation", location)


def _delayed_deletion(deployment: Deployment, section: Mapping[str, Any]) -> Iterator[Problem]:
    delayed = section.get("DelayedDeletion")
    if not isinstance(delayed, dict) or delayed.get("Enable") is not True or deployment.release is None:
        return
    release = version(deployment.release)
    key, location = f"{ADVANCED}.DelayedDeletion", deployment.document.location(ADVANCED, "DelayedDeletion")
    hint = "switch it off, or install PostgreSQL plugin 10.0 or later"
    if _QUEUES <= release < _RESERVING:
        message = (
            f"delayed deletion needs PostgreSQL plugin 10.0: with {deployment.release} Orthanc aborts when it "
            "starts"
        )
        yield Problem(key, "error", message, hint, location)
    elif release < _QUEUES:
        message = f"delayed deletion needs PostgreSQL plugin 10.0: with {deployment.release} it stays off"
        yield Problem(key, "warning", message, hint, location)


def tags(deployment: Deployment) -> Iterator[Problem]:
    """Yield names of tags that depend on the dictionary of an Orthanc's build."""
    levels = deployment.document.values.get("ExtraMainDicomTags")
    for level, names in levels.items() if isinstance(levels, dict) else ():
        if level not in LEVELS or not isinstance(names, list):
            continue
        key, location = (
            f"ExtraMainDicomTags.{level}",
            deployment.document.location("ExtraMainDicomTags", level),
        )
        others = []
        for name in names:
            if name in _UNKNOWN_TAGS:
                message = (
                    f'the tag "{name}" is retired, and some builds of Orthanc do not start with its name'
                )
                yield Problem(key, "warning", message, f'write "{_UNKNOWN_TAGS[name]}"', location)
            elif name in _PRIVATE_TAGS:
                number, private = _PRIVATE_TAGS[name]
                message = f'the tag "{name}" means the private ({private}) to some builds of Orthanc, not ({number})'
                yield Problem(key, "warning", message, f'write "{number}"', location)
            elif isinstance(name, str) and not _NUMBER.fullmatch(name):
                others.append(name)
        if others:
            message = (
                f"names of tags ({', '.join(others)}) depend on the dictionary of the Orthanc that reads them"
            )
            yield Problem(
                key, "info", message, 'numbers, as in "0010,1010", mean the same everywhere', location
            )


RULES = (refusals, storages, advanced_storage, tags)
