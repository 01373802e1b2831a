"""Checks of the index as a whole: revision, schema, privileges, locks, foreign code."""

from __future__ import annotations

from pgorthanc_cli import db, index, locks
from pgorthanc_cli.db import planted
from pgorthanc_cli.doctor.model import Subject, Verdict, check
from pgorthanc_cli.errors import RevisionError
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
    possible = ", ".join(command for command, (able, _) in commands.items() if able)
    lacking = [f"{command}: needs {need}" for command, (able, need) in commands.items() if not able]
    message = f"role {role} can run {possible}" if possible else f"role {role} has no rights"
    if lacking:
        message += f"; it cannot run {'; '.join(lacking)}"
    if writes:
        message += _triggers_of_import(subject)
    return Verdict(
        "OK" if reads else "WARNING",
        message,
        f"As {owner}, the owner of the index:",
        statements=f"GRANT SELECT ON ALL TABLES IN SCHEMA {subject.schema} TO {subject.role};",
    )


def _triggers_of_import(subject: Subject) -> str:
    """Return which row triggers an import by this role keeps off, and what would make it faster."""
    try:
        capabilities = index.Capabilities.read(subject.conn)
    except RevisionError:  # older than what import writes to
        return ""
    if capabilities.triggers_off:
        return "; import works with row triggers off, the fastest way"
    if not capabilities.only_known_triggers:
        return "; import works with row triggers on, as there are others than Orthanc's"
    state = "off, but not those of foreign keys" if capabilities.owner_triggers_off else "on"
    faster = ""
    if subject.conn.server_version >= 150000:
        faster = f" (faster after: GRANT SET ON PARAMETER session_replication_role TO {subject.role};)"
    return f"; import works with row triggers {state}{faster}"


@check("revision")
def revision(subject: Subject) -> Verdict:
    """Compare the revision of the tables with the one that is recorded."""
    layout = catalog.read_layout(subject.conn, subject.target.schema)
    if layout is None:
        return Verdict(
            "CRITICAL",
            f"schema {subject.target.schema} contains no Orthanc index",
            "Give the right database and schema with --dbname and --schema, or create an index:",
            command="init",
        )
    recorded = subject.catalog.get("property 4")
    message = f"revision {layout.revision or 'unknown'}, for plugin {layout.plugins}"
    figures = {"revision": layout.revision}
    if str(layout.revision) != recorded:
        message = f"{message}, but recorded as {recorded or 'none'}"
        hint = "A plugin believes what is recorded, and would upgrade wrongly. See what it needs:"
        return Verdict("WARNING", message, hint, figures, command="upgrade --plan")
    newest = catalog.newest()
    if layout.revision != newest:
        message = f"{message}; the newest is {newest}"
    return Verdict("OK", message, None, figures)


@check("schema", needs_index=True)
def schema(subject: Subject) -> Verdict:
    """Compare the schema with its revision."""
    report = verify.schema(subject.conn, subject.target.schema, deep=subject.deep)
    findings = report.mattering
    message = shortened((f"{finding.difference}: {finding.why}" for finding in findings), _LISTED)
    if not findings:
        scope = "schema and rows match" if subject.deep else "schema matches"
        message = f"{scope} revision {report.revision}"
    return Verdict(
        "CRITICAL" if findings else "OK",
        message,
        "Show how to repair it; this changes nothing yet:",
        {"schema_findings": len(findings)},
        command=f"verify schema{' --deep' if subject.deep else ''} --print-sql",
    )


@check("foreign-code")
def foreign_code(subject: Subject) -> Verdict:
    """Check that nothing in the schema would run with the rights of those who write to the index."""
    objects = planted.find(subject.conn, subject.target.schema)
    role = subject.conn.info.user
    message = f"no code of other roles runs with the rights of role {role}"
    if objects:
        message = (
            f"code of other roles would run with the rights of role {role}, in place of "
            f"PostgreSQL's or the plugin's own: {shortened(objects, _LISTED)}"
        )
    return Verdict(
        "CRITICAL" if objects else "OK",
        message,
        "If you do not trust it, as its owner or a superuser:",
        {"planted_objects": len(objects)},
        statements="\n".join(planted_object.remedy for planted_object in objects),
    )


@check("locks")
def orthancs(subject: Subject) -> Verdict:
    """Report who uses the index, as `pgorthanc check-lock` does in detail."""
    usage = locks.inspect(subject.conn, subject.target.schema)
    return Verdict(
        usage.status,
        "; ".join((*usage.problems, usage.summary)),
        "See which sessions these are:",
        {"locks_held": len(usage.held), "orthancs": len(usage.orthancs)},
        command="check-lock",
    )
