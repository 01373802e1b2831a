"""`config set` changes one value and nothing else, whatever the file looks like."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pgorthanc_cli import cli
from pgorthanc_cli.config import documents, edit, jsontext
from pgorthanc_cli.errors import PgOrthancError, UsageError

SECRET = "x7-Lq0-secret-Wz"


def change(path: Path, key: str, value: Any, **environ: str) -> edit.Edited:
    return edit.set_option(path, edit.key_of(key), value, environ=environ)


@pytest.mark.parametrize(
    ("before", "key", "value", "after"),
    [
        # a value is replaced where it stands
        ('{\n "PostgreSQL" : { "Port" : 1 /* why */ } // x\n}', "Port", 2,
         '{\n "PostgreSQL" : { "Port" : 2 /* why */ } // x\n}'),
        ('{"PostgreSQL":{"Host":"${H}"}}', "Host", "h", '{"PostgreSQL":{"Host":"h"}}'),
        ('{"PostgreSQL":{"Port":${P},"Host":"h"}}', "Port", 5, '{"PostgreSQL":{"Port":5,"Host":"h"}}'),
        ('{"A":"${H}","PostgreSQL":{"Port":1,"Port":2}}', "Port", 3, '{"A":"${H}","PostgreSQL":{"Port":1,"Port":3}}'),
        ('{"Name":"a"} rest', "Name", "b", '{"Name":"b"} rest'),
        ("\ufeff{'}'}".replace("'}'", '"Name":"a"'), "Name", "b", '\ufeff{"Name":"b"}'),
        # a new one comes last, in the style of its neighbours
        ('{"PostgreSQL":{"Port":1}}', "Host", "h", '{"PostgreSQL":{"Port":1, "Host":"h"}}'),
        ('{"PostgreSQL":{"Port":1,}}', "Host", "h", '{"PostgreSQL":{"Port":1, "Host":"h",}}'),
        ('{\n  "PostgreSQL": {\n    "Port": 1 // the port\n  }\n}', "Host", "h",
         '{\n  "PostgreSQL": {\n    "Port": 1, // the port\n    "Host": "h"\n  }\n}'),
        ('{\n\t"PostgreSQL": {\n\t\t"Port": 1, // the port\n\t\t// end\n\t}\n}', "Host", "h",
         '{\n\t"PostgreSQL": {\n\t\t"Port": 1, // the port\n\t\t"Host": "h"\n\t\t// end\n\t}\n}'),
        ('{\r\n  "PostgreSQL" : {\r\n    "Port" : 1\r\n  }\r\n}', "Host", "h",
         '{\r\n  "PostgreSQL" : {\r\n    "Port" : 1,\r\n    "Host" : "h"\r\n  }\r\n}'),
        ('{\n  "PostgreSQL": {\n    "Port": 1 /* a\n b */ }\n}', "Host", "h",
         '{\n  "PostgreSQL": {\n    "Port": 1, "Host": "h" /* a\n b */ }\n}'),
        ('{\n  "PostgreSQL" : {}\n}', "Host", "h", '{\n  "PostgreSQL" : {\n    "Host" : "h"\n  }\n}'),
        ('{\n  "A" : 1\n}', "Host", "h", '{\n  "A" : 1,\n  "PostgreSQL" : {\n    "Host": "h"\n  }\n}'),
        ("{}", "Name", "n", '{\n  "Name" : "n"\n}'),
        ('{"A":1}', "Name", "n", '{"A":1, "Name":"n"}'),
        # one is removed with its comma, and its line
        ('{\n  "PostgreSQL": {\n    "Host": "h",\n    "Port": 1\n  }\n}', "Port", None,
         '{\n  "PostgreSQL": {\n    "Host": "h"\n  }\n}'),
        ('{\n  "PostgreSQL": {\n    "Host": "h", // x\n    "Port": 1 // y\n  }\n}', "Port", None,
         '{\n  "PostgreSQL": {\n    "Host": "h", // x\n     // y\n  }\n}'),
        ('{"PostgreSQL":{"Host":"h","Port":1}}', "Host", None, '{"PostgreSQL":{"Port":1}}'),
        ('{"PostgreSQL":{"Host":"h"}}', "Host", None, '{"PostgreSQL":{}}'),
        # what Orthanc would take for a variable is no variable
        ('{"PostgreSQL":{"Host":"h"}}', "Password", "a${H}b", '{"PostgreSQL":{"Host":"h", "Password":"a\\u0024{H}b"}}'),
        ('{"PostgreSQL":{"Host":"h"}}', "Host", 'q"\\é\n', '{"PostgreSQL":{"Host":"q\\"\\\\é\\n"}}'),
    ],
)  # fmt: skip
def test_layout_stays(tmp_path: Path, before: str, key: str, value: Any, after: str) -> None:
    path = tmp_path / "orthanc.json"
    path.write_bytes(before.encode())
    found = change(path, key, value, H="from outside", P="17")
    assert path.read_bytes().decode() == after
    assert found.changed
    assert Path(found.backup).read_bytes().decode() == before


def comments(text: str) -> list[str]:
    return [text[start:end] for start, end in jsontext.comments(text)]


GAPS = st.sampled_from(["", " ", "\n", "\n    ", " // c }\n", '/* " , */', "\r\n", "\t"])
VALUES = st.sampled_from(
    ["1", '"x"', "true", '"${H}"', "[1, /* , */ 2]", '{"Port": 7}', "null", '"a // b"', "${P}"]
)
NAMES = st.lists(st.sampled_from(["Port", "Host", "Database", "Lock", "Zzz"]), max_size=4, unique=True)


@st.composite
def texts(draw: st.DrawFn) -> str:
    def members(names: list[str], value: str) -> str:
        listed = [f'{draw(GAPS)}"{n}" :{draw(GAPS)}{value or draw(VALUES)}{draw(GAPS)}' for n in names]
        return "{" + ",".join(listed) + draw(st.sampled_from(["", ","] if names else [""])) + draw(GAPS) + "}"

    inner = members(draw(NAMES), "")
    return (
        draw(GAPS)
        + members(["Name", "PostgreSQL"] if draw(st.booleans()) else ["PostgreSQL"], inner)
        + draw(GAPS)
    )


@settings(max_examples=300, deadline=None)
@given(text=texts(), key=st.sampled_from(["Port", "Host", "Schema"]), value=st.sampled_from([None, 5, "x y"]))
def test_any_layout_is_kept(
    tmp_path_factory: pytest.TempPathFactory, text: str, key: str, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(text.encode())
    environ = {"H": "h", "P": "3"}
    wanted = documents.read(path, environ).values
    if value is None:
        wanted["PostgreSQL"].pop(key, None)
    else:
        wanted["PostgreSQL"][key] = value
    found = change(path, key, value, **environ)
    now = path.read_bytes().decode()
    assert documents.read(path, environ).values == wanted
    before, after = comments(text), comments(now)
    assert before == after if found.before == "not given" else set(after) <= set(before)
    if found.changed:
        assert Path(found.backup).read_bytes().decode() == text
        os.unlink(found.backup)


def test_owner_mode_and_bytes_stay(tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_bytes(b'{"Name": "a" /* d\xe9j\xe0 */}')
    real.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(real)
    found = change(link, "Name", "b")
    assert link.is_symlink()
    assert real.read_bytes() == b'{"Name": "b" /* d\xe9j\xe0 */}'
    assert real.stat().st_mode & 0o777 == 0o640 == Path(found.backup).stat().st_mode & 0o777
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["real.json", "link.json", Path(found.backup).name]
    )
    assert not found.backup.endswith(".json")  # else Orthanc would read it as a part of the folder


def test_nothing_is_written_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text('{"PostgreSQL": {"Port": 1}}')
    for found in (
        change(path, "Port", 1),
        change(path, "Host", None),
        edit.set_option(path, ("PostgreSQL", "Port"), 2, environ={}, dry_run=True),
    ):
        assert (found.changed, found.backup) == (False, "none")
    assert [file.name for file in tmp_path.iterdir()] == ["orthanc.json"]
    assert path.read_text() == '{"PostgreSQL": {"Port": 1}}'


def test_the_file_of_a_folder_that_holds_the_section(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"Name": "x"}')
    (tmp_path / "b.json").write_text('{"PostgreSQL": {}}')
    assert change(tmp_path, "Port", 1).file == str(tmp_path / "b.json")
    assert change(tmp_path, "Name", "y").file == str(tmp_path / "a.json")
    assert change(tmp_path, "StableAge", 60).file == str(tmp_path / "b.json")
    (tmp_path / "b.json").unlink()
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(PgOrthancError, match=r'no file in .* holds "PostgreSQL", and there are 2'):
        change(tmp_path, "Port", 1)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('{"PostgreSQL": ${S}}', "Port", "comes from an environment variable"),
        ('{"PostgreSQL": {${M}}}', "Port", "comes from an environment variable"),
        ('{"PostgreSQL": 5}', "Port", "is an integer .5., wanted an object"),
        ("{", "Port", "not valid JSON"),
    ],
)
def test_what_cannot_be_changed_is_refused(tmp_path: Path, text: str, key: str, message: str) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text(text)
    with pytest.raises(PgOrthancError, match=message):
        change(path, key, 2, S='{"Port": 1, "Host": "h"}', M='"Port": 1, "Host": "h"')
    assert path.read_text() == text
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("Prot", "1", 'did you mean "Port"?'),
        ("PostgreSQL.Prot", "1", 'did you mean "Port"?'),
        ("Mysql.Port", "1", "no option|knows an option"),
        ("Port", "x", "wanted an integer"),
        ("Port", "70000", "wanted 1 to 65534"),
        ("Lock", "yes", "wanted true or false"),
        ("AdvancedStorage.Enable", "yes", "wanted true or false"),
        ("AdvancedStorage.Enabled", "true", "knows an option"),
        ("TransactionMode", "Fast", "wanted one of ReadCommitted"),
        ("StorageCompression", "1", "wanted true or false"),
        ("ConnectionUri", "postgresql://u%zz@h/d", "no connection string"),
    ],
)
def test_wrong_keys_and_values(key: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        edit.value_of(edit.key_of(key), text)
    assert re.search(message, f"{caught.value} {caught.value.hint}")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("Port", "5433", 5433), ("Host", "5433", "5433"), ("Password", "true", "true"), ("Lock", "false", False),
        ("OverwriteInstances", "true", True), ("OverwriteInstances", "IfChanged", "IfChanged"),
        ("Plugins", '["a", "b"]', ["a", "b"]), ("StableAge", "60", 60), ("Name", "Here", "Here"),
        ("AdvancedStorage.Enable", "false", False),
    ],
)  # fmt: skip
def test_values(key: str, text: str, value: object) -> None:
    assert edit.value_of(edit.key_of(key), text) == value


def test_a_password_comes_from_standard_input_only(tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text('{"PostgreSQL": {"Password": "old-' + SECRET + '"}}')
    words = ["config", "set", "--config", str(path), "Password"]
    for key, value in (
        ("Password", SECRET),
        ("ConnectionUri", f"postgresql://u:{SECRET}@h/d"),
        ("ConnectionUri", f"host=h password={SECRET}"),
    ):
        refused = CliRunner().invoke(cli.main, [*words[:-1], key, value])
        assert (refused.exit_code, "standard input" in refused.stderr) == (2, True)
        assert SECRET not in refused.output
    done = CliRunner().invoke(cli.main, [*words, "-", "--json"], input=f"{SECRET}\n")
    assert done.exit_code == 0, done.output
    assert (json.loads(done.stdout)["after"], SECRET in done.output) == ('"***"', False)
    assert documents.read(path, {}).values == {"PostgreSQL": {"Password": SECRET}}


@pytest.mark.parametrize("words", [["Port"], ["Port", "1", "--unset"]])
def test_a_value_or_unset(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text("{}")
    result = CliRunner().invoke(cli.main, ["config", "set", "--config", str(path), *words])
    assert (result.exit_code, "give a VALUE, or --unset" in result.stderr) == (2, True)
