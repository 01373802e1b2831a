"""The real Orthanc works on a server, then on its standby, then with whichever of the two takes writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from psycopg2.extensions import make_dsn

from pgorthanc_cli import db, replication
from pgorthanc_cli.replication.basebackup import at
from pgorthanc_cli.server import embedded
from tests.interop import files, lifecycle
from tests.interop.archive import Archive
from tests.interop.orthanc import Program
from tests.replication.site import answer, crash, pgorthanc, stop
from tests.support.real_servers import free_port

pytestmark = pytest.mark.interop


def test_orthanc_goes_on_with_a_promoted_standby(program: Program, tmp_path: Path) -> None:
    """The index is at revision 1, the files are large objects: both come with the standby."""
    server = embedded.start(tmp_path / "server", port=free_port(), show_password=True)
    folder, passfile, port = tmp_path / "standby", tmp_path / "replication.pgpass", free_port()
    section = {**server.orthanc["PostgreSQL"], "EnableStorage": True}
    archive = Archive(program, tmp_path, db.Target(server.dsn), section, {})
    uploaded = [*files.real(), *files.patient("1")]
    where = ("--embedded", server.directory, "--allow", "127.0.0.1", "--passfile", passfile)
    source = make_dsn(host="127.0.0.1", port=server.port, user=replication.ROLE, passfile=str(passfile))
    try:
        with archive.orthanc() as rest:
            answer("replication", "primary", *where)  # beside the Orthanc that works
            for file in uploaded:
                assert rest.upload(file.content) == file.ids[3]
            made = answer(
                "replication", "standby", "--dir", folder, "--from", source, "--listen-port", str(port)
            )
            assert made["streaming"]
            late = files.patient("2")
            for file in late:
                assert rest.upload(file.content) == file.ids[3]
        config = ("--config", tmp_path / "orthanc.json")
        (tmp_path / "orthanc.json").chmod(0o600)
        # Orthanc's role sees too little for a verdict, so that the command ends with a warning.
        status = json.loads(pgorthanc("replication", "status", *config, "--json").stdout)
        assert [slot["in_use"] for slot in status["slots"]] == [True]
        promoted = answer("replication", "promote", "--dir", folder, "--fence", server.directory, *config)
        assert promoted["lost_commits"] == 0

        uri = db.Target(promoted["connection_uri"]).with_password(section["Password"]).dsn
        again = Archive(
            program,
            tmp_path,
            at(archive.target, "127.0.0.1", port),
            {"EnableStorage": True, "ConnectionUri": uri},
            {},
        )
        with again.orthanc() as rest:
            held = lifecycle.work(again, rest, [*uploaded, *late])
        back = answer(
            "replication", "rejoin", "--dir", server.directory, "--from", make_dsn(source, port=str(port))
        )
        assert back["method"] == "follow"
        crash(folder)
        assert (
            answer("replication", "promote", "--embedded", server.directory, "--fence", folder)["timeline"]
            == 3
        )
        last = Archive(program, tmp_path, archive.target, again.section, {})
        with last.orthanc() as rest:
            lifecycle.read(rest, held)
    finally:
        stop(folder)
        embedded.stop(Path(server.directory))
