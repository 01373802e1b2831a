"""What an error looks like on a terminal, in a pipe and as JSON; its hint ends with what is to be pasted."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.errors import ConnectError, PgOrthancError
from tests.commands.test_cli import pgorthanc, terminal

WIDTH = 60  # of `terminal`
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.mark.parametrize(
    ("hint", "advice", "paste"),
    [
        (None, "", ""),
        ("check --host", "check --host", ""),
        ("run: pgorthanc upgrade", "run:", "pgorthanc upgrade"),
        (
            "name another one, or create it: pgorthanc init --create-database",
            "name another one, or create it:",
            "pgorthanc init --create-database",
        ),
        ("run: pgorthanc upgrade; or wait", "run: pgorthanc upgrade; or wait", ""),
        ("all commands: pgorthanc --help", "all commands: pgorthanc --help", ""),
        ("run: pgorthanc status --help", "run: pgorthanc status --help", ""),
        (
            "as the owner: GRANT SELECT ON a TO r; GRANT USAGE ON b TO r;",
            "as the owner:",
            "GRANT SELECT ON a TO r;\nGRANT USAGE ON b TO r;",
        ),
        (
            "run: pgorthanc status --config '/etc/a, b; c'",
            "run:",
            "pgorthanc status --config '/etc/a, b; c'",
        ),
        ("as the owner: GRANT x TO y; then wait", "as the owner: GRANT x TO y; then wait", ""),
    ],
)
def test_what_is_to_be_pasted_comes_last(hint: str | None, advice: str, paste: str) -> None:
    assert PgOrthancError("no", hint).advice() == (advice, paste)


def test_the_words_of_the_server_are_part_of_the_message() -> None:
    error = ConnectError("login refused", "check it", server_message="FATAL:  nein")
    assert (error.fact, error.message, str(error)) == ("login refused", *["login refused: FATAL:  nein"] * 2)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - workers do it
    assert vars(copy) == vars(error)


def test_a_refused_login(fresh: db.Target) -> None:
    uri = make_dsn(fresh.dsn, dbname="no such database", password="pl4nted-s3cret")
    wanted = (
        "error: no such database\n"
        "PostgreSQL: connection to server "
        'failed: FATAL:  database "no such database" does not exist\n'
        "hint: name another one with --dbname, or create it:\n"
        "          pgorthanc init --create-database --uri "
    )
    run = pgorthanc("status", "--uri", uri)
    shown = run.stderr[run.stderr.index("error: ") :]
    assert re.sub(r"server (at|on).* failed", "server failed", shown).startswith(wanted)
    assert shown.count("\n") == 4
    document = json.loads(pgorthanc("status", "--json", "--quiet", "--uri", uri).stderr)
    assert document["message"].startswith("no such database: connection to server ")
    assert shown.endswith(f"{document['hint'].partition(': ')[2]}\n")
    assert "pl4nted" not in run.stderr + document["hint"]


def test_lines_are_wrapped_on_a_terminal_but_commands_are_not(fresh: db.Target) -> None:
    uri = make_dsn(fresh.dsn, passfile="/a/long/name" * 8)
    code, screen = terminal("upgrade", "--to", "3", "--uri", uri)
    lines = [line.rstrip("\r") for line in ESCAPE.sub("", screen).splitlines()]
    assert code == 4
    assert lines[:3] == [
        "error: the index in schema public is at revision 10, and 3",
        "       was asked for",
        "hint: run:",
    ]
    assert lines[3].startswith("          pgorthanc downgrade --to 3 --uri 'user=")
    assert len(lines) == 4
    code, screen = terminal("status", "--uri", f"host=/{'nosuch' * 12} port=5432")
    assert f"/{'nosuch' * 12}:5432:" in screen
    code, screen = terminal("status", "--uri", "host=/nosuch/folder/of/a/socket port=5432")
    lines = [line.rstrip("\r") for line in ESCAPE.sub("", screen).splitlines()]
    assert code == 3
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("       ")
    assert all(len(line) <= WIDTH and line == line.rstrip() for line in lines)


def test_a_statement_that_the_server_refuses(fresh: db.Target) -> None:
    conn = db.connect(fresh)
    try:
        with pytest.raises(PgOrthancError) as refused, db.translate_errors(conn), conn.cursor() as cur:
            cur.execute("SELECT 1 / 0")
    finally:
        conn.close()
    assert refused.value.fact == "the server refused a statement"
    assert refused.value.server_message == "division by zero (SQLSTATE 22012)"
