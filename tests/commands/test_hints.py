"""Every statement that a refusal advises is executed: it gives exactly what is missing, and Orthanc goes on working."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner, Result
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db, doctor, upgrade
from pgorthanc_cli.errors import PgOrthancError, RevisionError
from tests.support.dicomfile import El, dicom_file
from tests.support.schemas import FILL, as_role, drop_role, init, rows, run

_numbers = itertools.count()
PASSWORD = "S3cret-of-a-test"
READING = (
    ("status",),
    ("verify", "schema"),
    ("doctor", "revision", "schema", "counters", "child-counts"),
    ("upgrade", "--plan"),
)
GRANTS = """
    SELECT DISTINCT privilege_type FROM pg_class, aclexplode(relacl)
        WHERE relnamespace = 'public'::regnamespace AND grantee = (SELECT oid FROM pg_roles WHERE rolname = '{}')
"""


@pytest.fixture
def roles(admin: Connection) -> Iterator[Callable[[], str]]:
    """Creates roles that may log in."""
    names: list[str] = []

    def create() -> str:
        name = f"Pgorthanc-{os.getpid()}-{next(_numbers)}"
        with admin.cursor() as cur:
            cur.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s").format(sql.Identifier(name)), (PASSWORD,))
        names.append(name)
        return name

    yield create
    for name in names:
        drop_role(admin, name)


def as_login(target: db.Target, role: str) -> db.Target:
    return db.Target(make_dsn(target.dsn, user=role, password=PASSWORD), schema=target.schema)


def owned(target: db.Target, role: str) -> None:
    """Hand the whole index over to a role: Orthanc's."""
    quoted = f'"{role}"'
    run(
        target,
        f'ALTER DATABASE "{db.parse_dsn(target.dsn)["dbname"]}" OWNER TO {quoted}',
        f"ALTER SCHEMA public OWNER TO {quoted}",
        f"""DO $$ DECLARE it record; BEGIN
            FOR it IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
                    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype IN ('a', 'i')) LOOP
                EXECUTE format('ALTER TABLE %I OWNER TO {quoted}', it.relname);
            END LOOP;
            FOR it IN SELECT oid::regprocedure AS name FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
                    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e') LOOP
                EXECUTE format('ALTER FUNCTION %s OWNER TO {quoted}', it.name);
            END LOOP; END $$""",
    )  # fmt: skip


def statements(hint: str | None) -> list[str]:
    """The statements in a hint, as an administrator would copy them."""
    return re.findall(r"(?:GRANT|ALTER) [^;]*;", hint or "")


def invoke(target: db.Target, *words: str) -> Result:
    return CliRunner().invoke(cli.main, [*words, "--uri", target.dsn])


def works(target: db.Target) -> None:
    """What Orthanc does all day, as its role."""
    with psycopg2.connect(target.dsn) as conn, conn.cursor() as cur:
        for statement in FILL[:1]:
            cur.execute(statement.replace("'p'", f"'p{next(_numbers)}'"))
        cur.execute("SELECT deleteresource(max(internalid)) FROM resources WHERE resourcetype = 3")
    conn.close()


def old_index(target: db.Target) -> None:
    """Revision 6 of an index, with rows."""
    run(target, *FILL)
    upgrade.downgrade(target, to=6)


