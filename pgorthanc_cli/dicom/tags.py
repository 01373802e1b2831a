"""Tags: the DICOM data dictionary, and the tags that Orthanc stores in its index.

The dictionary is the one of pydicom (PS3.6); `name_of` and `vr_of` give what DCMTK makes
of it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from pgorthanc_cli.constants import ENCODINGS, LEVELS
from pgorthanc_cli.dicom.model import Profile
from pgorthanc_cli.errors import UsageError

PATIENT_ID, STUDY_UID, SERIES_UID, SOP_INSTANCE_UID = 0x00100020, 0x0020000D, 0x0020000E, 0x00080018
SPECIFIC_CHARACTER_SET, SOP_CLASS_UID = 0x00080005, 0x00080016
BITS_ALLOCATED, PIXEL_REPRESENTATION = 0x00280100, 0x00280103
INSTANCE_NUMBER, IMAGE_INDEX = 0x00200013, 0x00541330
# ImagesInAcquisition x NumberOfTemporalPositions, NumberOfSlices x NumberOfTimeSlices,
# CardiacNumberOfImages
EXPECTED_INSTANCES = ((0x00201002, 0x00200105), (0x00540081, 0x00540101), (0x00181090,))


# --- the data dictionary ----------------------------------------------------------------

# What DCMTK takes in implicit files where the standard leaves a choice. XS waits for
# PixelRepresentation.
XS = "xs"
_CHOICES = {"US or SS": XS, "OB or OW": "OW", "US or OW": "OW", "US or SS or OW": "OW"}
# Tags of "US or SS" that DCMTK decides by PixelRepresentation; it leaves the others
# undecided.
_BY_SIGN = frozenset(
    (
        *(0x00189810, 0x00280106, 0x00280107, 0x00280108, 0x00280109, 0x00280120, 0x00280121, 0x00283002),
        *(0x00409211, 0x00409216, 0x00603004, 0x00603006),
    )
)
_NO_ENTRY = ("UN", "", "", "", "")


def _entry(tag: int) -> tuple[str, str, str, str, str]:
    """Return VR, multiplicity, name, "Retired" or nothing, keyword."""
    # Imported here because it takes 60 ms, and most files are explicit and need no
    # dictionary.
    from pydicom.datadict import get_entry

    try:
        return get_entry(tag)
    except KeyError:
        return _NO_ENTRY


@lru_cache(maxsize=1 << 14)
def vr_of(tag: int) -> str:
    """Return the VR of a tag: `UN` if it is unknown, `XS` for "US or SS"."""
    entry = _entry(tag)
    if entry is not _NO_ENTRY:
        return _CHOICES.get(entry[0], entry[0])
    if tag & 0xFFFF == 0:
        return "UL"
    return "LO" if is_private_creator(tag) else "UN"


def is_known(tag: int) -> bool:
    """Return whether the dictionary has the tag, or it is a standard group length."""
    return _entry(tag) is not _NO_ENTRY or (tag & 0xFFFF == 0 and not is_private(tag))


def is_private_creator(tag: int) -> bool:
    """Return whether the element reserves a block of private ones (PS3.5, 7.8.1)."""
    return is_private(tag) and 0x10 <= tag & 0xFFFF <= 0xFF


def is_private(tag: int) -> bool:
    """Return whether the group is odd (PS3.5, 7.8)."""
    return bool(tag >> 16 & 1)


def name_of(tag: int) -> str:
    """Return the name in DCMTK's dictionary: the keyword, marked when retired."""
    _, _, _, retired, keyword = _entry(tag)
    if keyword:
        # DCMTK does not mark this one, although PS3.6 has retired it, too.
        return f"RETIRED_{keyword}" if retired and keyword != "OtherPatientIDs" else keyword
    if tag & 0xFFFF == 0:
        return "GenericGroupLength"
    return "PrivateCreator" if is_private_creator(tag) else "Unknown Tag & Data"


def is_us_or_ss(tag: int) -> bool:
    """Return whether PixelRepresentation decides if the tag is US or SS."""
    return tag in _BY_SIGN


