"""What an import says when the server complains in ways that carry no SQLSTATE."""

from __future__ import annotations

import io
import os
import socket

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError


class Cut(io.StringIO):
    """Rows to copy; after the last one nothing comes back from the server any more, as if it had been killed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__("1\n" * 1000)
        self.descriptor = descriptor

    def read(self, size: int | None = -1) -> str:
        rows = super().read(size)
        if not rows:
            with socket.socket(fileno=os.dup(self.descriptor)) as connection:
                connection.shutdown(socket.SHUT_RD)
        return rows


def test_a_connection_that_breaks_in_the_midst_of_a_copy_is_lost(empty: db.Target) -> None:
    with pytest.raises(ConnectError, match="was lost"):
        with db.session(empty) as conn, conn.cursor() as cur:
            cur.execute("CREATE TEMPORARY TABLE numbers (number integer)")
            cur.copy_expert("COPY numbers FROM STDIN", Cut(conn.fileno()))


def test_what_the_server_says_about_a_large_object_is_no_lost_connection(empty: db.Target) -> None:
    with pytest.raises(PgOrthancError) as caught:
        with db.session(empty) as conn:
            conn.lobject(4_000_000_000, "rb")
    assert type(caught.value) is PgOrthancError
    assert caught.value.message == "PostgreSQL: large object 4000000000 does not exist"
