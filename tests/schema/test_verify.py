"""Every kind of difference of a schema is found, judged and mended; what is healthy is left in peace."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import catalogs, cli, db, locks
from pgorthanc_cli.errors import InUseError, PgOrthancError, RevisionError
from pgorthanc_cli.schema import catalog, steps, verify
from pgorthanc_cli.schema.verify.functions import Body, code
from tests.support.damages import DAMAGES, Damage
from tests.support.schemas import (
    CURRENT,
    ODD_SCHEMA,
    REVISIONS,
    as_role,
    drop_database,
    init,
    rows,
    run,
    snapshot,
)

# A patient with two instances, attachments and changes, at any revision.
FILL = (
    "SELECT createinstance('p', 's', 'e', 'i'), createinstance('p', 's', 'e', 'j')",
    """INSERT INTO attachedfiles
               (id, filetype, uuid, compressedsize, uncompressedsize, uncompressedhash, compressedhash)
           SELECT internalid, 1, publicid, 10, 20, '', '' FROM resources WHERE resourcetype = 3""",
    "INSERT INTO changes SELECT 40 + internalid, 2, internalid, resourcetype, 'now' FROM resources",
)
_SOURCES = """SELECT pg_get_functiondef(oid) FROM pg_proc p WHERE pronamespace = 'public'::regnamespace AND NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')"""


@pytest.fixture(scope="module")
def templates(admin: Connection, server_dsn: str) -> Iterator[Callable[[int], str]]:
    """Names of template databases with a small index at a revision."""
    made: dict[int, str] = {}

    def template(revision: int) -> str:
        if revision not in made:
            name = f"pgorthanc_template_{id(admin)}_verify_{revision}"
            with admin.cursor() as cur:
                cur.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            made[revision] = name
            target = db.Target(make_dsn(server_dsn, dbname=name))
            init(target, revision=revision)
            run(target, *FILL)
        return made[revision]

    yield template
    for name in made.values():
        drop_database(admin, name)


@pytest.fixture
def index(
    new_database: Callable[..., db.Target], templates: Callable[[int], str]
) -> Callable[[int], db.Target]:
    return lambda revision: new_database(templates(revision))


def look(target: db.Target, *, deep: bool = True) -> verify.SchemaReport:
    with db.session(target, readonly=True) as conn:
        return verify.schema(conn, target.schema, deep=deep)


def mend(target: db.Target, *, deep: bool = True) -> verify.Repaired:
    with db.session(target) as conn:
        return verify.repair(conn, target.schema, require_idle=locks.require_idle, deep=deep)


def load(target: db.Target, script: str, folder: Path, *options: str) -> None:
    """As an administrator would: with psql, where it is installed."""
    if not shutil.which("psql"):
        run(target, script)
        return
    file = folder / "mend.sql"
    file.write_text(script, encoding="utf-8")
    command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *options, "-d", target.dsn, "-f", str(file)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_init_makes_is_healthy(index: Callable[[int], db.Target], revision: int) -> None:
    found = look(index(revision))
    assert (found.healthy, found.findings, found.revision) == (True, (), revision)
    assert list(found.functions) == ["pgorthanc"]
    assert found.fixes == []


@pytest.mark.parametrize("one", DAMAGES, ids=str)
def test_each_difference_is_found_judged_and_mended(
    index: Callable[[int], db.Target], one: Damage, trigram: str, tmp_path: Path
) -> None:
    target = index(one.revision)
    if trigram != "valid" and catalog.TRIGRAM_INDEX in " ".join((one.name, *one.statements)):
        pytest.skip("the server lacks pg_trgm")
    healthy = snapshot(target)
    run(target, *one.statements)
    damaged = look(target)

    finding = next(found for found in damaged.findings if found.name == one.name)
    assert finding.matters is one.matters, finding
    assert bool(finding.repair) is one.mended, finding
    assert damaged.revision == one.revision
    assert one.mended or not one.matters or finding.advice, finding

    load(target, verify.script(damaged), tmp_path, "-1")
    by_hand = look(target)
    assert (one.name in [found.name for found in by_hand.findings]) is not one.mended
    if one.mended:
        assert by_hand.healthy, by_hand.findings
        assert catalog.differences(snapshot(target), healthy) == []
    assert mend(target).repaired == ()


