"""Run the checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import psycopg2
import psycopg2.errors
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from pgorthanc_cli import db
from pgorthanc_cli.db import pooler

# Checks are reported in the order of this import: first what later ones depend on.
from pgorthanc_cli.doctor import connection, server, text, index, tables, stored_files  # isort: skip # noqa: F401
from pgorthanc_cli.doctor.model import CHECKS, Health, Subject, Verdict
from pgorthanc_cli.errors import ConnectError, PgOrthancError, UsageError
from pgorthanc_cli.progress import Progress, Report, silent
from pgorthanc_cli.text import printable

# What is deep in these checks reads these tables as a whole.
_DEEP_CHECKS = {"schema", "collation", "large-objects", "attachments"}
_LARGE_TABLES = ("resources", "attachedfiles", "storagearea")
_HAS_INDEX = """
    SELECT EXISTS (SELECT FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relname = 'resources' AND c.relkind IN ('r', 'p'))
"""


def check_names() -> tuple[str, ...]:
    """Return the names of all checks, in the order of the report."""
    return tuple(CHECKS)


def examine(
    target: db.Target,
    names: Sequence[str] = (),
    *,
    deep: bool = False,
    storage_dir: Path | None = None,
    scrub_journal: Path | None = None,
    storage_words: tuple[str, ...] | None = None,
    report: Report = silent,
) -> Health:
    """Examine a server, its database and the index in it.

    Any role that can log in will do: what it may not see is UNKNOWN, with the missing
    privilege. A check that fails is UNKNOWN with the reason, and the others go on.

    Args:
        target: The database.
        names: The checks to run, see `check_names`; none: all.
        deep: Also recount statistics, tree and child counts, and read all rows about stored files.
        storage_dir: Orthanc's StorageDirectory, if it is on this machine.
        scrub_journal: The journal of `verify storage`.
        storage_words: What names the storage area to `verify storage`; see `Subject`.
        report: If deep and the tables are large: receives that they will be read, then each check.

    Raises:
        UsageError: There is no check of that name.
    """
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise UsageError(f"there is no check named {', '.join(unknown)}", f"there are: {', '.join(CHECKS)}")
    target = replace(target, retries=0)  # a diagnosis answers now
    checked_at = datetime.now(timezone.utc)
    verdicts: dict[str, Verdict] = {}
    if not names or "pooler" in names:
        # Before the first session is opened: behind a pooler in transaction mode, the other
        # checks see whatever session happens to be free.
        try:
            verdicts["pooler"] = connection.judge_pooler(pooler.detect(target))
        except PgOrthancError as error:
            verdicts["pooler"] = _not_checked(error.message, error.hint)
    subject = partial(
        Subject,
        target=target,
        deep=deep,
        storage_dir=storage_dir,
        scrub_journal=scrub_journal,
        storage_words=storage_words,
    )
    verdicts, endpoint = _run_checks(target, names, verdicts, subject, report)
    ordered = {name: verdicts[name] for name in CHECKS if name in verdicts}
    return Health.of(str(target), ordered, endpoint, checked_at)


def _run_checks(
    target: db.Target,
    names: Sequence[str],
    verdicts: dict[str, Verdict],
    subject_of: Callable[[db.Session], Subject],
    report: Report,
) -> tuple[dict[str, Verdict], db.Endpoint | None]:
    """Run the other checks, in a new session whenever one was lost, and add their verdicts.

    Also return where the session leads; None if there was none.
    """
    # Which checks apply depends on the index, which only a session can look at.
    pending = [name for name in names if name != "pooler"] if names else None
    endpoint = None
    while pending is None or pending:
        try:
            with db.session(target, readonly=True, autocommit=True, need_schema=False) as conn:
                endpoint = db.endpoint(conn)
                subject = subject_of(conn)
                pending = _applicable(subject) if pending is None else pending
                progress: Report = silent
                if subject.deep and _DEEP_CHECKS & {*pending}:
                    progress = db.announce_scans(conn, _LARGE_TABLES, report)
                total = len(pending)
                while pending and not conn.closed:
                    name = pending.pop(0)
                    progress(Progress("", f"check {name}", total - len(pending), total))
                    verdicts[name] = _run(name, subject)
        except ConnectError as error:
            unreachable = {"connection": Verdict("CRITICAL", error.message, error.hint)}
            if endpoint is None:
                return unreachable, None
            lost = _not_checked("the connection was lost", None)
            return verdicts | dict.fromkeys(pending or (), lost) | unreachable, endpoint
    return verdicts, endpoint


def _applicable(subject: Subject) -> list[str]:
    """Return all checks; without those of an index if there is none, which `revision` reports.

    Also without that of stored files if no journal was named: it would have nothing to say.
    """
    has_index = db.value(subject.conn, _HAS_INDEX, subject.target.schema)
    left_out = {"pooler"} if subject.scrub_journal else {"pooler", "storage"}
    return [
        name
        for name, check in CHECKS.items()
        if name not in left_out and (has_index or not check.needs_index)
    ]


def _run(name: str, subject: Subject) -> Verdict:
    """Run one check. Whatever fails in it, the next one finds the session as this one did."""
    conn = subject.conn
    try:
        return CHECKS[name].run(subject)
    except ConnectError as error:
        return _not_checked(error.message, error.hint)
    except PgOrthancError as error:
        return Verdict("CRITICAL", error.message, error.hint)
    except psycopg2.errors.InsufficientPrivilege as error:
        return _denied(error, subject)
    except psycopg2.errors.QueryCanceled as error:
        return _not_checked(
            db.primary_message(error),
            "Raise statement_timeout for this role, or run the check alone:",
            command=f"doctor {name}",
        )
    except psycopg2.Error as error:
        code = f" (SQLSTATE {error.pgcode})" if error.pgcode else ""
        message = db.primary_message(error) + code
        return _not_checked(message, "If the server is healthy, please report this.")
    except Exception as error:  # noqa: BLE001 - one check that fails must not end the examination
        return _not_checked(f"unexpected {type(error).__name__}", "This is a bug; please report it.")
    finally:
        # With autocommit, psycopg2's rollback() sends nothing.
        if not conn.closed and conn.info.transaction_status != TRANSACTION_STATUS_IDLE:
            with conn.cursor() as cur:
                cur.execute("ROLLBACK")


def _denied(error: psycopg2.Error, subject: Subject) -> Verdict:
    hint = db.error_hint(error, subject.conn, subject.target.schema) or ""
    who, grants, rest = hint.partition("GRANT ")
    verdict = _not_checked(db.primary_message(error), f"{who[:1].upper()}{who[1:].strip()}")
    return replace(verdict, statements=f"{grants}{rest}".replace("; ", ";\n"))


def _not_checked(reason: str, hint: str | None, *, command: str = "") -> Verdict:
    message = f"not checked: {printable(reason)}"
    return Verdict("UNKNOWN", message, hint, command=command)
