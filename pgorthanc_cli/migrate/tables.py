"""Which row of SQLite becomes which row of PostgreSQL: table by table, column by column (SQLITE.md 4).

Each kind of column knows two ways. In SQL: an expression that is the value as COPY wants it, and a condition under
which that is so; where it is not, the line is NULL. In Python, for the few rows that are odd: the value, what was done
to it, or why the row cannot be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# COPY in the format csv, with delimiters that no sane value holds: nothing has to be escaped.
DELIMITER, QUOTE, NULL = "\x1f", "\x1e", "\x1d"
COPY_OPTIONS = "FORMAT csv, DELIMITER E'\\x1f', QUOTE E'\\x1e', NULL E'\\x1d'"

_INT4 = 2**31
_MOST_BYTES = 2**50 - 1  # no file is larger, and the sum of all has to fit a bigint


class Unusable(Exception):
    """The row cannot be kept; the text says why."""


@dataclass(frozen=True)
class Resource:
    """The resource that a row of the source belongs to, as it will be."""

    internal_id: int
    level: int
    public_id: str | None


Convert = Callable[[Any, list[str], Resource | None], object]
"""Value, list of what was done to it, resource of the row -> what PostgreSQL gets, None for NULL."""


@dataclass(frozen=True)
class Column:
    """A column of the target.

    Attributes:
        target: Its name in PostgreSQL.
        source: Its name in SQLite.
        expression: Its value in SQL, of the source row `t`.
        condition: When that is right.
        convert: The same in Python; raises `Unusable`.
        since: The first revision that has it.
        optional: Whether it may be NULL.
        number: Whether it is an integer wherever the condition holds.
    """

    target: str
    source: str
    expression: str
    condition: str
    convert: Convert
    since: int = 1
    optional: bool = False
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table of both sides.

    Attributes:
        source: Its name in SQLite.
        target: Its name in PostgreSQL.
        columns: In the order of COPY.
        resource: The column of the source that names the resource, if any.
        key: What tells the rows of one resource apart.
        label: How a report names a row: a format of the columns of the source.
        since: The first revision that has it.
        condition: Rows that need a look, beyond their columns.
        check: The same in Python; raises `Unusable`.
        stays: Rows, as a condition, that do not move when resources are merged: they describe one file.
    """

    source: str
    target: str
    columns: tuple[Column, ...]
    resource: str | None = None
    key: tuple[str, ...] = ()
    label: str = ""
    since: int = 1
    condition: str = "1"
    check: Callable[[dict[str, Any]], None] = field(default=lambda row: None)
    stays: str = "0"


def owner(target: str, source: str) -> Column:
    """The resource of the row; it exists."""

    def convert(value: Any, done: list[str], resource: Resource | None) -> object:
        if resource is None:
            raise Unusable("its resource does not exist")
        return resource.internal_id

    return Column(target, source, f"t.{source}", "r.internalId NOT NULL", convert, number=True)


def integer(target: str, source: str, most: int | None = None) -> Column:
    """A number from 0 to `most`, which is a power of two less one, or any of 32 bits; the row is unusable otherwise."""
    least, most = (-_INT4, _INT4 - 1) if most is None else (0, most)

    def convert(value: Any, done: list[str], resource: Resource | None) -> object:
        if not isinstance(value, int) or not least <= value <= most:
            raise Unusable(f"{source} is no number from {least} to {most}")
        return value

    return Column(target, source, f"t.{source}", _fits(f"t.{source}", least, most), convert, number=True)


def _fits(value: str, least: int, most: int) -> str:
    """Whether a value is an integer within limits: bits are quicker to compare than types."""
    same = f"({value} << 32 >> 32)" if least < 0 else f"({value} & {most})"
    return f"{same} = {value}"


def counter(target: str, source: str) -> Column:
    """A revision of metadata or of an attachment: 0 where there is none."""

    def convert(value: Any, done: list[str], resource: Resource | None) -> object:
        if value is None:
            return 0
        if not isinstance(value, int) or not -_INT4 <= value < _INT4:
            done.append(f"{source} is no number: stored as 0")
            return 0
        return value

    value = f"coalesce(t.{source}, 0)"
    return Column(target, source, value, _fits(value, -_INT4, _INT4 - 1), convert)


def level(target: str, source: str, *, of_resource: bool) -> Column:
    """1 to 4 becomes 0 to 3; `of_resource`: it is the level of the row's resource."""

    def convert(value: Any, done: list[str], resource: Resource | None) -> object:
        if resource is not None and value != resource.level:
            done.append(f"{source} is not that of its resource: corrected")
            return resource.level - 1
        if value not in (1, 2, 3, 4) or not isinstance(value, int):
            raise Unusable(f"{source} is none of 1 to 4")
        return value - 1

    condition = f"t.{source} IN (1, 2, 3, 4)"
    if of_resource:
        condition += " AND t.resourceType = r.resourceType"
    return Column(target, source, f"(t.{source} - 1)", condition, convert, number=True)