def test_all_at_once(index: Callable[[int], db.Target]) -> None:
    """What one statement mends, another one may stand on."""
    target = index(CURRENT)
    run(
        target,
        "DROP TABLE labels, globalintegers, keyvaluestores, auditlogs, queues, serverproperties",
        "DROP FUNCTION updatechildcount CASCADE",
        "DROP FUNCTION createinstance",
        "DROP SEQUENCE resources_internalid_seq CASCADE",
        "ALTER TABLE resources DROP CONSTRAINT uniquepublicid, DROP CONSTRAINT resources_parentid_fkey",
        "ALTER TABLE resources DROP childcount",
        "DELETE FROM globalproperties WHERE property <> 1",
        "DROP TABLE storagearea",
    )
    mended = mend(target)
    assert (mended.healthy, mended.left) == (True, ())
    assert "property 4" in mended.repaired
    run(target, "SELECT createinstance('p', 's', 'f', 'new')")
    assert look(target).healthy


def test_a_big_index_can_be_made_beside_orthanc(index: Callable[[int], db.Target]) -> None:
    target = index(CURRENT)
    invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'changesindex'::regclass"
    run(target, "DROP INDEX childrenindex2", invalid)
    for finding in look(target).findings:
        run(target, (finding.advice or "").partition("Orthanc is running: ")[2])
    assert look(target).findings == ()


def test_another_schema(target: db.Target) -> None:
    init(target)
    run(target, "DROP INDEX labelsindex1", "DROP TRIGGER insertedchange ON changes")
    assert {found.name for found in look(target).findings} == {
        "index labelsindex1",
        "trigger changes.insertedchange",
    }
    assert mend(target).healthy


def test_the_script_of_a_schema_with_an_odd_name(empty: db.Target, tmp_path: Path) -> None:
    target = db.Target(empty.dsn, schema=ODD_SCHEMA)
    run(empty, 'CREATE SCHEMA "' + ODD_SCHEMA.replace('"', '""') + '"')
    init(target)
    run(target, "DROP TABLE labels", "DROP FUNCTION createinstance")
    load(target, verify.script(look(target)), tmp_path)
    assert look(target).healthy


def test_the_revision_is_that_of_the_layout(index: Callable[[int], db.Target]) -> None:
    """An official downgrade of another revision than the one it is for stamps whatever it finds."""
    target = index(4)
    run(target, "UPDATE globalproperties SET value = '10' WHERE property = 4")
    found = look(target)
    assert (found.revision, found.recorded_revision, found.healthy) == (4, "10", False)
    assert mend(target).repaired == ("property 4",)
    assert rows(target, "SELECT value FROM globalproperties WHERE property = 4") == [("4",)]


@pytest.mark.parametrize(("revision", "healthy"), [(1, True), (2, False), (10, False)])
def test_a_trigram_index_that_is_still_to_be_tried(
    index: Callable[[int], db.Target], revision: int, healthy: bool
) -> None:
    """Plugins up to 5.1 record 0 where pg_trgm is missing; for later ones that is an index of revision 1."""
    target = index(revision)
    run(target, "UPDATE globalproperties SET value = '0' WHERE property = 10")
    assert look(target).healthy is healthy


def test_the_body_of_another_revision(index: Callable[[int], db.Target]) -> None:
    source = rows(index(6), "SELECT pg_get_functiondef('createinstance'::regproc)")[0][0]
    target = index(5)
    run(target, source)
    (finding,) = look(target).findings
    assert (finding.name, finding.found, finding.matters) == (
        "body of createinstance", "of pgorthanc, revision 6", True,
    )  # fmt: skip
    assert mend(target).healthy


def test_a_later_body_that_does_the_same(index: Callable[[int], db.Target]) -> None:
    """As the official downgrade leaves it (UPSTREAM_DEFECTS H)."""
    source = rows(index(6), "SELECT pg_get_functiondef('updateinvalidchildcounts'::regproc)")[0][0]
    target = index(5)
    run(target, source)
    assert look(target).findings == ()


