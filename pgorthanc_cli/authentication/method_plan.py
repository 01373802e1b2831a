"""Plan how to move one role to md5 or SCRAM: its stored password and the one line of pg_hba.conf that matches it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pgorthanc_cli import db
from pgorthanc_cli.authentication import examine, server_side
from pgorthanc_cli.server import hba

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

METHODS = {"md5": "md5", "scram": "scram-sha-256"}


@dataclass(frozen=True)
class MethodPlan:
    """How to move a role to another method: `plan` makes it, `manual_steps` prints it, `fix` executes it.

    Attributes:
        client: The login, as the server sees it.
        target_method: The new method, md5 or scram-sha-256.
        method: The method that the server requires now.
        stored: Kind of the stored password now; None: hidden from us.
        rule: The line of pg_hba.conf that matches now; None: hidden from us.
        changes_line: Whether another method has to be written into it.
        notes: What is not changed, and why; what is hidden from us.
    """

    client: hba.Client
    target_method: str
    method: str
    stored: str | None
    rule: hba.Rule | None
    changes_line: bool
    notes: tuple[str, ...]

    @property
    def changes(self) -> list[str]:
        """A summary of what `fix` would do."""
        now = f"now {self.stored}" if self.stored else "the present kind cannot be seen"
        changes = [f"the same password of role {self.client.role} is stored as {self.target_method}, {now}"]
        if self.rule and self.changes_line:
            changes.append(f"the method becomes {self.target_method}: {examine.location(self.rule)}")
        return [*changes, *self.notes]


def plan(target: db.Target, to: str, *, admin: db.Target | None = None) -> MethodPlan:
    """Plan how to move a role to another method; nothing is changed.

    Args:
        target: The login of the role.
        to: `md5` or `scram`.
        admin: The login of a superuser; None: the target's own.

    Raises:
        ConnectError: The server cannot be reached, or the administrator's login is refused.
    """
    target = replace(target, retries=0)
    answers = examine.probe(target)
    with (
        examine.log_in_as_required(target, answers) as login,
        examine.admin_session(login, admin) as conn,
    ):
        client = examine.hba_client(login, answers)
        server = server_side.inspect(conn, client) if conn else server_side.ServerSide()
        rule, method = server.rule, METHODS[to]
        changes_line = rule is None or rule.method != method
        notes = list(server.notes)
        if conn and rule and server.stored and changes_line and method != "md5":
            others = _others_with_md5(conn, rule, client.role)
            if others:
                changes_line = False
                notes.append(_why_unchanged(rule, others))
    return MethodPlan(
        client,
        method,
        answers.answer.method,
        server.stored,
        rule,
        changes_line=changes_line,
        notes=tuple(notes),
    )


def _others_with_md5(conn: Connection, rule: hba.Rule, role: str) -> list[str]:
    """Return other roles that the line may match and that SCRAM would lock out."""
    query = """SELECT rolname FROM pg_catalog.pg_authid
               WHERE rolcanlogin AND starts_with(rolpassword, 'md5') AND rolname <> %s ORDER BY rolname"""
    with db.translate_errors(conn):
        names = [name for (name,) in db.rows(conn, query, role)]
    return [name for name in names if hba.is_for(rule, name, hba.groups(conn, name))]


def _why_unchanged(rule: hba.Rule, others: list[str]) -> str:
    names = ", ".join([*others[:5], "..."] if len(others) > 5 else others)
    return (
        f"line {rule.line} of pg_hba.conf stays at {rule.method}, which serves both kinds of passwords: it also is for "
        f"roles with an md5 password ({names})"
    )


def manual_steps(planned: MethodPlan) -> list[str]:
    """Return the steps of a plan for psql; they hold no password."""
    role = db.quote_ident(planned.client.role)
    password = [
        # This acts from the role's next login on, but `\password` needs it now as well.
        f"ALTER ROLE {role} SET password_encryption = '{planned.target_method}';",
        f"SET password_encryption = '{planned.target_method}';",
        f"\\password {role}",
        "-- psql asks for the password, the same as before, and sends a verifier of it only",
    ]
    line = _line_steps(planned)
    # The method md5 accepts SCRAM verifiers as well, but not the reverse: in this order
    # the role can log in at any moment.
    ordered = [*line, *password] if planned.target_method == "md5" else [*password, *line]
    notes = [f"-- {note}" for note in planned.notes]
    return [
        "-- in psql, as a superuser; nothing is dropped, and all data stay:",
        *notes,
        *ordered,
        "-- then prove it: pgorthanc check-auth",
    ]


def _line_steps(planned: MethodPlan) -> list[str]:
    if not planned.changes_line:
        return []
    client, rule = planned.client, planned.rule
    if rule and rule.method in METHODS.values():
        change = [
            f"-- line {rule.line} of {rule.file or 'pg_hba.conf'} is:  {rule}",
            f"-- write into it:  {replace(rule, method=planned.target_method)}",
        ]
    else:
        above = f", above line {rule.line}, which says {rule.method}," if rule else ""
        change = [
            f"-- pg_hba.conf (SHOW hba_file) needs a line{above} that is for role {client.role}, database "
            f"{client.database}, address {client.address or 'local'}, with the method {planned.target_method}"
        ]
    return [*change, "SELECT pg_reload_conf();"]