@pytest.mark.parametrize("command", ["upgrade", "downgrade"])
def test_a_role_that_does_not_own_the_index_is_told_who_does(
    fresh: db.Target, roles: Callable[[], str], command: str
) -> None:
    """Nothing changes its owner: that would lock Orthanc out."""
    orthanc, other = roles(), roles()
    old_index(fresh)
    owned(fresh, orthanc)
    run(fresh, f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{other}"')
    to = ("--to", "5") if command == "downgrade" else ()
    refused = invoke(as_login(fresh, other), command, *to, "--yes")
    assert refused.exit_code == 4
    assert f"its tables belong to role {orthanc}" in refused.stderr
    assert f"--username {orthanc}" in refused.stderr
    assert "OWNER TO" not in refused.stderr
    [grant] = statements(refused.stderr.replace("\n", " "))
    assert grant == f'GRANT "{orthanc}" TO "{other}";'
    run(fresh, grant)
    done = invoke(as_login(fresh, other), command, *to, "--yes")
    assert done.exit_code == 0, done.output
    works(as_login(fresh, orthanc))
    owners = rows(fresh, "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'public'")
    assert owners == [(orthanc,)]


@pytest.mark.parametrize("words", [("upgrade", "--yes"), ("downgrade", "--to", "5", "--yes"), ("init",)])
def test_a_role_without_any_rights_is_told_the_same(
    fresh: db.Target, roles: Callable[[], str], words: tuple[str, ...]
) -> None:
    """Rights to write would not help: only the owner changes a table."""
    orthanc, other = roles(), roles()
    old_index(fresh)
    owned(fresh, orthanc)
    refused = invoke(as_login(fresh, other), *words)
    assert refused.exit_code == 4, refused.output
    assert f"its tables belong to role {orthanc}" in refused.stderr
    assert f"--username {orthanc}" in refused.stderr
    assert "GRANT SELECT" not in refused.stderr


def test_parts_of_the_index_that_belong_to_another_role(fresh: db.Target, roles: Callable[[], str]) -> None:
    """As a restore by an administrator may leave them."""
    orthanc = roles()
    ((admin,),) = rows(fresh, "SELECT current_user::text")
    old_index(fresh)
    owned(fresh, orthanc)
    run(
        fresh,
        f'ALTER FUNCTION updatestatistics() OWNER TO "{admin}"',
        f'ALTER TABLE labels OWNER TO "{admin}"',
        f'ALTER SEQUENCE patientrecyclingordersequence OWNER TO "{admin}"',
    )
    with pytest.raises(RevisionError) as refusal:
        run_upgrade(as_login(fresh, orthanc))
    found = statements(refusal.value.hint)
    assert found == [
        f'ALTER TABLE "public".labels OWNER TO "{orthanc}";',
        f'ALTER SEQUENCE "public".patientrecyclingordersequence OWNER TO "{orthanc}";',
        f'ALTER FUNCTION "public".updatestatistics() OWNER TO "{orthanc}";',
    ]
    run(fresh, *found)
    run_upgrade(as_login(fresh, orthanc))
    works(as_login(fresh, orthanc))


@pytest.mark.parametrize(
    ("revoke", "grant"),
    [
        (
            "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
            "GRANT TEMPORARY ON DATABASE {database} TO {role};",
        ),
        ("REVOKE CREATE ON SCHEMA public FROM PUBLIC", 'GRANT CREATE ON SCHEMA "public" TO {role};'),
    ],
)
def test_the_owner_lacks_a_right(fresh: db.Target, roles: Callable[[], str], revoke: str, grant: str) -> None:
    orthanc = roles()
    ((admin,),) = rows(fresh, "SELECT current_user::text")
    names = {"database": db.parse_dsn(fresh.dsn)["dbname"], "role": f'"{orthanc}"'}
    old_index(fresh)
    owned(fresh, orthanc)
    run(
        fresh,
        f'ALTER DATABASE {names["database"]} OWNER TO "{admin}"',
        f'ALTER SCHEMA public OWNER TO "{admin}"',
        "GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC",
        revoke.format(**names),
        *(["GRANT USAGE ON SCHEMA public TO PUBLIC"] if "CREATE" in revoke else []),
    )
    with pytest.raises(RevisionError) as refusal:
        run_upgrade(as_login(fresh, orthanc))
    assert statements(refusal.value.hint) == [grant.format(**names)]
    run(fresh, *statements(refusal.value.hint))
    run_upgrade(as_login(fresh, orthanc))


def run_upgrade(target: db.Target) -> None:
    upgrade.upgrade(target)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_reading_command_asks_for_select_and_no_more(
    fresh: db.Target, roles: Callable[[], str], words: tuple[str, ...]
) -> None:
    run(fresh, *FILL)
    stranger = as_login(fresh, roles())
    role = db.parse_dsn(stranger.dsn)["user"]
    refused = invoke(stranger, *words)
    found = statements((refused.stderr + refused.stdout).replace("\n", " "))
    if words[0] == "doctor":  # several checks may need the same
        checks = doctor.examine(stranger, ["rights", *words[1:]]).checks
        found = list(dict.fromkeys(one for check in checks for one in statements(check.statements)))
        assert {check.status for check in checks} == {"UNKNOWN", "WARNING"}
    else:
        assert refused.exit_code != 0
    assert found == [f'GRANT SELECT ON ALL TABLES IN SCHEMA "public" TO "{role}";']
    run(fresh, *found)
    assert rows(fresh, GRANTS.format(role)) == [("SELECT",)]
    assert invoke(stranger, *words).exit_code == 0, invoke(stranger, *words).output


def test_an_import_asks_for_all_that_it_needs_at_once(
    fresh: db.Target, roles: Callable[[], str], tmp_path: Path
) -> None:
    """Rights on tables, sequences and functions, none of which hardening took away from Orthanc's own role."""
    orthanc, importer = roles(), roles()
    owned(fresh, orthanc)
    run(fresh, "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC")
    files = tmp_path / "files"
    files.mkdir()
    for number in range(3):
        (files / f"{number}.dcm").write_bytes(dicom_file(El(0x00080018, "UI", f"1.2.{number}")))
    words = ("import", "--storage-dir", str(tmp_path / "area"), "--jobs", "1", str(files))
    refused = invoke(as_login(fresh, importer), *words)
    assert refused.exit_code == 1, refused.output
    found = statements(refused.stderr.replace("\n", " "))
    assert [re.sub(r" ON ALL (\w+) .*", r" \1", one) for one in found] == [
        "GRANT SELECT, INSERT, UPDATE, DELETE TABLES",
        "GRANT SELECT, USAGE, UPDATE SEQUENCES",
        "GRANT EXECUTE FUNCTIONS",
    ]
    run(fresh, *found)
    done = invoke(as_login(fresh, importer), *words)
    assert done.exit_code == 0, done.output
    for grant in found:
        run(fresh, grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))
        again = invoke(as_login(fresh, importer), *words, "--overwrite", "always")
        assert again.exit_code != 0, grant
        run(fresh, grant)


