"""Configurations and files that hang, crash or mislead a reader: refused in linear time, with a reason and a place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgorthanc_cli import cli, config, db
from pgorthanc_cli import files as disk
from pgorthanc_cli.config import ConfigurationError, check, deployment, documents, jsontext
from pgorthanc_cli.config.deployment import Deployment
from pgorthanc_cli.errors import UsageError

SECRET = "x7-Lq0-secret-Wz"


def read(tmp_path: Path, text: str) -> check.Checked:
    path = tmp_path / "orthanc.json"
    path.write_text(text)
    return check.check(Deployment.of(documents.read(path, {}), tmp_path))


def run(*words: str | Path, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """The program, which has to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "pgorthanc_cli", *map(str, words)],
        input=stdin, capture_output=True, text=True, timeout=60, env={**os.environ, **environ},
    )  # fmt: skip


# Files that are none


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "pipes" / "a.json"
    path.parent.mkdir()
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("config", "check", "--offline", "--config", "FIFO"),
        ("config", "check", "--offline", "--config", "FOLDER"),
        ("config", "show", "--container", "--env-file", "FIFO"),
        ("config", "set", "Port", "1", "--config", "FIFO"),
        ("status", "--config", "FIFO"),
        ("status", "--password-file", "FIFO"),
        ("init", "--create-role", "r", "--dbname", "d", "--role-password-file", "FIFO"),
        ("server", "start", "--dir", "SERVER", "--password-file", "FIFO"),
        ("import", "--schedule", "FIFO", "--storage-dir", "SERVER", "FOLDER"),
        ("import", "--storage-dir", "SERVER", "--files-from", "FIFO"),
    ],
)
def test_a_named_pipe_is_refused(
    words: tuple[str, ...], fifo: Path, tmp_path: Path, empty: db.Target
) -> None:
    places = {"FIFO": fifo, "FOLDER": fifo.parent, "SERVER": tmp_path / "server"}
    given = [str(places.get(word, word)) for word in words]
    if words[0] == "init":
        given[4:5] = [db.parse_dsn(empty.dsn)["dbname"]]
    place = db.effective_parameters(empty)
    environ = {"PGHOST": place["host"], "PGPORT": place["port"], "PGUSER": place["user"]}
    ended = run(*given, **environ, **({"PGPASSWORD": place["password"]} if "password" in place else {}))
    assert ended.returncode not in (0, 1), ended.stderr
    assert "is a named pipe, not a regular file" in ended.stderr
    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize("variable", ["PGSERVICEFILE", "PGPASSFILE"])
def test_a_pipe_that_libpq_would_read(variable: str, fifo: Path) -> None:
    ended = run("status", "--host", "127.0.0.1", "--port", "1", **{variable: str(fifo), "PGSERVICE": "x"})
    assert ended.returncode in (2, 3)


def test_a_device_and_a_file_that_does_not_end(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a device, not a regular file"):
        disk.read("/dev/zero")
    (tmp_path / "large").write_bytes(b"x" * 1001)
    with pytest.raises(UsageError, match=r"larger than 0\.001 MB"):
        disk.read(tmp_path / "large", limit=1000)


def test_what_a_shell_hands_over_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"secret\n")
    os.close(writing)
    found = config.resolve(application="x", environ={}, password_file=f"/dev/fd/{reading}")
    os.close(reading)
    assert db.parse_dsn(found.target.dsn)["password"] == "secret"


# Numbers, keys, variables, depth


@pytest.mark.parametrize(
    "number", ["9" * 309, "-" + "9" * 400, "1" * 5000, "1." + "1" * 6000, "1e400", "+" + "1" * 400]
)
def test_numbers_that_no_number_holds(tmp_path: Path, number: str) -> None:
    with pytest.raises(ConfigurationError, match=r"line 2, column 6: .*(too large|not a number)"):
        read(tmp_path, f'{{\n"A": {number}}}')


@pytest.mark.parametrize("number", ["1" * 309, "0" * 6000 + "1", "-" + "0" * 400])
def test_long_numbers_that_can_be_read(tmp_path: Path, number: str) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text(f'{{"A": {number}}}')
    assert documents.read(path, {}).values["A"] == float(number)


