"""Bodies of functions: ours, those of the plugins, and unknown ones.

Ours are read from the scripts, and compared without comments and white space. Those of the plugins are known by
their MD5 in `catalogs/functions.json`, of the source with each run of white space as one blank.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import catalogs, db
from pgorthanc_cli.schema import catalog, steps

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

OURS = "pgorthanc"
UNKNOWN = "unknown"

_STATEMENT = re.compile(
    r"^CREATE (?:OR REPLACE )?(?P<rest>FUNCTION (?P<name>\w+)\(.*?\bAS \$\$(?P<body>.*?)\$\$;)$",
    re.DOTALL | re.MULTILINE,
)
_BODIES = """
    SELECT format('function %s(%s)', proname, pg_get_function_identity_arguments(oid)), prosrc
        FROM pg_proc WHERE pronamespace = quote_ident(index_schema())::regnamespace"""

# Later bodies that do the same at these earlier revisions: the official downgrades leave them.
_FITS_BELOW = {
    "attachedfileincrementsizefunc": range(2, 7),
    "attachedfiledecrementsizefunc": range(2, 7),
    "incrementresourcestrackerfunc": range(2, 7),
    "decrementresourcestrackerfunc": range(2, 7),
    "updatechildcount": range(4, 7),
    "updateinvalidchildcounts": range(4, 6),
}
# Bodies of the plugin that differ in comments only, from the first of these revisions to the last.
_SAME_BODY = {"createdeletedfilestemporarytable": range(5, 11)}

# What a body consists of: comments (those of /* */ nest, see `code`), literals with their prefix, quoted names, and
# what stands between. A white space in a literal counts, a backslash only in E''.
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*)
    |(?P<literal>\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<dollar>\$(?:[^\W\d]\w*)?\$).*?(?P=dollar))
    |(?P<space>\s+)
    |(?P<word>\w[\w$]*|.)""",
    re.DOTALL | re.VERBOSE,
)
_COMMENT_BOUNDARY = re.compile(r"/\*|\*/")


@dataclass(frozen=True)
class Definition:
    """A function as one of our scripts makes it; `digest` is that of its code."""

    statement: str
    digest: str


@dataclass(frozen=True)
class Origin:
    """Where a body comes from.

    Attributes:
        name: `pgorthanc`, `plugin 10.3`, or `unknown`.
        fits: Whether it belongs to the revision, or does the same.
        revision: The revision that it belongs to, None if unknown.
    """

    name: str
    fits: bool
    revision: int | None


@dataclass(frozen=True)
class Body:
    """What identifies a body: a digest of all of it, whatever its indentation, and one of its code.

    Attributes:
        text: MD5 with each run of white space as one blank, as in `catalogs/functions.json`.
        code: MD5 without comments, and with the same white space between any two words.
    """

    text: str
    code: str

    @classmethod
    def of(cls, source: str) -> Body:
        """Return the digests of a source."""
        return cls(_md5(" ".join(source.split())), _md5(code(source)))


def code(source: str) -> str:
    """Return SQL or PL/pgSQL without comments, its tokens separated by one blank; literals stay as they are."""
    tokens, position = [], 0
    while match := _TOKEN.match(source, position):
        position = match.end()
        if match["comment"] == "/*":
            position = _end_of_comment(source, position)
        elif not match["comment"] and not match["space"]:
            tokens.append(match[0])
    return " ".join(tokens)


def _end_of_comment(source: str, position: int) -> int:
    depth = 1
    while depth and (boundary := _COMMENT_BOUNDARY.search(source, position)):
        depth += 1 if boundary[0] == "/*" else -1
        position = boundary.end()
    return len(source) if depth else position


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def bodies(conn: Connection) -> dict[str, Body]:
    """Return the digests of all functions of the current schema, by name and arguments as in a catalog."""
    return {name: Body.of(body) for name, body in db.rows(conn, _BODIES)}


def bare(name: str) -> str:
    """Return the name of a function without its arguments."""
    return name.removeprefix("function ").partition("(")[0]


class Bodies:
    """All bodies that are known, for one revision after the other."""

    def __init__(self) -> None:
        self._ours = _ours()
        self._released = catalogs.load("functions.json")

    def origin(self, name: str, actual: Body, revision: int) -> Origin:
        """Return where the body of a function comes from, at best from its own revision."""
        signature = name.removeprefix("function ")
        releases = [entry for entry in self._released if entry["functions"].get(signature) == actual.text]
        same = _SAME_BODY.get(bare(name), ())
        for entry in sorted(releases, key=lambda entry: bool(entry["revision"] != revision)):
            if entry["revision"] == revision or (entry["revision"] in same and revision in same):
                return Origin(entry["release"], True, entry["revision"])
        known = [
            (OURS, number)
            for number, of in self._ours.items()
            if any(definition.digest == actual.code for definition in of.get(bare(name), ()))
        ]
        if (OURS, revision) in known:
            return Origin(OURS, True, revision)
        known += [(entry["release"], entry["revision"]) for entry in releases]
        if not known:
            return Origin(UNKNOWN, False, None)
        release, number = min(known, key=lambda one: abs(one[1] - revision))
        fits = number > revision and revision in _FITS_BELOW.get(bare(name), ())
        return Origin(release, fits, number)

    def statement(self, name: str, revision: int) -> str:
        """Return the statement that creates or replaces a function, as `init` does it at a revision."""
        return self._ours[revision][bare(name)][0].statement


def _ours() -> dict[int, dict[str, list[Definition]]]:
    """Return by revision and name all bodies that a sequence of scripts may leave, the one of `init` first.

    A script either replaces a function or leaves the one of the revision that it starts from.
    """
    newest = catalog.revisions()[-1]
    known: dict[int, dict[str, list[Definition]]] = {newest: _of(steps.PREPARE_INDEX)}
    path = [*steps.path(newest, min(catalog.revisions())), *steps.all_steps()]
    replaced = {step.script: _of(step.script) for step in path}
    # A step can pass on what another one brings: repeat until nothing is new.
    grown = True
    while grown:
        grown = False
        for step in path:
            here = known.setdefault(step.end, {})
            for name, definitions in {**known.get(step.start, {}), **replaced[step.script]}.items():
                there = here.setdefault(name, [])
                new = [one for one in definitions if one.digest not in {other.digest for other in there}]
                there += new
                grown = grown or bool(new)
    return known


def _of(script: str) -> dict[str, list[Definition]]:
    """Return the functions that a script creates."""
    return {
        match["name"]: [Definition(f"CREATE OR REPLACE {match['rest']}", _md5(code(match["body"])))]
        for match in _STATEMENT.finditer(steps.text(script))
    }
