"""What an index is and holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import catalogs, cli, db
from pgorthanc_cli.config import OrthancConfiguration, resolve
from pgorthanc_cli.errors import RevisionError
from pgorthanc_cli.schema import catalog, initialize
from pgorthanc_cli.views import trigram as trigram_view
from tests.support.schemas import CURRENT, FILL, as_role, init, look, run


def test_status_of_an_index_in_use(fresh: db.Target, trigram: str) -> None:
    run(fresh, *FILL)
    with db.session(fresh) as orthanc, db.advisory_lock(orthanc, db.LOCK_INDEX):
        pid = orthanc.info.backend_pid
        found = look(fresh)

    assert (found.revision, found.recorded_revision, found.schema_version) == (CURRENT, CURRENT, 6)
    assert (found.patients, found.studies, found.series, found.instances) == (1, 1, 1, 2)
    assert (found.compressed_size_bytes, found.uncompressed_size_bytes) == (50, 100)
    assert found.plugins == catalog.plugins(CURRENT)
    assert found.trigram == trigram
    assert [(holder.lock, holder.pid) for holder in found.locks] == [(db.LOCK_INDEX, pid)]
    assert found.pending == {"statistics_deltas": 15, "child_counts": 4}
    run(fresh, "SELECT updatestatistics(), updateinvalidchildcounts()")
    done = look(fresh)
    assert done.pending == {"statistics_deltas": 0, "child_counts": 0}
    assert done.instances == 2


@pytest.mark.parametrize(
    ("statements", "kind"),
    [
        ([], "postgresql"),
        (["DROP TABLE storagearea"], "filesystem"),
        (FILL, "filesystem"),
        ([*FILL, "INSERT INTO storagearea VALUES ('uuid', lo_from_bytea(0, ''), 1)"], "postgresql"),
    ],
)
def test_status_tells_where_the_files_are(fresh: db.Target, statements: list[str], kind: str) -> None:
    run(fresh, *statements)
    assert look(fresh).storage_area == kind


LAYOUTS = catalogs.load("layouts.json")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout["plugins"].replace(" ", "_"))
def test_status_of_every_layout(empty: db.Target, layout: dict[str, Any]) -> None:
    columns = {"globalproperties.property", "globalproperties.value", "resources.publicid", *layout["has"]}
    columns |= {f"{c.partition('.')[0]}.value" for c in columns if c.startswith("globalintegers")}
    columns |= (
        {"globalintegers.key", "globalintegers.value"} if "globalintegerschanges.key" in columns else set()
    )
    for column in sorted(
        columns | ({"globalintegerschanges.key"} if "globalintegerschanges.pk" in columns else set())
    ):
        table, _, name = column.partition(".")
        kind = (
            "integer" if name in ("property", "key") else "text" if table == "globalproperties" else "bigint"
        )
        run(empty, f"CREATE TABLE IF NOT EXISTS {table} ()", f"ALTER TABLE {table} ADD {name} {kind}")
    run(empty, "INSERT INTO globalproperties VALUES (1, '6'), (4, '1')")

    found = look(empty)

    assert found.revision == (layout["revision"] or "unknown")
    plugins = "4.0 to 5.1" if layout["revision"] == 1 else layout["plugins"]
    assert (found.plugins, found.recorded_revision) == (plugins, 1)
    if layout["revision"] != CURRENT:
        with pytest.raises(RevisionError, match=f"wanted revision {CURRENT}"):
            init(empty)


def test_status_of_a_role_that_only_reads(fresh: db.Target, role: str) -> None:
    run(fresh, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    assert look(as_role(fresh, role)).instances == 0


def test_status_without_an_index(empty: db.Target) -> None:
    with pytest.raises(RevisionError) as refusal:
        look(empty)
    assert "pgorthanc init" in (refusal.value.hint or "")


def invoke(*words: str) -> Any:
    return CliRunner().invoke(cli.main, words)


def test_the_commands(empty: db.Target) -> None:
    made = invoke("init", "--uri", empty.dsn, "--no-storage", "--json")
    shown = invoke("status", "--uri", empty.dsn, "--json")

    assert (made.exit_code, shown.exit_code) == (0, 0)
    document = json.loads(made.stdout)
    assert {"revision", "schema_version", "created", "storage", "trigram", "schema"} <= document.keys()
    assert (document["revision"], document["created"], document["storage"]) == (CURRENT, True, False)
    assert {
        "revision", "recorded_revision", "schema_version", "plugins", "patients", "studies", "series", "instances",
        "compressed_size_bytes", "uncompressed_size_bytes", "storage_area", "trigram", "locks", "server_version",
        "pending", "endpoint", "newest", "index_bytes", "sessions", "connections", "max_connections", "time",
    } <= json.loads(shown.stdout).keys()  # fmt: skip


def test_the_screens_of_init(empty: db.Target) -> None:
    tried = invoke("init", "--uri", empty.dsn, "--dry-run", "--no-storage")
    assert tried.stdout.startswith("Dry run, nothing was changed: this would create an Orthanc index")
    assert tried.stdout.splitlines()[-1].startswith("    pgorthanc init --no-storage --uri ")
    made = invoke("init", "--uri", empty.dsn, "--no-storage")
    assert made.stdout.startswith(f"Created an Orthanc index at revision {CURRENT}.\ndatabase ")
    assert made.stdout.splitlines()[-1].startswith("    pgorthanc import --storage-dir DIR PATH --uri ")
    again = invoke("init", "--uri", empty.dsn, "--no-storage")
    assert again.stdout.startswith("Nothing to do: database ")
    assert [run.exit_code for run in (tried, made, again)] == [0, 0, 0]


def test_the_configuration_to_paste_leads_to_the_database(empty: db.Target) -> None:
    made = invoke("init", "--uri", empty.dsn)
    pasted = made.stdout.split('    "PostgreSQL": ')[1].split("\n\n")[0]
    section = json.loads(pasted)
    assert (section["EnableIndex"], section["EnableStorage"]) == (True, True)
    assert "REPLACE-ME" in pasted
    password = db.parse_dsn(empty.dsn).get("password", "none")
    assert password not in pasted
    orthanc = OrthancConfiguration(root={"PostgreSQL": json.loads(pasted.replace("REPLACE-ME", password))})
    target = resolve(application="", orthanc=orthanc, environ={}).target
    assert look(target).revision == CURRENT


def test_the_screen_of_an_index_in_use(fresh: db.Target) -> None:
    run(fresh, *FILL, "INSERT INTO metadata SELECT internalid, 2, '20200102T030405' FROM resources")
    with db.session(fresh) as orthanc, db.advisory_lock(orthanc, db.LOCK_INDEX):
        shown = invoke("status", "--uri", fresh.dsn)
        pid = orthanc.info.backend_pid
        where = str(db.endpoint(orthanc))

    assert shown.exit_code == 0
    headline, login, *_ = shown.stdout.splitlines()
    assert headline == f"{where[0].upper()}{where[1:]} holds 1 study at revision {CURRENT}."
    assert f"for PostgreSQL plugin {catalog.plugins(CURRENT)}" in login
    assert "1 patient, 1 study, 1 series, 2 instances\n" in shown.stdout
    assert "ago (2020-01-02 " in shown.stdout
    assert f"pid {pid}) holds the index lock\n" in shown.stdout
    assert "15 counter updates and 4 child counts" in shown.stdout


def test_no_index_is_an_answer(empty: db.Target) -> None:
    run(
        empty, "CREATE SCHEMA pacs", "CREATE TABLE pacs.resources ()", "CREATE TABLE pacs.globalproperties ()"
    )
    shown = invoke("status", "--uri", empty.dsn)
    assert (shown.exit_code, shown.stderr) == (4, "")
    assert "contains no Orthanc index.\n" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("    pgorthanc init --uri ")
    document = json.loads(invoke("status", "--uri", empty.dsn, "--json").stdout)
    assert (document["revision"], document["other_schemas"]) == (None, ["pacs"])


def test_the_statements_to_paste_create_the_trigram_index(fresh: db.Target, trigram: str) -> None:
    if trigram == "valid":
        run(fresh, f"DROP INDEX {catalog.TRIGRAM_INDEX}", "DROP EXTENSION pg_trgm")
    finding = trigram_view.finding(look(fresh).trigram, fresh.schema)
    assert finding
    if trigram == "unavailable":
        assert "postgresql-contrib" in " ".join(finding.details)
        return
    run(fresh, *finding.paste.split("\n", 1))
    assert look(fresh).trigram == "valid"
    broken = trigram_view.finding("invalid", fresh.schema)
    assert broken
    run(fresh, broken.paste)
    assert trigram_view.finding(look(fresh).trigram, fresh.schema) is None


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["init", "--revision", "7"], 4),
        (["init", "--schema", "nowhere"], 3),
        (["init", "--create-database", "--dry-run"], 2),
        (["status"], 4),
        (["status", "--schema", "nowhere"], 3),
    ],
)
def test_the_exit_codes(empty: db.Target, words: list[str], exit_code: int) -> None:
    assert invoke(words[0], "--uri", empty.dsn, *words[1:]).exit_code == exit_code


def test_printing_needs_no_server() -> None:
    printed = invoke(
        "init", "--host", "nowhere.invalid", "--schema", "orthanc", "--print-sql", "--no-storage"
    )
    assert printed.exit_code == 0
    assert printed.stdout == initialize.print_sql(schema="orthanc", with_storage=False)
