"""pg_hba.conf: read as the server reads it, the line that decides, and the change of one line."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server import hba, hba_file
from pgorthanc_cli.server.hba import Client
from tests.support.real_servers import Server

FILE = b"""# comment all all
local   all             postgres                                peer

host    orthanc,\tpacs  orthanc         10.1.2.3/8              scram-sha-256   # local all all trust
host    all             "all"           192.168.7.0 255.255.255.0 md5
host    all,all         +staff,"a ""b"  .example.com            ident map="my map"
hostnossl sameuser      all             all                     reject\r
host    all             dupont          ::1/128                 trust#no blank
host    replication     repl            samehost                scram-sha-256
host    all             x               2001:db8:: ffff:ffff:: md5
local   "db all"        all             md5"""
CONTINUED = b"""
host all all \\
   10.0.0.0/8 sc\\
ram-sha-256
local all all trust
"""
TRUST = b"local all postgres trust\n"
Seen = Callable[[bytes], list[hba.Rule]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server("local all postgres trust\n", "").create()
    try:
        yield made.start()
    finally:
        made.remove()


@pytest.fixture
def as_seen(server: Server) -> Iterator[Seen]:
    """What the server makes of a file."""
    conn = psycopg2.connect(server.place)

    def see(content: bytes) -> list[hba.Rule]:
        server.write("pg_hba.conf", content)
        return [replace(rule, file="") for rule in hba.rules(conn)]

    yield see
    conn.close()


def bare(rules: list[hba.Rule]) -> list[hba.Rule]:
    """Without the quotes that the server does not tell."""
    lists = [
        [
            tuple(re.sub(r'\A"(.+)"\Z', r"\1", word) for word in words)
            for words in (rule.databases, rule.roles)
        ]
        for rule in rules
    ]
    return [replace(r, databases=d, roles=o) for r, (d, o) in zip(rules, lists, strict=True)]


@pytest.mark.parametrize("content", [FILE, CONTINUED, b"", b"\n\n# nothing\n", b"local all all trust"])
def test_a_file_is_read_as_the_server_reads_it(content: bytes, as_seen: Seen) -> None:
    assert bare(hba_file.parse(content)) == as_seen(content)


PIECES = [*"a,#\\\r\n\t ", "all", '"all"', '"a b"', '""', "+g", ", ", " ,", "\\\n", 'x"y']


@pytest.mark.once
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.sampled_from(["trust", "md5"]))
def test_any_line_is_read_as_the_server_reads_it(as_seen: Seen, piece: str, method: str) -> None:
    assume('"""' not in piece)  # a name that has quotes itself
    content = f"local all {piece} {method}\nlocal {piece} all {method}\nlocal x y reject\n".encode()
    known = [rule for rule in bare(hba_file.parse(content)) if rule.method in ("trust", "md5", "reject")]
    assert [rule for rule in known if not rule.options] == as_seen(content)


RULES = hba_file.parse(FILE)


@pytest.mark.parametrize(
    ("client", "line"),
    [
        (Client("postgres", "any", None), 2),
        (Client("orthanc", "any", None), None),
        (Client("orthanc", "db all", None), 11),
        (Client("orthanc", "pacs", "10.9.9.9"), 4),
        (Client("orthanc", "orthanc", "11.9.9.9"), 7),
        (Client("orthanc", "orthanc", "11.9.9.9", encryption="tls"), None),
        (Client("orthanc", "orthanc", "11.9.9.9", encryption="gss"), 7),
        (Client("all", "other", "192.168.7.200"), 5),
        (Client("orthanc", "other", "192.168.7.200"), None),
        (Client("dupont", "other", "::1"), 8),
        (Client("dupont", "other", "::2"), None),
        (Client("x", "other", "2001:db8:7::1"), 10),
        (Client("repl", "", "127.0.0.1", replication=True), 9),
        (Client("repl", "replication", "127.0.0.1"), None),
        (Client("repl", "", "10.0.0.7", replication=True, server="10.0.0.7"), 9),
        (Client("repl", "", "10.0.0.7", replication=True, server="10.0.0.8"), None),
        (Client("nurse", "other", "203.0.113.7", groups=frozenset({"staff", "nurse"})), None),
    ],
)
def test_the_first_line_that_fits_decides(client: Client, line: int | None) -> None:
    found = hba.match(RULES, client)
    assert (found and found.line) == line


def test_groups_and_names_of_hosts() -> None:
    name = socket.gethostbyaddr("127.0.0.1")[0]
    nurse = Client("nurse", "staff", "127.0.0.1", groups=frozenset({"nurse", "staff"}))
    for line, fits in {
        "host all +staff all md5": True,
        "host all +other all md5": False,
        'host all "+staff" all md5': False,
        "host samerole all all md5": True,
        "host sameuser all all md5": False,
        f"host all all {name.upper()} md5": True,
        "host all all .invalid md5": False,
        "host /^sta all all md5": True,
        "host /^taf all all md5": False,
    }.items():
        assert (hba.match(hba_file.parse(line.encode()), nurse) is not None) == fits, line


