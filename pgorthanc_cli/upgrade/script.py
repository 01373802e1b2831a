"""Print a plan as statements that an administrator runs with psql."""

from __future__ import annotations

from pgorthanc_cli import db
from pgorthanc_cli.upgrade.items import Item
from pgorthanc_cli.upgrade.plan import Plan

_HEAD = """\
-- From revision {plan.revision} to {plan.to}, printed by: pgorthanc {command} --print-sql
-- Run it with psql as the owner of the index. Each phase can be run by itself, and again.
\\set ON_ERROR_STOP on
SET search_path TO {schema};
SET statement_timeout = 0;
"""
_PREPARE = """
-- Phase 1, prepare: while Orthanc is running, outside of a transaction. If an index cannot be built, drop what is left
-- of it (DROP INDEX CONCURRENTLY) before you try again.
"""
_SWITCH = """
-- Phase 2, switch: stop every Orthanc first. One transaction; if anything fails, nothing has changed.
BEGIN;
SET LOCAL lock_timeout = '2s';
DO $$
DECLARE
    other record;
BEGIN
    IF NOT ({locks}) THEN
        RAISE EXCEPTION 'an Orthanc works on database %', current_database();
    END IF;
    SELECT pid, application_name, client_addr INTO other FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'another session is connected: pid %, application %, address %',
            other.pid, other.application_name, other.client_addr;
    END IF;
END
$$;
SET LOCAL pgorthanc.childcounts = 'later';
"""
_LOCK = "LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE;\n"
_COMMIT = "\nCOMMIT;\nRESET ROLE;\nSET search_path TO {schema};\n"
_FINISH = """
-- Phase 3, finish: while Orthanc is running, outside of a transaction.
"""


def sql(plan: Plan, *, command: str) -> str:
    """Return the statements of all phases; `command` is the one that prints them."""
    schema = db.quote_ident(plan.schema)
    tables = ", ".join(table.name for table in plan.tables)
    locks = " AND ".join(
        # Until COMMIT: an Orthanc that starts meanwhile gives up, or waits.
        f"pg_try_advisory_xact_lock({lock})"
        for lock in (db.LOCK_DATABASE_SETUP, db.LOCK_INDEX, db.LOCK_STORAGE)
    )
    parts = [_HEAD.format(plan=plan, schema=schema, command=command)]
    parts += [f"-- Not settled: {_one_line(obstacle)}\n" for obstacle in plan.obstacles]
    parts += [f"-- Occurs more than once, see --repair-duplicates: {one}\n" for one in plan.duplicates or ()]
    parts += [_PREPARE, *map(_item, plan.prepare)]
    parts += [_SWITCH.format(locks=locks), _LOCK.format(tables=tables)]
    parts += [*map(_item, plan.switch), _COMMIT.format(schema=schema)]
    parts += [_FINISH, *map(_item, plan.finish)]
    return "".join(parts)


def _item(item: Item) -> str:
    body = "".join(_terminated(statement) for statement in item.statements)
    return f"\n-- {_one_line(item.what)}\n{body}" if body else ""


def _terminated(statement: str) -> str:
    text = statement.rstrip()
    return text + ("\n" if text.endswith(";") else ";\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())
