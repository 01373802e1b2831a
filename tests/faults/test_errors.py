"""What an import says when the server complains without a SQLSTATE."""

from __future__ import annotations

import pytest

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError


def test_what_the_server_says_about_a_large_object_is_no_lost_connection(empty: db.Target) -> None:
    with pytest.raises(PgOrthancError) as caught:
        with db.session(empty) as conn:
            conn.lobject(4_000_000_000, "rb")
    assert type(caught.value) is PgOrthancError
    assert caught.value.message == "the server refused a statement: large object 4000000000 does not exist"
