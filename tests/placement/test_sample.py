"""What `status` says about the places of attachments, and which of them Orthanc does not find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pgorthanc_cli import areas, cli, db
from pgorthanc_cli.index import customdata
from tests.support import samples
from tests.support.importing import run as import_files
from tests.support.schemas import run as execute

ADOPTED = """{"o":false,"p":"/srv/x.dcm","v":1}"""


@pytest.fixture
def index(fresh: db.Target, tmp_path: Path) -> db.Target:
    """One adopted file, one that the plugin stores, one that Orthanc stores, and one large object."""
    paths = samples.folder(tmp_path / "in", 4)
    import_files(fresh, paths[:3], tmp_path / "area")
    import_files(fresh, paths[3:], None)
    files = "SELECT uuid FROM attachedfiles WHERE uuid NOT IN (SELECT uuid FROM storagearea) ORDER BY uuid"
    for number, data in enumerate((ADOPTED, """{"o":true,"s":"1","v":1}""")):
        change = (
            f"UPDATE attachedfiles SET customdata = '{data}' WHERE uuid = ({files} OFFSET {number} LIMIT 1)"
        )
        execute(fresh, change)
    return fresh


def status(target: db.Target, configuration: Path, options: dict[str, Any]) -> dict[str, Any]:
    configuration.write_text(json.dumps(options))
    words = ("status", "--uri", target.dsn, "--config", str(configuration), "--json")
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_the_areas_and_what_orthanc_does_not_find(index: db.Target, tmp_path: Path) -> None:
    for options, expected in (
        ({"PostgreSQL": {"EnableStorage": True}}, ["filesystem", "advanced-storage", "adopted"]),
        ({"PostgreSQL": {"EnableStorage": False}}, ["postgresql", "advanced-storage", "adopted"]),
        ({"AdvancedStorage": {"Enable": True}}, ["postgresql"]),
    ):
        shown = status(index, tmp_path / "orthanc.json", options)
        assert shown["areas"] == ["filesystem", "postgresql", "advanced-storage", "adopted"]
        assert shown["areas_not_found"] == expected, options


def test_a_sample_reads_no_whole_table(fresh: db.Target) -> None:
    queries = (
        areas._SAMPLE.format(customdata="a.customdata", is_object="false"),
        customdata._SAMPLE,
    )
    with db.session(fresh) as conn:
        with conn.cursor() as cur:
            # More than are sampled, in few pages: to read them all would be cheap, too.
            cur.execute(
                """INSERT INTO resources (resourcetype, publicid) SELECT 3, n::text FROM generate_series(1, 20000) n;
                   INSERT INTO attachedfiles (id, filetype, uuid, compressedsize, uncompressedsize, compressiontype)
                       SELECT internalid, 1, publicid, 1, 1, 1 FROM resources;
                   ANALYZE resources, attachedfiles"""
            )
        conn.commit()
        for query in queries:
            plan = "\n".join(line for (line,) in db.rows(conn, f"EXPLAIN {query}"))
            assert "Seq Scan" not in plan
