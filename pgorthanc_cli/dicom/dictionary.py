"""The DICOM data dictionary (PS3.6, as pydicom carries it): value representations and names of tags.

Most files say what they have without it, so pydicom, which takes its time, is imported when it is asked.
"""

from __future__ import annotations

from functools import lru_cache

# Where the standard leaves a choice, what DCMTK takes for implicit files; XS waits for PixelRepresentation.
XS = "xs"
_CHOICES = {"US or SS": XS, "OB or OW": "OW", "US or OW": "OW", "US or SS or OW": "OW"}
# Of "US or SS", those that DCMTK decides by PixelRepresentation; it leaves the others undecided.
_BY_SIGN = frozenset(
    (
        *(0x00189810, 0x00280106, 0x00280107, 0x00280108, 0x00280109, 0x00280120, 0x00280121, 0x00283002),
        *(0x00409211, 0x00409216, 0x00603004, 0x00603006),
    )
)
_NOTHING = ("UN", "", "", "", "")


def _entry(tag: int) -> tuple[str, str, str, str, str]:
    """VR, multiplicity, name, "Retired" or nothing, and keyword; repeating groups (50xx, 60xx) included."""
    from pydicom.datadict import get_entry

    try:
        return get_entry(tag)
    except KeyError:
        return _NOTHING


@lru_cache(maxsize=1 << 14)
def vr_of(tag: int) -> str:
    """The value representation of a tag: `UN` if the dictionary does not know it, `XS` for "US or SS"."""
    entry = _entry(tag)
    if entry is not _NOTHING:
        return _CHOICES.get(entry[0], entry[0])
    if tag & 0xFFFF == 0:
        return "UL"
    return "LO" if is_private_creator(tag) else "UN"


def is_known(tag: int) -> bool:
    """True if the dictionary has the tag; it has the group lengths of all groups of the standard."""
    return _entry(tag) is not _NOTHING or (tag & 0xFFFF == 0 and not is_private(tag))


def is_private_creator(tag: int) -> bool:
    """True for the elements that reserve a block of private ones (PS3.5, 7.8.1)."""
    return is_private(tag) and 0x10 <= tag & 0xFFFF <= 0xFF


def is_private(tag: int) -> bool:
    """True for an odd group (PS3.5, 7.8)."""
    return bool(tag >> 16 & 1)


def name_of(tag: int) -> str:
    """The name as DCMTK's dictionary has it: the keyword, marked when retired."""
    _, _, _, retired, keyword = _entry(tag)
    if keyword:
        return f"RETIRED_{keyword}" if retired and keyword != "OtherPatientIDs" else keyword
    if tag & 0xFFFF == 0:
        return "GenericGroupLength"
    return "PrivateCreator" if is_private_creator(tag) else "Unknown Tag & Data"


def follows_sign(tag: int) -> bool:
    """True for a tag of VR `XS` which is US or SS as PixelRepresentation says."""
    return tag in _BY_SIGN


def tag_of(keyword: str) -> int | None:
    """The tag of a keyword, None for an unknown or a retired one (DCMTK renames those)."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    return None if tag is None or name_of(tag) != keyword else tag


def written(tag: int) -> str:
    """The tag as Orthanc writes it: `0010,0020`, hexadecimal digits in lower case."""
    return f"{tag >> 16:04x},{tag & 0xFFFF:04x}"
