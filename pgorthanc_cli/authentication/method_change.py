"""Move one role to md5 or SCRAM: its stored password and the one line of pg_hba.conf that decides for it.

The password stays the same: the server gets a new verifier, computed here. A line with `md5` accepts both kinds of
stored passwords, so it is written before an md5 password is stored, and a line with `scram-sha-256` after a SCRAM
password: a client that knows the new method can log in at any time. A login verifies the result; if it fails,
everything is rolled back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import sql
from psycopg2.extensions import encrypt_password

from pgorthanc_cli import db
from pgorthanc_cli.authentication import examine, server_side
from pgorthanc_cli.authentication.method_plan import METHODS, MethodPlan, plan
from pgorthanc_cli.authentication.model import MethodChanged
from pgorthanc_cli.authentication.server_side import value
from pgorthanc_cli.db.scram import verifier_matches
from pgorthanc_cli.errors import ConnectError, Interrupted, PgOrthancError, UsageError
from pgorthanc_cli.server import hba, hba_file

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

_RELOAD_TIMEOUT_S = 20.0
_RECONNECT_TRIES = 30
# A verifier is a secret, too (one can log in with an md5 verifier): keep it out of the server's log and statistics.
_UNLOGGED = {
    # PostgreSQL 18 warns about md5, and psycopg2 may lose a Ctrl-C over a notice.
    "client_min_messages": "error",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_error_statement": "panic",
    "log_transaction_sample_rate": "0",
    "pg_stat_statements.track_utility": "off",
}


def fix(target: db.Target, to: str, *, admin: db.Target | None = None) -> MethodChanged:
    """Move a role to `md5` or `scram`, verify it with a login, and roll everything back if that fails.

    Args:
        target: The login of the role, with its password.
        to: `md5` or `scram`.
        admin: The login of a superuser; None: the target's own.

    Raises:
        UsageError: No password is known.
        ConnectError: The server cannot be reached, or the login failed afterwards: everything was rolled back.
        PgOrthancError: There is no superuser, the password is not that of the role, or the line of pg_hba.conf
            cannot be seen, cannot be reached, or asks for no password. Nothing was changed.
    """
    target = replace(target, retries=0)
    planned = plan(target, to, admin=admin)
    answers = examine.probe(target)
    with (
        examine.log_in_as_required(target, answers) as login,
        examine.admin_session(login, admin) as session,
    ):
        password = _password(target, login)
        conn, rule = _check_first(session, planned)
        stored = _check_password(conn, planned, password)
        edit = None
        with _rollback_on_failure(conn, admin or target) as undo:
            if planned.changes_line and planned.target_method == "md5":
                edit = _change_line(conn, rule, planned.target_method, undo)
            _set_password(conn, planned, stored, password, undo)
            if planned.changes_line and planned.target_method != "md5":
                edit = _change_line(conn, rule, planned.target_method, undo)
            method = _verify_login(target, planned.target_method)
    return MethodChanged(
        role=planned.client.role,
        wanted=planned.target_method,
        stored_before=planned.stored,
        stored=planned.target_method,
        method_before=planned.method,
        method=method,
        hba_line=f"{edit.path}:{edit.line}: {edit.after}" if edit else None,
        backup=str(edit.backup) if edit else None,
        notes=planned.notes,
    )


def _check_first(conn: Connection | None, planned: MethodPlan) -> tuple[Connection, hba.Rule]:
    """Check that a plan can be executed, before anything is changed; return the superuser's session and the line."""
    role = planned.client.role
    option = next(option for option, method in METHODS.items() if method == planned.target_method)
    by_hand = f"do the steps by hand: pgorthanc check-auth --fix {option} --print-sql"
    is_superuser = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"
    if conn is None or not value(conn, is_superuser):
        raise PgOrthancError(
            f"moving role {role} to {planned.target_method} takes a superuser's login",
            f"name it with --admin; or {by_hand}",
        )
    db.allow_writes(conn, path=db.SAFE_SEARCH_PATH)
    db.check_writable(conn)
    rule = planned.rule
    if rule is None:
        reason = "; ".join(planned.notes) or "no line is for this client"
        raise PgOrthancError(f"no line of pg_hba.conf can be changed for role {role}: {reason}", by_hand)
    if rule.method not in METHODS.values():
        raise PgOrthancError(
            f"the line that decides for role {role} has the method {rule.method}, wanted md5 or scram-sha-256: "
            f"{examine.location(rule)}",
            f"put a line with {planned.target_method} for this role above it; then SELECT pg_reload_conf()",
        )
    if not server_side.explains(rule, planned.method):
        raise PgOrthancError(
            f"who answers asks for {planned.method}, which is not what {examine.location(rule)} says",
            "if a pooler stands between, connect to the server itself",
        )
    if planned.changes_line:
        _check_file(conn, rule, by_hand)
    return conn, rule


