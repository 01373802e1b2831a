"""One DICOM file -> what Orthanc writes into its index for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from pgorthanc_cli.dicom import container, metadata, streams, tags
from pgorthanc_cli.dicom.charset import Charset
from pgorthanc_cli.dicom.filemeta import FileMeta, file_meta
from pgorthanc_cli.dicom.model import Buffer, Instance, Level, Profile, Refused
from pgorthanc_cli.dicom.structure import LONG_VRS, SHORT_VRS, Element
from pgorthanc_cli.dicom.values import LIMIT, Reader, dialect, normalized, reader_of

_WARN_DEPTH = 40

# Orthanc's MetadataType.
_INDEX_IN_SERIES, _EXPECTED, _TRANSFER_SYNTAX, _SOP_CLASS, _OFFSET = 1, 4, 9, 10, 14
_SIGNATURE, _SEQUENCES, _PIXEL_DATA_VR = 15, 16, 17

_PIXEL_DATA_VR_SINCE = (1, 12, 1)

_UIDS = {
    tags.STUDY_UID: "StudyInstanceUID",
    tags.SERIES_UID: "SeriesInstanceUID",
    tags.SOP_INSTANCE_UID: "SOPInstanceUID",
}
_IDENTIFIERS = {tags.PATIENT_ID: "PatientID", **_UIDS}


def parse(data: Buffer, profile: Profile) -> Instance:
    """Everything that one file determines in the index of the Orthanc that the profile describes.

    Args:
        data: the whole file, as received (not compressed).
        profile: see `Profile`.

    Raises:
        Refused: Orthanc would not store the file.
        UsageError: the profile is wrong (`check_profile`).
    """
    tables = tags.tables(profile)
    meta = file_meta(data)
    data_set = container.read(data, tables.wanted, meta, dialect(profile.orthanc_version))
    known = streams.known(profile.orthanc_version)
    elements = data_set.elements
    ancestors = _ancestors(data_set, tables, profile)
    reader = Reader(data_set.data, *ancestors.reading)
    texts = dict(ancestors.texts)
    for tag, element in elements.items():
        if tag not in tables.ancestors and (text := reader.text(element)) is not None:
            texts[tag] = text
    _check_identifiers(elements, texts)
    public_id = _public_id(f"{ancestors.identifiers}|{texts[tags.SOP_INSTANCE_UID]}")
    pixels = streams.pixel_data(data, meta, data_set, known)
    index = metadata.index_in_series(texts, has_number=tags.INSTANCE_NUMBER in elements)
    own = _instance(meta, data_set, texts, index, pixels, profile)
    instance = _level(public_id, tables.levels[3], own, elements, texts, reader)
    return Instance(
        levels=(*ancestors.levels, instance),
        expected_instances=ancestors.expected_instances,
        index_in_series=index,
        pixel_data_offset=pixels.offset if pixels else None,
        warnings=_warnings(data_set.deepest),
    )


class _Ancestors(NamedTuple):
    """What all files of a series have in common, if their elements above the instance are the same bytes."""

    levels: tuple[Level, Level, Level]
    identifiers: str  # joined, as they are hashed
    texts: dict[int, str]
    reading: tuple[Charset, bool, bool]  # how to read texts: see `Reader`
    expected_instances: int | None


_recent: dict[tuple[Profile, str, bytes], _Ancestors] = {}
_MAX_RECENT = 64
_MAX_SAME = 4096  # bytes of one element
_HEADERS = {**dict.fromkeys(SHORT_VRS, 8), **dict.fromkeys(LONG_VRS, 12)}  # bytes before the value, at most


def _ancestors(data_set: container.DataSet, tables: tags.Tables, profile: Profile) -> _Ancestors:
    """The ancestors, made once for all files of a series that agree in every byte that they are made of."""
    same = _same(data_set, tables.ancestors)
    if same is None:
        return _made(data_set, tables, profile)
    key = profile, data_set.transfer_syntax, same
    found = _recent.get(key)
    if found is None:
        if len(_recent) >= _MAX_RECENT:
            _recent.clear()
        found = _recent[key] = _made(data_set, tables, profile)
    return found


def _same(data_set: container.DataSet, wanted: frozenset[int]) -> bytes | None:
    """The wanted elements as they are written, tags and VRs included; None if one of them is out of the ordinary."""
    data, parts = data_set.data, []
    for tag, vr, start, _, _, _, end in data_set.elements.values():
        if tag in wanted:
            if vr not in _HEADERS or end - start > _MAX_SAME:
                return None
            parts.append(data[start - _HEADERS[vr] : end])
    return b"".join(parts)


def _made(data_set: container.DataSet, tables: tags.Tables, profile: Profile) -> _Ancestors:
    elements = data_set.elements
    reader = reader_of(data_set.data, elements, profile)
    texts = {
        tag: text
        for tag, element in elements.items()
        if tag in tables.ancestors and (text := reader.text(element)) is not None
    }
    expected = metadata.expected_instances(texts)
    identifiers = [texts.get(tag, "") for tag in (tags.PATIENT_ID, tags.STUDY_UID, tags.SERIES_UID)]
    ids = [_public_id("|".join(identifiers[: n + 1])) for n in range(3)]
    patient, study, series = (
        _level(ids[n], tables.levels[n], _series(expected) if n == 2 else {}, elements, texts, reader)
        for n in range(3)
    )
    reading = reader.charset, reader.trims_nul, reader.all_numbers
    return _Ancestors((patient, study, series), "|".join(identifiers), texts, reading, expected)


def _check_identifiers(elements: Mapping[int, Element], texts: Mapping[int, str]) -> None:
    """The three UIDs must be there, and have a text; PatientID, if it is there, a text that may be empty."""
    if missing := [name for tag, name in _UIDS.items() if tag not in elements]:
        raise Refused(
            f"{', '.join(missing)} missing: no image, or a DICOMDIR or a query file", missing_tag=True
        )
    for tag, name in _IDENTIFIERS.items():
        if tag in elements and tag not in texts:
            raise Refused(f"{name} has no usable text: longer than {LIMIT} bytes, binary, or a sequence")
    if empty := [name for tag, name in _UIDS.items() if not texts[tag]]:
        raise Refused(f"{', '.join(empty)} empty")


def _public_id(identifiers: str) -> str:
    """SHA-1 of the identifiers down to a level; an absent PatientID is an empty one."""
    x = hashlib.sha1(identifiers.encode(), usedforsecurity=False).hexdigest()
    return f"{x[:8]}-{x[8:16]}-{x[16:24]}-{x[24:32]}-{x[32:]}"


def _level(
    public_id: str,
    level: tags.LevelTags,
    own: dict[int, str],
    elements: Mapping[int, Element],
    texts: Mapping[int, str],
    reader: Reader,
) -> Level:
    """The rows of one resource; `own` is the metadata that only its level has."""
    found = dict(own)
    if level.signature is not None:
        found[_SIGNATURE] = level.signature
    sequences = [e for tag in level.sequences if (e := elements.get(tag)) is not None and e.items is not None]
    if sequences:
        found[_SEQUENCES] = reader.json(sequences)
    return Level(
        public_id=public_id,
        main_dicom_tags=tuple((t >> 16, t & 0xFFFF, _storable(texts[t])) for t in level.main if t in texts),
        identifiers=tuple(
            (t >> 16, t & 0xFFFF, normalized(texts[t])) for t in level.identifiers if t in texts
        ),
        metadata=found,
    )


def _storable(text: str) -> str:
    """A text as far as a row can hold it: up to the first 00 (which only a value of VR UN can have)."""
    return text.partition("\0")[0] if "\0" in text else text


def _series(expected: int | None) -> dict[int, str]:
    return {} if expected is None else {_EXPECTED: str(expected)}


def _instance(
    meta: FileMeta | None,
    data_set: container.DataSet,
    texts: Mapping[int, str],
    index: str | None,
    pixels: streams.PixelData | None,
    profile: Profile,
) -> dict[int, str]:
    """The metadata that only the instance level has."""
    known = streams.known(profile.orthanc_version)
    syntax = streams.named_transfer_syntax(meta, known)
    if syntax is None and data_set.transfer_syntax in known:
        syntax = data_set.transfer_syntax
    has_vr = profile.orthanc_version >= _PIXEL_DATA_VR_SINCE
    candidates = {
        _INDEX_IN_SERIES: index,
        _TRANSFER_SYNTAX: syntax or None,
        _SOP_CLASS: texts.get(tags.SOP_CLASS_UID),
        _OFFSET: str(pixels.offset) if pixels else None,
        _PIXEL_DATA_VR: metadata.pixel_data_vr(pixels, texts) if pixels and has_vr else None,
    }
    return {kind: _storable(text) for kind, text in candidates.items() if text is not None}


def _warnings(deepest: int) -> tuple[str, ...]:
    if deepest <= _WARN_DEPTH:
        return ()
    return (
        f"{deepest} nested sequences: an Orthanc whose DCMTK lacks the fix of CVE-2026-10528 may crash on reading it",
    )
