"""Problems of a configuration with its database: revision, connection limits, a pooler. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.config.deployment import Deployment
from pgorthanc_cli.config.documents import Problem
from pgorthanc_cli.config.options import SECTION, version
from pgorthanc_cli.db import pooler
from pgorthanc_cli.errors import ConnectError, PgOrthancError, RevisionError
from pgorthanc_cli.schema import catalog

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# Since then no plugin refuses a revision newer than its own (SCHEMA.md 10).
_IGNORES_NEWER_SINCE = "6.0"

# Superusers, and since PostgreSQL 16 holders of pg_use_reserved_connections, may use what is reserved.
_ALLOWED = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0),
       d.datconnlimit, r.rolconnlimit, d.datname, r.rolname
FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
WHERE d.datname = pg_catalog.current_database() AND r.rolname = current_user"""


def problems(deployment: Deployment, target: db.Target) -> tuple[Problem, ...]:
    """Return what will go wrong when Orthanc starts, and what could not be inspected."""
    problems: list[Problem] = []
    for inspect in (_index, _limits, _pooler):
        try:
            # At once: an error leaves the problems of the inspections before it.
            problems.extend(inspect(deployment, target))
        except PgOrthancError as error:
            message = f"the database could not be inspected: {error.message}"
            problems.append(Problem(SECTION, "warning", message, error.hint, deployment.location()))
            if isinstance(error, ConnectError):
                break
    return tuple(problems)


def _index(deployment: Deployment, target: db.Target) -> Iterator[Problem]:
    schema = target.schema if deployment.knows("Schema") else "public"
    with db.session(target, readonly=True, need_schema=False) as conn:
        yield from _schema(deployment, conn, schema)


def _limits(deployment: Deployment, target: db.Target) -> Iterator[Problem]:
    with db.session(target, readonly=True, need_schema=False) as conn:
        yield from _connections(deployment, conn)


def _pooler(deployment: Deployment, target: db.Target) -> Iterator[Problem]:
    detected = pooler.detect(target)
    if detected.mode == "transaction":
        message = (
            f"a pooler in transaction mode is in between ({detected.evidence}): Orthanc needs its own "
            "sessions"
        )
        hint = "connect to the server itself, or let the pooler work in session mode"
        yield Problem(f"{SECTION}.Host", "error", message, hint, deployment.location())


def _schema(deployment: Deployment, conn: Connection, schema: str) -> Iterator[Problem]:
    key, location = f"{SECTION}.Schema", deployment.location("Schema")
    with conn.cursor() as cur:
        cur.execute("SELECT catcode FROM pg_catalog.pg_get_keywords() WHERE word = %s", (schema,))
        # R and T are reserved (pg_get_keywords): the name would need quotes.
        if (cur.fetchone() or ("U",))[0] in ("R", "T"):
            message = f'"{schema}" is a reserved word, and the plugin does not quote it'
            yield Problem(key, "error", message, "rename the schema", location)
        cur.execute("SELECT FROM pg_catalog.pg_namespace WHERE nspname = %s", (schema,))
        missing = cur.fetchone() is None
    if missing:
        hint = "create the schema, or give the name of another one"
        yield Problem(
            key,
            "error",
            f"the database has no schema {schema}, and the plugin does not create it",
            hint,
            location,
        )
    elif deployment.release or deployment.revision:
        yield from _revision(deployment, conn, schema)


def _revision(deployment: Deployment, conn: Connection, schema: str) -> Iterator[Problem]:
    """Yield what the plugin will do with the index."""
    key, plugin = f"{SECTION}.EnableIndex", f"plugin {deployment.release or 'mainline'}"
    expected = _revision_of_plugin(deployment)
    if expected is None:
        yield Problem(key, "info", f"it is not known which revision {plugin} needs")
        return
    try:
        layout = catalog.layout(catalog.snapshot(conn, schema), schema)
    except RevisionError as error:
        yield Problem(key, "error", error.message, error.hint)
        return
    here = layout.revision if layout else None
    state = "contains no index" if here is None else f"is at revision {here or 'unknown (before 1)'}"
    message = f"{plugin} needs revision {expected}, and schema {schema} {state}"
    if here == expected:
        yield Problem(key, "info", f"{message}: it starts")
    elif deployment.read_only and (here is None or here < expected):
        to = max(expected, 1)
        hint, command = "upgrade the index, with all Orthancs stopped", f"pgorthanc upgrade --to {to}"
        if here is None:
            hint, command = (
                "check the name of the database, or create an index",
                f"pgorthanc init --revision {to}",
            )
        yield Problem(key, "error", f'{message}: with "ReadOnly" it refuses to start', hint, command=command)
    elif here is None:
        yield Problem(key, "info", f"{message}: it creates one")
    elif here < expected:
        yield Problem(
            key, "warning", f"{message}: it upgrades the index when it starts, and cannot go back",
            "plan the upgrade, and run it before Orthanc starts",
            command=f"pgorthanc upgrade --plan --to {expected}",
        )  # fmt: skip
    else:
        starts = not deployment.read_only and (
            deployment.release is None or version(deployment.release) >= version(_IGNORES_NEWER_SINCE)
        )
        then = (
            "it starts all the same, and fails or damages the index later"
            if starts
            else "it refuses to start"
        )
        hint = f"install plugin {catalog.plugins(here)}, or downgrade the index; first plan it"
        command = f"pgorthanc downgrade --plan --to {max(expected, 1)}"
        yield Problem(key, "error", f"{message}: {then}", hint, command=command)


def _revision_of_plugin(deployment: Deployment) -> int | None:
    """Return the revision that the plugin uses; 0 before revision 1."""
    if deployment.release is None:
        return deployment.revision
    if version(deployment.release) < (4, 0):
        return 0
    try:
        return catalog.revision_of_plugin(deployment.release)
    except RevisionError:
        return deployment.revision


def _connections(deployment: Deployment, conn: Connection) -> Iterator[Problem]:
    with conn.cursor() as cur:
        cur.execute(_ALLOWED)
        [(server, database, role, database_name, role_name)] = cur.fetchall()
    each = int(deployment.option("IndexConnectionsCount")) if deployment.option("EnableIndex") else 0
    each += 1 if deployment.option("EnableStorage") else 0
    needed = each * deployment.containers
    limits = (
        (server, "the server (max_connections without the reserved ones)"),
        (database, f"database {database_name} (CONNECTION LIMIT)"),
        (role, f"role {role_name} (CONNECTION LIMIT)"),
    )
    for limit, whose in limits:
        if 0 <= limit < needed:
            orthancs = (
                "1 Orthanc opens" if deployment.containers == 1 else f"{deployment.containers} Orthancs open"
            )
            message = f"{orthancs} up to {needed} connections, and {whose} allows {limit}"
            most = max((limit - 1) // deployment.containers, 1)
            hint = f'set "IndexConnectionsCount" to {most} or less, or raise the limit'
            yield Problem(
                f"{SECTION}.IndexConnectionsCount", "error" if limit < each else "warning", message, hint,
                deployment.location("IndexConnectionsCount"),
            )  # fmt: skip
