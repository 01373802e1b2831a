"""What COPY BINARY sends is understood in pieces of any size."""

from __future__ import annotations

import struct

import pytest

from pgorthanc_cli.storage.bulk import _CopyStream

CONTENTS = {1: b"abc", 2: b"", 3: b"x" * 5000, 70_000: b"yy"}
SENT = b"".join(
    (
        bytes(19),
        *(struct.pack(">hiqi", 2, 8, oid, len(content)) + content for oid, content in CONTENTS.items()),
        struct.pack(">h", -1),
    )
)


@pytest.mark.parametrize("size", [1, 7, 18, 19, 20, 50, 1000, 1_000_000])
def test_pieces_of_any_size(size: int) -> None:
    stream = _CopyStream()
    for start in range(0, len(SENT), size):
        stream.write(SENT[start : start + size])
    assert stream.contents == CONTENTS
