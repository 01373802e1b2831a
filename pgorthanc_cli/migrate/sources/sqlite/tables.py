"""Convert rows of SQLite to rows of PostgreSQL, table by table and column by column (SQLITE.md 4).

Each kind of column is converted in two ways. In SQL: an expression for the value as COPY
expects it, and a condition under which that is right; if it is not, the whole line is
NULL. In Python, for the few rows that are unusual: the value, how it was repaired, or why
the row cannot be converted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pgorthanc_cli.migrate.source import DELIMITER, NULL, QUOTE

_INT4 = 2**31
# No file is larger, and the sum of all has to fit into a bigint.
_MAX_FILE_BYTES = 2**50 - 1


class UnconvertibleRow(Exception):
    """The row cannot be kept; the message says why."""


@dataclass(frozen=True)
class Resource:
    """The resource that a row of the source belongs to, after merging."""

    internal_id: int
    level: int
    public_id: str | None


Convert = Callable[[Any, list[str], Resource | None], object]
"""(value, list to add repairs to, resource of the row) -> the value for PostgreSQL, None for NULL."""


@dataclass(frozen=True)
class Column:
    """A column of the target.

    Attributes:
        target: Its name in PostgreSQL.
        source: Its name in SQLite.
        expression: Its value in SQL, of the source row `t`.
        condition: Under which the expression is right, in SQL.
        convert: Both in Python; raises `UnconvertibleRow`.
        nullable: Whether it may be NULL.
        number: Whether it is an integer wherever the condition holds.
    """

    target: str
    source: str
    expression: str
    condition: str
    convert: Convert
    nullable: bool = False
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table that exists on both sides.

    Attributes:
        source: Its name in SQLite.
        target: Its name in PostgreSQL.
        columns: In the order of COPY.
        resource: The column of the source that names the resource, if any.
        key: The columns that distinguish the rows of one resource.
        label: How a report names a row: a format of the columns of the source.
        condition: Under which a row needs no check beyond its columns, in SQL.
        check: The same in Python; raises `UnconvertibleRow`.
        stays: Condition for rows that do not move when resources are merged, because they
            describe one file.
    """

    source: str
    target: str
    columns: tuple[Column, ...]
    resource: str | None = None
    key: tuple[str, ...] = ()
    label: str = ""
    condition: str = "1"
    check: Callable[[dict[str, Any]], None] = field(default=lambda row: None)
    stays: str = "0"


def owner(target: str, source: str) -> Column:
    """Return the column of the resource of a row, which must exist."""

    def convert(value: Any, repairs: list[str], resource: Resource | None) -> object:
        if resource is None:
            raise UnconvertibleRow("its resource does not exist")
        return resource.internal_id

    return Column(target, source, f"t.{source}", "r.internalId NOT NULL", convert, number=True)


def integer(target: str, source: str, maximum: int | None = None) -> Column:
    """Return an integer column: from 0 to `maximum`, a power of two less one, or any 32 bits.

    A row with another value cannot be converted.
    """
    minimum, maximum = (-_INT4, _INT4 - 1) if maximum is None else (0, maximum)

    def convert(value: Any, repairs: list[str], resource: Resource | None) -> object:
        if not isinstance(value, int) or not minimum <= value <= maximum:
            raise UnconvertibleRow(f"{source} is no number from {minimum} to {maximum}")
        return value

    return Column(target, source, f"t.{source}", _fits(f"t.{source}", minimum, maximum), convert, number=True)


def _fits(value: str, minimum: int, maximum: int) -> str:
    """Return the condition for an integer within limits: comparing bits is faster than comparing types."""
    truncated = f"({value} << 32 >> 32)" if minimum < 0 else f"({value} & {maximum})"
    return f"{truncated} = {value}"


def counter(target: str, source: str) -> Column:
    """Return the column of a revision of metadata or of an attachment; 0 if there is none."""

    def convert(value: Any, repairs: list[str], resource: Resource | None) -> object:
        if value is None:
            return 0
        if not isinstance(value, int) or not -_INT4 <= value < _INT4:
            repairs.append(f"{source} is no number: stored as 0")
            return 0
        return value

    value = f"coalesce(t.{source}, 0)"
    return Column(target, source, value, _fits(value, -_INT4, _INT4 - 1), convert)


