"""Orthanc's JSON: places of values, and what is told beside them; the grammar itself is held against Orthanc."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgorthanc_cli import config
from pgorthanc_cli.config import ConfigurationError, documents, jsontext

DOCUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(document=DOCUMENTS, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_standard_json_is_read_as_python_does(
    document: dict[str, object], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    found = jsontext.parse(text)
    assert found.root.value == json.loads(text)
    for _, node in found.root.walk():
        assert json.loads(text[node.start : node.end]) == node.value
        for key, start in node.keys.items():
            assert json.JSONDecoder().raw_decode(text, start)[0] == key


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet='{}[]",:/*\\un12. -e\n', max_size=25))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    position = 0
    try:
        jsontext.parse(text)
    except jsontext.JsonError as error:
        position = error.position
    assert 0 <= position <= len(text)


def test_too_deep() -> None:
    with pytest.raises(jsontext.JsonError, match="too deeply"):
        jsontext.parse("[" * 100_000)


def read(tmp_path: Path, text: str, **environ: str) -> documents.Document:
    (tmp_path / "orthanc.json").write_text(text)
    return documents.read(tmp_path / "orthanc.json", environ)


def test_places_are_those_of_the_file_whatever_variables_hold(tmp_path: Path) -> None:
    text = '{\n"A" : "${LINES}", /* ${UNSET} */\n"B" : {\n "C" : ${ONE},\n "D" : ["${EMPTY}"], "E" : "x"}}'
    found = read(tmp_path, text, LINES="1\n2\n3", ONE="1", EMPTY="")
    assert {keys: place.rpartition(" ")[2] for keys, place in found.places.items()} == {
        ("A",): "2", ("B",): "3", ("B", "C"): "4", ("B", "D"): "5", ("B", "E"): "5",
    }  # fmt: skip
    assert found.location("B", "E", "deeper") == f"{tmp_path / 'orthanc.json'}, line 5"
    assert found.location("Z") == ""


def test_what_orthanc_passes_over_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, '{\n"A": "${UNSET}",\n"B": {"x": 1,\n"x": "a\tb"}}\n}')
    assert [(p.severity, p.key, p.place.rpartition(" ")[2]) for p in found.problems] == [
        ("error", "", "2"), ("warning", "B.x", "4"), ("warning", "", "5"), ("warning", "", "4"),
    ]  # fmt: skip
    messages = " ".join(problem.message for problem in found.problems)
    for words in (
        "variable UNSET is not set",
        "defined twice",
        "after the closing brace",
        "control character",
    ):
        assert words in messages
    assert found.values == {"A": "", "B": {"x": "a\tb"}}


def test_a_variable_that_is_not_set_stops_whoever_wants_to_connect(tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_text('{"PostgreSQL": {"Host": "${UNSET}"}}')
    with pytest.raises(ConfigurationError, match="line 1: the environment variable UNSET is not set"):
        config.load(path, {})
    path.write_text('{"PostgreSQL": {"Host": "h"} /* ${UNSET} */}')
    assert config.load(path, {}).postgresql("Host") == "h"


def test_a_value_without_quotes_whose_variable_is_not_set_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="UNSET is not set") as caught:
        read(tmp_path, '{"PostgreSQL": {"Port": ${UNSET}}}')
    assert caught.value.hint == "set UNSET, or give it a default: ${UNSET:-value}"


def test_a_hidden_file_of_a_folder_counts_and_a_dangling_link_is_no_file(tmp_path: Path) -> None:
    (tmp_path / ".json").write_text('{"A": 1}')
    assert documents.read(tmp_path, {}).values == {"A": 1}
    (tmp_path / "b.json").symlink_to("/nonexistent")
    with pytest.raises(ConfigurationError, match=r"b\.json: cannot be read"):
        documents.read(tmp_path, {})


def test_latin_1_is_fine_in_comments_only(tmp_path: Path) -> None:
    path = tmp_path / "orthanc.json"
    path.write_bytes(b'{"A": 1 /* d\xe9j\xe0 */}')
    assert documents.read(path, {}).values == {"A": 1}
