"""Files that are to be damaged, and some that do harm."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib

from tests.support.dicomfile import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    PIXELS,
    UNDEFINED,
    El,
    dicom_file,
    meta,
)

ITEM = [El(0x00080100, "SH", "C"), El(0x00080104, "LO", "Meaning")]


def sound_file(number: int) -> bytes:
    """A file of its own series: all have rows, and no row of one hides that of another."""
    uid = f"1.2.3.{number}"
    elements = [
        El(0x00080018, "UI", f"{uid}.1.1"), El(0x0020000D, "UI", uid), El(0x0020000E, "UI", f"{uid}.1"),
        El(0x00080020, "DA", "20240501"), El(0x00080060, "CS", "CT"), El(0x0008103E, "LO", "series"),
        El(0x00100010, "PN", "Some^Name"), El(0x00100020, "LO", f"P{number}"), El(0x00200013, "IS", "7"),
        El(0x00280008, "IS", "1"), El(0x00280010, "US", b"\2\0"), El(0x00400275, "SQ", [ITEM]),
    ]  # fmt: skip
    kind = number % 6
    if kind == 0:
        return dicom_file(*elements, El(PIXELS, "OB", (b"", b"1234")), syntax=JPEG)
    if kind == 1:
        elements[-1] = El(0x00400275, "SQ", [ITEM, ITEM], length=UNDEFINED, item_length=UNDEFINED)
    syntax = {2: IMPLICIT, 3: BIG_ENDIAN}.get(kind, EXPLICIT)
    return dicom_file(*elements, syntax=syntax)


def harmful() -> dict[str, bytes]:
    """Name and content of files that ask for a lot of memory, time or depth; none of them is an image."""
    opened = b"\x40\0\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 1000
    harmful_files = {"deep": dicom_file(tail=opened)}
    for vr in ("OB", "UN", "SQ", "UT"):
        harmful_files[f"4 GB of {vr}"] = dicom_file(El(0x00204000, vr, b"x", length=0xFFFFFFF0))
    harmful_files["deflated"] = bytes(128) + b"DICM" + meta(DEFLATED) + _zeros(600, -15)
    harmful_files["gzip"] = gzip.compress(b"") + _zeros(200, 31)
    harmful_files["zip"] = _zip({"zeros": bytes(128 << 20)})
    harmful_files["zip in zip"] = _zip({"inner.zip": harmful_files["zip"], "inner.gz": harmful_files["gzip"]})
    short = bytearray(_zip({"a": bytes(1000)}))
    at = short.rindex(b"PK\1\2") + 20
    struct.pack_into("<II", short, at, 0xFFFFFFF0, 0xFFFFFFF0)
    harmful_files["zip that lies"] = bytes(short)
    harmful_files["zip that ends early"] = harmful_files["zip"][: len(harmful_files["zip"]) // 2]
    return harmful_files


def _zeros(megabytes: int, window: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, window)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()