def test_init_names_what_is_missing(empty: db.Target, roles: Callable[[], str]) -> None:
    role = roles()
    database = db.parse_dsn(empty.dsn)["dbname"]
    target = db.Target(empty.dsn, schema="orthanc")
    run(
        target,
        f'CREATE SCHEMA orthanc; GRANT USAGE ON SCHEMA orthanc TO "{role}"',
        f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
    )
    with pytest.raises(RevisionError) as refusal:
        init(as_role(target, role))
    found = statements(refusal.value.hint)
    assert found == [
        f'GRANT CREATE ON SCHEMA "orthanc" TO "{role}";',
        f'GRANT TEMPORARY ON DATABASE {database} TO "{role}";',
    ]
    run(target, *found)
    assert init(as_role(target, role)).created


def test_init_repairs_as_the_owner_only(fresh: db.Target, roles: Callable[[], str]) -> None:
    orthanc, other = roles(), roles()
    owned(fresh, orthanc)
    run(fresh, f'GRANT "{orthanc}" TO "{other}"', "DROP TABLE labels")
    with pytest.raises(RevisionError) as refusal:
        init(as_login(fresh, other))
    assert f"--username {orthanc}" in (refusal.value.hint or "")
    assert statements(refusal.value.hint) == []
    assert init(as_login(fresh, orthanc)).repaired


def test_hidden_sessions_and_settings(fresh: db.Target, roles: Callable[[], str]) -> None:
    stranger = as_login(fresh, roles())
    with db.session(fresh) as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
        checks = {check.name: check for check in doctor.examine(stranger, ["transactions", "disk"]).checks}
        for name, right in (("transactions", "pg_read_all_stats"), ("disk", "pg_read_all_settings")):
            assert checks[name].status == "UNKNOWN", checks[name]
            [grant] = statements(checks[name].statements)
            assert right in grant
            run(fresh, grant)
        after = {check.name: check for check in doctor.examine(stranger, ["transactions", "disk"]).checks}
    assert after["transactions"].status != "UNKNOWN"
    assert not after["transactions"].statements


def test_a_schema_that_may_not_be_used(fresh: db.Target, roles: Callable[[], str]) -> None:
    role = roles()
    run(fresh, "ALTER SCHEMA public RENAME TO closed", "REVOKE USAGE ON SCHEMA closed FROM PUBLIC")
    with (
        pytest.raises(PgOrthancError) as refusal,
        db.session(db.Target(as_login(fresh, role).dsn, schema="closed")),
    ):
        pass
    run(fresh, *statements(refusal.value.hint))
    with db.session(db.Target(as_login(fresh, role).dsn, schema="closed")):
        pass


