"""The hints of `migrate-sqlite`: what they print is executed, and the conversion then succeeds."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError
from tests.support import sqliteindex
from tests.support.migrating import convert
from tests.support.schemas import libc


def test_a_database_of_another_encoding_is_refused(
    admin: Connection, server_dsn: str, tmp_path: Path
) -> None:
    path = sqliteindex.rich(tmp_path / "index")
    with admin.cursor() as cur:
        cur.execute(
            f"CREATE DATABASE pgorthanc_latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'{libc(admin)}"
        )
    try:
        with pytest.raises(PgOrthancError, match="encoding LATIN1, wanted UTF8") as refusal:
            convert(db.Target(make_dsn(server_dsn, dbname="pgorthanc_latin")), path)
        with admin.cursor() as cur:
            cur.execute((refusal.value.hint or "").partition(": ")[2])
        convert(db.Target(make_dsn(server_dsn, dbname="orthanc_utf8")), path)
    finally:
        with admin.cursor() as cur:
            cur.execute("DROP DATABASE pgorthanc_latin")
            cur.execute("DROP DATABASE IF EXISTS orthanc_utf8")


@pytest.mark.skipif(not shutil.which("sqlite3"), reason="there is no program sqlite3")
def test_a_damaged_file_is_recovered_by_the_line_of_the_hint(empty: db.Target, tmp_path: Path) -> None:
    """A page in the middle is lost; what SQLite can read is converted."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    path = sqliteindex.rich(folder / "index", instances=250)
    content = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as conn:
        (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'Changes'").fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    content[size * (page - 1) : size * page] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(PgOrthancError, match="is damaged") as refusal:
        convert(empty, path)
    line = (refusal.value.hint or "").partition("and convert that: ")[2]
    subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, check=True, timeout=60)
    converted = convert(empty, tmp_path / "recovered", restart=True)
    assert converted.resources["instances"] == 250
