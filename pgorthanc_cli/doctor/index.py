"""Checks of the index as a whole: revision, schema, privileges, locks, foreign code."""

from __future__ import annotations

from pgorthanc_cli import db, locks
from pgorthanc_cli.db import planted
from pgorthanc_cli.doctor.model import Subject, Verdict, check
from pgorthanc_cli.schema import catalog, verify
from pgorthanc_cli.text import shortened

_LISTED = 3

_PRIVILEGES = """
    SELECT bool_and(has_table_privilege(oid, 'SELECT')),
           bool_and(has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
               AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE')),
           bool_and(pg_has_role(relowner, 'USAGE')), min(pg_get_userbyid(relowner)),
           has_schema_privilege(index_schema(), 'CREATE'),
           pg_has_role('pg_read_all_stats', 'USAGE'), pg_has_role('pg_read_all_settings', 'USAGE')
        FROM pg_class
        WHERE relnamespace = quote_ident(index_schema())::regnamespace AND relkind = 'r'
            AND relname = ANY (%s)
"""


@check("rights", needs_index=True)
def rights(subject: Subject) -> Verdict:
    """Report which of our commands this role can run."""
    revision_names = {
        name for number in catalog.revisions() for name in catalog.expected(number, with_storage=True)
    }
    table_names = [name.removeprefix("table ") for name in revision_names if name.startswith("table ")]
    [(reads, writes, owns, owner, creates, stats, all_settings)] = db.rows(
        subject.conn, _PRIVILEGES, table_names
    )
    role = subject.conn.info.user
    commands = {
        "status, verify": (reads, "SELECT on its tables"),
        "import": (writes, "INSERT, UPDATE and DELETE on its tables"),
        "upgrade, downgrade": (owns and creates, f"to be {owner}, the owner of its tables"),
        "check-lock (statements of others)": (stats, "pg_read_all_stats"),
        "check-auth, replication (the server's files)": (all_settings, "pg_read_all_settings"),
    }
    possible = ", ".join(command for command, (able, _) in commands.items() if able) or "nothing"
    lacking = [f"{command}: needs {need}" for command, (able, need) in commands.items() if not able]
    impossible = f". It cannot: {'; '.join(lacking)}" if lacking else ""
    return Verdict(
        "OK" if reads else "WARNING",
        f"role {role} can do: {possible}{impossible}",
        "as their owner: GRANT SELECT ON ALL TABLES IN SCHEMA "
        f"{db.quote_ident(subject.target.schema)} TO {db.quote_ident(role)};",
    )


@check("revision")
def revision(subject: Subject) -> Verdict:
    """Compare the revision of the tables with the one that is recorded."""
    layout = catalog.read_layout(subject.conn, subject.target.schema)
    if layout is None:
        return Verdict(
            "CRITICAL",
            f"schema {subject.target.schema} of database {subject.conn.info.dbname} holds no Orthanc index",
            "name the right one with --dbname and --schema, or make an index: pgorthanc init",
        )
    recorded = subject.catalog.get("property 4")
    message = f"revision {layout.revision or 'unknown'}, for plugin {layout.plugins}"
    figures = {"revision": layout.revision}
    if str(layout.revision) != recorded:
        message = f"{message}, but recorded as {recorded or 'none'}"
        return Verdict("WARNING", message, "run: pgorthanc upgrade --plan", figures)
    newest = catalog.newest()
    if layout.revision != newest:
        message = f"{message}; the newest is {newest}"
    return Verdict("OK", message, None, figures)


@check("schema", needs_index=True)
def schema(subject: Subject) -> Verdict:
    """Compare the schema with its revision."""
    report = verify.schema(subject.conn, subject.target.schema, deep=subject.deep)
    findings = report.mattering
    message = shortened(findings, _LISTED)
    if not findings:
        scope = "tables, functions and all rows" if subject.deep else "tables and functions"
        message = f"{scope} are as revision {report.revision} must be"
    return Verdict(
        "CRITICAL" if findings else "OK",
        message,
        "run: pgorthanc verify schema --repair",
        {"schema_findings": len(findings)},
    )


@check("foreign-code")
def foreign_code(subject: Subject) -> Verdict:
    """Check that nothing in the schema would run with the rights of those who write to the index."""
    objects = planted.find(subject.conn, subject.target.schema)
    role = subject.conn.info.user
    message = f"nothing of others runs with the rights of role {role}"
    if objects:
        message = (
            "in place of PostgreSQL's or the plugin's own this would run with the rights of role "
            f"{role}: {shortened(objects, _LISTED)}"
        )
    remedies = " ".join(planted_object.remedy for planted_object in objects[:_LISTED])
    return Verdict(
        "CRITICAL" if objects else "OK",
        message,
        f"run: {remedies}{' ...' if len(objects) > _LISTED else ''}",
        {"planted_objects": len(objects)},
    )


@check("locks")
def orthancs(subject: Subject) -> Verdict:
    """Report who uses the index, as `pgorthanc check-lock` does in detail."""
    usage = locks.inspect(subject.conn, subject.target.schema)
    return Verdict(
        usage.status,
        "; ".join((*usage.problems, usage.summary)),
        "run: pgorthanc check-lock",
        {"locks_held": len(usage.held), "orthancs": len(usage.orthancs)},
    )
