"""The log of a real Orthanc that fails is explained: the reason is the only problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import db
from pgorthanc_cli.cli import main
from tests.interop.archive import Archive
from tests.interop.orthanc import DoesNotStart
from tests.support.real_servers import free_port

pytestmark = pytest.mark.interop


@pytest.fixture
def archive(new_archive: Callable[..., Archive]) -> Archive:
    return new_archive(postgresql_storage=True)


def explained(archive: Archive) -> dict[str, Any]:
    """The log of the last Orthanc of an archive, explained."""
    result = CliRunner().invoke(main, ["explain-log", str(archive.folder / "orthanc.log"), "--json"])
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["unexplained"] == []
    assert document["plugin"] == archive.program.plugin_version()
    return document


def problems(document: dict[str, Any]) -> list[str]:
    return [message["text"] for message in document["messages"] if message["status"] == "problem"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"Password": "wrong"}, 'password authentication failed for user "…"'),
        ({"Database": "nothing"}, 'database "…" does not exist'),
        ({"Port": 0}, "Connection refused"),
        ({"EnableSsl": True}, "server does not support SSL, but SSL was required"),
        ({"IndexConnectionsCount": 0}, "There must be a non-zero number of connections to the database"),
    ],
)
def test_an_orthanc_that_cannot_connect(archive: Archive, section: dict[str, Any], expected: str) -> None:
    section = {**archive.section, "EnableIndex": True, "MaximumConnectionRetries": 1, **section}
    section["ConnectionRetryInterval"] = 1
    section["Port"] = section["Port"] or free_port()
    with pytest.raises(DoesNotStart), archive.orthanc(PostgreSQL=section):
        pass
    assert problems(explained(archive)) == [expected]


def test_a_second_orthanc(archive: Archive) -> None:
    with db.session(archive.target) as conn, db.advisory_lock(conn, db.LOCK_STORAGE):
        with pytest.raises(DoesNotStart), archive.orthanc():
            pass
    expected = "The PostgreSQL database is locked by another instance of Orthanc"
    assert problems(explained(archive)) == [expected]


def test_an_index_of_a_newer_plugin(archive: Archive) -> None:
    archive.done("init", "--revision", "10")
    with pytest.raises(DoesNotStart), archive.orthanc():
        pass
    expected = "PostgreSQL plugin is incompatible with database schema revision: …"
    assert problems(explained(archive)) == [expected]


def test_a_session_that_is_ended(archive: Archive) -> None:
    with suppress(AssertionError), archive.orthanc() as rest:  # its log contains errors
        with db.session(archive.target) as conn, conn.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with suppress(OSError):
            rest.get("/statistics")
    assert problems(explained(archive)) == ["server closed the connection unexpectedly"]


def test_an_orthanc_that_works(archive: Archive) -> None:
    with archive.orthanc() as rest:
        assert rest.get("/patients") == []
    document = explained(archive)
    assert {message["status"] for message in document["messages"]} == {"ok"}
