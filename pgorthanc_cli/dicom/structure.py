"""The structure of a data set (PS3.5, 7), walked to its last byte as DCMTK does.

A walk reads every header, jumps over every value, and remembers only the elements asked
for: pixel data is never copied, and memory does not grow with the file. Whatever cannot
be followed is `Refused`.

One class of over 300 lines, because every step of it is on the hottest path of import and
shares the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from struct import Struct
from typing import NamedTuple

from pgorthanc_cli.dicom.model import Buffer, Refused
from pgorthanc_cli.dicom.tags import PIXEL_REPRESENTATION, XS, format_tag, is_us_or_ss, vr_of

PIXEL_DATA = 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MISPLACED = frozenset((ITEM, SEQUENCE_END))  # where an element is expected
_FRAGMENT_VRS = frozenset(("OB", "OW"))
UNDEFINED = 0xFFFFFFFF
# A range answers `in` without storing its members.
NOTHING: Container[int] = range(0)
EVERYTHING: Container[int] = range(1 << 32)

MAX_DEPTH = 64  # Orthanc 1.13.0 refuses that many nested sequences
# Elements remembered inside sequences: metadata 16 holds them all, and PostgreSQL limits
# a value to 1 GB.
MAX_REMEMBERED = 1_000_000


def vrs(names: str) -> frozenset[str]:
    """Return a set of value representations from their names, separated by spaces."""
    return frozenset(names.split())


SHORT_VRS = vrs("AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US")
LONG_VRS = vrs("OB OD OF OL OV OW SQ SV UC UN UR UT UV")
UNITS = {"AT": 4, "OF": 4, "OD": 8, "OL": 4, "OV": 8}  # bytes of one value
_NOT_SKIPPED = frozenset((*UNITS, "SQ", XS))  # more to do than to jump over the value
_PIXEL_GROUP = PIXEL_DATA >> 16
_SKIMMED = {vr.encode(): vr for vr in SHORT_VRS if vr not in UNITS}
SHORT_VR_CODES = frozenset(vr.encode() for vr in SHORT_VRS)  # as written in a file
LONG_VR_CODES = frozenset(vr.encode() for vr in LONG_VRS)
_VRS = {vr.encode(): (vr, False) for vr in SHORT_VRS} | {vr.encode(): (vr, True) for vr in LONG_VRS}


class Encoding(NamedTuple):
    """How elements are written: with or without a VR, and byte order (`struct`)."""

    explicit: bool
    order: str


class Dialect(NamedTuple):
    """What depends on the version of the reader.

    Attributes:
        old: as DCMTK 3.6.7, which knows fewer transfer syntaxes and takes any two bytes
            for a VR.
        whole_arrays: a value of AT, OF, OD, OL or OV that is no whole number of its units
            is refused.
    """

    old: bool = False
    whole_arrays: bool = True


NEWEST = Dialect()
IMPLICIT = Encoding(False, "<")
EXPLICIT = Encoding(True, "<")
BIG_ENDIAN = Encoding(True, ">")


class Element(NamedTuple):
    """One element: where its value is, or the items that it has.

    Attributes:
        tag: group and element, as one number.
        vr: two letters; empty for letters that are no VR of DICOM.
        start: position of the value, in bytes.
        length: of the value, in bytes; `UNDEFINED` for fragments and sequences of
            undefined length.
        order: byte order of the value.
        items: of a sequence, each the first element of every tag in it; None for all
            other elements.
        end: position after the whole element.
    """

    tag: int
    vr: str
    start: int
    length: int
    order: str
    items: list[dict[int, Element]] | None
    end: int


# Half the time of Element(...), and it runs once for each element remembered.
_new = tuple.__new__
# By byte order. Compiled once: unpacking headers is most of a walk.
TAG_VR_LENGTH = {order: Struct(f"{order}HH2sH").unpack_from for order in "<>"}
TAG_LENGTH = {order: Struct(f"{order}HHI").unpack_from for order in "<>"}
LENGTH = {order: Struct(f"{order}I").unpack_from for order in "<>"}

Header = tuple[int, str, int, int]  # tag, VR, position of the value, length


class _EndOfFile(Exception):
    """A sequence or fragment starts at the end of the file: all around it ends, too."""


class Walker:
    """Walks one buffer.

    Attributes:
        depth: number of nested sequences.
        linear: before the pixel data there were only elements of defined length in
            explicit little endian, so that a reader that jumps from header to header
            meets the same ones.
        first_from_pixel_data: tag, position and VR of the first element of the top level
            that is pixel data or comes later.
    """

    def __init__(self, data: Buffer, dialect: Dialect = NEWEST) -> None:
        """Walk `data`, which is not copied."""
        self.data = data
        self.dialect = dialect
        self.size = len(data)
        self.depth = 0
        self.linear = False
        self.first_from_pixel_data: tuple[int, int, str] | None = None
        self._remembered = 0

    def data_set(
        self, pos: int, encoding: Encoding, tags: Container[int], *, encapsulated: bool = False
    ) -> dict[int, Element]:
        """Walk from `pos` to the end; return the first element of each of these tags.

        Args:
            pos: where the data set starts.
            encoding: of the data set.
            tags: tags to remember; of a sequence, everything inside is remembered.
            encapsulated: the transfer syntax requires pixel data in fragments (PS3.5,
                A.4).

        Raises:
            Refused: the structure cannot be followed to the last byte.
        """
        elements: dict[int, Element] = {}
        read, size = self._header_reader(encoding), self.size
        self.linear, self.first_from_pixel_data = encoding == EXPLICIT, None
        while pos < size:
            if encoding == EXPLICIT:
                pos = self.skim(pos, size, tags, elements)
                if pos >= size:
                    break
            header = read(pos)
            if header[0] == ITEM_END:  # the data set ends, whatever follows
                break
            if encapsulated and header[0] == PIXEL_DATA and header[3] != UNDEFINED:
                raise Refused(f"native pixel data at byte {pos} in an encapsulated transfer syntax")
            try:
                end = self.element(header, encoding, tags, elements)
            except _EndOfFile:
                end = size
            if self.linear:
                self._update_linear(pos, header, end)
            pos = end
        return elements

    def _update_linear(self, pos: int, header: Header, end: int) -> None:
        """Update `linear` and `first_from_pixel_data`, until there is such an element."""
        if self.linear and self.first_from_pixel_data is None:
            tag, vr, start, length = header
            reserved = start - pos == 12 and bytes(self.data[pos + 6 : pos + 8]) != b"\0\0"
            jumped = end == start + length or (length == UNDEFINED and tag == PIXEL_DATA)
            self.linear = bool(vr) and not reserved and jumped
            if tag >= PIXEL_DATA:
                self.first_from_pixel_data = tag, pos, vr

    def skim(self, pos: int, stop: int, tags: Container[int], elements: dict[int, Element]) -> int:
        """Step over short elements in explicit little endian before the pixel data.

        Nearly all elements are of this kind. The result is that of `element` for each, in
        a quarter of the time.

        Returns:
            The position of the first element that is something else, or does not end
            before `stop`.
        """
        data, unpack = self.data, TAG_VR_LENGTH["<"]
        while pos + 8 <= stop:
            group, number, letters, length = unpack(data, pos)
            vr = _SKIMMED.get(letters)
            end = pos + 8 + length
            if vr is None or end > stop or group >= _PIXEL_GROUP:
                return pos
            tag = group << 16 | number
            if tag in tags and tag not in elements:
                elements[tag] = _new(Element, (tag, vr, pos + 8, length, "<", None, end))
            pos = end
        return pos

    def header(self, pos: int, encoding: Encoding) -> Header:
        """Return the header of the element at `pos`."""
        return self._header_reader(encoding)(pos)

    def element(
        self,
        header: Header,
        encoding: Encoding,
        tags: Container[int],
        elements: dict[int, Element],
        depth: int = 0,
    ) -> int:
        """Step over a value; remember the element if it is the first of its tag.

        Returns:
            The position after the element.
        """
        tag, vr, start, length = header
        remember = tag in tags and tag not in elements
        items: list[dict[int, Element]] | None = None
        end = start + length
        if length == UNDEFINED or vr in _NOT_SKIPPED:
            if length == UNDEFINED or vr == "SQ":
                end, items = self._step_over_nested(header, encoding, tags, elements, depth)
            elif vr == XS:
                vr = self._us_or_ss(elements) if remember and is_us_or_ss(tag) else vr
            else:
                self._check_units(header)
        if end > self.size:
            raise Refused(
                f"element ({format_tag(tag)}) at byte {start} has {length} bytes, "
                f"of which {self.size - start} are there: the file is cut off or damaged"
            )
        if remember:
            elements[tag] = Element(tag, vr, start, length, encoding.order, items, end)
        return end

    def _check_units(self, header: Header) -> None:
        """Refuse an array that (padded) is not a whole number of values."""
        tag, vr, start, length = header
        if self.dialect.whole_arrays and (length + length % 2) % UNITS[vr]:
            raise Refused(
                f"element ({format_tag(tag)}) at byte {start} has {length} bytes, "
                f"which is not a whole number of units of {UNITS[vr]} bytes"
            )

    def _step_over_nested(
        self,
        header: Header,
        encoding: Encoding,
        tags: Container[int],
        elements: dict[int, Element],
        depth: int,
    ) -> tuple[int, list[dict[int, Element]] | None]:
        """Step over a sequence or fragments; at the end of the file they are empty."""
        tag, vr, start, length = header
        remember = tag in tags and tag not in elements
        try:
            return self._nested(header, encoding, depth, remember)
        except _EndOfFile:
            if remember:
                items: list[dict[int, Element]] | None = []
                items = None if tag == PIXEL_DATA and vr in _FRAGMENT_VRS else items
                elements[tag] = Element(tag, vr, start, length, encoding.order, items, self.size)
            raise

    def _nested(
        self, header: Header, encoding: Encoding, depth: int, remember: bool
    ) -> tuple[int, list[dict[int, Element]] | None]:
        """Step over a sequence or fragments."""
        tag, vr, start, length = header
        if vr == "SQ":
            return self._sequence(start, length, encoding, depth + 1, remember)
        if vr == "UN":  # PS3.5, 6.2.2: a sequence in implicit little endian
            return self._sequence(start, length, IMPLICIT, depth + 1, remember)
        if tag == PIXEL_DATA and vr in _FRAGMENT_VRS:
            return self._fragments(start, encoding), None
        raise Refused(
            f"element ({format_tag(tag)}) at byte {start} has an undefined length, which its VR cannot have"
        )

    def _sequence(
        self, pos: int, length: int, encoding: Encoding, depth: int, remember: bool
    ) -> tuple[int, list[dict[int, Element]]]:
        """Step over the items of a sequence.

        It ends with a delimiter, of whatever length, or with the item in which its own
        length ends.
        """
        if depth >= MAX_DEPTH:
            raise Refused(f"too many nested sequences: {depth}, Orthanc takes fewer than {MAX_DEPTH}")
        self.depth = max(self.depth, depth)
        if pos == self.size:
            raise _EndOfFile
        items: list[dict[int, Element]] = []
        stop = None if length == UNDEFINED else pos + length
        while stop is None or pos < stop:
            tag, item_length = self._tag_and_length(pos, encoding.order)
            pos += 8
            if tag == SEQUENCE_END:
                break
            if tag != ITEM:
                raise Refused(f"no item but ({format_tag(tag)}) at byte {pos - 8} inside a sequence")
            pos, item = self._item(pos, item_length, encoding, depth, remember)
            if remember:
                items.append(item)
        return pos, items

    def _item(
        self, pos: int, length: int, encoding: Encoding, depth: int, remember: bool
    ) -> tuple[int, dict[int, Element]]:
        """Step over one item.

        It ends with a delimiter, of whatever length, with the element in which its own
        length ends, or with the file, between two elements.
        """
        elements: dict[int, Element] = {}
        tags = EVERYTHING if remember else NOTHING
        read, size = self._header_reader(encoding), self.size
        stop = None if length == UNDEFINED else pos + length
        while pos < size and (stop is None or pos < stop):
            header = read(pos)
            if stop is not None and header[2] <= stop < header[2] + header[3]:
                _check_fits_item(header, stop)
            if header[0] == ITEM_END:
                pos = header[2]
                break
            try:
                pos = self.element(header, encoding, tags, elements, depth)
            except _EndOfFile:
                pos = size
        self._remembered += len(elements)
        if self._remembered > MAX_REMEMBERED:
            raise Refused(f"more than {MAX_REMEMBERED} elements in sequences that the index stores")
        return pos, elements

    def _fragments(self, pos: int, encoding: Encoding) -> int:
        """Step over fragments of pixel data (PS3.5, A.4), to a delimiter of any length."""
        if pos == self.size:
            raise _EndOfFile
        while True:
            tag, length = self._tag_and_length(pos, encoding.order)
            pos += 8
            if tag == SEQUENCE_END:
                return pos
            if tag != ITEM or pos + length > self.size:
                raise Refused(f"the pixel data has no complete fragment at byte {pos - 8}")
            if pos == self.size:
                raise _EndOfFile
            pos += length

    def _us_or_ss(self, elements: dict[int, Element]) -> str:
        """Return the VR of "US or SS" by the preceding PixelRepresentation, if any."""
        sign = elements.get(PIXEL_REPRESENTATION)
        if sign is None or not 0 < sign.length < UNDEFINED:
            return XS
        value = bytes(self.data[sign.start : sign.start + min(sign.length, 2)])
        # Only implicit files have such elements, and those are little endian (PS3.5,
        # A.1).
        return "SS" if int.from_bytes(value, "little") == 1 else "US"

    def _tag_and_length(self, pos: int, order: str) -> tuple[int, int]:
        if pos + 8 > self.size:
            raise self._cut_off(pos)
        group, element, length = TAG_LENGTH[order](self.data, pos)
        return group << 16 | element, length

    def _header_reader(self, encoding: Encoding) -> Callable[[int], Header]:
        """Return the function that reads a header in this encoding."""
        if not encoding.explicit:
            return self._implicit
        return self._explicit if encoding.order == "<" else self._explicit_big_endian

    def _implicit(self, pos: int) -> Header:
        if pos + 8 > self.size:
            raise self._cut_off(pos)
        group, element, length = TAG_LENGTH["<"](self.data, pos)
        tag = group << 16 | element
        if group == 0xFFFE and tag in _MISPLACED:
            raise Refused(f"the element ({format_tag(tag)}) at byte {pos} is out of place")
        return tag, vr_of(tag), pos + 8, length

    def _explicit_big_endian(self, pos: int) -> Header:
        return self._explicit(pos, ">")

    def _explicit(self, pos: int, order: str = "<") -> Header:
        if pos + 8 > self.size:
            raise self._cut_off(pos)
        group, element, letters, length = TAG_VR_LENGTH[order](self.data, pos)
        tag = group << 16 | element
        if group == 0xFFFE:
            if tag in _MISPLACED:
                raise Refused(f"the element ({format_tag(tag)}) at byte {pos} is out of place")
            if tag == ITEM_END:
                return tag, "", pos + 8, LENGTH[order](self.data, pos + 4)[0]
        vr, is_long = _VRS.get(letters) or _unknown_vr(letters, pos, any_vr=self.dialect.old)
        if not is_long:
            return tag, vr, pos + 8, length
        if pos + 12 > self.size:
            raise self._cut_off(pos)
        return tag, vr, pos + 12, LENGTH[order](self.data, pos + 8)[0]

    def _cut_off(self, pos: int) -> Refused:
        if pos == self.size:
            return Refused(f"the file ends at byte {pos} inside a sequence or among fragments: it is cut off")
        return Refused(
            f"from byte {pos} there is no complete element: the file is cut off, or something follows it"
        )


def _check_fits_item(header: Header, stop: int) -> None:
    """Refuse a value beyond the end of its item; DCMTK accepts it if its header is, too."""
    tag, _, start, length = header
    if length != UNDEFINED:
        raise Refused(
            f"element ({format_tag(tag)}) at byte {start} has {length} bytes, but its item ends at byte {stop}"
        )


def _unknown_vr(letters: bytes, pos: int, *, any_vr: bool) -> tuple[str, bool]:
    """Return how DCMTK reads an unknown VR: no name, and if its length has 4 bytes."""
    first, second = letters
    printable = 0x20 <= first <= 0x7F and 0x20 <= second <= 0x7F
    # The letters are DCMTK's own VRs, for items, fragments and tags with a choice.
    if letters in (b"na", b"pi") or not (printable or any_vr):
        raise Refused(f"the element at byte {pos} has no value representation")
    upper = 0x41 <= first <= 0x5A and 0x41 <= second <= 0x5A
    return "", upper or letters in (b"ox", b"px", b"lt")


def is_vr(letters: bytes) -> bool:
    """Return whether these two letters are a VR of DICOM."""
    return letters in _VRS
