"""Logs of Orthanc: those of real ones are in real/, and each has a golden page."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from io import BytesIO, RawIOBase
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.orthanc_log import explain
from pgorthanc_cli.orthanc_log.outline import outline
from pgorthanc_cli.render import Medium, html, text
from pgorthanc_cli.views import orthanc_log as views
from tests.support import golden

FOLDER = Path(__file__).parent
REAL = sorted((FOLDER / "real").glob("*.log"))
HEADER = "E1126 06:00:43.123456             MAIN PluginsManager.cpp:155] "
HOSTILE = (
    f'{HEADER}PostgreSQL error: ERROR:  invalid thing "DOE^JOHN" for Jane Roe 19700101 password=s3cret\x1b[31m\n'
    "DETAIL:  Key (value)=(DOE^JOHN) already exists.\n"
    f"{HEADER}PostgreSQL error: missing \"=\" after \"s3cret\" in connection info string\n"
    f'{HEADER}PostgreSQL: unable to store patient "Jane Roe", roe jane\u202e\n'
)  # fmt: skip


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_logs_are_explained(path: Path) -> None:
    with path.open("rb") as stream:
        explained = explain(stream, f"/var/log/orthanc/{path.name}")
    assert explained.unexplained == ()
    page = views.page(explained, "/etc/orthanc")
    golden.compare(path.with_suffix(".txt"), golden.texts(page, golden.LAYOUTS))


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("wrong-password", 'password authentication failed for user "…"'),
        ("unknown-database", 'database "…" does not exist'),
        ("second-orthanc", "The PostgreSQL database is locked by another instance of Orthanc"),
        ("newer-revision", "PostgreSQL plugin is incompatible with database schema revision: …"),
        ("killed-server", "server closed the connection unexpectedly"),
    ],
)
def test_the_cause_is_the_only_problem_or_the_first(name: str, first: str) -> None:
    with (FOLDER / "real" / f"{name}.log").open("rb") as stream:
        explained = explain(stream, name)
    problems = [message.text for message in explained.messages if message.status == "problem"]
    assert problems[0] == first
    assert len(problems) == (2 if name == "killed-server" else 1)


def test_names_passwords_and_controls_of_a_log_are_never_shown() -> None:
    explained = explain(BytesIO(HOSTILE.encode()), "log")
    page = views.page(explained, "/etc/orthanc", verbose=True)
    for shown in (text(page, Medium(80, symbols=True)), html(page), json.dumps(repr(explained))):
        for secret in ("DOE", "JOHN", "Jane", "Roe", "roe", "jane", "1970", "s3cret", "\x1b", "\u202e"):
            assert secret not in shown
    assert "Logged once" in text(page, Medium())
    assert len(explained.unexplained) == 2


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("PostgreSQL error: ERROR:  value too long for type character varying(64)",
         "PostgreSQL error: ERROR: value too long for type character varying …"),
        ("PostgreSQL error: FEHLER:  Passwort-Authentifizierung für Benutzer »x« fehlgeschlagen",
         "PostgreSQL error: …"),
        ("PostgreSQL error: ERROR:  out of memory\nDETAIL:  Failed on request of size 8", None),
        ("May Page Field Long", "…"),
    ],
)  # fmt: skip
def test_only_words_of_messages_are_kept(message: str, shown: str | None) -> None:
    assert outline(message) == (shown or "PostgreSQL error: ERROR: out of memory")


def test_unknown_messages_are_counted() -> None:
    line = f'{HEADER}PostgreSQL error: ERROR:  null value in column "x" violates\n'
    explained = explain(BytesIO((line * 3 + line.replace('"x"', '"y"')).encode()), "log")
    [unknown] = explained.unexplained
    assert (unknown.count, unknown.line, unknown.level) == (4, 1, "E")
    assert explained.status == "problem"


def test_messages_about_other_servers_are_not_postgresql() -> None:
    lines = (
        "E1126 06:00:43.123456 HTTP-1 HttpClient.cpp:90] Connection refused\n"
        "W1126 06:00:43.123456 MAIN main.cpp:945] Loading plugin(s) from: libOrthancPostgreSQLIndex.so\n"
    )
    explained = explain(BytesIO(lines.encode()), "log")
    assert not explained.messages
    assert not explained.unexplained
    page = views.page(explained, "/etc/orthanc")
    assert page.headline == "The log contains no messages of the PostgreSQL plugin."


@pytest.mark.parametrize(
    "line",
    [
        "E1126 06:00:43.123456 PluginsManager.cpp:153] {}",
        "2025-11-26T06:00:43Z orthanc-1  | E1126 06:00:43.123456 DB HOUSEKEEPING PluginsManager.cpp:153] {}",
        "Nov 26 06:00:43 pacs Orthanc[123]: E1126 06:00:43.123456 MAIN PluginsManager.cpp:155] {}",
    ],
)
def test_lines_of_containers_and_of_the_system_are_read(line: str) -> None:
    shown = line.format("PostgreSQL error: FATAL:  sorry, too many clients already")
    [message] = explain(BytesIO(f"\ufeff{shown}\r\n".encode()), "log").messages
    assert (message.text, message.first) == ("sorry, too many clients already", "11-26 06:00:43")


def test_lines_of_docker_in_json_are_read() -> None:
    inner = f'{HEADER}PostgreSQL error: FATAL:  database "x" does not exist\n'
    line = json.dumps({"log": inner, "stream": "stderr"})
    [message] = explain(BytesIO(line.encode()), "log").messages
    assert message.text == 'database "…" does not exist'


def test_a_line_that_was_copied_from_a_log_is_enough() -> None:
    [message] = explain(BytesIO(b'FATAL:  role "x" does not exist'), "log").messages
    assert (message.text, message.first) == ('role "…" does not exist', None)
    page = views.page(explain(BytesIO(b'FATAL:  role "x" does not exist'), "log"), "/etc/orthanc")
    assert "Logged once, in line 1." in text(page, Medium())


@pytest.mark.parametrize("content", [b"", b"nothing\nof interest\n", os.urandom(30_000)])
def test_what_is_no_log_is_refused(content: bytes) -> None:
    with pytest.raises(PgOrthancError, match="contains no line of an Orthanc log"):
        explain(BytesIO(content), "file")


class Endless(RawIOBase):
    """A log of many different messages, and lines without end."""

    def __init__(self, lines: int) -> None:
        self._lines = iter(self._made(lines))
        self._rest = b""

    @staticmethod
    def _made(lines: int) -> Iterator[bytes]:
        for number in range(lines):
            yield f"{HEADER}PostgreSQL error: {' lock' * (number % 500)}\n".encode()
            yield b"x" * 2000 + b"\n" * (number % 50 == 0)

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1) -> bytes:
        self._rest = self._rest or next(self._lines, b"")
        limit = len(self._rest) if size is None or size < 0 else size
        line, self._rest = self._rest[:limit], self._rest[limit:]
        return line


def test_memory_does_not_depend_on_the_log() -> None:
    peaks = []
    for lines in (2_000, 6_000):
        tracemalloc.start()
        explained = explain(Endless(lines), "log")  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(explained.unexplained) <= 100
    assert peaks[1] < peaks[0] * 1.2 + 50_000


def run(*words: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.main, ["explain-log", *words], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_shows_findings_as_a_result_and_not_as_an_error() -> None:
    code, out, err = run(str(FOLDER / "real" / "wrong-password.log"), "--config", "/srv/my orthanc")
    assert (code, err) == (6, "")
    assert out.startswith("The log shows 1 problem of the PostgreSQL plugin.\n")
    assert "    pgorthanc check-auth --config '/srv/my orthanc'\n" in out


def test_the_command_reads_standard_input_and_writes_json() -> None:
    code, out, err = run("-", "--json", stdin=f"{HEADER}Corrupted database\n".encode())
    assert (code, err) == (6, "")
    document = json.loads(out)
    assert document["file"] == "standard input"
    assert [message["text"] for message in document["messages"]] == ["Corrupted database"]


def test_a_log_without_problems_is_good_and_with_quiet_silent() -> None:
    log = b"W1126 06:00:43.123456 MAIN PluginsManager.cpp:159] PostgreSQL index is finalizing\n"
    code, out, _ = run("-", stdin=log)
    assert code == 0
    assert out.startswith("The log shows no problems of the PostgreSQL plugin.\n")
    assert run("-", "-q", stdin=log) == (0, "", "")


def test_a_file_that_is_no_log_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a\x1bb"
    path.write_text("nothing")
    code, out, err = run(str(path))
    assert (code, out) == (1, "")
    assert "contains no line of an Orthanc log" in err
    assert "\x1b" not in err


def test_the_command_writes_a_web_page_for_its_owner_only(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, err = run(str(FOLDER / "real" / "killed-server.log"), "--html", str(page))
    assert (code, err) == (6, "")
    assert out.startswith("The log shows 2 problems")
    assert "✗ problem" in page.read_text("utf-8")
    assert page.stat().st_mode & 0o777 == 0o600
