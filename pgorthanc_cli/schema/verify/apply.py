"""Repair a schema: print the script, or run it and verify the result before the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.db import planted
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.progress import Report, silent
from pgorthanc_cli.schema import initialize, steps
from pgorthanc_cli.schema.verify.compare import schema as compare
from pgorthanc_cli.schema.verify.model import Finding, Repaired, SchemaReport

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# New objects belong to the owner of the index, whatever role repairs.
_PREPARE = """SET LOCAL lock_timeout = '5s';
SELECT set_config('role', pg_get_userbyid(relowner), true) FROM pg_class WHERE oid = to_regclass('resources');"""
# LOCK fails if it may not lock one of the tables; those of other roles are left alone.
_LOCK = """DO $$
BEGIN
    EXECUTE (SELECT 'LOCK TABLE ' || string_agg(quote_ident(relname), ', ') || ' IN SHARE ROW EXCLUSIVE MODE'
                 FROM pg_class
                 WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relkind IN ('r', 'p')
                     AND pg_has_role(relowner, 'USAGE'));
END
$$;"""
# pg_locks shows a lock with one key as classid 0 and objsubid 1, as the key is small.
_ALONE = f"""DO $$
BEGIN
    IF NOT pg_try_advisory_xact_lock({db.LOCK_DATABASE_SETUP}) OR EXISTS (
            SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
                WHERE datname = current_database() AND locktype = 'advisory' AND classid = 0
                    AND objid IN ({db.LOCK_INDEX}, {db.LOCK_STORAGE}) AND objsubid = 1
                    AND pid <> pg_backend_pid()) THEN
        RAISE EXCEPTION 'an Orthanc works on database %', current_database()
            USING ERRCODE = 'object_in_use', HINT = 'Stop every Orthanc that uses it, then run this again.';
    END IF;
END
$$;"""


def script(report: SchemaReport) -> str:
    """Return what `repair` would run, as one transaction for psql or psql -1.

    Comments name the finding that each statement repairs, and the findings that are not repaired.
    """
    name = db.quote_ident(report.schema)
    why = {fix: finding for finding in report.findings for fix in finding.repair}
    left = [finding for finding in report.findings if not finding.repair]
    lines = [
        f"-- Repairs an Orthanc index at revision {report.revision}, printed by: pgorthanc verify schema --print-sql",
        *(_comment(f"not repaired: {finding}") for finding in left),
        "BEGIN;",
        f"SET LOCAL search_path TO {name};",
        _ALONE,
        _PREPARE,
        _LOCK,
        *(f"\n{_comment(str(why[fix]))}\n{fix.sql}" for fix in report.fixes),
        "\nCOMMIT;",
    ]
    return "\n".join(lines) + "\n"


def repair(
    conn: Connection,
    schema: str,
    *,
    require_idle: initialize.RequireIdle,
    deep: bool = False,
    report: Report = silent,
) -> Repaired:
    """Repair whatever can be repaired, read everything back, and commit only if it is as expected.

    Args:
        conn: A connection; its open transaction is committed first.
        schema: PostgreSQL namespace.
        require_idle: As for `initialize.init`.
        deep: Also repair what only a recount shows.
        report: As for `verify.schema`, before the repair and after it.

    Raises:
        ConnectError: There is no such schema, it may not be used, or the server takes no writes.
        RevisionError: There is no index of a known layout, or something is still wrong after it; then nothing is
            changed.
        InUseError: An Orthanc uses the database, or another session keeps a table locked.
    """
    with db.advisory_lock(conn, db.LOCK_DATABASE_SETUP), steps.errors(initialize.LOCKED), conn:
        require_idle(conn, schema)
        # This refuses a schema without an index before anything is locked.
        compare(conn, schema)
        planted.refuse_until_commit(conn)
        _run(conn, [_PREPARE, _LOCK])
        # Again, now that no other session can change anything.
        before = compare(conn, schema, deep=deep, report=report)
        _run(conn, [fix.sql for fix in before.fixes])
        after = compare(conn, schema, deep=deep, report=report)
        _require_repaired(before, after)
    names = {finding.name for finding in after.findings}
    return Repaired(
        schema=schema,
        revision=after.revision,
        healthy=after.healthy,
        repaired=tuple(finding.name for finding in before.findings if finding.name not in names),
        left=after.findings,
        endpoint=after.endpoint,
    )


def _run(conn: Connection, statements: list[str]) -> None:
    with conn.cursor() as cur:
        for statement in statements:
            cur.execute(statement)


def _require_repaired(before: SchemaReport, after: SchemaReport) -> None:
    """Raise an error if anything matters that was not there before, or that a statement should have repaired."""
    expected = {finding.name for finding in before.findings if not finding.repair}
    wrong: list[Finding] = [finding for finding in after.mattering if finding.name not in expected]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RevisionError(
            f"the repair would leave the schema with: {'; '.join(map(str, wrong[:3]))}{more}; it was rolled back",
            "print the statements with --print-sql, and see which of them does not do its work",
        )


def _comment(text: str) -> str:
    return "-- " + " ".join(text.split())
