"""What can be asked for: a conversion, and a mere check."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from pgorthanc_cli import db
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.migrate import findings
from pgorthanc_cli.migrate import source as sources
from pgorthanc_cli.migrate.conversion import Conversion
from pgorthanc_cli.migrate.model import Event, Settings
from pgorthanc_cli.migrate.reading import Reading
from pgorthanc_cli.schema import catalog

_LONGEST = 64  # of a server identifier: serverproperties.server


def convert(
    where: db.Target, path: Path, settings: Settings, stop: threading.Event | None = None
) -> Iterator[Event]:
    """Convert an SQLite index into an empty index of PostgreSQL; yields what goes on, at last a `Converted`.

    Interrupted at any point, it goes on there when it is run again with the same file; until it is complete the target
    is no index.

    Args:
        where: The database; the index in its schema is made if there is none.
        path: The file `index`.
        settings: How to convert.
        stop: Set it to end: what the workers do is given up then, what was copied is committed.

    Raises:
        workers.Stopped: It was set.
        InUseError: An Orthanc works with the file or the database; or the target is not empty.
        RevisionError: The target is no index that can be filled.
        UsageError: `settings` ask for what cannot be.
        ConnectError: The database cannot be reached, or went away.
        PgOrthancError: The file cannot be converted, or not as `settings.strict` would have it.
    """
    _check(settings)
    started = time.monotonic()
    with ExitStack() as stack:
        source = stack.enter_context(sources.opened(path))
        conversion = Conversion(source, settings, stack, where, stop)
        yield from conversion.survey(thorough=False)
        yield from conversion.run()
        yield conversion.result(time.monotonic() - started)


def check(path: Path, settings: Settings, stop: threading.Event | None = None) -> Iterator[Event]:
    """Read everything as `convert` would, and say what it would do; writes nothing, and needs no database.

    Raises:
        workers.Stopped: `stop` was set.
        InUseError: An Orthanc works with the file.
        PgOrthancError: The file cannot be converted.
    """
    _check(settings)
    started = time.monotonic()
    with ExitStack() as stack:
        source = stack.enter_context(sources.opened(path))
        reading = Reading(source, settings, stack, stop)
        yield from reading.survey(thorough=True)
        yield from reading.read()
        yield from reading.look_at_files()
        yield reading.result(time.monotonic() - started, dry_run=True)


def _check(settings: Settings) -> None:
    if settings.revision is not None:
        catalog.require_revision(settings.revision)
    findings.check_report(settings.report)
    if settings.server_identifier is not None and not 0 < len(settings.server_identifier) <= _LONGEST:
        raise UsageError(
            f"the server identifier has {len(settings.server_identifier)} characters, wanted 1 to {_LONGEST}"
        )
    files = settings.verify_files or settings.verify_hashes or settings.large_objects
    if files and settings.storage_dir is None:
        raise UsageError(
            "where are the attachments?",
            "give --storage-dir FOLDER, or Orthanc's configuration with --config",
        )
