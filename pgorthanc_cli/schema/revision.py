"""The schema of an index: create it, mend it, print it.

A change and its proof are one transaction under Orthanc's advisory lock 44: the catalog is read back and held
against what the revision must look like before the commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import psycopg2.errors

from pgorthanc_cli import db, locks
from pgorthanc_cli.db import planted
from pgorthanc_cli.errors import InUseError, RevisionError
from pgorthanc_cli.schema import catalog, rights, steps

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SCHEMA_VERSION = 6
"""What Orthanc calls the version of its database (global property 1); the same for all revisions."""

TRIGRAM_WARNINGS = {
    "unavailable": "no trigram index, so searches with wildcards are slow: the server lacks the extension pg_trgm "
    "(package postgresql-contrib)",
    "missing": "no trigram index, so searches with wildcards are slow; have an administrator run CREATE EXTENSION IF "
    f"NOT EXISTS pg_trgm; then: CREATE INDEX CONCURRENTLY {catalog.TRIGRAM_INDEX} ON dicomidentifiers USING gin "
    "(value gin_trgm_ops);",
    "invalid": "the trigram index is invalid, so searches with wildcards are slow; "
    f"run: REINDEX INDEX CONCURRENTLY {catalog.TRIGRAM_INDEX};",
}

# A change that waits for a lock makes everybody queue up behind it.
_LOCK_TIMEOUT = "5s"


@dataclass(frozen=True)
class Initialised:
    """What `init` found or made.

    Attributes:
        revision: Revision of the index.
        schema_version: Version of the database as Orthanc means it.
        created: Whether the index was made now (False: it was there).
        storage: Whether the schema holds the PostgreSQL storage area.
        trigram: State of the trigram index, see `catalog.trigram`.
        schema: PostgreSQL namespace.
        repaired: What an index that was there lacked, and has now.
        dry_run: Whether all of it was rolled back.
    """

    revision: int
    schema_version: int
    created: bool
    storage: bool
    trigram: str
    schema: str
    repaired: tuple[str, ...]
    dry_run: bool = field(default=False, metadata={"shown": False})

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the administrator should know."""
        return tuple(filter(None, [TRIGRAM_WARNINGS.get(self.trigram)]))


def current() -> int:
    """The revision that `init` makes by default: the newest one that is known."""
    return catalog.revisions()[-1]


def layout(conn: Connection, schema: str) -> catalog.Layout | None:
    """The layout of the index in a schema, recognised by its tables; None if there is no index.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
        RevisionError: The tables are of no known layout.
    """
    return catalog.layout(catalog.snapshot(conn, schema), schema)


def recorded(conn: Connection, schema: str) -> str | None:
    """The revision that the index says it has (global property 4); None if it says nothing.

    Raises:
        ConnectError: There is no such schema, or the role may not use it.
    """
    return catalog.snapshot(conn, schema).get("property 4")


def init(
    conn: Connection,
    *,
    schema: str,
    revision: int | None = None,
    with_storage: bool = True,
    dry_run: bool = False,
) -> Initialised:
    """Make an index in an empty schema, or mend what is missing in an index of that revision.

    Args:
        conn: A connection; what it has open is committed first.
        schema: An existing PostgreSQL namespace.
        revision: The revision to make; default: the newest one.
        with_storage: Whether the storage area is wanted as well. One that is there stays in any case.
        dry_run: Do everything, but roll it back.

    Raises:
        ConnectError: There is no such schema, it may not be used, or the server takes no writes.
        RevisionError: The revision cannot be made, the schema holds something else, or rights are missing.
        InUseError: An Orthanc works on the database, or another set-up is going on.
    """
    revision = current() if revision is None else revision
    scripts = _scripts(revision)
    with db.advisory_lock(conn, db.LOCK_DATABASE_SETUP), driver_errors(), conn:
        result = _establish(conn, schema, revision, scripts, with_storage=with_storage)
        if dry_run:
            conn.rollback()
    return replace(result, dry_run=dry_run)


def print_sql(*, schema: str, revision: int | None = None, with_storage: bool = True) -> str:
    """What `init` runs on an empty schema, as one script; it needs no database.

    It is one transaction however it is loaded: with psql, with psql -1, from an image's
    `docker-entrypoint-initdb.d`, or sent as one text.

    Raises:
        RevisionError: The revision cannot be made.
    """
    revision = current() if revision is None else revision
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
    """The scripts that make an index of a revision in an empty schema; only one that can be proved is made."""
    catalog.require(revision)
    return [steps.PREPARE_INDEX, *(step.script for step in steps.path(current(), revision))]


