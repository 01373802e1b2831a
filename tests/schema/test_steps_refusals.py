"""What the versioned scripts refuse, and how an administrator runs them."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess

import psycopg2
import pytest
from psycopg2 import errors
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db
from pgorthanc_cli.schema import steps
from tests.support import indexstate
from tests.support.schemas import CURRENT, REVISIONS, run, snapshot
from tests.support.stepwalk import at, require_revision, step

FROM_NEWEST = steps.path(CURRENT, REVISIONS[0])[0].script


def refused(
    target: db.Target, script: str, error: type[psycopg2.Error] = errors.RaiseException
) -> psycopg2.Error:
    """What a script says that changes nothing."""
    before = snapshot(target)
    with pytest.raises(error) as refusal:
        step(target, script)
    assert snapshot(target) == before
    return refusal.value


@pytest.mark.parametrize("number", REVISIONS)
def test_every_script_refuses_every_other_revision(fresh: db.Target, number: int) -> None:
    target = at(fresh, number, filled=False)
    before = snapshot(target)
    for found in steps.all_steps():
        if found.start != number:
            with pytest.raises(errors.RaiseException) as refusal:
                step(target, found.script)
            assert str(refusal.value).startswith("wanted an index of version 6 at ")
            assert f"found in schema public: version 6, revision {number}" in str(refusal.value)
    assert snapshot(target) == before


@pytest.mark.parametrize(
    ("number", "recorded", "script", "words"),
    [
        (10, 6, "Rev6ToRev5.sql", "globalintegerschanges.pk is there"),
        (6, 10, "Rev10ToRev6.sql", "globalintegerschanges.pk is missing"),
        (5, 6, "Rev6ToRev10.sql", "patientrecyclingorder.seq is there"),
        (4, 5, "Rev5ToRev4.sql", "attachedfiles.customdata is missing"),
        (2, 3, "Rev3ToRev4.sql", "resources.childcount is missing"),
        (1, 2, "Rev2ToRev3.sql", "globalintegerschanges.key is missing"),
    ],
)
def test_a_layout_of_another_revision(
    fresh: db.Target, number: int, recorded: int, script: str, words: str
) -> None:
    target = at(fresh, number, filled=False)
    run(target, f"UPDATE globalproperties SET value = '{recorded}' WHERE property = 4")
    assert words in str(refused(target, script))


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM globalproperties", "version none, revision none"),
        ("UPDATE globalproperties SET value = '5' WHERE property = 1", f"version 5, revision {CURRENT}"),
        ("ALTER TABLE resources RENAME TO other", "there is no Orthanc index in schema public"),
    ],
)
def test_what_is_no_index_of_that_version(fresh: db.Target, statement: str, words: str) -> None:
    run(fresh, statement)
    assert words in str(refused(fresh, FROM_NEWEST))


def test_a_search_path_that_leads_nowhere(fresh: db.Target) -> None:
    nowhere = db.Target(make_dsn(fresh.dsn, options="-c search_path=nowhere"))
    assert "there is no Orthanc index in schema" in str(refused(nowhere, FROM_NEWEST))


@pytest.mark.parametrize("lock", [db.LOCK_INDEX, db.LOCK_STORAGE, db.LOCK_DATABASE_SETUP])
def test_while_an_orthanc_works(fresh: db.Target, lock: int) -> None:
    with db.session(fresh) as orthanc, db.advisory_lock(orthanc, lock):
        refusal = refused(fresh, FROM_NEWEST, errors.ObjectInUse)
    assert "an Orthanc works on database" in str(refusal)
    step(fresh, FROM_NEWEST)


@pytest.mark.parametrize(
    ("number", "statement", "script", "words"),
    [
        (1, "INSERT INTO resources (resourcetype, publicid) VALUES (0, 'p1'), (0, 'p7'), (0, 'p7')",
         "Rev1ToRev2.sql", "2 values of resources.publicid occur more than once, such as p1"),
        (1, "INSERT INTO patientrecyclingorder (patientid) SELECT min(internalid) FROM resources",
         "Rev1ToRev2.sql", "1 values of patientrecyclingorder.patientid occur more than once, such as 1"),
        (1, "INSERT INTO patientrecyclingorder (patientid) VALUES (NULL), (NULL)",
         "Rev1ToRev2.sql", "2 rows of patientrecyclingorder name no patient"),
        (5, "INSERT INTO patientrecyclingorder (patientid) VALUES (NULL)",
         "Rev5ToRev6.sql", "1 rows of patientrecyclingorder name no patient"),
        (6, "UPDATE metadata SET value = 'n/a' FROM resources WHERE id = internalid AND publicid IN ('p1', 'p9')"
            " AND type = 19", "Rev6ToRev5.sql", "of 2 patients is not a number"),
        (6, "ALTER TABLE invalidchildcounts ADD number bigserial PRIMARY KEY",
         "Rev6ToRev10.sql", "primary key already: invalidchildcounts_pkey of invalidchildcounts"),
    ],
)  # fmt: skip
def test_data_that_a_step_cannot_convert(
    fresh: db.Target, number: int, statement: str, script: str, words: str
) -> None:
    target = at(fresh, number)
    run(target, statement)
    refusal = refused(target, script)
    assert words in str(refusal)
    assert refusal.diag.message_hint


def test_a_view_in_the_way_is_named(fresh: db.Target) -> None:
    target = at(fresh, 5)
    run(target, "CREATE VIEW mine AS SELECT * FROM patientrecyclingorder")
    refusal = refused(target, "Rev5ToRev6.sql", errors.DependentObjectsStillExist)
    assert "view mine" in str(refusal)


def test_all_scripts_look_at_the_index_in_the_same_way() -> None:
    texts = [steps.text(found.script) for found in steps.all_steps()]
    guards = [re.search(r"^DO \$\$.*?^\$\$;.*?MODE;$", text, re.DOTALL | re.MULTILINE) for text in texts]
    assert len(texts) == 2 * len(REVISIONS) - 1
    differing_parts = (
        r"VALUES .*?(?=\n +AS layout)",
        r"(?<=OR )recorded.revision .*?(?=\n)",
        r"(?<=at ).*?(?=, found in)",
        r"(?<=LOCK TABLE ).*?(?=\n    IN)",
        r"(?<=found in schema %: %',)\s+index_schema,\s+concat_ws\(",
    )
    alike = set()
    for guard in guards:
        assert guard
        text = guard[0]
        for part in differing_parts:
            text = re.sub(part, "", text, flags=re.DOTALL)
        alike.add(" ".join(text.split()))
    assert len(alike) == 1


def psql(target: db.Target, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", target.dsn, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


needs_psql = pytest.mark.skipif(not shutil.which("psql"), reason="psql is not installed")


@needs_psql
def test_psql_runs_each_script(fresh: db.Target) -> None:
    target = at(fresh, CURRENT)
    with db.session(target) as conn:
        before = indexstate.state(conn)
    for start, end in itertools.pairwise((CURRENT, 1, CURRENT)):
        for found in steps.path(start, end):
            done = psql(target, "-1", "-f", str(steps.folder() / found.script))
            assert (done.returncode, done.stderr) == (0, "")
    with db.session(target) as conn:
        require_revision(conn, CURRENT)
        assert indexstate.differing(before, indexstate.state(conn)) == []


@needs_psql
def test_psql_runs_no_script_outside_a_transaction(fresh: db.Target) -> None:
    target = at(fresh, CURRENT)
    before = snapshot(target)
    done = psql(target, "-f", str(steps.folder() / FROM_NEWEST))
    assert done.returncode == 3
    assert "LOCK TABLE can only be used in transaction blocks" in done.stderr
    assert snapshot(target) == before
