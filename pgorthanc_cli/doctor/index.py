"""The index: what it is, whether it is whole, who may do what with it, who works on it."""

from __future__ import annotations

from psycopg2 import sql

from pgorthanc_cli import locks
from pgorthanc_cli.db import planted
from pgorthanc_cli.doctor.model import Status, Subject, Verdict
from pgorthanc_cli.schema import catalog, verify

_SHOWN = 3

_RIGHTS = """
    SELECT bool_and(has_table_privilege(oid, 'SELECT')),
           bool_and(has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
               AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE')),
           bool_and(pg_has_role(relowner, 'USAGE')), min(pg_get_userbyid(relowner)),
           has_schema_privilege(index_schema(), 'CREATE')
        FROM pg_class
        WHERE relnamespace = quote_ident(index_schema())::regnamespace AND relkind = 'r' AND relname = ANY (%s)
"""
_SEES = "SELECT pg_has_role('pg_read_all_stats', 'USAGE'), pg_has_role('pg_read_all_settings', 'USAGE')"


def revision(subject: Subject) -> Verdict:
    """Which release of the plugin the index is for."""
    here = catalog.read_layout(subject.conn, subject.target.schema)
    if here is None:
        return Verdict(
            "CRITICAL",
            f"schema {subject.target.schema} of database {subject.conn.info.dbname} holds no Orthanc index",
            "name the right one with --dbname and --schema, or make an index: pgorthanc init",
        )
    recorded = subject.found.get("property 4")
    is_it = f"revision {here.revision or 'unknown'}, for plugin {here.plugins}"
    figures = {"revision": here.revision}
    if str(here.revision) == recorded:
        newest = catalog.newest()
        newer = "" if here.revision == newest else f"; the newest is {newest}"
        return Verdict("OK", is_it + newer, None, figures)
    return Verdict(
        "WARNING", f"{is_it}, but recorded as {recorded or 'none'}", "run: pgorthanc upgrade --plan", figures
    )


def schema(subject: Subject) -> Verdict:
    """Whether it is what its revision must be."""
    report = verify.schema(subject.conn, subject.target.schema, deep=subject.deep)
    bad = report.mattering
    shown = "; ".join(str(finding) for finding in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    read = "tables, functions and all rows" if subject.deep else "tables and functions"
    return Verdict(
        "CRITICAL" if bad else "OK",
        shown + more if bad else f"{read} are as revision {report.revision} must be",
        "run: pgorthanc verify schema --repair",
        {"schema_findings": len(bad)},
    )


def foreign_code(subject: Subject) -> Verdict:
    """Whether something in the schema would run with the rights of whoever writes to the index."""
    found = planted.find(subject.conn, subject.target.schema)
    shown = "; ".join(map(str, found[:_SHOWN]))
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    role = subject.conn.info.user
    return Verdict(
        "CRITICAL" if found else "OK",
        f"in place of PostgreSQL's or the plugin's own this would run with the rights of role {role}: {shown}{more}"
        if found
        else f"nothing of others runs with the rights of role {role}",
        f"run: {' '.join(each.remedy for each in found[:_SHOWN])}{' ...' if more else ''}",
        {"planted_objects": len(found)},
    )


def rights(subject: Subject) -> Verdict:
    """Which of our commands this role can run."""
    known = {name for number in catalog.revisions() for name in catalog.expected(number, with_storage=True)}
    names = [name.removeprefix("table ") for name in known if name.startswith("table ")]
    reads, writes, owns, owner, creates = subject.row(_RIGHTS, names)
    stats, configured = subject.row(_SEES)
    role = subject.conn.info.user
    can = {
        "status, verify": (reads, "SELECT on its tables"),
        "import": (writes, "INSERT, UPDATE and DELETE on its tables"),
        "upgrade, downgrade": (owns and creates, f"to be {owner}, the owner of its tables"),
        "check-lock (statements of others)": (stats, "pg_read_all_stats"),
        "check-auth, replication (the server's files)": (configured, "pg_read_all_settings"),
    }
    lacking = "; ".join(f"{what}: needs {need}" for what, (able, need) in can.items() if not able)
    able = ", ".join(what for what, (able, _) in can.items() if able) or "nothing"
    return Verdict(
        "OK" if reads else "WARNING",
        f"role {role} can do: {able}" + (f". It cannot: {lacking}" if lacking else ""),
        f"as their owner: GRANT SELECT ON ALL TABLES IN SCHEMA {_quoted(subject, subject.target.schema)} TO "
        f"{_quoted(subject, role)};",
    )


def _quoted(subject: Subject, name: str) -> str:
    return sql.Identifier(name).as_string(subject.conn)


def at_work(subject: Subject) -> Verdict:
    """Who works on it; more in `pgorthanc check-lock`."""
    found = locks.look(subject.conn, subject.target.schema)
    status: Status = found.status
    return Verdict(
        status,
        "; ".join((*found.problems, found.summary)),
        "run: pgorthanc check-lock",
        {"locks_held": len(found.held), "orthancs": len(found.orthancs)},
    )


def trigram(subject: Subject) -> Verdict:
    """Whether searches with wildcards are fast."""
    state = catalog.trigram(subject.conn, subject.found)
    if state == "valid":
        return Verdict("OK", "searches with wildcards have their index")
    message, _, remedy = catalog.TRIGRAM_WARNINGS[state].partition("; ")
    return Verdict("WARNING", message, remedy or "install it on the server, then run: pgorthanc upgrade")
