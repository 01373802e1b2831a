"""`pgorthanc init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgorthanc_cli import commands, output
from pgorthanc_cli.commands import Call
from pgorthanc_cli.errors import UsageError

if TYPE_CHECKING:
    from pgorthanc_cli.config import OrthancConfiguration


@commands.command("init")
@click.option("--revision", type=int, metavar="N", help="Revision of the index.  [default: the newest]")
@click.option("--plugin", metavar="VERSION", help="Or the PostgreSQL plugin that will use it.")
@click.option(
    "--with-storage/--no-storage",
    "storage",
    default=None,
    help="Also create the PostgreSQL storage area.  [default: by --config, else yes]",
)
@click.option(
    "--create-database", is_flag=True, help="Create the database and the schema if they are missing."
)
@click.option(
    "--create-role", "role", metavar="NAME", help="Create this role if missing; it will own the database."
)
@click.option(
    "--role-password-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Its password; a missing file is written, with a new password.  [default: the password in --config]",
)
@click.option("--print-sql", is_flag=True, help="Print the script for an administrator, and stop.")
@click.option("-n", "--dry-run", is_flag=True, help="Try everything, then roll it back.")
def command(
    call: Call,
    *,
    revision: int | None,
    plugin: str | None,
    storage: bool | None,
    create_database: bool,
    role: str | None,
    role_password_file: Path | None,
    print_sql: bool,
    dry_run: bool,
) -> None:
    """Create an Orthanc index in an empty schema, or repair one.

    \b
    Examples:
      pgorthanc init --config /etc/orthanc
      pgorthanc init --host db1 --username orthanc --dbname orthanc --dry-run
      pgorthanc init --print-sql --revision 6 > index.sql
      pgorthanc init --embedded /srv/orthanc-pg

    Exit codes: 0 created, repaired, or nothing to do; 4 the schema holds something else; 5 another session uses the
    database.
    """
    from pgorthanc_cli import db, locks
    from pgorthanc_cli.config import conninfo
    from pgorthanc_cli.schema import catalog, initialize, provision
    from pgorthanc_cli.views import init as views

    given = _given(revision, plugin, storage)
    if plugin is not None:
        if revision is not None:
            raise UsageError("--revision and --plugin both say which revision is wanted", "give one of them")
        revision = catalog.revision_of_plugin(plugin)
    if (create_database or role) and (print_sql or dry_run):
        raise UsageError(
            "a database or a role cannot be created on paper", "leave out --print-sql and --dry-run"
        )
    # A private server stops with this command: `server start` shows the configuration for Orthanc.
    private = bool(call.options["embedded"])
    # A script needs no server, and a trial run must not leave a new one behind.
    with call.resolved(create=not (dry_run or print_sql), needed=not print_sql) as found:
        target = found.target
        if storage is None:
            storage = found.orthanc is None or found.orthanc.enable_storage
        if print_sql:
            output.text(initialize.print_sql(schema=target.schema, revision=revision, with_storage=storage))
            return
        if create_database or role:
            target = provision.prepare(
                target,
                create_database=create_database,
                role=role,
                password_file=role_password_file,
                password=_configured_password(call, found.orthanc, role),
            )
        with db.session(target) as conn:
            initialised = initialize.init(
                conn,
                schema=target.schema,
                require_idle=locks.require_idle,
                revision=revision,
                with_storage=storage,
                dry_run=dry_run,
            )
            section = ""
            if initialised.created and found.orthanc is None and not private:
                has_storage = initialised.storage and storage
                section = conninfo.section_to_paste(conn, target, storage=has_storage, role=role)
    # A configuration says itself where Orthanc stores files.
    where = []
    if not call.options["config"]:
        where = ["--storage", "postgresql"] if storage else ["--storage-dir", "DIR"]
    page = views.page(
        initialised,
        section=section,
        import_files=call.command_line("import", *where, "PATH"),
        init=call.command_line("init", *given),
        start_server=call.command_line("server", "start", "-v") if private else "",
    )
    call.emit_page(initialised, page)


def _given(revision: int | None, plugin: str | None, storage: bool | None) -> list[str]:
    """Return the options that say what to create, to repeat the command."""
    words = ["--revision", str(revision)] if revision is not None else []
    if plugin is not None:
        words += ["--plugin", plugin]
    if storage is not None:
        words.append("--with-storage" if storage else "--no-storage")
    return words


def _configured_password(call: Call, orthanc: OrthancConfiguration | None, role: str | None) -> str | None:
    """The password with which Orthanc's configuration logs in as the role; None if it names another role, or none."""
    if orthanc is None or role is None:
        return None
    from pgorthanc_cli import db
    from pgorthanc_cli.config import resolve

    # Not PGUSER or PGPASSWORD of this shell: Orthanc does not run in it.
    login = db.parse_dsn(resolve(application="", orthanc=orthanc, environ={}).target.dsn)
    if login.get("user") == role:
        return login.get("password")
    if login.get("user"):
        call.warn(f"the configuration logs in as role {login['user']}, not as {role}")
    return None
