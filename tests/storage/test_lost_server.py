"""The server goes away while a large object is written."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import psycopg2
import pytest

from pgorthanc_cli import db, storage
from tests.support.schemas import rows


def test_nothing_else_is_printed(fresh: db.Target, capfd: pytest.CaptureFixture[str]) -> None:
    """The caller reports it; a line of psycopg2's own would be in the middle of the progress."""
    conn = db.connect(fresh)
    area = storage.LargeObjectArea(conn)

    def chunks() -> Iterator[bytes]:
        yield b"x" * 1000
        rows(fresh, f"SELECT pg_terminate_backend({conn.info.backend_pid})")
        while True:
            yield b"y" * 1000

    with pytest.raises(psycopg2.Error):
        area.put("00000000-0000-0000-0000-000000000001", 1, chunks())
    assert conn.closed
    gc.collect()
    assert capfd.readouterr().err == ""