KINDS: dict[str, Callable[[int], str]] = {
    "keys": lambda n: "{" + ",\n".join(f'"k{i}":{i}' for i in range(n)) + "}",
    "options of the section": lambda n: '{"PostgreSQL":{' + ",\n".join(f'"k{i}":{i}' for i in range(n)) + "}}",
    "array": lambda n: '{"A":[' + ",".join(map(str, range(5 * n))) + "]}",
    "twice": lambda n: "{" + ",\n".join(f'"k{i // 2}":{i}' for i in range(n)) + "}",
    "unset": lambda n: "{" + ",\n".join(f'"k{i}":"${{V{i}}}"' for i in range(n)) + "}",
    "unset in comments": lambda n: "{" + ",\n".join(f'"k{i}": 1 /* ${{V{i}}} */' for i in range(n)) + "}",
    "dollars": lambda n: '{"A":"' + "${" * (20 * n) + '"}',
    "dollars and colon": lambda n: '{"A":"' + "${" * (20 * n) + ':"}',
    "defaults": lambda n: '{"A":"' + "${a:-" * (20 * n) + '"}',
    "no end of a string": lambda n: '{"A":"${V}' + r"\"" * (20 * n),
    "no end of a comment": lambda n: '{"A":"${V}" ' + "/* " * (20 * n),
    "comments": lambda n: '{"A":1 ' + "/*x*/" * (10 * n) + "}",
    "deep": lambda n: '{"A":' * (20 * n),
}  # fmt: skip


def _seconds(text: str, path: Path) -> float:
    """Processor time, which others on this machine do not change much; the best of two."""
    path.write_text(text)
    best = 1e9
    for _ in range(2):
        begin = time.process_time()
        try:
            found = Deployment.of(documents.read(path, {}), path.parent)
        except ConfigurationError:
            pass
        else:
            check.check(found)
            deployment.show(found, everything=True)
        best = min(best, time.process_time() - begin)
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_grows_with_the_size_and_no_faster(tmp_path: Path, kind: str) -> None:
    small, large = (_seconds(KINDS[kind](n), tmp_path / "orthanc.json") for n in (500, 4000))
    assert large < 8 * 3 * max(small, 0.01)


def test_problems_of_one_kind_are_not_listed_without_end(tmp_path: Path) -> None:
    found = read(tmp_path, KINDS["unset"](5000))
    assert len(found.problems) < 1500
    assert any("4,900 more variables are not set" in problem.message for problem in found.problems)
    assert any(
        "4,000 more options that Orthanc does not know" in problem.message for problem in found.problems
    )


def test_depth_does_not_cost(tmp_path: Path) -> None:
    inner = "{" + ",".join(f'"x{i}":1' for i in range(50)) + "}"
    document = jsontext.parse(
        "{" + ",".join(f'"k{i}":' + '{"a":' * 150 + inner + "}" * 150 for i in range(5)) + "}"
    )
    assert sum(1 for _ in document.root.walk()) == 1 + 5 * (1 + 150 + 50)


# NUL


@pytest.mark.parametrize("key", ["Host", "Password", "Username", "Database", "ConnectionUri", "Schema"])
def test_a_nul_is_refused_and_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "orthanc.json"
    section = {"EnableIndex": True, "Host": "h", "Port": 1, key: f"{SECRET}\0evil"}
    path.write_text(json.dumps({"PostgreSQL": section}))
    with pytest.raises(ConfigurationError, match=f'"{key}" contains a NUL character'):
        config.load(path)
    result = CliRunner().invoke(cli.main, ["config", "check", "--offline", "--config", str(path)])
    assert (result.exit_code, f'"{key}" contains a NUL character' in result.stdout) == (6, True)
    if key in ("Password", "ConnectionUri"):
        assert SECRET not in result.output


def test_a_nul_in_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text(json.dumps({"StorageDirectory": "a\0b", "Plugins": ["/a\0b"]}))
    with pytest.raises(ConfigurationError, match=r'"StorageDirectory" contains a NUL character'):
        config.load(path)
    found = check.check(Deployment.of(documents.read(path, {}), tmp_path))
    assert any('"Plugins" contains a NUL' in problem.message for problem in found.problems)


def test_a_nul_in_any_other_source(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\0x\n")
    with pytest.raises(UsageError, match="NUL character") as refusal:
        config.resolve(application="x", environ={}, password_file=tmp_path / "password")
    assert SECRET not in str(refusal.value)
    for options in ({"uri": "host=h\0 user=u"}, {"host": "h\0x"}, {"dbname": "d\0x", "host": "h"}):
        with pytest.raises(UsageError, match="NUL character"):
            config.resolve(application="x", environ={}, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="NUL character"):
        config.resolve(application="x", environ={"PGORTHANC_PASSWORD": f"{SECRET}\0"})


def test_ctrl_c_ends_a_program_that_reads_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pgorthanc_cli", "status", "--password-file", f"/dev/fd/{reading}"],
        pass_fds=[reading], stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(reading)
    with process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.send_signal(signal.SIGINT)
        process.wait(20)
    os.close(writing)
    assert process.returncode in (130, -signal.SIGINT)