def _establish(
    conn: Connection, schema: str, revision: int, scripts: list[str], *, with_storage: bool
) -> Initialised:
    found = catalog.snapshot(conn, schema)
    here = catalog.layout(found, schema)
    if here is None:
        _refuse_leftovers(found, revision, schema)
    else:
        _refuse_other_revision(here, found.get("property 4"), revision, schema)
    wanted = catalog.wanted(revision, with_storage=with_storage or "table storagearea" in found)
    missing = [d for d in catalog.differences(found, wanted) if d.matters]
    if missing:
        db.check_writable(conn)
        rights.require_creation(conn, schema, found)
        require_idle(conn, schema)
        planted.refuse_until_commit(conn)
        _run(conn, _needed(missing, scripts, here, revision))
        found = catalog.snapshot(conn, schema)
        _require_equal(found, wanted, revision)
    return Initialised(
        revision=revision,
        schema_version=SCHEMA_VERSION,
        created=here is None,
        storage="table storagearea" in found,
        trigram=catalog.trigram(conn, found),
        schema=schema,
        repaired=tuple(d.name for d in missing) if here else (),
    )


def _refuse_leftovers(found: catalog.Catalog, revision: int, schema: str) -> None:
    taken = catalog.collisions(found, catalog.wanted(revision, with_storage=False))
    if taken:
        raise RevisionError(
            f"schema {schema} holds no Orthanc index, but {_listed(taken)} of the same name as in an index",
            "use another schema; if these are the remains of an index, drop them",
        )


def _refuse_other_revision(here: catalog.Layout, recorded: str | None, revision: int, schema: str) -> None:
    if (here.revision, recorded) != (revision, str(revision)):
        raise RevisionError(
            f"schema {schema} holds an index of plugin {here.plugins} (revision {here.name}, "
            f"recorded as {recorded or 'none'}), wanted revision {revision}",
            f"run: pgorthanc downgrade --to {revision}"
            if here.revision > revision
            else "run: pgorthanc upgrade",
        )


def require_idle(conn: Connection, schema: str) -> None:
    """Make sure that no Orthanc works on the database, with a lock or without.

    Raises:
        InUseError: Another session holds the lock of the index or of the storage area, or an Orthanc without a lock
            is seen (see `locks.require_no_orthanc`).
    """
    holders = db.lock_holders(conn, db.LOCK_INDEX, db.LOCK_STORAGE)
    if holders:
        raise InUseError(
            f"an Orthanc works on this database: {'; '.join(map(str, holders))}",
            "stop it, then run the same command again",
        )
    locks.require_no_orthanc(conn, schema)


def _needed(
    missing: list[catalog.Difference], scripts: list[str], here: catalog.Layout | None, revision: int
) -> list[str]:
    """The scripts that make or mend what is missing."""
    of_storage = catalog.storage().keys()
    of_index = [difference for difference in missing if difference.name not in of_storage]
    if here and of_index and revision != current():
        raise _damaged(of_index, revision)
    index_scripts = scripts[:1] if here else scripts
    storage_scripts = [steps.STORAGE_AREA] if len(of_index) < len(missing) else []
    return [*(index_scripts if of_index else ()), *storage_scripts]


def _run(conn: Connection, scripts: list[str]) -> None:
    with conn.cursor() as cur:
        cur.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
        for script in scripts:
            cur.execute(steps.text(script))


def _require_equal(found: catalog.Catalog, wanted: catalog.Catalog, revision: int) -> None:
    left = [difference for difference in catalog.differences(found, wanted) if difference.matters]
    if left:
        raise _damaged(left, revision)


def _damaged(differences: list[catalog.Difference], revision: int) -> RevisionError:
    return RevisionError(
        f"the schema is not what revision {revision} must be, and was left as it was: {_listed(differences)}",
        "run: pgorthanc verify schema --repair",
    )


def _listed(things: Sequence[object], most: int = 5) -> str:
    shown = "; ".join(map(str, things[:most]))
    return shown if len(things) <= most else f"{shown}; and {len(things) - most} more"


@contextmanager
def driver_errors() -> Iterator[None]:
    """What our own scripts refuse, and whom they waited for in vain; the rest is left to `db.session`."""
    try:
        yield
    except psycopg2.errors.LockNotAvailable:
        raise InUseError(
            f"another session kept a table of the index locked for more than {_LOCK_TIMEOUT}",
            "stop every Orthanc that uses this database, then run the same command again",
        ) from None
    except psycopg2.errors.RaiseException as error:
        raise RevisionError(str(error.diag.message_primary), error.diag.message_hint) from None