def _check_file(conn: Connection, rule: hba.Rule, by_hand: str) -> None:
    """Check that the file on this machine is the server's, and that a reload changes nothing else."""
    broken = hba.errors(conn)
    if broken or server_side.has_unloaded_rules(conn):
        raise PgOrthancError(
            f"{rule.file} {'has errors: ' + '; '.join(broken) if broken else 'was changed, and is not loaded yet'}",
            "look at it, and load it: SELECT pg_reload_conf(); then run it again",
        )
    path = Path(rule.file)
    try:
        content, changed = path.read_bytes(), int(path.stat().st_ctime)
    except OSError as error:
        raise PgOrthancError(
            f"{path}, the file of the server, cannot be read here: {error.strerror}",
            f"run it as the owner of the file, on the machine of the server; or {by_hand}",
        ) from None
    # A container may have another file under the same path: content and time together
    # tell.
    query = (
        "SELECT pg_read_binary_file(%s) = %s AND extract(epoch FROM (pg_stat_file(%s)).change)::bigint = %s"
    )
    if not value(conn, query, rule.file, content, rule.file, changed):
        raise PgOrthancError(
            f"{path} of this machine is not the file of the server",
            f"run it on the machine of the server; or {by_hand}",
        )


def _password(target: db.Target, login: examine.Login) -> str:
    """Return the password that the login has used, or would use."""
    used = login.conn.info.password if login.conn else ""
    password = used or db.effective_parameters(target).get("password", "")
    if not password:
        raise UsageError(
            "the password of the role has to be set again, and none is given",
            "put it into ~/.pgpass, PGORTHANC_PASSWORD or a file for --password-file",
        )
    return password


def _check_password(conn: Connection, planned: MethodPlan, password: str) -> str | None:
    """Return the stored verifier of the role, after checking that it is one of this password."""
    role = planned.client.role
    stored: str | None = value(conn, "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = %s", role)
    if stored and not verifier_matches(stored, role, password):
        raise PgOrthancError(
            f"the password given is not that of role {role}; nothing was changed",
            "give the password that Orthanc uses, or change it first; -v shows where each value came from",
        )
    return stored


_Undo = list[Callable[["Connection"], object]]


@contextmanager
def _rollback_on_failure(conn: Connection, superuser: db.Target) -> Iterator[_Undo]:
    """Yield a list for undo steps; if the block fails they run, the last first."""
    undo: _Undo = []
    try:
        yield undo
    except BaseException as failure:
        try:
            _undo(undo, conn, superuser)
        except PgOrthancError as error:
            raise PgOrthancError(
                f"{failure}; and not everything could be put back: {error}",
                f"{error.hint}; then look at the role and at pg_hba.conf: pgorthanc check-auth",
            ) from None
        if isinstance(failure, KeyboardInterrupt):
            raise Interrupted("interrupted; everything was put back as it was") from None
        if isinstance(failure, PgOrthancError):
            raise type(failure)(f"{failure}; everything was put back as it was", failure.hint) from None
        raise


