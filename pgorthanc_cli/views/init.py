"""The page about an index that was created or repaired."""

from __future__ import annotations

from collections.abc import Iterator

from pgorthanc_cli.schema.initialize import Initialised
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views import trigram
from pgorthanc_cli.views.page import Block, Note, Page, Table


def page(result: Initialised, *, section: str, import_files: str, init: str, start_server: str = "") -> Page:
    """Return the page.

    Args:
        result: The index.
        section: Orthanc's configuration for it; empty if there is one already.
        import_files: The command that imports files.
        init: The command without --dry-run.
        start_server: The command that keeps a private server running, which stops with this one.
    """
    blocks: list[Block] = [Table(tuple((printable(name),) for name in result.repaired))]
    if finding := trigram.finding(result.trigram, result.schema):
        blocks.append(finding)
    steps: list[Note] = []
    if result.dry_run and (result.created or result.repaired):
        steps.append(Note("Next, run it:", paste=init))
    elif result.created:
        blocks += _configuration(section)
        if start_server:
            steps.append(Note("Next, import files:", paste=import_files))
            words = "Or keep the server running for an Orthanc, and show the configuration for it:"
            steps.append(Note(words, paste=start_server))
        else:
            steps.append(Note("Next, start Orthanc, or import files first:", paste=import_files))
    return Page(_headline(result), tuple(_where(result)), tuple(blocks), tuple(steps))


def _headline(result: Initialised) -> str:
    index = f"an Orthanc index at revision {result.revision}"
    storage = ", with the PostgreSQL storage area" if result.storage else ""
    missing = plural(len(result.repaired), "missing object")
    if not (result.created or result.repaired):
        return f"Nothing to do: {result.endpoint} has a complete index at revision {result.revision}."
    if result.dry_run:
        work = f"create {index}{storage}" if result.created else f"add {missing} to {index}"
        return f"Dry run, nothing was changed: this would {work}."
    if result.created:
        return f"Created {index}{storage}."
    return f"Repaired the Orthanc index at revision {result.revision}: added {missing}."


def _where(result: Initialised) -> Iterator[str]:
    if result.created or result.repaired:
        yield str(result.endpoint)
    yield from result.endpoint.login
    if result.schema != "public":
        yield f"schema {printable(result.schema)}"
    if result.trigram == "valid":
        yield trigram.VALID
    if result.dry_run:
        yield "tried, verified, rolled back"


def _configuration(section: str) -> list[Block]:
    if not section:
        return []
    return [
        Note("Put this into Orthanc's configuration (replace the password first):", paste=section),
        Note(
            'With "EnableStorage": true, Orthanc stores DICOM files in PostgreSQL; with false, in its '
            "StorageDirectory."
        ),
    ]
