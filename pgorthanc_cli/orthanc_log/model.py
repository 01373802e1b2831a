"""A message that is known, and how it is recognized."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

_WITHIN_LINE = r"[^\n]{0,300}?"


@dataclass(frozen=True)
class Message:
    """A message of the plugin, or of the PostgreSQL server that the plugin passes on.

    Attributes:
        text: Its words as Orthanc logs them; `…` stands for names and numbers.
        meaning: What has happened, and what follows from it.
        action: What to do about it; empty for messages of normal operation.
        command: The command that examines or solves it, without connection options.
        status: "consequence" of another message, which says the reason; "ok" for normal
            operation.
    """

    text: str
    meaning: str
    action: str = ""
    command: str = ""
    status: Literal["problem", "warning", "consequence", "ok"] = "problem"

    @cached_property
    def _literal(self) -> str:
        return max(self.text.split("…"), key=len)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_WITHIN_LINE.join(map(re.escape, self.text.split("…"))))

    def matches(self, text: str) -> bool:
        """Whether a text contains this message."""
        # Nearly all lines end here: to search for a constant is much faster.
        return self._literal in text and self._pattern.search(text) is not None
