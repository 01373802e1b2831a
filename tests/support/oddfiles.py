"""DICOM files that are odd in ways that DCMTK, and so Orthanc, takes or refuses for reasons of its own.

Each has a patient of its own, so that all of them fit into one index.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from tests.support.dicomfile import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    PIXELS,
    UNDEFINED,
    El,
    encode,
    header,
    meta,
)

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
SEQUENCE, REQUEST, SLICES, SIGN = 0x00081140, 0x00400275, 0x00540081, 0x00280103
MAGIC = bytes(128) + b"DICM"
SYNTAXES = {"explicit": EXPLICIT, "implicit": IMPLICIT, "big endian": BIG_ENDIAN}


@dataclass(frozen=True)
class Odd:
    """A file, and whether Orthanc takes it: 1.13.0 (`taken`) and 1.10.1 (`by_old`).

    `rows` are texts and metadata that 1.13.0 writes: tag or type of metadata to value, None for no row. An Orthanc that
    reads the file may want 4 GB of memory if it is `hungry`.
    """

    name: str
    content: bytes = field(repr=False)
    taken: bool = True
    by_old: bool = True
    rows: dict[int, str | None] = field(default_factory=dict)
    hungry: bool = False


class Maker:
    """Numbers the patients."""

    def __init__(self) -> None:
        self.numbers = count(1)

    def file(
        self,
        middle: bytes = b"",
        end: bytes = b"",
        syntax: str = EXPLICIT,
        head: bytes | None = None,
        start: bytes = MAGIC,
    ) -> bytes:
        """A file with odd bytes before the patient (`middle`), or behind everything (`end`)."""
        uid = f"1.2.3.77.{next(self.numbers)}"
        before = [El(0x00080016, "UI", "1.2.840.10008.5.1.4.1.1.7"), El(0x00080018, "UI", uid + ".3")]
        after = [
            El(0x00100010, "PN", "Odd^File"),
            El(0x00100020, "LO", "P" + uid),
            El(0x0020000D, "UI", uid + ".1"),
            El(0x0020000E, "UI", uid + ".2"),
            El(0x00200013, "IS", "3"),
        ]
        head = meta(syntax) if head is None else head
        return start + head + encode(before, syntax) + middle + encode(after, syntax) + end


def mark(tag: int, length: int, syntax: str = EXPLICIT) -> bytes:
    """An item or a delimiter."""
    return struct.pack((">" if syntax == BIG_ENDIAN else "<") + "HHI", tag >> 16, tag & 0xFFFF, length)


def all_of_them() -> list[Odd]:
    """All kinds."""
    maker = Maker()
    kinds = (
        _delimiters,
        _item_lengths,
        _ends,
        _metas,
        _preambles,
        _numbers,
        _pixels,
        _vrs,
        _syntaxes,
        _japanese,
        _signs,
    )
    return [odd for kind in kinds for odd in kind(maker)]


def _delimiters(maker: Maker) -> Iterator[Odd]:
    for name, syntax in SYNTAXES.items():
        inside = encode([El(0x00081150, "UI", "1.2")], syntax)
        opened = header(SEQUENCE, "SQ", UNDEFINED, syntax)
        defined = opened + mark(ITEM, len(inside), syntax) + inside
        undefined = opened + mark(ITEM, UNDEFINED, syntax) + inside
        for length in (0, 1, 4, 0x10000, UNDEFINED):
            item_end, sequence_end = mark(ITEM_END, length, syntax), mark(SEQUENCE_END, length, syntax)
            case = f"{name}: delimiter of length {length:x}"
            yield Odd(f"{case} of a sequence", maker.file(defined + sequence_end, syntax=syntax))
            yield Odd(
                f"{case} of an item",
                maker.file(undefined + item_end + mark(SEQUENCE_END, 0, syntax), syntax=syntax),
            )
            yield Odd(
                f"{case} of an item at the top, anything behind it",
                maker.file(end=item_end + b"any", syntax=syntax),
            )
            yield Odd(
                f"{case} of a sequence at the top", maker.file(end=sequence_end, syntax=syntax), False, False
            )
            room = (
                header(SEQUENCE, "SQ", 16 + len(inside), syntax)
                + mark(ITEM, 8 + len(inside), syntax)
                + inside
            )
            fits = length in (0, UNDEFINED)
            yield Odd(
                f"{case} in an item with a length", maker.file(room + item_end, syntax=syntax), fits, fits
            )
            within = header(SEQUENCE, "SQ", 16 + len(inside), syntax) + defined[len(opened) :] + sequence_end
            yield Odd(f"{case} in a sequence with a length", maker.file(within, syntax=syntax))
            fragments = header(PIXELS, "OB", UNDEFINED, syntax) + mark(ITEM, 0, syntax)
            yield Odd(f"{case} of fragments", maker.file(end=fragments + sequence_end, syntax=syntax))
        unknown = struct.pack("<HHI", 0xFFFE, 0xFFFE, 2) + b"ab"
        yield Odd(f"{name}: (fffe,fffe)", maker.file(end=unknown, syntax=IMPLICIT))


def _item_lengths(maker: Maker) -> Iterator[Odd]:
    for name, syntax in SYNTAXES.items():
        one = encode([El(0x00081150, "UI", b"1.2\0")], syntax)
        for length in range(len(one) + 1):
            body = header(SEQUENCE, "SQ", 8 + len(one), syntax) + mark(ITEM, length, syntax) + one
            taken = length not in (0, *range(8, len(one)))  # the header fits, its value does not
            yield Odd(
                f"{name}: item of {length} bytes, its element has {len(one)}",
                maker.file(body, syntax=syntax),
                taken,
                taken,
            )
        longer = header(SEQUENCE, "SQ", 8 + len(one), syntax) + mark(ITEM, 1000, syntax) + one
        yield Odd(f"{name}: item up to the end of the file", maker.file(end=longer, syntax=syntax))


def _ends(maker: Maker) -> Iterator[Odd]:
    for name, syntax in SYNTAXES.items():
        start = header(SEQUENCE, "SQ", UNDEFINED, syntax)
        fragments = header(PIXELS, "OB", UNDEFINED, syntax)
        item = mark(ITEM, UNDEFINED, syntax)
        yield Odd(f"{name}: ends where a sequence starts", maker.file(end=start, syntax=syntax))
        request = header(REQUEST, "SQ", UNDEFINED, syntax)
        yield Odd(f"{name}: ends where a stored sequence starts", maker.file(end=request, syntax=syntax))
        yield Odd(
            f"{name}: ends where a sequence with a length starts",
            maker.file(end=header(SEQUENCE, "SQ", 60, syntax), syntax=syntax),
        )
        yield Odd(
            f"{name}: ends where a UN sequence starts",
            maker.file(end=header(0x00091001, "UN", UNDEFINED, syntax), syntax=syntax),
        )
        yield Odd(
            f"{name}: ends where an item starts", maker.file(end=start + item, syntax=syntax), False, False
        )
        outer = header(SEQUENCE, "SQ", 8, syntax) + item
        yield Odd(
            f"{name}: ends in the last item of a sequence with a length",
            maker.file(end=outer + start, syntax=syntax),
        )
        yield Odd(
            f"{name}: ends where an inner sequence starts",
            maker.file(end=start + item + start, syntax=syntax),
            False,
            False,
        )
        yield Odd(f"{name}: ends where fragments start", maker.file(end=fragments, syntax=syntax))
        yield Odd(
            f"{name}: ends with an empty fragment",
            maker.file(end=fragments + mark(ITEM, 0, syntax), syntax=syntax),
        )
        yield Odd(
            f"{name}: ends before a fragment",
            maker.file(end=fragments + mark(ITEM, 4, syntax), syntax=syntax),
            False,
            False,
        )
    for tag in (0xFFFFFFFF, 0xFFFEFFFE, 0x1001FF4F, 0x00420017):
        yield Odd(
            f"({tag:08x}) of undefined length at the end",
            maker.file(end=header(tag, "", UNDEFINED, IMPLICIT), syntax=IMPLICIT),
        )


def _metas(maker: Maker) -> Iterator[Odd]:
    for name, syntax in SYNTAXES.items():
        explicit = syntax == EXPLICIT
        yield Odd(
            f"{name}: huge meta length",
            maker.file(syntax=syntax, head=meta(syntax, group_length=UNDEFINED)),
            explicit,
            explicit,
            hungry=True,
        )
        for length in (0, 30, 60):  # the rest of the group is the start of the data set then
            yield Odd(
                f"{name}: meta length {length}",
                maker.file(syntax=syntax, head=meta(syntax, group_length=length)),
                explicit,
                explicit,
            )
        yield Odd(f"{name}: no meta length", maker.file(syntax=syntax, head=meta(syntax, group_length=-1)))
        taken = syntax != IMPLICIT  # Orthanc takes the length for a VR that it does not know
        yield Odd(f"{name}: magic, no meta", maker.file(syntax=syntax, head=b""), taken, taken)
        yield Odd(f"{name}: no magic, no meta", maker.file(syntax=syntax, head=b"", start=b""))
        for last in (JPEG, "1.2.840.10008.1.2.4.70", "1.2.3"):
            elements = encode([El(0x00020010, "UI", syntax), El(0x00020010, "UI", last)])
            head = encode([El(0x00020000, "UL", struct.pack("<I", len(elements)))]) + elements
            yield Odd(
                f"{name}: two transfer syntaxes, the last one {last}",
                maker.file(syntax=syntax, head=head),
                rows={9: None if last == "1.2.3" else last},
                hungry=syntax != EXPLICIT,
            )


def _preambles(maker: Maker) -> Iterator[Odd]:
    for start in (b"\x1f\x8b", b"\x1f\x8b\x08\0"):
        yield Odd(f"preamble {start.hex()}", maker.file(start=start + bytes(128 - len(start)) + b"DICM"))


def _numbers(maker: Maker) -> Iterator[Odd]:
    value = struct.pack("<9H", 5, 1, 2, 3, 4, 6, 7, 8, 9)
    wanted = {
        "US": {1: "5", 3: r"5\1", 5: r"5\1\2"},
        "SS": {3: r"5\1"},
        "UL": {3: "65541", 5: "65541", 7: r"65541\196610"},
    }
    for vr, texts in wanted.items():
        for length, text in texts.items():
            content = maker.file(end=header(SLICES, vr, length) + value[:length])
            yield Odd(f"{vr} of {length} bytes", content, rows={SLICES: text})
    for vr, unit in (("AT", 4), ("OF", 4), ("OL", 4), ("OD", 8), ("OV", 8)):
        for length in range(1, 18):
            taken = (length + length % 2) % unit == 0
            yield Odd(
                f"{vr} of {length} bytes", maker.file(end=header(SLICES, vr, length) + value[:length]), taken
            )
            element = header(0x00280009, vr, length) + value[:length]
            sequence = header(SEQUENCE, "SQ", 8 + len(element)) + mark(ITEM, len(element)) + element
            yield Odd(f"{vr} of {length} bytes in a sequence", maker.file(sequence), taken)
    yield Odd(
        "AT of 3 bytes, text", maker.file(end=header(SLICES, "AT", 3) + value[:3]), rows={SLICES: "0005,0001"}
    )


def _pixels(maker: Maker) -> Iterator[Odd]:
    fragments = mark(ITEM, 0) + mark(ITEM, 2) + b"\xff\xd8" + mark(SEQUENCE_END, 0)
    plain = header(PIXELS, "OB", 4) + b"abcd"
    offset = str(len(maker.file()))  # numbers of one digit
    yield Odd("pixel data", maker.file(end=plain), rows={14: offset, 17: None})
    for name, end in {
        "an empty sequence": header(PIXELS, "SQ", 0),
        "a sequence": header(PIXELS, "SQ", UNDEFINED) + mark(ITEM, 0) + mark(SEQUENCE_END, 0),
    }.items():
        yield Odd(f"pixel data that is {name}", maker.file(end=end), rows={14: None, 17: None})
    implicit = header(PIXELS, "OB", UNDEFINED, IMPLICIT) + fragments
    yield Odd("fragments in implicit", maker.file(end=implicit, syntax=IMPLICIT), rows={14: None, 17: None})
    for vr in ("ZB", "OJ"):
        element = struct.pack("<HH2sHI", PIXELS >> 16, PIXELS & 0xFFFF, vr.encode(), 0, 4) + b"abcd"
        yield Odd(f"pixel data of VR {vr}", maker.file(end=element), rows={17: "Not supported"})


def _vrs(maker: Maker) -> Iterator[Odd]:
    for letters in (b"\0\0", b"\xffN", b"A\0", b"\x1fA", b"\x80\x80", b"A\x7f"):
        element = struct.pack("<HH2sH", 0x0041, 1, letters, 2) + b"ab"
        yield Odd(f"VR {letters!r}", maker.file(end=element), letters == b"A\x7f")
    for size in (8, 16, 800):
        yield Odd(f"{size} zeros at the end", maker.file(end=bytes(size)), False)
    yield Odd("5 zeros at the end", maker.file(end=bytes(5)), False, False)


def _syntaxes(maker: Maker) -> Iterator[Odd]:
    fragments = header(PIXELS, "OB", UNDEFINED) + mark(ITEM, 0) + mark(SEQUENCE_END, 0)
    native = header(PIXELS, "OB", 4) + b"abcd"
    new = (*(f"1.2.840.10008.1.2.4.{n}" for n in ("110", "201", "203", "100.1")), "1.2.840.10008.1.2.1.98")
    for uid in new:
        yield Odd(f"{uid}, fragments", maker.file(end=fragments, head=meta(uid)))
        yield Odd(f"{uid}, native", maker.file(end=native, head=meta(uid)), False)
    for uid in ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.204", "1.2.840.10008.1.2.6.1"):
        yield Odd(f"{uid}, native", maker.file(end=native, head=meta(uid)))
    yield Odd("deflated HTJ2K that is not deflated", maker.file(head=meta("1.2.840.10008.1.2.4.205")), False)


def _japanese(maker: Maker) -> Iterator[Odd]:
    for raw, text in {
        b"\x1b$(D\x22\x6f\x30\x22\x1b(B": "\u2122\u4e04",
        b"A\x1b$(D\x30\x22\x1b$B\x3b\x33\x1b(B^B": "A\u4e04\u5c71^B",
        b"\x1b$(D\x24\x22\x30\x22\x1b(B": "\u4e04",  # nothing is at 2422
        b"\x1b$B\x29\x22\x3b\x33\x1b(B": "\u5c71",
        b"\x1b$(C\x1b.Aa\x1b$(": "a",
        b"\x1b$(D\x30\x22\x1b(H\\": "\u4e04\u00a5",
    }.items():
        elements = encode([El(0x00080005, "CS", "ISO 2022 IR 87"), El(0x00081030, "LO", raw)])
        yield Odd(f"{raw!r} under ISO 2022 IR 87", maker.file(elements), rows={0x00081030: text})


def _signs(maker: Maker) -> Iterator[Odd]:
    def implicit(tag: int, value: bytes) -> bytes:
        return header(tag, "", len(value), IMPLICIT) + value

    ambiguous = implicit(0x00280106, b"\xfe\xff")
    for sign in (None, b"\0\0", b"\1\0", b"\2\0", b"", b"\1\0\0\0"):
        mine = b"" if sign is None else implicit(SIGN, sign)
        for where, item in (("before", mine + ambiguous), ("after", ambiguous + mine)):
            for outer in (b"", implicit(SIGN, b"\1\0")):
                sequence = implicit(REQUEST, mark(ITEM, len(item)) + item)
                name = f"US or SS in an item, {sign!r} {where} it, {outer.hex() or 'nothing'} outside"
                yield Odd(name, maker.file(end=outer + sequence, syntax=IMPLICIT))
    for tag in (0x00281101, 0x00283002, 0x00283006, 0x00281201, 0x00409211, 0x00280110):
        item = implicit(SIGN, b"\1\0") + implicit(tag, b"\xfe\xff\1\0")
        yield Odd(
            f"{tag:08x} in an item",
            maker.file(end=implicit(REQUEST, mark(ITEM, len(item)) + item), syntax=IMPLICIT),
        )
