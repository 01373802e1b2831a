"""Create an index in an empty schema, repair one, or print the script that creates it.

A change and its proof are one transaction under Orthanc's advisory lock 44: before the commit, the catalog is read back
and compared with that of the revision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.db import planted
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import catalog, rights, steps
from pgorthanc_cli.text import shortened

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SCHEMA_VERSION = 6
"""The version of the database as Orthanc understands it (global property 1); the same for all revisions."""

RequireIdle = Callable[["Connection", str], None]
"""Raises InUseError if an Orthanc uses the database and schema: `locks.require_idle`."""

# All later sessions queue up behind a change that waits for a lock.
LOCK_TIMEOUT = "5s"
LOCKED = f"another session kept a table of the index locked for more than {LOCK_TIMEOUT}"


@dataclass(frozen=True)
class Initialised:
    """The index after `init`.

    Attributes:
        revision: Revision of the index.
        schema_version: Version of the database as Orthanc understands it.
        created: Whether the index was created now (False: it existed).
        storage: Whether the schema holds the PostgreSQL storage area.
        trigram: State of the trigram index, see `catalog.trigram`.
        schema: PostgreSQL namespace.
        repaired: The objects that an existing index lacked, and has now.
        dry_run: Whether everything was rolled back.
        endpoint: Where we looked.
    """

    revision: int
    schema_version: int
    created: bool
    storage: bool
    trigram: str
    schema: str
    repaired: tuple[str, ...]
    dry_run: bool
    endpoint: db.Endpoint


def init(
    conn: Connection,
    *,
    schema: str,
    require_idle: RequireIdle,
    revision: int | None = None,
    with_storage: bool = True,
    dry_run: bool = False,
) -> Initialised:
    """Create an index in an empty schema, or add what is missing in an index of that revision.

    Args:
        conn: A connection; its open transaction is committed first.
        schema: An existing PostgreSQL namespace.
        require_idle: Raises InUseError if an Orthanc uses the database, see `locks.require_idle`; called under lock 44,
            and only if something has to be changed.
        revision: The revision to create; default: the newest one.
        with_storage: Whether to create the storage area as well. An existing one stays in any case.
        dry_run: Do everything, but roll it back.

    Raises:
        ConnectError: There is no such schema, it may not be used, or the server takes no writes.
        RevisionError: The revision cannot be created, the schema holds something else, or rights are missing.
        InUseError: An Orthanc uses the database, or another set-up is running.
    """
    revision = catalog.newest() if revision is None else revision
    scripts = _scripts(revision)
    # The advisory lock is entered first, so it is released after the commit.
    with db.advisory_lock(conn, db.LOCK_DATABASE_SETUP), steps.errors(LOCKED), conn:
        rights.require_reading(conn, schema)
        objects = catalog.snapshot(conn, schema)
        layout = catalog.layout(objects, schema)
        _refuse_other_contents(objects, layout, revision, schema)
        storage = with_storage or "table storagearea" in objects
        expected = catalog.expected(revision, with_storage=storage)
        missing = _mattering(objects, expected)
        if missing:
            db.check_writable(conn)
            rights.require_creation(conn, schema, objects)
            require_idle(conn, schema)
            planted.refuse_until_commit(conn)
            _run(conn, _scripts_for(missing, scripts, layout, revision))
            objects = catalog.snapshot(conn, schema)
            if left := _mattering(objects, expected):
                raise _damaged(left, revision)
        result = Initialised(
            revision=revision,
            schema_version=SCHEMA_VERSION,
            created=layout is None,
            storage="table storagearea" in objects,
            trigram=catalog.trigram(conn, objects),
            schema=schema,
            repaired=tuple(difference.name for difference in missing) if layout else (),
            dry_run=dry_run,
            endpoint=db.endpoint(conn),
        )
        if dry_run:
            conn.rollback()
    return result


def print_sql(*, schema: str, revision: int | None = None, with_storage: bool = True) -> str:
    """Return what `init` runs on an empty schema, as one script; it needs no database.

    The script is one transaction however it is loaded: with psql, with psql -1, from an image's
    `docker-entrypoint-initdb.d`, or sent as one text.

    Raises:
        RevisionError: The revision cannot be created.
    """
    revision = catalog.newest() if revision is None else revision
    scripts = [*_scripts(revision), *([steps.STORAGE_AREA] if with_storage else [])]
    name = '"' + schema.replace('"', '""') + '"'
    missing = f"NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = {_literal(schema)})"
    head = f"""\
-- An Orthanc index at revision {revision}, printed by: pgorthanc init --print-sql
BEGIN;
DO 'BEGIN PERFORM pg_advisory_xact_lock({db.LOCK_DATABASE_SETUP}); END';
DO {_literal(f"BEGIN IF {missing} THEN CREATE SCHEMA {name}; END IF; END")};
SET LOCAL search_path TO {name};
"""
    return "\n\n".join([head, *(f"-- {script}\n\n{steps.text(script)}" for script in scripts), "COMMIT;\n"])


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _scripts(revision: int) -> list[str]:
    """Return the scripts that create an index of a revision in an empty schema.

    They go through the newest revision, so each `init` of an older one proves the downgrade steps as well.
    """
    catalog.require_revision(revision)
    return [steps.PREPARE_INDEX, *(step.script for step in steps.path(catalog.newest(), revision))]


def _mattering(objects: catalog.Catalog, expected: catalog.Catalog) -> list[catalog.Difference]:
    return [difference for difference in catalog.differences(objects, expected) if difference.matters]


def _refuse_other_contents(
    objects: catalog.Catalog, layout: catalog.Layout | None, revision: int, schema: str
) -> None:
    if layout is None:
        taken = catalog.collisions(objects, catalog.expected(revision, with_storage=False))
        if taken:
            raise RevisionError(
                f"schema {schema} holds no Orthanc index, but {shortened(taken, 5)} of the same name as in an index",
                "use another schema; if these are the remains of an index, drop them",
            )
        return
    recorded = objects.get("property 4")
    if (layout.revision, recorded) != (revision, str(revision)):
        raise RevisionError(
            f"schema {schema} holds an index of plugin {layout.plugins} (revision {layout.name}, "
            f"recorded as {recorded or 'none'}), wanted revision {revision}",
            f"run: pgorthanc {'downgrade' if layout.revision > revision else 'upgrade'} --to {revision}",
        )


def _scripts_for(
    missing: list[catalog.Difference], scripts: list[str], layout: catalog.Layout | None, revision: int
) -> list[str]:
    """Return the scripts that create what is missing.

    An existing index is repaired by PrepareIndex.sql alone, which is of the newest revision.
    """
    storage = catalog.storage().keys()
    of_index = [difference for difference in missing if difference.name not in storage]
    if layout and of_index and revision != catalog.newest():
        raise _damaged(of_index, revision)
    index_scripts = scripts[:1] if layout else scripts
    storage_scripts = [steps.STORAGE_AREA] if len(of_index) < len(missing) else []
    return [*(index_scripts if of_index else ()), *storage_scripts]


def _run(conn: Connection, scripts: list[str]) -> None:
    with conn.cursor() as cur:
        cur.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
        for script in scripts:
            cur.execute(steps.text(script))


def _damaged(differences: list[catalog.Difference], revision: int) -> RevisionError:
    return RevisionError(
        f"the schema is not what revision {revision} must be, and was left as it was: {shortened(differences, 5)}",
        "run: pgorthanc verify schema --print-sql",
    )
