"""How far a run has come, so that the next one goes on there.

Patients are done in the order of their internal ids, which only grow. So one number says
what is done. A journal that is lost costs time only: what is right is not written again.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pgorthanc_cli import files
from pgorthanc_cli.errors import PgOrthancError, UsageError
from pgorthanc_cli.reindex.model import Settings, Unreadable
from pgorthanc_cli.text import printable

_FORMAT = "pgorthanc reindex, journal 1"
_SAVE_S = 1.0


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        last_patient: Internal id: this patient and all with a lower one are done.
        newest: The highest internal id when the first run began.
        unreadable: Files that the runs before could not read.
    """

    last_patient: int = 0
    newest: int = 0
    unreadable: tuple[Unreadable, ...] = ()


@dataclass
class Journal:
    """A file with a position; without a path nothing is remembered."""

    path: Path | None
    identity: str
    settings: Settings
    position: Position = field(default_factory=Position)
    _saved: float = 0.0

    def load(self) -> None:
        """Read the position, if the file exists.

        Raises:
            UsageError: The file is something else, or of another index, or of other options.
            PgOrthancError: It cannot be read.
        """
        if self.path is None:
            return
        name = printable(str(self.path))
        try:
            document = json.loads(files.read(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise PgOrthancError(
                f"the journal {name} cannot be read: {error.strerror}", "name another file with --journal"
            ) from None
        except ValueError:
            document = None
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise UsageError(f"{name} is not a journal of reindex", "name another file with --journal")
        if document["index"] != self.identity:
            raise UsageError(f"{name} is the journal of another index", "name another file with --journal")
        if document["options"] != self._options():
            raise UsageError(
                f"{name} is the journal of a run with other tags, levels or resources",
                "give the same options, or remove the file to begin again",
            )
        stored = document["position"]
        unreadable = tuple(Unreadable(**each) for each in stored.pop("unreadable"))
        self.position = Position(**stored, unreadable=unreadable)

    def reach(self, last_patient: int, unreadable: list[Unreadable], *, now: bool = False) -> None:
        """Remember that all patients up to this one are done; saved every second, or `now`."""
        last = max(last_patient, self.position.last_patient)
        self.position = replace(self.position, last_patient=last, unreadable=tuple(unreadable))
        if self.path and (now or time.monotonic() - self._saved > _SAVE_S):
            self._saved = time.monotonic()
            document: dict[str, Any] = {
                "format": _FORMAT,
                "index": self.identity,
                "options": self._options(),
                "position": asdict(self.position),
            }
            files.replace(self.path, json.dumps(document))

    def finish(self) -> None:
        """Remove the file: a later run has to look at everything again."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def _options(self) -> str:
        """Return a digest of what decides which rows are written."""
        given = self.settings
        relevant = (
            given.profile, given.selection, sorted(given.levels), given.keep_first, given.limit_to_level,
        )  # fmt: skip
        return hashlib.sha256(repr(relevant).encode()).hexdigest()