def level(target: str, source: str, *, of_resource: bool) -> Column:
    """Return the column of a level: 1 to 4 in SQLite, 0 to 3 in PostgreSQL.

    With `of_resource` it must be the level of the row's resource.
    """

    def convert(value: Any, repairs: list[str], resource: Resource | None) -> object:
        if resource is not None and value != resource.level:
            repairs.append(f"{source} is not that of its resource: corrected")
            return resource.level - 1
        if value not in (1, 2, 3, 4) or not isinstance(value, int):
            raise UnconvertibleRow(f"{source} is none of 1 to 4")
        return value - 1

    condition = f"t.{source} IN (1, 2, 3, 4)"
    if of_resource:
        condition += " AND t.resourceType = r.resourceType"
    return Column(target, source, f"(t.{source} - 1)", condition, convert, number=True)


def text(target: str, source: str, max_length: int | None = None, *, too_long: str = "cut") -> Column:
    """Return a text column; NULL becomes an empty text.

    Args:
        target: The column in PostgreSQL.
        source: The column in SQLite.
        max_length: Characters that it can hold.
        too_long: What becomes of a longer text: `cut`, `emptied` (it cannot be right), or
            `skip` the row. With `skip`, which is for keys, rows with NULL and texts that
            would have to be repaired are skipped, too.
    """
    is_key = too_long == "skip"

    def convert(value: Any, repairs: list[str], resource: Resource | None) -> object:
        if value is None:
            if is_key:
                raise UnconvertibleRow(f"{source} is NULL")
            repairs.append(f"{source} is NULL: stored as empty text")
            return ""
        storable = storable_text(value, source, repairs, strict=is_key)
        if max_length is None or len(storable) <= max_length:
            return storable
        problem = f"{source} has more than {max_length} characters"
        if is_key:
            raise UnconvertibleRow(problem)
        repairs.append(f"{problem}: {too_long}")
        return storable[:max_length] if too_long == "cut" else ""

    # The text for NULL matters in tables with nullable columns; in others it is searched
    # for in whole blocks.
    condition = "1" if max_length is None and too_long == "cut" else f"t.{source} <> '{NULL}'"
    if max_length is not None:
        condition += f" AND length(t.{source}) <= {max_length}"
    return Column(target, source, f"t.{source}", condition, convert)


def storable_text(value: Any, source: str, repairs: list[str], *, strict: bool) -> str:
    """Return a value of SQLite as text that PostgreSQL can hold: valid UTF-8 without NUL.

    Raises:
        UnconvertibleRow: It would have to be repaired, and `strict`.
    """
    # SQLite stores any type in any column; text is read as bytes, so that wrong UTF-8 is seen.
    stored = value if isinstance(value, bytes) else str(value).encode()
    before_nul = stored.partition(b"\0")[0]
    storable = before_nul.decode("utf-8", "replace")
    problems = []
    if len(before_nul) < len(stored):
        problems.append("holds a NUL: cut there")
    if storable.encode() != before_nul:
        problems.append("is no UTF-8: what is wrong became U+FFFD")
    if not isinstance(value, bytes):
        problems.append("is a number: stored as text")
    if problems and strict:
        raise UnconvertibleRow(f"{source} {problems[0].partition(':')[0]}")
    repairs.extend(f"{source} {problem}" for problem in problems)
    return storable


def binary(target: str, source: str, *, nullable: bool = False) -> Column:
    """Return a column of bytes."""

    def convert(value: Any, repairs: list[str], resource: Resource | None) -> object:
        if value is None:
            if nullable:
                return None
            repairs.append(f"{source} is NULL: stored as empty")
            return "\\x"
        stored = value if isinstance(value, bytes) else str(value).encode()
        return f"\\x{stored.hex()}"

    # SQLite's hex() has capitals, PostgreSQL's output of bytea has none.
    value, types = f"'\\x' || lower(hex(t.{source}))", "'blob', 'text'"
    if nullable:  # hex(NULL) is an empty text
        value = f"CASE WHEN t.{source} IS NULL THEN '{NULL}' ELSE {value} END"
        types += ", 'null'"
    return Column(target, source, value, f"typeof(t.{source}) IN ({types})", convert, nullable)


def timestamp(target: str, source: str) -> Column:
    """Return a column of seconds since 1970, or NULL."""

    def convert(value: Any, repairs: list[str], resource: Resource | None) -> object:
        if value is not None and not isinstance(value, int):
            repairs.append(f"{source} is no number: dropped")
            return None
        return value

    value = f"coalesce(t.{source}, '{NULL}')"
    condition = f"typeof(t.{source}) IN ('integer', 'null')"
    return Column(target, source, value, condition, convert, nullable=True)