def tag_of(keyword: str) -> int | None:
    """Return the tag of a keyword, None for unknown and retired ones."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    return None if tag is None or name_of(tag) != keyword else tag


def format_tag(tag: int) -> str:
    """Return the tag as Orthanc writes it: `0010,0020`, in lower case."""
    return f"{tag >> 16:04x},{tag & 0xFFFF:04x}"


# --- tags in the index ------------------------------------------------------------------

_OLDEST, _NEWEST = (1, 10, 1), (1, 13, 0)
_SIGNATURES_SINCE = (1, 11, 0)  # and the option ExtraMainDicomTags
_SEQUENCES_SINCE = (1, 11, 1)
_LONGER_LISTS_SINCE = (1, 12, 5)


def _tags(text: str) -> tuple[int, ...]:
    return tuple(int(tag.replace(",", ""), 16) for tag in text.split())


_MAIN = {
    "patient": _tags("0010,0010 0010,0020 0010,0030 0010,0040 0010,1000"),
    "study": _tags(
        "0008,0020 0008,0030 0008,0050 0008,0080 0008,0090 0008,1030 0020,000d 0020,0010 0032,1032 0032,1060"
    ),
    "series": _tags(
        "0008,0021 0008,0031 0008,0060 0008,0070 0008,1010 0008,103e 0008,1070 0018,0010 0018,0015 0018,0024"
        " 0018,1030 0018,1090 0018,1400 0020,000e 0020,0011 0020,0037 0020,0105 0020,1002 0040,0254 0054,0081"
        " 0054,0101 0054,1000"
    ),
    "instance": _tags(
        "0008,0012 0008,0013 0008,0018 0020,0012 0020,0013 0020,0032 0020,0037 0020,0100 0020,4000 0028,0008"
        " 0054,1330"
    ),
}
_MAIN_SINCE_1_12_5 = {"study": _tags("0008,0201"), "series": _tags("0008,0201 0040,0244 0040,0245 0040,0275")}

_PATIENT_IDENTIFIERS = _tags("0010,0010 0010,0020 0010,0030")
_IDENTIFIERS = {
    "patient": _PATIENT_IDENTIFIERS,
    "study": _PATIENT_IDENTIFIERS + _tags("0008,0020 0008,0050 0008,1030 0020,000d"),
    "series": (SERIES_UID,),
    "instance": (SOP_INSTANCE_UID,),
}

# Orthanc computes these for its answers: retrieve URL and AE title, modalities and SOP
# classes in study, availability, and the six numbers of related resources.
_COMPUTED = frozenset(
    _tags(
        "0008,0054 0008,0056 0008,0061 0008,0062 0008,1190"
        " 0020,1200 0020,1202 0020,1204 0020,1206 0020,1208 0020,1209"
    )
)

# Needed for metadata and for reading texts, whatever the lists say.
_ALWAYS = frozenset(
    (
        SPECIFIC_CHARACTER_SET,
        PIXEL_REPRESENTATION,
        BITS_ALLOCATED,
        SOP_CLASS_UID,
        INSTANCE_NUMBER,
        IMAGE_INDEX,
    )
).union(*EXPECTED_INSTANCES)
_ONLY_OF_INSTANCES = frozenset((SOP_CLASS_UID, INSTANCE_NUMBER, IMAGE_INDEX))


class LevelTags(NamedTuple):
    """What Orthanc stores of one level.

    Attributes:
        main: tags with a row in MainDicomTags.
        sequences: tags that go into metadata 16 if they are sequences.
        identifiers: tags with a row in DicomIdentifiers.
        signature: metadata 15, None for an Orthanc without it.
    """

    main: tuple[int, ...]
    sequences: tuple[int, ...]
    identifiers: tuple[int, ...]
    signature: str | None


class IndexedTags(NamedTuple):
    """What Orthanc stores of a file.

    Attributes:
        levels: patient, study, series, instance.
        needed: all tags whose values are needed.
        of_ancestors: those that decide the rows of the patient, study and series, and how
            texts are read.
    """

    levels: tuple[LevelTags, LevelTags, LevelTags, LevelTags]
    needed: frozenset[int]
    of_ancestors: frozenset[int]


@lru_cache(maxsize=16)
def indexed_tags(profile: Profile) -> IndexedTags:
    """Return the tags that Orthanc stores under a profile.

    Raises:
        UsageError: as `check_profile`.
    """
    main, _ = _main_dicom_tags(profile)
    patient, study, series, instance = (_level_tags(profile, level, main) for level in LEVELS)
    needed = _ALWAYS.union(*main.values())
    of_ancestors = (_ALWAYS - _ONLY_OF_INSTANCES).union(*(main[level] for level in LEVELS[:3]))
    return IndexedTags((patient, study, series, instance), needed, of_ancestors)


def _level_tags(profile: Profile, level: str, main: dict[str, tuple[int, ...]]) -> LevelTags:
    version = profile.orthanc_version
    # The study's rows repeat the tags of its patient; sequences and signature do not.
    rows = main["patient"] + main["study"] if level == "study" else main[level]
    sequences = main[level] if version >= _SEQUENCES_SINCE else ()
    signature = ";".join(sorted(map(format_tag, main[level]))) if version >= _SIGNATURES_SINCE else None
    return LevelTags(rows, sequences, _IDENTIFIERS[level], signature)


def check_profile(profile: Profile) -> list[str]:
    """Return warnings for entries of ExtraMainDicomTags that Orthanc ignores.

    Raises:
        UsageError: unknown tag name, level or encoding, or an unsupported version of
            Orthanc.
    """
    if not _OLDEST <= profile.orthanc_version <= _NEWEST:
        raise UsageError(
            f"Orthanc {_dotted(profile.orthanc_version)} is not supported, only "
            f"{_dotted(_OLDEST)} to {_dotted(_NEWEST)}",
            "give the nearest supported version with --orthanc-version",
        )
    if profile.default_encoding not in ENCODINGS:
        raise UsageError(
            f"unknown DefaultEncoding {profile.default_encoding!r}", "Orthanc knows: " + ", ".join(ENCODINGS)
        )
    return _main_dicom_tags(profile)[1]


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _main_dicom_tags(profile: Profile) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return the tags of each level with extra ones, and warnings for ignored ones."""
    longer = _MAIN_SINCE_1_12_5 if profile.orthanc_version >= _LONGER_LISTS_SINCE else {}
    main = {level: tags + longer.get(level, ()) for level, tags in _MAIN.items()}
    extra = _extra_tags(profile)
    if profile.orthanc_version < _SIGNATURES_SINCE:
        return main, ["ExtraMainDicomTags is ignored: Orthanc has it since 1.11.0"] if extra else []
    warnings = []
    for level in LEVELS:
        for tag in extra.get(level, ()):
            reason = _reason_to_ignore(tag, level, main)
            if reason:
                warnings.append(
                    f"ExtraMainDicomTags: {format_tag(tag)} of the {level} level is ignored: {reason}"
                )
            else:
                main[level] += (tag,)
    return main, warnings


