"""Why files were refused: how many for each reason, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgorthanc_cli.ingest.model import FileProblem

OTHERS = "others"
MAX_REASONS = 2_000
# What differs between files that are refused for the same reason: tags, quoted texts, numbers.
_VALUES = re.compile(r"\([0-9a-f]{4},[0-9a-f]{4}\)|'[^']*'|\"[^\"]*\"|\d+")


@dataclass
class Reason:
    """Files refused for one reason.

    Attributes:
        text: The reason, with … for the words that differ from file to file.
        count: Of files.
        examples: Paths of some of them; only recorded if asked for.
    """

    text: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Reasons:
    """Counts refused files by reason."""

    def __init__(self, *, max_reasons: int = MAX_REASONS, max_examples: int = 0) -> None:
        """Files of further reasons are counted as `OTHERS`."""
        self._max_reasons = max_reasons
        self._max_examples = max_examples
        self._by_kind: dict[str, Reason] = {}

    def __iter__(self) -> Iterator[Reason]:
        """Yield the reasons, the most frequent first, the others last."""
        return iter(sorted(self._by_kind.values(), key=lambda r: (r.text == OTHERS, -r.count)))

    def add(self, refusal: FileProblem) -> None:
        """Count a file."""
        kind = _VALUES.sub("0", refusal.reason)
        if kind not in self._by_kind and len(self._by_kind) >= self._max_reasons:
            kind = OTHERS
        text = OTHERS if kind == OTHERS else refusal.reason
        reason = self._by_kind.setdefault(kind, Reason(text))
        if kind != OTHERS:
            reason.text = _common_words(reason.text, refusal.reason)
        reason.count += 1
        if len(reason.examples) < self._max_examples:
            reason.examples.append(refusal.path)


def _common_words(one: str, other: str) -> str:
    """Return a text, with … for the words in which the two differ."""
    if one == other:
        return one
    pairs = zip(one.split(" "), other.split(" "), strict=False)
    return " ".join(a if a == b else "…" for a, b in pairs)
