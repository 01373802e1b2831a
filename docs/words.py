"""Lists words that read like a translation, in text that users see: words.py (`make words`).

It searches the string constants of the package (not its docstrings), README.md and
docs/*.md, and proposes what to write instead. Exits with 0 whatever it finds: a word can
be right, as in an error message of Orthanc that is quoted.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

REPLACEMENTS = {
    r"mend(?:s|ed|ing)?": "repair",
    r"anew": "again; or name the operation: rebuild, recount",
    r"in vain": "timed out; without success",
    r"left-overs?": "leftovers, orphans",
    r"somebody": "another session, another program, an administrator",
    r"nobody": "no session, no program",
    r"everybody": "all sessions, any user",
    r"for want of": "because … is missing",
    r"goes away": "is dropped, is removed",
    r"stands? on": "depends on, uses",
    r"hurts": "is harmful, slows down",
    r"told": "reported, configured, distinguished",
}
ODD_WORDS = re.compile(rf"\b(?:{'|'.join(REPLACEMENTS)})\b", re.IGNORECASE)


def prose() -> list[Path]:
    """Return the documents that users read."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def texts() -> Iterator[tuple[Path, int, str]]:
    """Yield file, number of the line, and line of all text that users see."""
    for path in prose():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            yield path, number, line
    for path in sorted((ROOT / "pgorthanc_cli").rglob("*.py")):
        for number, line in _strings(ast.parse(path.read_text("utf-8"))):
            yield path, number, line


def _strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the lines of all string constants except docstrings; those of commands are their help."""
    docstrings: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and not _is_command(node):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr):
                docstrings.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


def _is_command(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any("command" in ast.unparse(decorator) for decorator in decorators)


def main() -> None:
    """Print each place, and the number of each word."""
    for path, number, line in texts():
        for match in ODD_WORDS.finditer(line):
            advice = next(
                a for word, a in REPLACEMENTS.items() if re.fullmatch(word, match[0], re.IGNORECASE)
            )
            print(f"{path.relative_to(ROOT)}:{number}: {match[0]} ({advice}): {line.strip()[:100]}")


if __name__ == "__main__":
    main()
