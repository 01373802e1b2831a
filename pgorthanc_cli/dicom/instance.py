"""One DICOM file -> what Orthanc writes into its index for it.

`parse` is the whole way: which tags are stored (`tags`), the structure of the file
(`file`, `structure`), texts of its elements (`values`, `charset`), metadata, and the rows
of the four levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from pgorthanc_cli.dicom import metadata, tags
from pgorthanc_cli.dicom.charset import Charset
from pgorthanc_cli.dicom.file import File, read_file
from pgorthanc_cli.dicom.metadata import storable
from pgorthanc_cli.dicom.model import Buffer, Instance, Level, Profile, Refused
from pgorthanc_cli.dicom.structure import LONG_VRS, SHORT_VRS, Element
from pgorthanc_cli.dicom.values import LIMIT, TextReader, dialect, normalized, reader_of

# Debian's build of 1.13.0 crashed between 41 and 50 levels (INGEST.md 1.1).
_WARN_DEPTH = 40

_INSTANCE = 3
ALL_LEVELS = frozenset(range(_INSTANCE + 1))
_UIDS = {
    tags.STUDY_UID: "StudyInstanceUID",
    tags.SERIES_UID: "SeriesInstanceUID",
    tags.SOP_INSTANCE_UID: "SOPInstanceUID",
}
_IDENTIFIERS = {tags.PATIENT_ID: "PatientID", **_UIDS}


def parse(data: Buffer, profile: Profile, levels: frozenset[int] = ALL_LEVELS) -> Instance:
    """Return everything that one file determines in the index.

    Args:
        data: the whole file, as received (not compressed).
        profile: see `Profile`.
        levels: those whose rows are needed (0 patient to 3 instance); the others have their
            public ids only.

    Raises:
        Refused: Orthanc would not store the file.
        UsageError: the profile is wrong (`check_profile`).
    """
    version = profile.orthanc_version
    indexed = tags.indexed_tags(profile)
    file = read_file(data, indexed.needed, dialect(version))
    elements = file.elements

    # The three levels above the instance: the same rows for all files of a series.
    ancestors = _ancestors(file, indexed, profile, levels)
    reader = TextReader(file.data, *ancestors.text_rules)
    texts = dict(ancestors.texts)
    has_rows = _INSTANCE in levels
    for tag, element in elements.items():
        if (
            tag not in indexed.of_ancestors
            and (has_rows or tag == tags.SOP_INSTANCE_UID)
            and (text := reader.text(element)) is not None
        ):
            texts[tag] = text
    _check_identifiers(elements, texts)
    own_id = public_id(f"{ancestors.identifiers}|{texts[tags.SOP_INSTANCE_UID]}")
    if not has_rows:
        without_rows = (*ancestors.levels, Level(own_id, (), (), {}))
        return Instance(without_rows, ancestors.expected_instances, None, None, ())

    pixels = metadata.find_pixel_data(data, file, version)
    index = metadata.index_in_series(texts, has_number=tags.INSTANCE_NUMBER in elements)
    own_metadata = metadata.instance_metadata(file, texts, index, pixels, version)
    instance = _level(own_id, indexed.levels[3], own_metadata, elements, texts, reader)
    known = metadata.known_syntaxes(version)
    return Instance(
        levels=(*ancestors.levels, instance),
        expected_instances=ancestors.expected_instances,
        index_in_series=index,
        pixel_data_offset=pixels.offset if pixels else None,
        warnings=_nesting_warning(file.depth) if file.depth > _WARN_DEPTH else (),
        transfer_syntax=file.transfer_syntax if file.transfer_syntax in known else "",
    )


def _nesting_warning(depth: int) -> tuple[str, ...]:
    return (
        f"{depth} nested sequences: an Orthanc whose DCMTK lacks the fix of CVE-2026-10528 "
        "may crash on reading it",
    )


def _check_identifiers(elements: Mapping[int, Element], texts: Mapping[int, str]) -> None:
    """Refuse a file without the three UIDs, or with a PatientID that is not a text."""
    # These come first: Orthanc answers 404 to an absent UID, even if another is empty
    # (400).
    if missing := [name for tag, name in _UIDS.items() if tag not in elements]:
        raise Refused(
            f"{', '.join(missing)} missing: no image, or a DICOMDIR or a query file", missing_tag=True
        )
    for tag, name in _IDENTIFIERS.items():
        if tag in elements and tag not in texts:
            raise Refused(f"{name} has no usable text: longer than {LIMIT} bytes, binary, or a sequence")
    if empty := [name for tag, name in _UIDS.items() if not texts[tag]]:
        raise Refused(f"{', '.join(empty)} empty")


# --- patient, study and series ----------------------------------------------------------


class _Ancestors(NamedTuple):
    """The rows above the instance, and what is needed for the instance itself."""

    levels: tuple[Level, Level, Level]
    identifiers: str  # joined with |, as they are hashed
    texts: dict[int, str]
    text_rules: tuple[Charset, bool, bool]  # of `TextReader`
    expected_instances: int | None


# Files of a series usually arrive together, and differ only in elements of the instance.
# Their ancestors are computed once for each distinct sequence of bytes that they are made
# of.
_recent: dict[tuple[Profile, frozenset[int], str, bytes], _Ancestors] = {}
_MAX_RECENT = 64
_MAX_KEY_VALUE = 4096  # bytes of one element in the key
_HEADER_BYTES = {**dict.fromkeys(SHORT_VRS, 8), **dict.fromkeys(LONG_VRS, 12)}  # before a value, at most


def _ancestors(file: File, indexed: tags.IndexedTags, profile: Profile, levels: frozenset[int]) -> _Ancestors:
    """Return the ancestors, a recent result if all relevant bytes are the same."""
    element_bytes = _bytes_of(file, indexed.of_ancestors)
    if element_bytes is None:
        return _build_ancestors(file, indexed, profile, levels)
    key = profile, levels - {_INSTANCE}, file.transfer_syntax, element_bytes
    ancestors = _recent.get(key)
    if ancestors is None:
        if len(_recent) >= _MAX_RECENT:
            _recent.clear()
        ancestors = _recent[key] = _build_ancestors(file, indexed, profile, levels)
    return ancestors


def _bytes_of(file: File, selected: frozenset[int]) -> bytes | None:
    """Return these elements as written; None if one is too large or has an odd VR."""
    data, parts = file.data, []
    for tag, vr, start, _, _, _, end in file.elements.values():
        if tag in selected:
            if vr not in _HEADER_BYTES or end - start > _MAX_KEY_VALUE:
                return None
            # With the header: the VR decides how the same bytes are read.
            parts.append(data[start - _HEADER_BYTES[vr] : end])
    return b"".join(parts)


def _build_ancestors(
    file: File, indexed: tags.IndexedTags, profile: Profile, levels: frozenset[int]
) -> _Ancestors:
    elements = file.elements
    reader = reader_of(file.data, elements, profile)
    texts = {
        tag: text
        for tag, element in elements.items()
        if tag in indexed.of_ancestors and (text := reader.text(element)) is not None
    }
    expected = metadata.expected_instances(texts)
    of_series = {} if expected is None else {metadata.EXPECTED_INSTANCE_COUNT: str(expected)}
    identifiers = [texts.get(tag, "") for tag in (tags.PATIENT_ID, tags.STUDY_UID, tags.SERIES_UID)]
    # The identifiers of all levels above count, too: under another PatientID, a study
    # with the same UID is another study.
    public_ids = [public_id("|".join(identifiers[: n + 1])) for n in range(3)]
    patient, study, series = (
        _level(public_ids[n], indexed.levels[n], of_series if n == 2 else {}, elements, texts, reader)
        if n in levels
        else Level(public_ids[n], (), (), {})
        for n in range(3)
    )
    text_rules = reader.charset, reader.trims_nul, reader.all_numbers
    return _Ancestors((patient, study, series), "|".join(identifiers), texts, text_rules, expected)


# --- rows -------------------------------------------------------------------------------


def public_id(identifiers: str) -> str:
    """Return the SHA-1 of the identifiers; an absent PatientID counts as empty."""
    x = hashlib.sha1(identifiers.encode(), usedforsecurity=False).hexdigest()
    return f"{x[:8]}-{x[8:16]}-{x[16:24]}-{x[24:32]}-{x[32:]}"


def _level(
    public_id: str,
    level: tags.LevelTags,
    own_metadata: Mapping[int, str],
    elements: Mapping[int, Element],
    texts: Mapping[int, str],
    reader: TextReader,
) -> Level:
    """Return the rows of one resource; `own_metadata` is what only its level has."""
    all_metadata = dict(own_metadata)
    if level.signature is not None:
        all_metadata[metadata.MAIN_TAGS_SIGNATURE] = level.signature
    sequences = [
        element
        for tag in level.sequences
        if (element := elements.get(tag)) is not None and element.items is not None
    ]
    if sequences:
        all_metadata[metadata.SEQUENCES] = reader.json(sequences)
    return Level(
        public_id=public_id,
        main_dicom_tags=tuple(
            (tag >> 16, tag & 0xFFFF, storable(texts[tag])) for tag in level.main if tag in texts
        ),
        identifiers=tuple(
            (tag >> 16, tag & 0xFFFF, normalized(texts[tag])) for tag in level.identifiers if tag in texts
        ),
        metadata=all_metadata,
    )