def _reason_to_ignore(tag: int, level: str, main: dict[str, tuple[int, ...]]) -> str:
    """Return why Orthanc ignores an extra tag, empty if it does not."""
    if tag in main[level]:
        return "it is a main DICOM tag of that level already"
    if level == "study" and tag in main["patient"]:
        return "studies have it from their patient"
    return "Orthanc computes it" if tag in _COMPUTED else ""


def _extra_tags(profile: Profile) -> dict[str, list[int]]:
    extra = {}
    for level, names in profile.extra_tags:
        if level.lower() not in LEVELS:
            raise UsageError(
                f"unknown level {level!r} in ExtraMainDicomTags",
                "the levels are Patient, Study, Series and Instance",
            )
        extra[level.lower()] = [parse_tag(name) for name in names]
    return extra


def parse_tag(name: str, where: str = "ExtraMainDicomTags") -> int:
    """Return the tag of a keyword, or of a number such as 0010,2160.

    Args:
        name: The keyword, or the number.
        where: What names it, for the message.

    Raises:
        UsageError: There is no such tag.
    """
    number = re.fullmatch(r"([0-9A-Fa-f]{4})[,-]?([0-9A-Fa-f]{4})", name)
    tag = int(number[1] + number[2], 16) if number else tag_of(name)
    if tag is None:
        raise UsageError(
            f"Unknown DICOM tag {name!r} in {where}",
            "write a keyword of the DICOM dictionary, or a number such as 0010,2160 for retired and private tags",
        )
    return tag
