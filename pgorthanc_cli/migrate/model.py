"""Settings of a conversion, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgorthanc_cli.db import Endpoint

LEVELS = ("patients", "studies", "series", "instances")
DEFAULT_SERVER = "orthanc"
"""The server identifier if neither an option nor the target names one; Orthanc must then be configured with it."""


@dataclass(frozen=True)
class ConversionSettings:
    """How to convert.

    Attributes:
        revision: Target revision. None: that of an existing empty index, else the newest.
        server_identifier: Owner of modalities, peers, jobs and properties of plugins
            (DatabaseServerIdentifier). None: the one that an Orthanc left in the target,
            else `DEFAULT_SERVER`.
        strict: Refuse whatever would have to be repaired or skipped.
        restart: Discard an unfinished conversion and start again.
        verify: Read all rows back, compare them, and check the invariants of the index.
        storage_dir: Orthanc's StorageDirectory.
        storages: The folders of AdvancedStorage.MultipleStorages by their ids, None if unknown.
        verify_files: Compare the size of each attachment's file.
        verify_hashes: Compare the MD5 of each attachment's file as well.
        large_objects: Copy the attachments into PostgreSQL.
        jobs: Number of worker processes.
    """

    revision: int | None = None
    server_identifier: str | None = None
    strict: bool = False
    restart: bool = False
    verify: bool = True
    storage_dir: Path | None = None
    storages: Mapping[str, Path] | None = None
    verify_files: bool = False
    verify_hashes: bool = False
    large_objects: bool = False
    jobs: int = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that PostgreSQL cannot hold unchanged, or all rows of a table.

    Attributes:
        table: The table in the source.
        public_id: The resource that the row belongs to, if any.
        what: Which row, the problem, and what was done. Never a value: it may name a
            patient.
        rows: How many rows it is about.
    """

    table: str
    public_id: str | None
    what: str
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.table}, {self.public_id or 'no resource'}: {self.what}"


@dataclass
class Outcome:
    """The result of one piece of work. Picklable, and kept in the journal.

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


@dataclass(frozen=True)
class Compared:
    """A table as it was read from the source, and as PostgreSQL returns it.

    Attributes:
        table: The table in PostgreSQL.
        converted: Rows made from those of the source.
        stored: Rows in PostgreSQL.
        checksum: Sum of the CRC-32 of the converted rows, so that their order does not
            matter.
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


@dataclass
class FileCheck:
    """How the storage folder compares with the attachments of the index.

    Attributes:
        checked: Number of attachments.
        hashed: Attachments whose MD5 was compared.
        missing: Files that do not exist or cannot be read.
        differing: Files of another size or MD5.
        examples: Some of these, as `uuid: problem`.
        elsewhere: Attachments that were not compared, as only their storage plugin knows where
            they are.
    """

    checked: int = 0
    hashed: int = 0
    missing: int = 0
    differing: int = 0
    examples: tuple[str, ...] = ()
    elsewhere: int = 0

    MAX_EXAMPLES = 20

    def add(self, other: FileCheck) -> None:
        """Add the counts of another part of the attachments."""
        self.checked += other.checked
        self.hashed += other.hashed
        self.missing += other.missing
        self.differing += other.differing
        self.elsewhere += other.elsewhere
        self.examples = (*self.examples, *other.examples)[: self.MAX_EXAMPLES]

    def add_problem(self, uuid: str, problem: str, *, missing: bool) -> None:
        """Count a file that is missing or differs."""
        self.missing += missing
        self.differing += not missing
        if len(self.examples) < self.MAX_EXAMPLES:
            self.examples = (*self.examples, f"{uuid}: {problem}")

    def __str__(self) -> str:
        counts = (
            f"{self.checked:,} looked for, {self.hashed:,} hashed, "
            f"{self.missing:,} missing, {self.differing:,} differing"
        )
        return f"{counts}, such as {self.examples[0]}" if self.examples else counts


@dataclass(frozen=True)
class Converted:
    """The result of a conversion or of a check.

    Attributes:
        source: The file.
        resources: Patients, studies, series and instances in the new index.
        rows: Rows by table of PostgreSQL (after a check: as they would be).
        repaired: Rows that were changed so that PostgreSQL can hold them; at most
            `MAX_LISTED`.
        repaired_rows: Number of these.
        skipped: Rows that were left out; at most `MAX_LISTED`.
        skipped_rows: Number of these.
        schema: PostgreSQL namespace; None after a check.
        revision: Revision of the new index.
        server_identifier: Owner of the server properties.
        compared: Both sides, table by table; empty unless verified.
        verified: Whether all rows were read back and compared, and the invariants of the
            index hold.
        files: The comparison of the attachments with their files, if requested.
        large_objects: Attachments that were copied into PostgreSQL.
        resumed: Whether an interrupted run was continued.
        steps: Instructions for the administrator, with the lines of Orthanc's
            configuration.
        elapsed_s: Elapsed time in seconds.
        rows_per_s: Rows converted per second, everything included.
        endpoint: The database; None after a check.
        configuration: The lines of Orthanc's configuration, without the password.
        plugins: The releases of the plugin that work with the new index.
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
    files: FileCheck | None = None
    large_objects: int = 0
    resumed: bool = False
    steps: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    rows_per_s: float = 0.0
    endpoint: Endpoint | None = None
    configuration: str = ""
    plugins: str = ""
    dry_run: bool = False


SaveFindings = Callable[[Converted, Iterator[dict[str, "str | None"]]], None]
"""Receives the result and all findings (kind, table, public_id, what), however many there are."""
