"""The seam between the conversion and the database that is converted.

A source is a package of `sources/`. It opens an index for a whole run as a `Source`; each
worker process gets a copy and reads it with a `Reader` of its own. Neither knows anything
of PostgreSQL but the names of its tables and columns, and the format of the lines that
COPY takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol
from zlib import crc32

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.migrate.model import Outcome

# COPY in the format csv, with delimiters that no sane value contains: nothing has to be
# escaped.
DELIMITER, QUOTE, NULL = "\x1f", "\x1e", "\x1d"
COPY_OPTIONS = "FORMAT csv, DELIMITER E'\\x1f', QUOTE E'\\x1e', NULL E'\\x1d'"

TargetTables = Mapping[str, frozenset[str]]
"""The tables of PostgreSQL that can be filled, and their columns."""


class Piece(NamedTuple):
    """Rows of a table of the source: those with ids greater than `after`, up to `last`."""

    table: str
    after: int
    last: int

    def __str__(self) -> str:
        """Return its name in the journal."""
        return f"{self.table} {self.after} {self.last}"


class Attachment(NamedTuple):
    """A file of the storage area as the index describes it.

    Attributes:
        uuid: Name of the file.
        file_type: Orthanc's type of the content.
        size: Size in bytes, as stored.
        md5: MD5 of the file; empty if the index has none.
        custom: Its customData, which says where a storage plugin keeps it; mostly empty.
    """

    uuid: str
    file_type: int
    size: int
    md5: str
    custom: bytes


class Source(Protocol):
    """An index that is open for reading and that no other program can change. Picklable.

    Attributes:
        path: As the user named it.
        fingerprint: Distinguishes this state of the index from any other.
        scratch: A folder for large intermediate results; removed at the end of the run.
        unknown_tables: Tables that no known release of Orthanc creates, and their row
            counts.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def scratch(self) -> Path: ...  # noqa: D102
    @property
    def unknown_tables(self) -> Mapping[str, int]: ...  # noqa: D102

    def tables(self) -> list[str]:
        """Return the names of the tables of Orthanc."""

    def check_table(self, table: str, *, thorough: bool) -> list[str]:
        """Return the problems with the structure of a table.

        `thorough` may take hours, because it looks up each row in each index.
        """

    def survey(self) -> tuple[Source, Outcome]:
        """Find the resources that can be converted, before any reader is opened.

        Returns:
            The source to go on with, and the resources that are repaired or skipped.

        Raises:
            PgOrthancError: The index is damaged.
        """

    def reader(self, tables: TargetTables) -> Reader:
        """Open a reader for the tables of one target."""

    def errors(self) -> AbstractContextManager[None]:
        """Translate errors of the driver within a block into PgOrthancError."""

    def damaged(self, problem: str) -> PgOrthancError:
        """Return the error for an index that cannot be read completely."""


class Reader(Protocol):
    """Reads a source as rows for PostgreSQL. Belongs to one process."""

    def pieces(self) -> list[Piece]:
        """Return all rows to convert, as pieces of work."""

    def attachment_pieces(self) -> list[Piece]:
        """Return all attachments, as smaller pieces: their files are read."""

    def target(self, table: str) -> str:
        """Return the table of PostgreSQL that a table of the source goes to."""

    def columns(self, target: str) -> tuple[str, ...]:
        """Return the columns of a table of PostgreSQL in the order of the rows."""

    def rows(self, piece: Piece, outcome: Outcome) -> Iterator[bytes]:
        """Yield blocks of lines for COPY, and count rows and findings in `outcome`."""

    def attachments(self, piece: Piece) -> Iterator[Attachment]:
        """Yield the attachments of a piece."""

    def row_counts(self) -> dict[str, int]:
        """Return the number of rows to convert by table of the source, by a count of its own."""

    def resource_counts(self) -> dict[str, int]:
        """Return the number of patients, studies, series and instances to convert."""

    def unsupported(self) -> dict[str, int]:
        """Return the tables and columns that the target does not have, with the rows that would be lost."""

    def highest_ids(self) -> dict[str, int]:
        """Return the highest id ever given, by table of PostgreSQL: ids of deleted rows must not come back."""

    def properties(self, outcome: Outcome) -> tuple[dict[int, str], dict[int, str]]:
        """Return the properties of the database, and those of its one server."""

    def interrupt(self) -> None:
        """End a query of another thread."""

    def close(self) -> None:
        """Close the connection."""


def checksum(lines: bytes) -> int:
    """Return the sum of the CRC-32 of all lines, so that their order does not matter."""
    return sum(map(crc32, lines.splitlines(keepends=True)))