def test_known_bodies_of_the_plugin_are_recognised() -> None:
    known = verify.functions.Bodies()
    for entry in catalogs.load("functions.json"):
        wanted = catalog.expected(entry["revision"], with_storage=False)
        assert {f"function {name}" for name in entry["functions"]} == {
            n for n in wanted if n.startswith("function")
        }
        for name, digest in entry["functions"].items():
            origin = known.origin(f"function {name}", Body(digest, ""), entry["revision"])
            assert (origin.name, origin.fits) == (entry["release"], True)


def test_no_false_alarm_about_a_body_that_an_upgrade_or_downgrade_leaves() -> None:
    """What our scripts do not replace on the way from an index of the real plugin fits where they lead."""
    known = verify.functions.Bodies()
    for entry, end in itertools.product(catalogs.load("functions.json"), REVISIONS):
        replaced = {
            name for step in steps.path(entry["revision"], end) for name in verify.functions._of(step.script)
        }
        wanted = catalog.expected(end, with_storage=False)
        for signature, digest in entry["functions"].items():
            name = f"function {signature}"
            if name in wanted and verify.functions.bare(name) not in replaced:
                assert known.origin(name, Body(digest, ""), end).fits, (entry["release"], end, name)


REMARKS = (
    ("BEGIN", "-- a remark\nBEGIN /* another /* nested */ -- one */\n\t"),
    ("  ", "\t\n"),
    (";", "; -- it's \"said\n"),
)
CHANGES = (
    ("RETURN", "-- RETURN"),
    ("RETURN", "/* RETURN */"),
    ("'", "' "),
    ("'", "'--"),
    ("BEGIN", 'BEGIN PERFORM "a  b", "a b";'),
)


@pytest.mark.parametrize("remark", REMARKS)
def test_remarks_and_white_space_in_a_body_change_nothing(
    index: Callable[[int], db.Target], remark: tuple[str, str]
) -> None:
    target = index(CURRENT)
    functions = [name for name in snapshot(target) if name.startswith("function ")]
    for (source,) in rows(target, _SOURCES):
        head, quote, body = source.partition("$function$")
        run(target, head + quote + body.replace(*remark))
    assert len(rows(target, _SOURCES)) == len(functions)
    assert look(target).findings == ()


@pytest.mark.parametrize("change", CHANGES)
def test_code_that_becomes_a_remark_or_a_literal_is_another_body(change: tuple[str, str]) -> None:
    source = "BEGIN RETURN 'a  b' || E'\\' -- c' || $x$ -- d $x$; END"
    assert code(source.replace(*change)) != code(source)


def test_literals_keep_their_white_space() -> None:
    assert code("a  'b  c'\n--d\n $$e  f$$ \"g  h\" /* i /* j */ k */ l") == "a 'b  c' $$e  f$$ \"g  h\" l"
    assert code("'it''s -- no'--remark") == "'it''s -- no'"
    assert code("/* never ended") == ""


def test_a_repair_that_fails_changes_nothing(index: Callable[[int], db.Target]) -> None:
    target = index(CURRENT)
    run(
        target,
        "DROP INDEX labelsindex1",
        "ALTER TABLE resources DROP CONSTRAINT uniquepublicid",
        "UPDATE resources SET publicid = 'i' WHERE publicid = 'j'",
    )
    before = snapshot(target)
    with pytest.raises(PgOrthancError, match="unique index"):
        mend(target)
    assert snapshot(target) == before


def test_a_repair_while_an_orthanc_works(index: Callable[[int], db.Target]) -> None:
    target = index(CURRENT)
    run(target, "DROP INDEX labelsindex1")
    orthanc = db.Target(target.dsn, application="Orthanc")
    with db.session(orthanc) as conn, db.advisory_lock(conn, db.LOCK_INDEX):
        assert not look(target).healthy
        with pytest.raises(InUseError, match=r"the Orthanc at .* holds the index lock"):
            mend(target)
    assert mend(target).healthy


