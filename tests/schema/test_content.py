"""Restored archives: large objects of another role or absent, customdata that aborts Orthanc, NULL hashes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from pgorthanc_cli import db, doctor, locks
from pgorthanc_cli.doctor.model import Subject
from pgorthanc_cli.doctor.tables import attachments
from pgorthanc_cli.schema import verify
from pgorthanc_cli.server import programs
from tests.support.schemas import FILL, ODD_SCHEMA, init, rows, run

STORED = (
    "INSERT INTO storagearea SELECT uuid, lo_from_bytea(0, 'content of a file'), 1 FROM attachedfiles WHERE id > 3",
)
# The forms that the advanced-storage plugin 0.3 writes, byte for byte (STORAGE.md A2, H1).
FORMS = (
    '{"o":true,"s":"1","v":1}',
    '{"o":true,"p":"rel/x.dcm","v":1}',
    '{"o":true,"p":"rel/x.dcm","s":"1","v":1}',
    '{"o":false,"p":"/abs/x.dcm","v":1}',
    '{"o":true,"p":"/abs/x.dcm","v":1}',
    '{"o":true,"p":"","s":"1","v":1}',
    r'{"o":false,"p":"/\u00fc\ud83d\ude00 \"a\\b\n\t\u0007' + "\x7f" + '=<>&//../ ","v":1}',
    '{"o":false,"p":"/roh ü","v":1}',
    '{"v": 1, "p": "/spaces", "o": false}',
    '{"p":"/not owned","v":1}',
)
ABORTING = (
    '{"o":true,"p":"x","v":2}', '{"o":true,"p":"x"}', "{}", "[]", "no JSON", "1", '{"o":false,"v":1}', '{"v":1}',
    '{"o":"yes","p":"x","v":1}', '{"o":true,"p":1,"v":1}', '{"o":true,"s":1,"v":1}', '{"o":true,"v":1.5}',
    '{"o":true,"v":true}', '{"o":true,"p":"x","v":1}{}',
)  # fmt: skip
S3_ZIP = '{"storage": "s3-zip", "local": "/a", "s3zip": null, "series-id": null, "size": 4}'


def found(target: db.Target, *, deep: bool = True) -> dict[str, verify.Finding]:
    with db.session(target, readonly=True) as conn:
        return {one.name: one for one in verify.schema(conn, target.schema, deep=deep).findings}


def check(target: db.Target, name: str, *, deep: bool = False) -> doctor.Check:
    (one,) = doctor.examine(target, [name], deep=deep).checks
    return one


def statement(text: str, first: str) -> str:
    """The statement in an advice, from its first word on."""
    assert first in text, text
    return first + text.partition(first)[2]


@pytest.fixture
def stored(fresh: db.Target) -> db.Target:
    """Two instances with their files in large objects."""
    run(fresh, *FILL, *STORED)
    assert len(rows(fresh, "SELECT FROM storagearea")) == 2
    return fresh


def test_a_healthy_archive_has_no_finding(stored: db.Target) -> None:
    assert found(stored) == {}
    assert [check(stored, name).status for name in ("large-objects", "attachments")] == ["OK", "OK"]


@pytest.mark.parametrize("rows_read", ["all", "first"])
def test_large_objects_of_another_role(stored: db.Target, role: str, rows_read: str) -> None:
    """As a restore with --no-owner by another role leaves them."""
    run(stored, f"ALTER TABLE storagearea OWNER TO {role}")
    wrong = found(stored)["owner of large objects"]
    assert wrong.matters
    assert role in wrong.why
    assert " for 2 of them" in str(wrong.found)
    said = check(stored, "large-objects", deep=rows_read == "all")
    assert said.status == "CRITICAL"
    run(stored, statement(said.hint or "", "DO $$"))
    assert set(found(stored)) <= {"table storagearea"}  # that it belongs to another role
    assert check(stored, "large-objects").status == "OK"
    owners = "SELECT DISTINCT lomowner::regrole::text FROM pg_largeobject_metadata"
    assert rows(stored, owners) == [(role,)]


def test_thousands_of_large_objects_change_their_owner(stored: db.Target, role: str) -> None:
    """More than one transaction has room for locks."""
    run(
        stored,
        "INSERT INTO storagearea SELECT 'u' || n, lo_create(0), 1 FROM generate_series(1, 2500) AS n",
        f"ALTER TABLE storagearea OWNER TO {role}",
    )
    run(stored, statement(found(stored)["owner of large objects"].advice or "", "DO $$"))
    assert set(found(stored)) <= {"table storagearea"}


def test_a_role_that_may_act_as_the_owner_of_the_objects_is_fine(
    stored: db.Target, role: str, admin: Connection
) -> None:
    run(stored, f"ALTER TABLE storagearea OWNER TO {role}")
    ((owner,),) = rows(stored, "SELECT current_user::text")
    run(stored, f'GRANT "{owner}" TO {role}')
    assert found(stored) == {}


def test_large_objects_that_a_dump_left_out(
    stored: db.Target, new_database: Callable[..., db.Target], tmp_path: Path
) -> None:
    """`pg_dump -B`: the rows are there, the content is not; the advice brings it back from a dump that has it."""
    server = programs.find()
    tools = {
        name: shutil.which(name, path=str(server.bin)) or shutil.which(name)
        for name in ("pg_dump", "pg_restore")
    }
    if None in tools.values():
        pytest.skip("the server's programs lack pg_dump and pg_restore")
    version = subprocess.run(
        [str(tools["pg_dump"]), "--version"], capture_output=True, text=True, check=True
    ).stdout
    if int(re.findall(r"\d+", version)[0]) < server.version[0]:
        pytest.skip(f"{version.strip()} refuses a server of version {server.version[0]}")
    restored = new_database("template0")
    for option, file in (("-B", "without"), ("-b", "with")):
        command = [tools["pg_dump"], "-Fc", option, "-f", tmp_path / file, "-d", stored.dsn]
        subprocess.run([str(word) for word in command], check=True)
    command = [tools["pg_restore"], "-d", restored.dsn, tmp_path / "without"]
    subprocess.run([str(word) for word in command], check=False, capture_output=True)
    assert found(restored)["content of storagearea"].found == "2 large objects absent"
    said = check(restored, "large-objects")
    assert said.status == "CRITICAL"
    shell = statement(said.hint or "", "pg_restore --list").partition("; or import")[0]
    shell = (
        shell.replace("DATABASE", shlex.quote(restored.dsn))
        .replace("DUMP", f"{tmp_path}/with")
        .replace("LIST", f"{tmp_path}/l")
    )
    shell = shell.replace("pg_restore", str(tools["pg_restore"]))
    subprocess.run(["sh", "-ec", shell], check=True)
    assert found(restored) == {}
    [(data,)] = rows(restored, "SELECT DISTINCT lo_get(content) FROM storagearea")
    assert bytes(data) == b"content of a file"


def set_customdata(target: db.Target, *values: str | bytes) -> None:
    with psycopg2.connect(target.dsn) as conn, conn.cursor() as cur:
        cur.execute("SELECT id, filetype FROM attachedfiles ORDER BY id LIMIT 1")
        ((first, _),) = cur.fetchall()
        for number, value in enumerate(values):
            data = value.encode() if isinstance(value, str) else value
            cur.execute(
                "INSERT INTO attachedfiles VALUES (%s, %s, %s, 1, 1, 1, '', '', 0, %s)",
                (first, 2000 + number, f"u{number}", psycopg2.Binary(data)),
            )
    conn.close()


def test_customdata_of_advanced_storage_is_readable(stored: db.Target) -> None:
    set_customdata(stored, b"", *FORMS)
    assert found(stored).get("customdata") is None
    assert check(stored, "attachments").status == "OK"


@pytest.mark.parametrize("value", [*ABORTING, b"\xff\xfe", b"\0"])
def test_customdata_that_aborts_orthanc(stored: db.Target, value: str | bytes) -> None:
    set_customdata(stored, *FORMS, value)
    wrong = found(stored)["customdata"]
    assert wrong.matters
    assert "1 rows" in str(wrong.found)
    said = check(stored, "attachments")
    assert said.status == "CRITICAL"
    run(stored, statement(said.hint or "", "CREATE TABLE"))
    assert found(stored).get("customdata") is None
    assert check(stored, "attachments").status == "OK"
    data = value.encode() if isinstance(value, str) else value
    kept = rows(stored, "SELECT customdata FROM pgorthanc_unreadable_customdata")
    assert [bytes(row[0]) for row in kept] == [data]
    left = rows(stored, "SELECT customdata FROM attachedfiles WHERE customdata IS NOT NULL")
    assert sorted(bytes(row[0]) for row in left) == sorted(form.encode() for form in FORMS)


def test_the_customdata_of_another_storage_plugin_is_left_alone(stored: db.Target) -> None:
    set_customdata(stored, S3_ZIP)
    one = found(stored)["customdata"]
    assert not one.matters
    assert "python-s3-zip" in str(one.found)
    assert check(stored, "attachments").status == "OK"
    run(stored, "UPDATE attachedfiles SET customdata = '{}' WHERE uuid = 'i'")
    assert found(stored)["customdata"].matters


def test_hashes_that_are_null(stored: db.Target) -> None:
    run(
        stored,
        "UPDATE attachedfiles SET uncompressedhash = NULL, compressedhash = 'c' WHERE uuid = 'i'",
        "UPDATE attachedfiles SET uncompressedhash = 'u', compressedhash = NULL, compressiontype = 2 WHERE uuid = 'j'",
    )
    wrong = found(stored)["hashes of attachedfiles"]
    assert wrong.matters
    assert wrong.found == "NULL in 2 rows"
    said = check(stored, "attachments")
    assert said.status == "CRITICAL"
    run(stored, statement(said.statements, "UPDATE attachedfiles"))
    assert found(stored) == {}
    query = (
        "SELECT uncompressedhash, compressedhash FROM attachedfiles WHERE uuid IN ('i', 'j') ORDER BY uuid"
    )
    assert rows(stored, query) == [("c", "c"), ("u", "")]


def test_a_repair_sets_hashes_and_nothing_else(stored: db.Target) -> None:
    run(stored, "UPDATE attachedfiles SET uncompressedhash = NULL")
    set_customdata(stored, "{}")
    with db.session(stored) as conn:
        repaired = verify.repair(conn, stored.schema, require_idle=locks.require_idle, deep=True)
    assert "hashes of attachedfiles" in repaired.repaired
    assert "customdata" in [one.name for one in repaired.left]
    assert rows(stored, "SELECT count(*) FROM attachedfiles WHERE uncompressedhash IS NULL") == [(0,)]


def test_without_deep_the_first_rows_are_read(stored: db.Target) -> None:
    run(stored, "UPDATE attachedfiles SET uncompressedhash = NULL WHERE uuid = 'j'")
    with db.session(stored, readonly=True, autocommit=True) as conn:
        sampled = attachments(Subject(conn, stored, sample_rows=1))
    assert "--deep reads all" in sampled.message
    assert sampled.status == "OK"
    assert check(stored, "attachments", deep=True).status == "CRITICAL"


def test_an_odd_schema(empty: db.Target, role: str) -> None:
    run(empty, 'CREATE SCHEMA "' + ODD_SCHEMA.replace('"', '""') + '"')
    target = db.Target(empty.dsn, schema=ODD_SCHEMA)
    init(target)
    run(target, *FILL, *STORED, f"ALTER TABLE storagearea OWNER TO {role}")
    run(target, "UPDATE attachedfiles SET customdata = '{}'")
    for name, first in (("large-objects", "DO $$"), ("attachments", "CREATE TABLE")):
        run(empty, statement(check(target, name).hint or "", first))
        assert check(target, name).status == "OK"
