"""Configurations for Orthanc, good, odd and broken, from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """Files of a folder, and an environment; `stricter`: we refuse it on purpose, whatever Orthanc does."""

    name: str
    files: dict[str, bytes]
    environ: dict[str, str] = field(default_factory=dict)
    stricter: bool = False


def _one(text: str | bytes, environ: dict[str, str] | None = None, *, stricter: bool = False) -> Case:
    content = text if isinstance(text, bytes) else text.encode()
    return Case(f"{content[:60]!r} {len(content)} {environ}", {"a.json": content}, environ or {}, stricter)


VALUES = [
    "1.5e", "--1", "1-2", "1E+2", "-", "+", "1.2.3", "9223372036854775807", "18446744073709551616", "1a", "truex",
    "true false", '"a" "b"', r'"\/\b\f\n\r\t"', r'"\u12"', r'"\uZZZZ"', r'"\u00e9"', r'"\ud83d\ude00"', r'"\ud83d"',
    "/ 1", "1 /* c */", "/* c */1", "// c\n1", "[1 2]", "[,1]", "[1", '{"":1}', '{"a":1 "b":2}', "{,}", '{"a":1,,}',
    "1" * 309, "0" * 400 + "1", "1." + "1" * 400,
    "nul", "NULL", "True", ".", ".5", "1.", "1e5.5", "-0", "010", "-01", "+1", "+-1", "0x10", "NaN", "-Infinity",
    "[1,/*c*/]", "[1/*c*/,/*d*/2]", "[/*c*/]", '{"a":1,/*c*/}', "[[[[1],],],]", '"a\tb"', '"a\nb"', '"\x7f"',
    r'"\q"', "'b'", '"', '"a // b /* c */ d"', r'"\" // x"', "12345678901", "1e-2", "null", "[null,1]", "[]", "{}",
    '{"a":1,"a":2}', '{"a":{"x":1},"a":{"y":2}}', "\u00a01", "\x0b1", "1 .5", r'"\u0000"',
]  # fmt: skip


def broken_and_odd() -> Iterator[Case]:
    for value in VALUES:
        yield _one(f'{{"A":{value}}}')
    for text in (
        '{"A":1,}', '{"A":1,,}', "{'A':1}", "{1:2}", "{A:1}", '{"A"}', '{"A" 1}', '{"A":1 # c\n}', "", "  ", "[]",
        '"x"', "null", '{"A":1} nonsense', '{"A":1} {}', '{"A":1}}', '{"A":1} // x', '{"A":1} /* x', '{"A":1, /* x }',
        '{/* x /* y */ "A":1}', '{"A":1 // c /* d\n,"B":2 /* e */}', "\ufeff" + '{"A":1}', "\ufeff\ufeff" + '{"A":1}',
        '{ // c\r"A":1}', 'x{"A":1}', '/{"A":1}', '{/**/"A":1}', '{/*/"A":1}', '{"A":1/* ** / * */}', '{"A":1}//',
        '{"A":1,"A":2}', '{"postgresql":{}}',
    ):  # fmt: skip
        yield _one(text)
    yield _one('{"A":1 /* \xe9 */}'.encode("latin-1"))
    yield _one('{"A":1}'.encode("utf-16"))
    yield _one('{"A":"\xe9"}'.encode("latin-1"), stricter=True)
    yield _one(r'{"A":"\ude00"}', stricter=True)
    for number in ("9" * 309, "-" + "9" * 400, "1" * 5000, "1e400", "1" * 400 + ".5"):
        yield _one(f'{{"A":{number}}}', stricter=True)  # infinite to JsonCpp 1.9.6


def variables() -> Iterator[Case]:
    environ = {
        "P": "5", "S": "str", "Q": 'a"b', "BS": r"a\b", "NL": "x\ny", "EMPTY": "", "V": "${P}", "OBJ": '{"z":1}',
        "C": "/* gone */ // x", "END": "*/ ", "FOO-BAR": "dash", "lower": "l",
    }  # fmt: skip
    values = [
        "${P}", '"${UNSET}"', "${UNSET}", '"${UNSET:-def}"', '"${UNSET:-}"', '"${S:-def}"', '"${EMPTY:-def}"',
        '"${EMPTY}"', '"${UNSET:-"x y"}"', "\"${UNSET:-'x y'}\"", "\"${UNSET:-'x y}\"",
        '"${UNSET:-http://x//y}"', '"${Q}"', '"${BS}"',
        '"${NL}"', '"${V}"', '"${UNSET:-${P}}"', r'"\${P}"', '"$${P}"', '"${ P }"', '"${FOO-BAR}"', '"${P:x}"',
        '"${a.b:-c}"', '"${}"', '"${:-c}"', '"${P"', '"${UNSET-def}"', '"${UNSET:-a}b}"', '"${UNSET:-a /* b */ c}"',
        '"${C}"', "1 ${C}\n", "${OBJ}", '"${UNSET:-a:-b}"', "${UNSET:-[1,2]}", "${UNSET:-'\"x\"'}", '"${UNSET:-a\'b}"',
        "\"${UNSET:-'a}b'}\"", '"${P:x:-y}"', r'"${UNSET:-a\"b}"', "${UNSET:-1 /* b */}", '"$ {P}"', '"${\n}"',
        '"${UNSET::-b}"', '"${S}${S}"', '"${${S}}"', "\"${UNSET:-'a\"b'}\"", '"${UNSET:-{}}"', '"${UNSET :-b}"',
        '"${UNSET:- b }"', '"${lower}"', '1 /* ${END} "',
    ]  # fmt: skip
    for value in values:
        yield _one(f'{{"A":{value}}}', environ)
    yield _one('{"A":1 // ${NL}}', environ, stricter=True)
    yield _one('{"${S}":1}', environ)
    yield _one('{/* ${UNSET} */ "A":"$H" // ${UNSET}\n}', environ)


def folders() -> Iterator[Case]:
    one = b'{"A":1}'
    for name, files in {
        "two": {"a.json": one, "b.json": b'{"B":2}'},
        "twice": {"a.json": one, "b.json": b'{"A":2}'},
        "twice, objects": {"a.json": b'{"A":{"x":1}}', "b.json": b'{"A":{"y":2}}'},
        "upper case": {"a.JSON": one, "b.Json": b'{"B":1}'},
        "other endings": {"a.json": one, "b.jsn": b"x", "c.json.bak": b"x", "d.conf": b"x", "e.json~": b"x"},
        "hidden": {".json": b'{"H":1}', ".h.json": b'{"I":1}'},
        "sub-folders": {"s/b.json": b'{"A":1}', "s.json/b.json": b'{"B":1}'},
        "one of them empty": {"a.json": one, "b.json": b""},
        "one of them broken": {"a.json": one, "b.json": b"x"},
        "one of them a list": {"a.json": one, "b.json": b"[]"},
        "one of them {}": {"a.json": one, "b.json": b"{}"},
        "keys that differ in case": {"a.json": one, "b.json": b'{"a":1}'},
        "nothing": {},
    }.items():
        yield Case(f"folder: {name}", dict(files))


def generated(rng: random.Random, count: int) -> Iterator[Case]:
    """Random documents with comments, variables and commas in odd places; every third one is damaged."""
    for number in range(count):
        environ = {"X": rng.choice(["1", "a b", "", "//", "{}"]), "Y": "true"}
        text = _object(rng, 0)
        if number % 3 == 0:
            at = rng.randrange(len(text))
            text = rng.choice(
                [text[:at] + text[at + 1 :], text[:at] + rng.choice('{}[]",:/*\\1') + text[at:], text[:at]]
            )
        # Half of a pair of surrogates is left over sometimes.
        yield Case(f"generated {number}", {"a.json": text.encode()}, environ, stricter="\\ud" in text)


def _object(rng: random.Random, depth: int) -> str:
    keys = rng.sample(
        ["A", "B", "PostgreSQL", "Host", "é", "x y", "a//b", '\\"', "Plugin"], rng.randint(0, 4)
    )
    members = [
        f'{_gap(rng)}"{key}"{_gap(rng, 0.05)}:{_gap(rng)}{_value(rng, depth)}{_gap(rng)}' for key in keys
    ]
    return "{" + ",".join(members) + ("," if members and rng.random() < 0.2 else "") + _gap(rng) + "}"


def _value(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return _object(rng, depth + 1)
    if kind == 7:
        elements = [_value(rng, depth + 1) + _gap(rng) for _ in range(rng.randint(0, 3))]
        return "[" + ",".join(elements) + ("," if elements and rng.random() < 0.2 else "") + "]"
    if kind == 5:
        return rng.choice(['"${X}"', '"a${X:-d}b"', '"${Z:-d}"', "${Y}", '"${Z}"', "${Z:-17}"])
    if kind >= 3:
        return json.dumps(
            "".join(rng.choice("ab é日😀/*\\\"'{}[]:,//\n\t$") for _ in range(rng.randint(0, 12))),
            ensure_ascii=rng.random() < 0.5,
        )
    return rng.choice(["true", "false", "null", "0", "-1", "5432", "1.5", "1e3", "007", "+2", "3."])


def _gap(rng: random.Random, comments: float = 0.5) -> str:
    if rng.random() < comments:
        return rng.choice(['/* " { */', "// ] '\n", "/**/"])
    return rng.choice(["", " ", "\n", "\t", "\r\n"])