@pytest.mark.parametrize(
    "line", ["host all all samenet md5", "host @names all all md5", "host /( all all md5"]
)
def test_what_only_the_server_knows_is_not_guessed(line: str) -> None:
    with pytest.raises(hba.IndeterminateMatch, match=r"line 1 of pg_hba\.conf"):
        hba.match(hba_file.parse(line.encode()), Client("a", "b", "10.0.0.1"))


def test_groups_of_groups(server: Server) -> None:
    server.write("pg_hba.conf", TRUST)
    for name in ("hospital", "staff", "nurse"):
        server.sql(f"CREATE ROLE {name}")
    server.sql("GRANT hospital TO staff", "GRANT staff TO nurse")
    with contextlib.closing(psycopg2.connect(server.place)) as conn:
        assert hba.groups(conn, "nurse") == {"hospital", "staff", "nurse"}
        assert hba.groups(conn, "nobody_at_all") == set()


def test_errors_of_the_file(as_seen: Seen, server: Server) -> None:
    as_seen(TRUST + b"local all all nonsense\n")
    with contextlib.closing(psycopg2.connect(server.place)) as conn:
        assert len(hba.rules(conn)) == 1
        assert hba.errors(conn) == ['line 2: invalid authentication method "nonsense"']


# Changes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pg_hba.conf"
    path.write_bytes(FILE)
    path.chmod(0o640)
    return path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.line))
def test_only_the_method_of_the_line_changes(file: Path, rule: hba.Rule) -> None:
    edit = hba_file.set_method(file, rule, "gss")

    before, after = FILE.split(b"\n"), file.read_bytes().split(b"\n")
    number = rule.line - 1
    assert [line for at, line in enumerate(after) if at != number] == [
        line for at, line in enumerate(before) if at != number
    ]
    assert after[number] == b"gss".join(before[number].split(rule.method.encode()))
    assert (edit.before, edit.after) == (before[number].decode().strip(), after[number].decode().strip())
    assert edit.backup.read_bytes() == FILE
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(edit.backup.stat().st_mode) == 0o640
    edit.undo()
    assert file.read_bytes() == FILE


def test_a_method_that_is_continued(file: Path) -> None:
    file.write_bytes(CONTINUED)
    hba_file.set_method(file, hba_file.parse(CONTINUED)[0], "md5")
    assert file.read_bytes() == CONTINUED.replace(b"sc\\\nram-sha-256", b"md5")


@pytest.mark.parametrize(("before", "at"), [(1, 0), (4, 3), (11, 10)])
def test_a_line_is_inserted_and_taken_out(file: Path, before: int, at: int) -> None:
    edit = hba_file.insert(file, "local all all reject", before=before)
    assert (edit.line, edit.before, edit.after) == (before, "", "local all all reject")
    lines = file.read_bytes().split(b"\n")
    assert lines.pop(at) == b"local all all reject"
    assert b"\n".join(lines) == FILE
    edit.undo()
    assert file.read_bytes() == FILE


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    hba_file.set_method(link, RULES[0], "trust").undo()
    assert link.is_symlink()
    assert file.read_bytes() == FILE


def test_another_line_than_expected_is_left_alone(file: Path) -> None:
    with pytest.raises(PgOrthancError, match=r"line 2 of .* is not `local all postgres md5` any more"):
        hba_file.set_method(file, replace(RULES[0], method="md5"), "trust")
    with pytest.raises(PgOrthancError, match="has no line 11 that ends with a line feed"):
        hba_file.insert(file, "local all all trust", before=12)
    assert [file] == list(file.parent.iterdir())


def test_the_change_of_somebody_else_is_not_undone(file: Path) -> None:
    edit = hba_file.set_method(file, RULES[0], "trust")
    file.write_bytes(b"# mine now\n")
    with pytest.raises(PgOrthancError, match="changed by another program") as refusal:
        edit.undo()
    assert str(edit.backup) in (refusal.value.hint or "")
    assert file.read_bytes() == b"# mine now\n"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PgOrthancError, match=r"pg_hba\.conf cannot be read: No such file") as refusal:
        hba_file.set_method(tmp_path / "pg_hba.conf", RULES[0], "trust")
    assert "on the machine of the server" in (refusal.value.hint or "")


def test_the_owner_of_the_file_stays(file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can write files for others")
    os.chown(file, 1234, 4321)
    edit = hba_file.set_method(file, RULES[0], "trust")
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (file, edit.backup)} == {(1234, 4321)}
