"""The page about an index: what it contains, who is using it, and what is still to be done."""

from __future__ import annotations

from collections.abc import Iterator

from pgorthanc_cli import db
from pgorthanc_cli.schema.status import NoIndex, Status
from pgorthanc_cli.text import age, plural, printable, size
from pgorthanc_cli.views import trigram
from pgorthanc_cli.views.page import Block, Facts, Note, Page

_AREAS = {
    "postgresql": "as large objects in PostgreSQL",
    "filesystem": "in the filesystem storage area",
    "advanced-storage": "in folders of the advanced-storage plugin",
    "adopted": "adopted where they lie",
    "unknown": "where an unknown storage plugin keeps them",
}


_FILES = {
    "postgresql": "the large objects in PostgreSQL",
    "filesystem": "the files in the filesystem storage area",
    "advanced-storage": "the files of the advanced-storage plugin",
    "adopted": "the adopted files",
}


def page(status: Status, upgrade: str, show: str = "") -> Page:
    """Return the page.

    Args:
        status: The state.
        upgrade: The command that repairs the recorded revision.
        show: The command that shows where attachments are.
    """
    blocks: list[Block] = [
        Facts(tuple(_facts(status))),
        *_findings(status, upgrade),
        *_files_not_found(status, show),
    ]
    where = (
        *status.endpoint.login,
        *_schema(status.schema),
        f"for PostgreSQL plugin {status.plugins}",
    )
    return Page(_headline(status), where, tuple(blocks))


def no_index_page(found: NoIndex, *, init: str, other_schema: str) -> Page:
    """Return the page of a schema without an index.

    Args:
        found: What the schema contains.
        init: The command that creates an index.
        other_schema: The command that shows the first of the other schemas; empty without one.
    """
    contents = f"contains {plural(found.objects, 'other object')}" if found.objects else "is empty"
    where = (*found.endpoint.login, f"schema {printable(found.schema)} {contents}")
    steps = [Note("Next, create one:", paste=init)]
    if found.other_schemas:
        names = ", ".join(map(printable, found.other_schemas))
        schemas = "Schema" if len(found.other_schemas) == 1 else "Schemas"
        verb = "seems" if len(found.other_schemas) == 1 else "seem"
        text = f"{schemas} {names} of this database {verb} to contain an index. To see it:"
        steps.insert(0, Note(text, paste=other_schema))
        steps[1] = Note("Or create one here:", paste=init)
    headline = f"{_capital(found.endpoint)} contains no Orthanc index."
    return Page(headline, where, next_steps=tuple(steps), status="problem")


def _headline(status: Status) -> str:
    contents = plural(status.studies or 0, "study", "studies")
    if not status.studies:
        contents = "an Orthanc index" if status.studies is None else "an empty Orthanc index"
    # Layouts before revision 1 have no number.
    place = f"at revision {status.revision}" if status.revision != "unknown" else "older than revision 1"
    return f"{_capital(status.endpoint)} holds {contents} {place}."


def _capital(endpoint: db.Endpoint) -> str:
    name = str(endpoint)
    return name[0].upper() + name[1:]


def _schema(schema: str) -> tuple[str, ...]:
    return (f"schema {printable(schema)}",) if schema != "public" else ()


def _facts(status: Status) -> Iterator[tuple[str, str]]:
    counts = (
        (status.patients, "patient", ""),
        (status.studies, "study", "studies"),
        (status.series, "series", "series"),
        (status.instances, "instance", ""),
    )
    contents = [plural(count, *nouns) for count, *nouns in counts if count is not None]
    if status.patients:
        yield "Content", ", ".join(contents)
    if status.newest:
        yield "Newest", f"stored {age(status.newest, status.time)}"
    if status.compressed_size_bytes:
        areas = ", or ".join(_AREAS[area] for area in status.areas or (status.storage_area,))
        yield "Files", f"{_file_sizes(status)} {areas}"
    searches = f"; {trigram.VALID}" if status.trigram == "valid" else ""
    yield "Index", f"{size(status.index_bytes)}{searches}"
    yield "Sessions", _sessions(status)
    yield "Connections", f"{status.connections:,} of {status.max_connections:,} in use"
    if backlog := _backlog(status.pending):
        yield "Backlog", backlog


def _file_sizes(status: Status) -> str:
    stored, original = status.compressed_size_bytes or 0, status.uncompressed_size_bytes or 0
    compressed = f" ({size(original)} before compression)" if original != stored else ""
    return f"{size(stored)} of DICOM{compressed}"


def _sessions(status: Status) -> str:
    if status.locks:
        return "; ".join(_holders(status.locks))
    if not status.sessions:
        return "no other session is using this database"
    return f"{plural(status.sessions, 'other session')} in this database, without Orthanc's locks"


def _holders(locks: list[db.LockHolder]) -> Iterator[str]:
    for pid in dict.fromkeys(lock.pid for lock in locks):
        held = [lock for lock in locks if lock.pid == pid]
        application = held[0].application or ""
        # Orthanc's own name is empty, or that of its option ApplicationName (10.0).
        name = printable(application) if application.startswith("pgorthanc") else "Orthanc"
        address = f"{held[0].address}, " if held[0].address else ""
        names = " and ".join(db.LOCK_NAMES[lock.lock] for lock in held)
        yield f"{name} ({address}pid {pid}) holds the {names} lock{'s' if len(held) > 1 else ''}"


def _backlog(pending: dict[str, int]) -> str:
    counts = [
        plural(count, noun)
        for count, noun in (
            (pending["statistics_deltas"], "counter update"),
            (pending["child_counts"], "child count"),
        )
        if count
    ]
    return f"{' and '.join(counts)}, which Orthanc applies by itself" if counts else ""


def _findings(status: Status, upgrade: str) -> Iterator[Note]:
    recorded = status.recorded_revision
    if recorded != status.revision and not (recorded is None and status.revision == "unknown"):
        name = "no revision" if recorded is None else f"revision {recorded}"
        yield Note(
            f"The index records {name}, but its tables are those of revision {status.revision}.",
            "warning",
            ("Orthanc decides by the recorded revision whether it can use the index. To repair it:",),
            upgrade,
        )
    if finding := trigram.finding(status.trigram, status.schema):
        yield finding


def _files_not_found(status: Status, show: str) -> Iterator[Note]:
    if status.areas_not_found:
        areas = " and ".join(_FILES[area] for area in status.areas_not_found)
        yield Note(
            f"Orthanc does not find {areas}.",
            "problem",
            ("Its configuration names another storage. To see how many they are:",),
            show,
        )
    if status.kept_customdata:
        count = plural(status.kept_customdata, "attachment")
        yield Note(
            f"Orthanc does not find the files of {count}, as a downgrade has put their customData aside.",
            "warning",
            ("An upgrade to revision 5 or later brings it back.",),
        )
