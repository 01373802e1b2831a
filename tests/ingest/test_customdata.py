"""Instances whose files a storage plugin keeps: what overwriting does to them, and which plugins are recognised.

The rows are those that the AdvancedStorage plugin 0.3 writes (STORAGE.md A2, A3, A5).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgorthanc_cli import db, index, upgrade
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.index import Overwrite, customdata
from tests.support import samples
from tests.support.importing import check_area, dumped, ends, run
from tests.support.schemas import rows
from tests.support.schemas import run as execute

PATH = '/data/Ünï "x".dcm'
ADOPTED = json.dumps({"o": False, "p": PATH, "v": 1}, sort_keys=True, separators=(",", ":"))
OWNED = [
    '{"o":true,"p":"/data/x.dcm","v":1}',
    '{"o":true,"p":"a/x.dcm","s":"1","v":1}',
    '{"o":true,"s":"1","v":1}',
]
FOREIGN = {
    '{"storage": "local", "local": "/x", "s3zip": null, "series-id": null, "size": 3}': "S3Zip",
    '{"IsAdopted":true,"AdoptedPath":"/x"}': "AdoptDicomInstance",
    '{"o":true,"v":2}': "",
    '{"o":false,"v":1}': "",
    '{"o":true,"v":true}': "",
    "{}": "",
    "[]": "",
    "nonsense": "",
}


def set_custom(target: db.Target, data: str | bytes, file_type: int = 1) -> None:
    value = data.encode() if isinstance(data, str) else data
    execute(target, f"UPDATE attachedfiles SET customdata = '\\x{value.hex()}' WHERE filetype = {file_type}")


def keep(target: db.Target, store: str, key: str, value: str) -> None:
    with db.session(target) as conn, conn.cursor() as cur:
        cur.execute("INSERT INTO keyvaluestores VALUES (%s, %s, %s)", (store, key, value.encode()))
        conn.commit()


def user_data(target: db.Target) -> dict[tuple[str, str], str]:
    return {
        (store, key): bytes(value).decode()
        for store, key, value in rows(target, "SELECT storeid, key, value FROM keyvaluestores")
    }


@pytest.fixture
def adopted(fresh: db.Target, tmp_path: Path) -> list[Path]:
    """A file that is stored, with the rows of an adopted file, and neighbours of another path and another store."""
    files = samples.folder(tmp_path / "in", 1)
    run(fresh, files, tmp_path / "area")
    set_custom(fresh, ADOPTED)
    [(public_id,)] = rows(fresh, "SELECT publicid FROM resources WHERE resourcetype = 3")
    keep(fresh, "advst-adopted-path", PATH, f'{{"c":1,"r":"{public_id}","t":3,"v":1}}')
    keep(fresh, "advst-indexer-path", PATH, '{"d":true,"r":false,"s":2672,"t":1700000004,"v":1}')
    keep(fresh, "advst-adopted-path", "/data/other.dcm", '{"c":1,"r":"x","t":3,"v":1}')
    keep(fresh, "advst-indexer-path", "/data/other.dcm", '{"d":true,"r":false,"s":1,"t":2,"v":1}')
    keep(fresh, "worklists", PATH, "untouched")
    return files


@pytest.mark.parametrize("concurrent", [False, True])
def test_overwriting_an_adopted_instance_does_what_orthanc_does(
    fresh: db.Target, tmp_path: Path, adopted: list[Path], concurrent: bool
) -> None:
    """The path is forgotten, and the folder indexer is told: else it deletes the new instance with the old file."""
    adopted[0].write_bytes(adopted[0].read_bytes()[:-1] + b"!")
    report = run(fresh, adopted, tmp_path / "area", overwrite=Overwrite.IF_CHANGED, concurrent=concurrent)
    assert ends(report) == (0, 0, 1, 0)
    assert user_data(fresh) == {
        ("advst-indexer-path", PATH): '{"d":true,"r":true,"s":2672,"t":1700000004,"v":1}',
        ("advst-adopted-path", "/data/other.dcm"): '{"c":1,"r":"x","t":3,"v":1}',
        ("advst-indexer-path", "/data/other.dcm"): '{"d":true,"r":false,"s":1,"t":2,"v":1}',
        ("worklists", PATH): "untouched",
    }
    assert rows(fresh, "SELECT customdata FROM attachedfiles") == [(None,)]


def test_an_indexer_row_of_another_format_is_not_touched(
    fresh: db.Target, tmp_path: Path, adopted: list[Path]
) -> None:
    execute(fresh, """UPDATE keyvaluestores SET value = '{"v":2}' WHERE storeid = 'advst-indexer-path'""")
    before = user_data(fresh), dumped(fresh)
    report = run(fresh, adopted, tmp_path / "area", overwrite=Overwrite.ALWAYS)
    assert ends(report) == (0, 0, 0, 1)
    assert (user_data(fresh), dumped(fresh)) == before


@pytest.mark.parametrize("data", [*OWNED, *FOREIGN])
def test_overwriting_a_file_that_a_plugin_owns_is_refused(
    fresh: db.Target, tmp_path: Path, data: str
) -> None:
    """Only Orthanc with that plugin can remove the old file; the neighbours in the batch are overwritten."""
    files = samples.folder(tmp_path / "in", 3)
    run(fresh, files[:1], tmp_path / "area")
    set_custom(fresh, data)
    [(uuid,)] = rows(fresh, "SELECT uuid FROM attachedfiles")
    run(fresh, files[1:], tmp_path / "area")
    report = run(fresh, files, tmp_path / "area", overwrite=Overwrite.ALWAYS)
    assert ends(report) == (0, 0, 2, 1)
    assert report.refusals[0].path == str(files[0])
    assert "delete the instance in Orthanc" in report.refusals[0].reason
    assert rows(fresh, "SELECT uuid FROM attachedfiles WHERE customdata IS NOT NULL") == [(uuid,)]
    check_area(fresh, tmp_path / "area")


def test_attachments_of_the_parents_count_if_they_are_deleted_too(fresh: db.Target, tmp_path: Path) -> None:
    """The only instance of a series takes the series with it, and what a user attached to that."""
    files = samples.folder(tmp_path / "in", 2, patients=1)
    run(fresh, files[:1], tmp_path / "area")
    execute(
        fresh,
        """INSERT INTO attachedfiles SELECT internalid, 1024, 'u', 1, 1, 1, '', '', 0, '{"o":true,"s":"1","v":1}'
           FROM resources WHERE resourcetype = 2""",
    )
    assert ends(run(fresh, files[:1], tmp_path / "area", overwrite=Overwrite.ALWAYS)) == (0, 0, 0, 1)
    run(fresh, files[1:], tmp_path / "area")
    assert ends(run(fresh, files[:1], tmp_path / "area", overwrite=Overwrite.ALWAYS)) == (0, 0, 1, 0)
    assert len(rows(fresh, "SELECT FROM attachedfiles WHERE filetype = 1024")) == 1


def test_empty_customdata_is_none(fresh: db.Target, tmp_path: Path) -> None:
    files = samples.folder(tmp_path / "in", 1)
    run(fresh, files, tmp_path / "area")
    set_custom(fresh, "")
    assert ends(run(fresh, files, tmp_path / "area", overwrite=Overwrite.ALWAYS)) == (0, 0, 1, 0)
    check_area(fresh, tmp_path / "area")


@pytest.mark.parametrize("revision", [4, 1])
def test_customdata_put_aside_by_a_downgrade_counts(
    fresh: db.Target, tmp_path: Path, adopted: list[Path], revision: int
) -> None:
    """They come back with the next upgrade: with the rows of the folder indexer, but not for another uuid."""
    before = user_data(fresh)
    upgrade.downgrade(fresh, to=revision)
    report = run(fresh, adopted, tmp_path / "area", overwrite=Overwrite.ALWAYS)
    assert ends(report) == (0, 0, 0, 1)
    assert "run pgorthanc upgrade" in report.refusals[0].reason
    others = samples.folder(tmp_path / "more", 2, first=5)
    assert ends(run(fresh, [*others, *others], tmp_path / "area", overwrite=Overwrite.ALWAYS)) == (2, 0, 2, 0)
    upgrade.upgrade(fresh)
    assert user_data(fresh) == before
    assert ends(run(fresh, adopted, tmp_path / "area", overwrite=Overwrite.ALWAYS)) == (0, 0, 1, 0)


@pytest.mark.parametrize(("data", "plugin"), [*((d, "AdvancedStorage") for d in OWNED), *FOREIGN.items()])
def test_dialects(data: str, plugin: str) -> None:
    assert plugin in customdata.read(data.encode()).plugin
    assert bool(customdata.read(data.encode()).plugin) == bool(plugin)
    assert not customdata.read(data.encode()).adopted


def test_the_dialect_of_an_adopted_file() -> None:
    assert customdata.read(ADOPTED.encode()) == customdata.CustomData("AdvancedStorage", PATH, adopted=True)
    assert customdata.read(b'{ "p" : "/x", "v" : 1 }') == customdata.CustomData(
        "AdvancedStorage", "/x", adopted=True
    )
    assert customdata.read(b"\xff\x00").plugin == ""


# --- where do new files go? --------------------------------------------------------------------------------


def sample_of(target: db.Target) -> str | None:
    with db.session(target, readonly=True) as conn, conn.cursor() as cur:
        plugin = index.unsupported_plugin(cur, index.Capabilities.read(conn))
    conn.close()
    return plugin


@pytest.mark.parametrize(("data", "plugin"), FOREIGN.items())
def test_an_index_whose_files_an_unknown_plugin_keeps(
    fresh: db.Target, tmp_path: Path, data: str, plugin: str
) -> None:
    """Refused when the storage is only concluded from the configuration."""
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files[:1], tmp_path / "area")
    assert sample_of(fresh) is None
    set_custom(fresh, data)
    assert plugin in str(sample_of(fresh))
    with pytest.raises(PgOrthancError, match=plugin or "not known here") as caught:
        run(fresh, files, tmp_path / "area", storage_given=False)
    assert "--storage-dir" in str(caught.value.hint)
    assert ends(run(fresh, files, tmp_path / "area")) == (1, 1, 0, 0)


@pytest.mark.parametrize("data", [ADOPTED, *OWNED])
def test_files_of_advanced_storage_are_no_obstacle(fresh: db.Target, tmp_path: Path, data: str) -> None:
    """It reads new files where Orthanc's own storage puts them (STORAGE.md A15)."""
    files = samples.folder(tmp_path / "in", 2)
    run(fresh, files[:1], tmp_path / "area")
    set_custom(fresh, data)
    assert ends(run(fresh, files[1:], tmp_path / "area", storage_given=False)) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("data", "storages", "place"),
    [
        ('{"o":true,"v":1}', None, "/area/ab/cd/abcd"),
        ('{"o":true,"p":"a/x.dcm","v":1}', None, "/area/a/x.dcm"),
        ('{"o":true,"p":"a/x.dcm","s":"1","v":1}', {"1": Path("/one")}, "/one/a/x.dcm"),
        ('{"o":false,"p":"/x.dcm","s":"1","v":1}', None, "/x.dcm"),
        ('{"o":true,"s":"2","v":1}', {"1": Path("/one")}, "storage"),
        ('{"o":true,"s":"1","v":1}', None, "folder"),
        ("{}", None, "plugin"),
    ],
)
def test_where_a_file_is(data: str, storages: dict[str, Path] | None, place: str) -> None:
    if place.startswith("/"):
        assert customdata.locate("abcd", data.encode(), Path("/area"), storages) == place
        return
    with pytest.raises(customdata.NotLocated) as raised:
        customdata.locate("abcd", data.encode(), Path("/area"), storages)
    assert raised.value.kind == place


def test_a_file_without_a_folder() -> None:
    with pytest.raises(customdata.NotLocated, match="name the folder with --storage-dir"):
        customdata.locate("abcd", b'{"o":true,"v":1}', None, None)
