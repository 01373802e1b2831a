"""Which tags Orthanc stores in its index, by version and options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from pgorthanc_cli.dicom.charset import ENCODINGS
from pgorthanc_cli.dicom.dictionary import tag_of, written
from pgorthanc_cli.dicom.model import LEVELS, Profile
from pgorthanc_cli.dicom.structure import PIXEL_REPRESENTATION
from pgorthanc_cli.errors import UsageError

PATIENT_ID, STUDY_UID, SERIES_UID, SOP_INSTANCE_UID = 0x00100020, 0x0020000D, 0x0020000E, 0x00080018
SPECIFIC_CHARACTER_SET, SOP_CLASS_UID = 0x00080005, 0x00080016
BITS_ALLOCATED = 0x00280100
INSTANCE_NUMBER, IMAGE_INDEX = 0x00200013, 0x00541330
# ImagesInAcquisition x NumberOfTemporalPositions, NumberOfSlices x NumberOfTimeSlices, CardiacNumberOfImages
EXPECTED_INSTANCES = ((0x00201002, 0x00200105), (0x00540081, 0x00540101), (0x00181090,))

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

# Orthanc computes these for its answers: retrieve URL and AE title, modalities and SOP classes in study,
# availability, and the six numbers of related resources.
_COMPUTED = frozenset(
    _tags(
        "0008,0054 0008,0056 0008,0061 0008,0062 0008,1190"
        " 0020,1200 0020,1202 0020,1204 0020,1206 0020,1208 0020,1209"
    )
)

# Of the file's values, what the rows need besides the tags of the lists.
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
_OF_INSTANCES = frozenset((SOP_CLASS_UID, INSTANCE_NUMBER, IMAGE_INDEX))


@dataclass(frozen=True, slots=True)
class LevelTags:
    """What is stored of one level: tags of rows, tags of sequences, identifiers, and metadata 15 (None before it)."""

    main: tuple[int, ...]
    sequences: tuple[int, ...]
    identifiers: tuple[int, ...]
    signature: str | None


@dataclass(frozen=True, slots=True)
class Tables:
    """What is stored of a file, by profile.

    Attributes:
        levels: of the four levels, patient first.
        wanted: all tags whose values are needed for it.
        ancestors: those that decide the rows of the patient, study and series, and how texts are read.
    """

    levels: tuple[LevelTags, LevelTags, LevelTags, LevelTags]
    wanted: frozenset[int]
    ancestors: frozenset[int]


@lru_cache(maxsize=16)
def tables(profile: Profile) -> Tables:
    """The tags that Orthanc stores under a profile.

    Raises:
        UsageError: as `check_profile`.
    """
    main, _ = _main_dicom_tags(profile)
    patient, study, series, instance = (_level(profile, name, main) for name in LEVELS)
    wanted = _ALWAYS.union(*main.values())
    ancestors = (_ALWAYS - _OF_INSTANCES).union(*(main[level] for level in LEVELS[:3]))
    return Tables((patient, study, series, instance), wanted, ancestors)


def _level(profile: Profile, name: str, main: dict[str, tuple[int, ...]]) -> LevelTags:
    rows = main["patient"] + main["study"] if name == "study" else main[name]
    sequences = main[name] if profile.orthanc_version >= _SEQUENCES_SINCE else ()
    signature = (
        ";".join(sorted(map(written, main[name]))) if profile.orthanc_version >= _SIGNATURES_SINCE else None
    )
    return LevelTags(rows, sequences, _IDENTIFIERS[name], signature)


def check_profile(profile: Profile) -> list[str]:
    """Warnings for entries of ExtraMainDicomTags that Orthanc ignores.

    Raises:
        UsageError: unknown tag name, level, encoding, or an Orthanc version whose rows are not known.
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
    """The list of each level, extra tags included, and warnings for those left out."""
    longer = _MAIN_SINCE_1_12_5 if profile.orthanc_version >= _LONGER_LISTS_SINCE else {}
    main = {level: tags + longer.get(level, ()) for level, tags in _MAIN.items()}
    extra = _extra_tags(profile)
    if profile.orthanc_version < _SIGNATURES_SINCE:
        return main, ["ExtraMainDicomTags is ignored: Orthanc has it since 1.11.0"] if extra else []
    warnings = []
    for level in LEVELS:
        for tag in extra.get(level, ()):
            why = _ignored(tag, level, main)
            if why:
                warnings.append(f"ExtraMainDicomTags: {written(tag)} of the {level} level is ignored: {why}")
            else:
                main[level] += (tag,)
    return main, warnings


def _ignored(tag: int, level: str, main: dict[str, tuple[int, ...]]) -> str:
    """Why Orthanc leaves an extra tag out, empty if it does not."""
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
        extra[level.lower()] = [_extra_tag(name) for name in names]
    return extra


def _extra_tag(name: str) -> int:
    number = re.fullmatch(r"([0-9A-Fa-f]{4})[,-]?([0-9A-Fa-f]{4})", name)
    tag = int(number[1] + number[2], 16) if number else tag_of(name)
    if tag is None:
        raise UsageError(
            f"Unknown DICOM tag {name!r} in ExtraMainDicomTags",
            "write a keyword of the DICOM dictionary, or a number such as 0010,2160 for retired and private tags",
        )
    return tag
