"""The metadata of an instance and of its series that the file decides (types 1, 4, 9, 10, 14 and 17)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pgorthanc_cli.dicom.container import EXPLICIT_BE, EXPLICIT_LE
from pgorthanc_cli.dicom.streams import PixelData
from pgorthanc_cli.dicom.tags import BITS_ALLOCATED, EXPECTED_INSTANCES, IMAGE_INDEX, INSTANCE_NUMBER

_INTEGER = re.compile(r"[+-]?[0-9]+")
_WHITE = " \t\n\x0b\x0c\r"


def expected_instances(texts: Mapping[int, str]) -> int | None:
    """How many instances the file says that its series has (metadata 4), None if it does not say.

    The first pair of tags (or tag) that is all text decides, even if the texts are no numbers.
    """
    for tags in EXPECTED_INSTANCES:
        if all(tag in texts for tag in tags):
            return _product([texts[tag] for tag in tags])
    return None


def _product(texts: list[str]) -> int | None:
    """The positive product of signed 64-bit integers, which wraps around as in C."""
    product = 1
    for text in texts:
        if not _INTEGER.fullmatch(text) or not -(1 << 63) <= int(text) < 1 << 63:
            return None
        product *= int(text)
    wrapped = (product + (1 << 63)) % (1 << 64) - (1 << 63)
    return wrapped if wrapped > 0 else None


def index_in_series(texts: Mapping[int, str], *, has_number: bool) -> str | None:
    """Metadata 1: InstanceNumber if the file has that element at all, else ImageIndex; not always a number."""
    text = texts.get(INSTANCE_NUMBER if has_number else IMAGE_INDEX)
    return None if text is None else text.strip(_WHITE)


def pixel_data_vr(pixels: PixelData, texts: Mapping[int, str]) -> str | None:
    """Metadata 17: the VR of the pixel data if it is not the expected one (PS3.5, A.1 to A.4)."""
    if pixels.transfer_syntax not in (EXPLICIT_LE, EXPLICIT_BE):
        return None
    bits = texts.get(BITS_ALLOCATED, "").strip(_WHITE)
    expected = "OW" if _INTEGER.fullmatch(bits) and int(bits) > 8 else "OB"
    return pixels.vr if pixels.vr != expected else None