def test_sessions_of_another_role_are_ended_with_the_privilege_of_the_hint(
    fresh: db.Target, roles: Callable[[], str]
) -> None:
    """Membership in the role of Orthanc would give its tables, too."""
    orthanc, other = as_login(fresh, roles()), as_login(fresh, roles())
    with closing(psycopg2.connect(orthanc.dsn)) as conn, conn.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(42)")
        words = ("check-lock", "--terminate", "all", "--yes")
        refused = invoke(other, *words)
        assert refused.exit_code == 1, refused.output
        [grant] = statements(refused.stderr)
        assert grant.startswith("GRANT pg_signal_backend TO ")
        run(fresh, grant)
        done = invoke(other, *words)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "place", ["ROLE {role}", "DATABASE {database}", "ROLE {role} IN DATABASE {database}"]
)
@pytest.mark.parametrize(
    "setting", ["session_replication_role = replica", "default_transaction_read_only = on"]
)
def test_a_setting_that_prevents_writing_is_reset_where_it_was_set(
    fresh: db.Target, roles: Callable[[], str], place: str, setting: str
) -> None:
    orthanc = roles()
    database = f'"{db.parse_dsn(fresh.dsn)["dbname"]}"'
    owned(fresh, orthanc)
    old_index(fresh)
    run(fresh, f"ALTER {place} SET {setting}".format(role=f'"{orthanc}"', database=database))
    target = as_login(fresh, orthanc)
    refused = invoke(target, "upgrade")
    assert refused.exit_code == 3, refused.output
    [reset] = statements(refused.stderr)
    assert " RESET " in reset
    run_alone(fresh, "SET default_transaction_read_only = off", reset)
    done = invoke(target, "upgrade")
    assert done.exit_code == 0, done.output


def run_alone(target: db.Target, *words: str) -> None:
    """Statements of an administrator in one session that is not prepared in any way."""
    with closing(psycopg2.connect(target.dsn)) as conn:
        conn.autocommit = True
        with conn.cursor() as cur:
            for statement in words:
                cur.execute(statement)


def test_a_setting_of_the_connection_is_not_reset_on_the_server(fresh: db.Target) -> None:
    read_only = make_dsn(fresh.dsn, options="-c default_transaction_read_only=on")
    old_index(fresh)
    refused = invoke(db.Target(read_only), "upgrade")
    assert "from the options of the connection" in " ".join(refused.stderr.split())
    assert statements(refused.stderr) == []


@pytest.mark.parametrize("schema", ["public", "Or th'anc"])
def test_a_sequence_behind_its_table_is_set_by_the_statement(
    empty: db.Target, tmp_path: Path, schema: str
) -> None:
    """As after a restore of rows alone; with any search_path, and the next instance is stored."""
    run(empty, f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    target = db.Target(empty.dsn, schema=schema)
    init(target)
    run(target, *FILL, "SELECT setval('resources_internalid_seq', 1)")
    file = tmp_path / "1.dcm"
    file.write_bytes(dicom_file(El(0x00080018, "UI", "1.2.3")))
    words = ("import", "--storage-dir", str(tmp_path / "area"), "--schema", schema, str(file))
    refused = invoke(target, *words)
    assert refused.exit_code == 4, refused.output
    repairs = re.findall(r"SELECT setval\(.*\);", refused.stderr)
    assert len(repairs) == 2
    run_alone(empty, *repairs)
    done = invoke(target, *words)
    assert done.exit_code == 0, done.output


def test_large_objects_of_another_role(fresh: db.Target, roles: Callable[[], str], tmp_path: Path) -> None:
    """Only the owner of a large object deletes it, and Orthanc's role deletes them all."""
    orthanc, importer = roles(), roles()
    owned(fresh, orthanc)
    run(
        fresh,
        f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{importer}"',
        f'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{importer}"',
    )
    file = tmp_path / "1.dcm"
    file.write_bytes(dicom_file(El(0x00080018, "UI", "1.2.3")))
    words = ("import", "--storage", "postgresql", str(file))
    refused = invoke(as_login(fresh, importer), *words)
    assert refused.exit_code == 1, refused.output
    [grant] = statements(refused.stderr)
    run(fresh, grant)
    done = invoke(as_login(fresh, importer), *words)
    assert done.exit_code == 0, done.output