def test_a_role_that_only_reads(index: Callable[[int], db.Target], role: str) -> None:
    target = index(CURRENT)
    run(target, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    found = look(as_role(target, role))
    assert found.healthy
    assert [one.name for one in found.findings] == ["value of sequence patientrecyclingordersequence"]
    assert "GRANT SELECT" in (found.findings[0].advice or "")


def test_what_is_made_belongs_to_the_owner(index: Callable[[int], db.Target], role: str) -> None:
    target = index(CURRENT)
    owned = rows(
        target, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    )
    run(target, *(f"ALTER TABLE {name} OWNER TO {role}" for (name,) in owned))
    run(target, f"ALTER SEQUENCE patientrecyclingordersequence OWNER TO {role}")
    run(target, f"GRANT CREATE ON SCHEMA public TO {role}", "DROP TABLE labels")
    mend(target)
    assert rows(target, "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'labels'") == [
        (role,)
    ]


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ((), "holds no Orthanc index"),
        (("CREATE TABLE resources (id integer)",), "no Orthanc index of a known layout"),
    ],
)
def test_no_index(empty: db.Target, statements: tuple[str, ...], message: str) -> None:
    run(empty, *statements)
    for action in (look, mend):
        with pytest.raises(RevisionError, match=message):
            action(empty)


def test_before_revision_1(index: Callable[[int], db.Target]) -> None:
    target = index(1)
    run(
        target,
        "ALTER TABLE metadata DROP revision",
        "ALTER TABLE attachedfiles DROP revision",
        "DROP TABLE labels",
    )
    with pytest.raises(RevisionError, match="before revision 1") as refusal:
        look(target)
    assert refusal.value.hint == "run: pgorthanc upgrade"


def test_plugin_4_knows_no_labels(index: Callable[[int], db.Target]) -> None:
    target = index(1)
    run(target, "DROP TABLE labels")
    found = look(target)
    assert found.healthy
    assert [one.name for one in found.findings] == ["table labels"]


def invoke(target: db.Target, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, ["verify", "schema", "--uri", target.dsn, *words])
    return result.exit_code, result.stdout


def test_the_command(index: Callable[[int], db.Target], empty: db.Target) -> None:
    target = index(CURRENT)
    code, text = invoke(target)
    assert (code, text.splitlines()[0]) == (0, f"The index matches revision {CURRENT}.")
    run(target, "DROP INDEX labelsindex1")
    code, text = invoke(target)
    assert text.startswith(f"The index does not match revision {CURRENT}: 1 problem.")
    assert "FAIL index labelsindex1 is missing" in text
    assert "    pgorthanc verify schema --apply --uri " in text

    code, text = invoke(target, "--json")
    document = json.loads(text)
    assert (code, document["healthy"], document["revision"]) == (6, False, CURRENT)
    assert document["findings"][0]["name"] == "index labelsindex1"
    code, text = invoke(target, "--print-sql")
    assert (code, "CREATE INDEX labelsindex1" in text) == (6, True)
    code, text = invoke(target, "--apply", "--json")
    assert (code, json.loads(text)["repaired"]) == (0, ["index labelsindex1"])
    assert invoke(target, "--repair", "--apply")[0] == 0  # the options before
    assert invoke(empty)[0] == 4


@pytest.mark.parametrize(
    ("damage", "repair"),
    [
        ("UPDATE attachedfiles SET uncompressedhash = NULL WHERE id % 2 = 0", True),
        ("CREATE TABLE child () INHERITS (metadata)", False),
    ],
)
def test_the_hint_names_a_command_that_has_something_to_repair(
    index: Callable[[int], db.Target], damage: str, repair: bool
) -> None:
    target = index(CURRENT)
    run(target, damage)
    command = ["verify", "schema", "--uri", target.dsn, "--deep"]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 6, result.output
    assert ("pgorthanc verify schema --apply --deep" in result.stdout) == repair
    if repair:
        assert "UPDATE attachedfiles" in CliRunner().invoke(cli.main, [*command, "--print-sql"]).stdout


def test_a_table_that_inherits_is_one_finding_and_not_harmless(index: Callable[[int], db.Target]) -> None:
    target = index(CURRENT)
    run(target, "CREATE TABLE kid () INHERITS (metadata)")
    [found] = look(target).findings
    assert found.matters
    assert found.name == "child metadata.kid"
    assert "ALTER TABLE metadata" in (found.advice or "") or "NO INHERIT metadata" in (found.advice or "")
