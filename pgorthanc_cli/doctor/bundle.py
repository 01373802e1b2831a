"""The support bundle: one archive for those who help, without patient data and secrets.

Its contents are chosen name by name: no row of the index, no statement of a session, no
password. Statements of other sessions may hold names of patients; values of settings may
hold secrets.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from pgorthanc_cli import __version__, db, locks, placement
from pgorthanc_cli.config import deployment, documents
from pgorthanc_cli.config.deployment import Deployment
from pgorthanc_cli.doctor.model import Health
from pgorthanc_cli.errors import PgOrthancError, StatementCancelled
from pgorthanc_cli.progress import Report, silent
from pgorthanc_cli.schema import catalog, status, verify
from pgorthanc_cli.text import duration

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_PACKAGES = ("click", "psycopg2-binary", "pydicom", "rich")
_TABLES = """
    SELECT relname, n_live_tup, n_dead_tup, n_tup_ins, n_tup_upd, n_tup_del, seq_scan, idx_scan, last_vacuum,
           last_autovacuum, last_analyze, last_autoanalyze, pg_table_size(relid) AS size_bytes,
           pg_indexes_size(relid) AS index_bytes
        FROM pg_stat_user_tables WHERE schemaname = index_schema() ORDER BY relname
"""
_INDEXES = """
    SELECT relname, indexrelname, idx_scan, idx_tup_read, pg_relation_size(indexrelid) AS size_bytes
        FROM pg_stat_user_indexes WHERE schemaname = index_schema() ORDER BY indexrelname
"""
# Texts may be commands, paths and connection strings: of those only that they are set.
_SETTINGS = """
    SELECT name, CASE WHEN vartype = 'string' AND name !~* '^(datestyle|default_transaction_isolation|lc_|server_|'
                          'shared_preload_libraries|timezone|wal_sync_method)' THEN '(set)' ELSE setting END AS setting,
           unit, source
        FROM pg_settings WHERE source NOT IN ('default', 'client', 'session', 'override') ORDER BY name
"""
# Without `query`: a statement may hold names of patients.
_SESSIONS = """
    SELECT pid, usename, application_name, client_addr::text, backend_start, xact_start, state_change, state,
           wait_event_type, wait_event, backend_type
        FROM pg_stat_activity WHERE datname = current_database() ORDER BY pid
"""
_DATABASE = """
    SELECT datname, numbackends, xact_commit, xact_rollback, blks_read, blks_hit, temp_files, temp_bytes, deadlocks,
           stats_reset, pg_database_size(datname) AS size_bytes
        FROM pg_stat_database WHERE datname = current_database()
"""


# File in the archive, without its ending -> the query for its rows.
_QUERIES = {
    "tables": _TABLES,
    "indexes": _INDEXES,
    "settings": _SETTINGS,
    "sessions": _SESSIONS,
    "database": _DATABASE,
}


# Long enough for every query that does not read a large table as a whole, and short enough to wait for.
_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An archive that was written.

    Attributes:
        file: Where it is.
        holds: The names of the files in it.
        cut: Those of them without their contents, as the server took too long for these.
    """

    file: Path
    holds: tuple[str, ...]
    cut: tuple[str, ...]


def bundle(
    target: db.Target,
    health: Health,
    path: Path,
    configuration: documents.Paths | None = None,
    *,
    page: str,
    limit_s: float = _LIMIT_S,
    report: Report = silent,
) -> Bundle:
    """Write the archive (tar, gzip; readable by its owner only).

    Args:
        target: The database.
        health: The result of an examination of it.
        path: The archive, which must not exist.
        configuration: Orthanc's configuration; secrets are masked.
        page: The examination as an HTML page.
        limit_s: The longest that the server may work on one statement; what takes longer is left out.
        report: Receives each file before its contents are read.

    Raises:
        PgOrthancError: There is a file of that name, or it cannot be written.
    """
    names, cut = [], []
    with _create(path) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, inspect in _contents(target, health, configuration, page, limit_s, report):
            content = _read(inspect)
            if content is None:
                cut.append(name)
                content = _json({"cut": f"the server took longer than {duration(limit_s)} for one statement"})
            entry = tarfile.TarInfo(f"{path.name.partition('.')[0]}/{name}")
            data = content.encode()
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
            names.append(name)
    return Bundle(path, tuple(names), tuple(cut))


def _create(path: Path) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError:
        raise PgOrthancError(f"{path} is there already", "name another file") from None
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise PgOrthancError(message, "name another file") from None


def _contents(
    target: db.Target,
    health: Health,
    configuration: documents.Paths | None,
    page: str,
    limit_s: float,
    report: Report,
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of each file, and what returns its contents: text, or an object for JSON."""
    versions = {
        "pgorthanc": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "libpq": psycopg2.extensions.libpq_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
    }
    yield "versions.json", lambda: versions
    yield "doctor.json", lambda: health
    yield "doctor.html", lambda: page
    if configuration:
        yield "configuration.json", partial(_masked_options, configuration)
    try:
        with db.session(target, readonly=True, autocommit=True, need_schema=False) as conn:
            conn.limit_statements(limit_s)
            for name, query in _QUERIES.items():
                yield f"{name}.json", partial(_records, conn, query)
            for name, inspect in {
                "catalog": catalog.snapshot,
                "status": status.status,
                "verify": verify.schema,
                "locks": locks.inspect,
            }.items():
                yield f"{name}.json", partial(inspect, conn, target.schema)
        yield "storage.json", partial(placement.show, target, limit_s=limit_s, report=report)
    except PgOrthancError as error:
        failure = {"error": error.message, "hint": error.hint}
        yield "connection-error.json", lambda: failure


def _masked_options(path: documents.Paths) -> deployment.Shown:
    return deployment.show(Deployment.of(documents.read(path, os.environ), path.folder))


def _records(conn: Connection, query: str) -> list[dict[str, Any]]:
    with conn.cursor() as cur:
        cur.execute(query)
        names = [column.name for column in cur.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cur.fetchall()]


def _read(inspect: Callable[[], object]) -> str | None:
    """Return the contents of a file, or the error: a bundle is needed most when things are broken.

    None if the server took too long.
    """
    try:
        content = inspect()
    except (StatementCancelled, psycopg2.errors.QueryCanceled):
        return None
    except PgOrthancError as error:
        content = {"error": error.message, "hint": error.hint}
    except psycopg2.Error as error:
        content = {"error": db.primary_message(error)}
    return content if isinstance(content, str) else _json(content)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=_serializable, ensure_ascii=False) + "\n"


def _serializable(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else str(value)