def text(target: str, source: str, most: int | None = None, *, long: str = "cut") -> Column:
    """A text; NULL becomes an empty one.

    Args:
        target: The column in PostgreSQL.
        source: The column in SQLite.
        most: Characters that it holds.
        long: What becomes of a longer one: `cut`, `emptied` (it cannot be right), or `skip` the row.
    """

    def convert(value: Any, done: list[str], resource: Resource | None) -> object:
        if value is None:
            if long == "skip":
                raise Unusable(f"{source} is NULL")
            done.append(f"{source} is NULL: stored as empty text")
            return ""
        storable = storable_text(value, source, done, strict=long == "skip")
        if most is None or len(storable) <= most:
            return storable
        if long == "skip":
            raise Unusable(f"{source} has more than {most} characters")
        done.append(f"{source} has more than {most} characters: {'cut' if long == 'cut' else 'emptied'}")
        return storable[:most] if long == "cut" else ""

    # Where a column of the table may be NULL; elsewhere a whole block is searched for it.
    condition = "1" if most is None and long == "cut" else f"t.{source} <> '{NULL}'"
    if most is not None:
        condition += f" AND length(t.{source}) <= {most}"
    return Column(target, source, f"t.{source}", condition, convert)


def storable_text(value: Any, source: str, done: list[str], *, strict: bool) -> str:
    """A value of SQLite as text that PostgreSQL holds: valid UTF-8 without NUL.

    Raises:
        Unusable: It is not, and `strict`.
    """
    given = value if isinstance(value, bytes) else str(value).encode()
    kept = given.partition(b"\0")[0]
    shown = kept.decode("utf-8", "replace")
    problems = [
        *(["holds a NUL: cut there"] if len(kept) < len(given) else []),
        *(["is no UTF-8: what is wrong became U+FFFD"] if shown.encode() != kept else []),
        *(["is a number: stored as text"] if not isinstance(value, bytes) else []),
    ]
    if problems and strict:
        raise Unusable(f"{source} {problems[0].partition(':')[0]}")
    done.extend(f"{source} {problem}" for problem in problems)
    return shown


def binary(target: str, source: str, since: int = 1, *, optional: bool = False) -> Column:
    """Bytes; NULL where `optional`."""

    def convert(value: Any, done: list[str], resource: Resource | None) -> object:
        if value is None:
            if optional:
                return None
            done.append(f"{source} is NULL: stored as empty")
            return "\\x"
        given = value if isinstance(value, bytes) else str(value).encode()
        return f"\\x{given.hex()}"

    value, types = f"'\\x' || lower(hex(t.{source}))", "'blob', 'text'"
    if optional:  # hex(NULL) is an empty text
        value = f"CASE WHEN t.{source} IS NULL THEN '{NULL}' ELSE {value} END"
        types += ", 'null'"
    return Column(target, source, value, f"typeof(t.{source}) IN ({types})", convert, since, optional)


def moment(target: str, source: str, since: int) -> Column:
    """Seconds since 1970, or NULL."""

    def convert(value: Any, done: list[str], resource: Resource | None) -> object:
        if value is not None and not isinstance(value, int):
            done.append(f"{source} is no number: dropped")
            return None
        return value

    value = f"coalesce(t.{source}, '{NULL}')"
    return Column(
        target, source, value, f"typeof(t.{source}) IN ('integer', 'null')", convert, since, optional=True
    )


def _no_recycling(row: dict[str, Any]) -> None:
    if row["type"] in (18, 19):
        raise Unusable(
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
        check=_no_recycling,
        stays="t.type IN (14, 17)",
    ),
    Table(
        "AttachedFiles",
        "attachedfiles",
        (
            owner("id", "id"),
            integer("filetype", "fileType"),
            text("uuid", "uuid", 64, long="skip"),
            integer("compressedsize", "compressedSize", _MOST_BYTES),
            integer("uncompressedsize", "uncompressedSize", _MOST_BYTES),
            integer("compressiontype", "compressionType"),
            text("uncompressedhash", "uncompressedMD5", 40, long="emptied"),
            text("compressedhash", "compressedMD5", 40, long="emptied"),
            counter("revision", "revision"),
            binary("customdata", "customData", since=5, optional=True),
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
        (owner("id", "id"), text("label", "label", long="skip")),
        "id",
        ("label",),
        "label",
    ),
    Table(
        "KeyValueStores",
        "keyvaluestores",
        (text("storeid", "storeId", long="skip"), text("key", "key", long="skip"), binary("value", "value")),
        label="a value",
        since=5,
    ),
    Table(
        "Queues",
        "queues",
        (
            integer("id", "id", 2**63 - 1),
            text("queueid", "queueId", long="skip"),
            binary("value", "value"),
            moment("reserveduntil", "reservedUntil", since=10),
        ),
        label="entry {id}",
        since=5,
    ),
)
BY_SOURCE = {table.source: table for table in TABLES}


def label(table: Table, row: dict[str, Any]) -> str:
    """How a report names a row: by its key, never by its value."""
    tag = ",".join(
        f"{row[n]:04x}" if isinstance(row.get(n), int) else "?" for n in ("tagGroup", "tagElement")
    )
    known = {name: value if isinstance(value, int) else "?" for name, value in row.items()}
    return table.label.format(**{**known, "tag": tag})


def field_text(value: object) -> str:
    """A value as a field of COPY, exactly as PostgreSQL writes it itself."""
    if value is None:
        return NULL
    shown = str(value)
    if shown == NULL or any(c in shown for c in (DELIMITER, QUOTE, "\n", "\r")):
        return QUOTE + shown.replace(QUOTE, QUOTE * 2) + QUOTE
    return shown
