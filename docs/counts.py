"""Prints figures about the code that show where it gets harder to read: counts.py (`make counts`).

A figure is a sign, not an aim: do not trade clarity for it. The goals are those that the
project has set itself.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from words import ODD_WORDS, ROOT, prose

# Names that fit everything say nothing: a variable is called what it holds.
CATCH_ALL = re.compile(r"\b(?:found|wanted|told|made|shown)\b")
LONG_FILE = 400
GOALS = {
    "modules": "about 125",
    "lines": "about 25,500",
    "dataclasses": "at most 110",
    "functions called from one place": "at most 30 %",
    "line width, 90th percentile": "at most 90",
    "comments per 100 lines of code": "at least 3",
    "catch-all names": "at most 300",
    "odd words": "none",
}


@dataclass
class Code:
    """Everything that is counted in the modules of the package."""

    modules: int = 0
    dataclasses: int = 0
    comments: int = 0
    catch_all: int = 0
    odd_words: int = 0
    widths: list[int] = field(default_factory=list)
    blank_lines: int = 0
    body_lines: list[int] = field(default_factory=list)
    definitions: Counter[str] = field(default_factory=Counter)
    references: Counter[str] = field(default_factory=Counter)
    long_files: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, text: str) -> None:
        """Count a module."""
        lines = text.splitlines()
        filled = [line for line in lines if line.strip()]
        self.modules += 1
        self.blank_lines += len(lines) - len(filled)
        self.widths += map(len, filled)
        self.comments += sum(line.lstrip().startswith("#") for line in filled)
        self.catch_all += len(CATCH_ALL.findall(text))
        self.odd_words += len(ODD_WORDS.findall(text))
        if len(lines) > LONG_FILE:
            self.long_files[name] = len(lines)
        for node in ast.walk(ast.parse(text)):
            self._add_node(node)

    def _add_node(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef):
            self.definitions[node.name] += 1
            self.body_lines.append((node.end_lineno or 0) - node.body[0].lineno + 1)
        elif isinstance(node, ast.ClassDef):
            self.dataclasses += any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        elif isinstance(node, ast.Name):
            self.references[node.id] += 1
        elif isinstance(node, ast.Attribute):
            self.references[node.attr] += 1

    def called_once_percent(self) -> float:
        """Return the share of the functions whose name is defined once and used once."""
        names = [name for name in self.definitions if not name.startswith("__")]
        once = [name for name in names if self.definitions[name] == 1 == self.references[name]]
        return 100 * len(once) / len(names)

    def figures(self) -> Iterator[tuple[str, str]]:
        """Yield names and values."""
        lines = len(self.widths) + self.blank_lines
        code = len(self.widths) - self.comments
        body = [percentile(self.body_lines, share) for share in (0.5, 0.9, 1)]
        yield "modules", f"{self.modules:,}"
        yield "lines", f"{lines:,}"
        yield "dataclasses", f"{self.dataclasses:,}"
        yield "functions", f"{len(self.body_lines):,}"
        yield "functions called from one place", f"{self.called_once_percent():.0f} %"
        yield "lines of a function, median / 90th percentile / longest", " / ".join(map(str, body))
        yield "line width, 90th percentile", str(percentile(self.widths, 0.9))
        yield "comments per 100 lines of code", f"{100 * self.comments / code:.1f}"
        yield "catch-all names", f"{self.catch_all:,}"
        documents = sum(len(ODD_WORDS.findall(path.read_text("utf-8"))) for path in prose())
        yield "odd words", f"{self.odd_words + documents:,}"


def percentile(values: list[int], share: float) -> int:
    """Return the value that a share of all values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Print the figures beside their goals, and the long files."""
    code = Code()
    for path in sorted((ROOT / "pgorthanc_cli").rglob("*.py")):
        code.add(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    for name, value in code.figures():
        print(f"{name:56} {value:>12}  {GOALS.get(name, '')}".rstrip())
    for name, lines in code.long_files.items():
        print(f"over {LONG_FILE} lines: {name} ({lines})")


if __name__ == "__main__":
    main()