def _undo(undo: _Undo, conn: Connection, superuser: db.Target) -> None:
    with ExitStack() as stack:
        if conn.closed and undo:
            # The session is lost, such as by a restart of the server: a new one rolls back.
            patient = replace(superuser, retries=_RECONNECT_TRIES, retry_interval_s=1)
            conn = stack.enter_context(db.session(patient, autocommit=True, need_schema=False))
        # A stack runs them in reverse order, and the others even if one of them fails.
        for step in undo:
            stack.callback(step, conn)


def _change_line(conn: Connection, rule: hba.Rule, method: str, undo: _Undo) -> hba_file.Edit:
    edit = hba_file.set_method(Path(rule.file), rule, method)
    undo.append(lambda conn: _put_line_back(conn, edit))
    if hba.errors(conn) or (rule.line, method) not in {(each.line, each.method) for each in hba.rules(conn)}:
        raise PgOrthancError(
            f"the server does not see {edit.path}:{edit.line} as it was written: {edit.after}"
        )
    _reload(conn)
    return edit


def _put_line_back(conn: Connection, edit: hba_file.Edit) -> None:
    edit.undo()
    _reload(conn)


def _reload(conn: Connection) -> None:
    """Have the server load pg_hba.conf, and wait until it has."""
    # This session learns of the reload no earlier than the postmaster, which decides about new connections.
    before = value(conn, "SELECT pg_conf_load_time()")
    value(conn, "SELECT pg_reload_conf()")
    deadline = time.monotonic() + _RELOAD_TIMEOUT_S
    while value(conn, "SELECT pg_conf_load_time()") == before:
        if time.monotonic() > deadline:
            raise PgOrthancError("the server does not reload its configuration", "see its log")
        time.sleep(0.02)


def _set_password(
    conn: Connection, planned: MethodPlan, stored: str | None, password: str, undo: _Undo
) -> None:
    """Store the password in the target's kind, and make that the default for later passwords of this role."""
    role = planned.client.role
    setting = value(
        conn,
        """SELECT split_part(entry, '=', 2) FROM pg_catalog.pg_db_role_setting, unnest(setconfig) AS entry
           WHERE setdatabase = 0 AND setrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s)
             AND starts_with(entry, 'password_encryption=')""",
        role,
    )
    new = stored
    if planned.stored != planned.target_method:
        new = encrypt_password(password, role, scope=conn, algorithm=planned.target_method)
    undo.append(lambda conn: _store(conn, role, stored, setting))
    _store(conn, role, new, planned.target_method)


def _store(conn: Connection, role: str, stored: str | None, encryption: str | None) -> None:
    with _unlogged_transaction(conn) as cur:
        alter = sql.SQL("ALTER ROLE {} ").format(sql.Identifier(role))
        cur.execute(alter + sql.SQL("PASSWORD %s"), (stored,))
        if encryption is None:
            cur.execute(alter + sql.SQL("RESET password_encryption"))
        else:
            cur.execute(alter + sql.SQL("SET password_encryption = %s"), (encryption,))


@contextmanager
def _unlogged_transaction(conn: Connection) -> Iterator[Cursor]:
    with db.translate_errors(conn), conn.cursor() as cur:
        cur.execute("BEGIN")
        try:
            for setting in _UNLOGGED.items():
                cur.execute("SELECT set_config(%s, %s, true)", setting)
            yield cur
            cur.execute("COMMIT")
        except BaseException:
            if not conn.closed:
                cur.execute("ROLLBACK")
            raise


def _verify_login(target: db.Target, expected: str) -> str:
    """Log in by the target method and no other, and return the method that the server required.

    Raises:
        ConnectError: The login fails.
    """
    answers = examine.probe(target)
    method = answers.answer.method
    with examine.log_in_as_required(target, answers) as login:
        if login.error:
            raise ConnectError(f"the login failed after the change: {login.error.message}", login.error.hint)
    if method.removesuffix("-plus") != expected:
        raise ConnectError(f"the server asks for {method} after the change, wanted {expected}")
    return method
