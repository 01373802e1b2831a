"""What a conversion is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pgorthanc_cli.progress import Progress

LEVELS = ("patients", "studies", "series", "instances")
DEFAULT_SERVER = "orthanc"
"""The server identifier where nothing names one; the configuration has to say the same then."""


@dataclass(frozen=True)
class Settings:
    """How to convert.

    Attributes:
        revision: The revision that is wanted; None: that of the index that is there, else the newest.
        server_identifier: Whose the modalities, peers, jobs and properties of plugins are
            (DatabaseServerIdentifier). None: as an Orthanc left it in the target, else `DEFAULT_SERVER`.
        strict: Refuse whatever would have to be repaired or skipped.
        restart: Begin anew where an unfinished conversion is found.
        verify: Read everything back and compare, and check the invariants of the index.
        storage_dir: The folder of the attachments.
        verify_files: Compare the size of each attachment's file.
        verify_hashes: Compare the MD5 of each attachment's file as well.
        large_objects: Copy the attachments into PostgreSQL.
        report: Write everything that was repaired or skipped to this file, `.json` or `.html`.
        jobs: Worker processes.
    """

    revision: int | None = None
    server_identifier: str | None = None
    strict: bool = False
    restart: bool = False
    verify: bool = True
    storage_dir: Path | None = None
    verify_files: bool = False
    verify_hashes: bool = False
    large_objects: bool = False
    report: Path | None = None
    jobs: int = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that PostgreSQL could not hold as it is.

    Attributes:
        table: The table in SQLite.
        public_id: The resource that it belongs to, if there is one.
        what: Which row, what was wrong, what was done; never its value.
    """

    table: str
    public_id: str | None
    what: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.table}, {self.public_id or 'no resource'}: {self.what}"


@dataclass(frozen=True)
class Compared:
    """A table on both sides: what was read from SQLite, and what PostgreSQL answers.

    Attributes:
        table: The table in PostgreSQL.
        converted: Rows made from those of SQLite.
        stored: Rows in PostgreSQL.
        checksum: Sum of the CRC-32 of the converted rows, so their order does not count.
        stored_checksum: The same of the rows in PostgreSQL.
    """

    table: str
    converted: int
    stored: int
    checksum: int
    stored_checksum: int

    @property
    def equal(self) -> bool:
        """Whether both sides hold the same rows."""
        return (self.converted, self.checksum) == (self.stored, self.stored_checksum)


@dataclass(frozen=True)
class Files:
    """How the storage area compares with the attachments of the index.

    Attributes:
        checked: Attachments looked at.
        hashed: Those of which the MD5 was compared.
        missing: Files that are not there or cannot be read.
        differing: Files of another size or MD5.
        examples: Some of these, as `uuid: what`.
    """

    checked: int = 0
    hashed: int = 0
    missing: int = 0
    differing: int = 0
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        looked = f"{self.checked:,} looked for, {self.hashed:,} hashed"
        told = f"{looked}, {self.missing:,} missing, {self.differing:,} differing"
        return f"{told}, such as {self.examples[0]}" if self.examples else told


@dataclass(frozen=True)
class Converted:
    """What has become of an SQLite index.

    Attributes:
        source: The file.
        resources: Patients, studies, series and instances in the new index.
        rows: Rows by table of PostgreSQL (after a check: as they would be).
        repaired: Rows that were changed so that PostgreSQL can hold them; at most `findings.LISTED`.
        repaired_rows: How many there are.
        skipped: Rows that were left out; at most `findings.LISTED`.
        skipped_rows: How many there are.
        schema: PostgreSQL namespace; None after a mere check.
        revision: Revision of the new index.
        server_identifier: Whose the server properties are.
        compared: Table by table, both sides; empty unless verified.
        verified: Whether everything was read back, compared, and the invariants of the index hold.
        files: What the check of the attachments' files found, if it was asked for.
        large_objects: Attachments that were copied into PostgreSQL.
        resumed: Whether an interrupted run was continued.
        steps: What is still to be done, with the lines of the configuration.
        elapsed_s: How long it took, in seconds.
        rows_per_s: Rows converted per second, everything included.
        dry_run: Whether the index was only checked.
    """

    source: str
    resources: dict[str, int]
    rows: dict[str, int]
    repaired: tuple[Finding, ...]
    repaired_rows: int
    skipped: tuple[Finding, ...]
    skipped_rows: int
    schema: str | None = None
    revision: int | None = None
    server_identifier: str | None = None
    compared: tuple[Compared, ...] = ()
    verified: bool = False
    files: Files | None = None
    large_objects: int = 0
    resumed: bool = False
    steps: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    rows_per_s: float = 0.0
    dry_run: bool = field(default=False, metadata={"shown": False})


Event = Progress | Converted


@dataclass
class Outcome:
    """What a piece of work found; picklable, and kept in the journal.

    Attributes:
        rows: Rows written.
        checksum: Sum of their CRC-32.
        repaired: Rows that were changed.
        skipped: Rows that were left out.
    """

    rows: int = 0
    checksum: int = 0
    repaired: list[Finding] = field(default_factory=list)
    skipped: list[Finding] = field(default_factory=list)