def _refuse_recycling_metadata(row: dict[str, Any]) -> None:
    if row["type"] in (18, 19):
        raise UnconvertibleRow(
            "metadata 18 and 19 mean protection and recycling in PostgreSQL, and nothing in SQLite"
        )


_TAGS = (
    owner("id", "id"),
    integer("taggroup", "tagGroup", 0xFFFF),
    integer("tagelement", "tagElement", 0xFFFF),
    text("value", "value"),
)

TABLES = (
    Table(
        "DicomIdentifiers", "dicomidentifiers", _TAGS, "id", ("tagGroup", "tagElement"), "identifier {tag}"
    ),
    Table("MainDicomTags", "maindicomtags", _TAGS, "id", ("tagGroup", "tagElement"), "tag {tag}"),
    Table(
        "Metadata",
        "metadata",
        (owner("id", "id"), integer("type", "type"), text("value", "value"), counter("revision", "revision")),
        "id",
        ("type",),
        "metadata {type}",
        condition="t.type NOT IN (18, 19)",
        check=_refuse_recycling_metadata,
        stays="t.type IN (14, 17)",
    ),
    Table(
        "AttachedFiles",
        "attachedfiles",
        (
            owner("id", "id"),
            integer("filetype", "fileType"),
            text("uuid", "uuid", 64, too_long="skip"),
            integer("compressedsize", "compressedSize", _MAX_FILE_BYTES),
            integer("uncompressedsize", "uncompressedSize", _MAX_FILE_BYTES),
            integer("compressiontype", "compressionType"),
            text("uncompressedhash", "uncompressedMD5", 40, too_long="emptied"),
            text("compressedhash", "compressedMD5", 40, too_long="emptied"),
            counter("revision", "revision"),
            binary("customdata", "customData", nullable=True),
        ),
        "id",
        ("fileType",),
        "attachment {fileType}",
        stays="t.fileType IN (1, 2, 3)",
    ),
    Table(
        "Changes",
        "changes",
        (
            integer("seq", "seq", 2**63 - 1),
            integer("changetype", "changeType"),
            owner("internalid", "internalId"),
            level("resourcetype", "resourceType", of_resource=True),
            text("date", "date", 64),
        ),
        "internalId",
        label="change {seq}",
    ),
    Table(
        "ExportedResources",
        "exportedresources",
        (
            integer("seq", "seq", 2**63 - 1),
            level("resourcetype", "resourceType", of_resource=False),
            text("publicid", "publicId", 64),
            text("remotemodality", "remoteModality"),
            text("patientid", "patientId", 64),
            text("studyinstanceuid", "studyInstanceUid"),
            text("seriesinstanceuid", "seriesInstanceUid"),
            text("sopinstanceuid", "sopInstanceUid"),
            text("date", "date", 64),
        ),
        label="export {seq}",
    ),
    Table(
        "Labels",
        "labels",
        (owner("id", "id"), text("label", "label", too_long="skip")),
        "id",
        ("label",),
        "label",
    ),
    Table(
        "KeyValueStores",
        "keyvaluestores",
        (
            text("storeid", "storeId", too_long="skip"),
            text("key", "key", too_long="skip"),
            binary("value", "value"),
        ),
        label="a value",
    ),
    Table(
        "Queues",
        "queues",
        (
            integer("id", "id", 2**63 - 1),
            text("queueid", "queueId", too_long="skip"),
            binary("value", "value"),
            timestamp("reserveduntil", "reservedUntil"),
        ),
        label="entry {id}",
    ),
)
BY_SOURCE = {table.source: table for table in TABLES}


def row_label(table: Table, row: dict[str, Any]) -> str:
    """Return how a report names a row: by its key, never by a text, which may name a patient."""
    numbers = {name: value if isinstance(value, int) else "?" for name, value in row.items()}
    group, element = numbers.get("tagGroup", "?"), numbers.get("tagElement", "?")
    tag = ",".join(n if isinstance(n, str) else f"{n:04x}" for n in (group, element))
    return table.label.format(**numbers, tag=tag)


def field_text(value: object) -> str:
    """Return a value as a field of COPY, exactly as PostgreSQL itself writes it."""
    if value is None:
        return NULL
    content = str(value)
    if content == NULL or any(character in content for character in (DELIMITER, QUOTE, "\n", "\r")):
        return QUOTE + content.replace(QUOTE, QUOTE * 2) + QUOTE
    return content
