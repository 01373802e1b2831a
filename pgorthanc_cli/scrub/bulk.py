"""Names, sizes or MD5s of whole parts compared at a time: where nothing differs, no row is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from pgorthanc_cli.storage.listing import Listing

MAX_DIFFERENCES = 20_000  # in memory; where there are more, rows are compared one by one
NOT_PLAIN, NO_NAME = -2, -3  # instead of a size; listings have -1 where sizes were not asked for


class Bulk(NamedTuple):
    """The result of a comparison.

    Attributes:
        equal: Rows whose file is there, and has the right size.
        bytes: The stored bytes of all rows, as far as these say.
        doubtful: UUIDs of the other rows.
        rest: What lies in the area besides the files of equal rows.
    """

    equal: int
    bytes: int
    doubtful: list[str]
    rest: Listing


class Hashed(NamedTuple):
    """A part whose small files were hashed.

    Attributes:
        equal: Rows whose file has the right content.
        bytes: Of these files.
        doubtful: UUIDs of the other rows.
        rest: What lies there besides the files of equal rows.
    """

    equal: int
    bytes: int
    doubtful: list[str]
    rest: Listing


def joined(texts: Iterator[tuple[str, str, int]], parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the digits of each part, and its rows as one text from `Rows.names`.

    What begins with other characters than digits comes with the part behind which it sorts,
    or with the first one: a part is the range of names up to the next one.
    """
    text = next(texts, None)
    for digits, following in zip_longest(parts, parts[1:]):
        words = []
        while text and (following is None or text[0] < following):
            words.append(text[1])
            text = next(texts, None)
        yield digits, " ".join(words)


def compare(texts: Iterator[tuple[str, str, int]], listings: Iterable[tuple[str, Listing]]) -> Bulk | None:
    """Compare rows with what lies in the area.

    Args:
        texts: From `Rows.names`.
        listings: The digits of each part, and what lies there.

    Returns:
        None if two rows name one file, or more differs than `MAX_DIFFERENCES`.
    """
    equal, size, rest = 0, 0, Listing({}, [], [])
    doubtful: list[str] = []
    text = next(texts, None)
    for digits, listing in listings:
        expected: dict[str, int] = {}
        # What begins with other characters than digits sorts among the parts.
        while text and text[0] <= digits:
            count = _add(expected, text[1])
            if count is None:
                return None
            size += text[2]
            text = next(texts, None)
        rest.odd.extend(listing.odd)
        rest.unreadable.extend(listing.unreadable)
        if expected == listing.sizes:
            equal += len(expected)
            continue
        different = {uuid for uuid, _ in expected.items() - listing.sizes.items()}
        equal += len(expected) - len(different)
        doubtful += different
        claimed = expected.keys() - different
        rest.sizes.update((uuid, n) for uuid, n in listing.sizes.items() if uuid not in claimed)
        if len(doubtful) + len(rest.sizes) + len(rest.odd) > MAX_DIFFERENCES:
            return None
    while text:  # behind the last part
        names: dict[str, int] = {}
        if _add(names, text[1]) is None:
            return None
        doubtful += names
        size += text[2]
        text = next(texts, None)
    return Bulk(equal, size, doubtful, rest)


def _add(expected: dict[str, int], text: str) -> int | None:
    """Add UUIDs and sizes; return how many, None if one stands twice, or has no usable name."""
    words = text.split(" ")
    sizes = list(map(int, words[1::2]))
    before = len(expected)
    expected.update(zip(words[::2], sizes, strict=True))
    is_usable = len(expected) == before + len(sizes) and NO_NAME not in sizes
    return len(sizes) if is_usable else None
