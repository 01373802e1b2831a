"""One DICOM file -> what Orthanc writes into its index for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pgorthanc_cli.dicom import container, metadata, streams, tags
from pgorthanc_cli.dicom.model import Buffer, Instance, Level, Profile, Refused
from pgorthanc_cli.dicom.structure import Element
from pgorthanc_cli.dicom.values import LIMIT, Reader, normalized, reader_of

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
    data_set = container.read(data, tables.wanted)
    elements = data_set.elements
    reader = reader_of(data_set.data, elements, profile)
    texts = {tag: text for tag, e in elements.items() if (text := reader.text(e)) is not None}
    public_ids = _public_ids(elements, texts)
    pixels = streams.pixel_data(data)
    expected = metadata.expected_instances(texts)
    index = metadata.index_in_series(texts, has_number=tags.INSTANCE_NUMBER in elements)
    own = {2: _series(expected), 3: _instance(data, data_set, texts, index, pixels, profile)}
    patient, study, series, instance = (
        _level(public_ids[n], level, own.get(n, {}), elements, texts, reader)
        for n, level in enumerate(tables.levels)
    )
    return Instance(
        levels=(patient, study, series, instance),
        expected_instances=expected,
        index_in_series=index,
        pixel_data_offset=pixels.offset if pixels else None,
        warnings=_warnings(data_set.deepest),
    )


def _public_ids(elements: Mapping[int, Element], texts: Mapping[int, str]) -> list[str]:
    """The public ids of the four levels: SHA-1 of the identifiers down to that level.

    An absent PatientID is an empty one.
    """
    if missing := [name for tag, name in _UIDS.items() if tag not in elements]:
        raise Refused(
            f"{', '.join(missing)} missing: no image, or a DICOMDIR or a query file", missing_tag=True
        )
    for tag, name in {tags.PATIENT_ID: "PatientID", **_UIDS}.items():
        if tag in elements and tag not in texts:
            raise Refused(f"{name} has no usable text: longer than {LIMIT} bytes, binary, or a sequence")
    if empty := [name for tag, name in _UIDS.items() if not texts[tag]]:
        raise Refused(f"{', '.join(empty)} empty")
    identifiers = [texts.get(tags.PATIENT_ID, ""), *(texts[tag] for tag in _UIDS)]
    return [_public_id("|".join(identifiers[: n + 1])) for n in range(4)]


def _public_id(identifiers: str) -> str:
    digest = hashlib.sha1(identifiers.encode(), usedforsecurity=False).hexdigest()
    return "-".join(digest[n : n + 8] for n in range(0, 40, 8))


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
    data: Buffer,
    data_set: container.DataSet,
    texts: Mapping[int, str],
    index: str | None,
    pixels: streams.PixelData | None,
    profile: Profile,
) -> dict[int, str]:
    """The metadata that only the instance level has."""
    syntax = streams.named_transfer_syntax(data)
    if syntax is None and data_set.transfer_syntax in streams.KNOWN:
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
