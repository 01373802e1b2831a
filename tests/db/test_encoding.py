"""Text under foreign settings of environment, service file, URI, role, database and server encoding."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner, Result
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import cli, db
from pgorthanc_cli.db import encoding
from tests.support import samples, sqliteindex
from tests.support.schemas import run
from tests.support.text_places import (
    FRENCH,
    JAPANESE,
    MIXED,
    RAW,
    STORED,
    Place,
    create,
    read_by_orthanc,
    stored,
)

MakeDatabase = Callable[[Place], db.Target]
TEXTS = (FRENCH, JAPANESE, MIXED)
_numbers = count(1)


@pytest.fixture
def database(admin: Connection, server_dsn: str) -> Iterator[MakeDatabase]:
    """Makes databases that are dropped after the test."""
    names: list[str] = []

    def make(place: Place) -> db.Target:
        names.append(f"pgorthanc_text_{os.getpid()}_{next(_numbers)}")
        return create(server_dsn, names[-1], place)

    yield make
    with admin.cursor() as cur:
        for name in names:
            cur.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A file for each of the texts."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number, text in enumerate(TEXTS, 1):
        content = samples.instance(
            f"P{number}",
            f"1.{number}",
            f"1.{number}.1",
            SpecificCharacterSet="ISO_IR 192",
            InstitutionName=text,
        )
        (folder / f"{number}.dcm").write_bytes(content)
    return folder


def pgorthanc(*words: object, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(cli.main, [str(word) for word in words])


def done(*words: object, **environment: str) -> dict[str, object]:
    result = pgorthanc(*words, "--json", **environment)
    assert result.exit_code == 0, result.output
    document: dict[str, object] = json.loads(result.stdout)
    return document


def foreign(way: str, target: db.Target, folder: Path) -> tuple[str, dict[str, str]]:
    """A DSN and an environment with LATIN1 in one of the ways that a client may be told it."""
    if way == "service":
        place = folder / "services.conf"
        given = "\n".join(f"{key}={value}" for key, value in db.parse_dsn(target.dsn).items())
        place.write_text(f"[foreign]\n{given}\nclient_encoding=LATIN1\n")
        return "service=foreign", {"PGSERVICEFILE": str(place)}
    return {
        "environment": (target.dsn, {"PGCLIENTENCODING": "LATIN1"}),
        "options in the environment": (target.dsn, {"PGOPTIONS": "-c client_encoding=LATIN1"}),
        "URI": (make_dsn(target.dsn, client_encoding="LATIN1"), {}),
        "options in the URI": (make_dsn(target.dsn, options="-c client_encoding=LATIN1"), {}),
    }[way]


WAYS = ["environment", "options in the environment", "URI", "options in the URI", "service"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.once)])
def test_import_under_a_foreign_setting_of_the_client(
    fresh: db.Target, files: Path, tmp_path: Path, way: str, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, environment = foreign(way, fresh, tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)  # of the worker processes, too
    done("import", "--uri", dsn, "--storage-dir", tmp_path / "area", "--jobs", jobs, files)
    for name in environment:
        monkeypatch.delenv(name)
    assert stored(fresh) == set(RAW)
    assert read_by_orthanc(fresh) == set(TEXTS)


@pytest.mark.parametrize("place", [Place(of_database="LATIN1"), Place("SQL_ASCII"), Place("EUC_JP")], ids=str)
def test_the_path_of_an_adopted_file(
    database: MakeDatabase, files: Path, tmp_path: Path, place: Place
) -> None:
    """Its key is text, found again when the instance is replaced; one that the database cannot hold is refused."""
    target = database(place)
    run_init(target)
    config = tmp_path / "orthanc.json"
    config.write_text(json.dumps({"StorageDirectory": "area", "AdvancedStorage": {"Enable": True}}))
    path = files / f"{JAPANESE}.dcm"
    (files / "2.dcm").write_bytes(samples.instance("P2", "1.2", "1.2.1"))
    (files / "2.dcm").rename(path)
    words = ("import", "--uri", target.dsn, "--config", config, "--jobs", 1, "--json")
    adopted = json.loads(pgorthanc(*words, "--adopt", files / "1.dcm", path).stdout)["adopted"]
    keys = "SELECT convert_to(key, getdatabaseencoding()) FROM keyvaluestores"
    with db.session(target) as conn:
        stored_keys = {bytes(key) for (key,) in db.rows(conn, keys)}
    expected = {None: set(), RAW[1]: {bytes(path)}}.get(
        STORED[place][1], {bytes(path).decode("latin-1").encode()}
    )
    assert {key for key in stored_keys if not key.endswith(b"/1.dcm")} == expected
    assert adopted == len(stored_keys)
    done(*words, "--overwrite", "always", files / "1.dcm", path)
    with db.session(target) as conn:
        assert db.rows(conn, keys) == []


@pytest.mark.parametrize("place", STORED, ids=str)
def test_import_stores_what_orthanc_stores(
    database: MakeDatabase, files: Path, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = database(place)
    run_init(target)
    monkeypatch.setenv("PGCLIENTENCODING", "SJIS")
    result = pgorthanc("import", "--uri", target.dsn, "--storage-dir", tmp_path / "area", "--json", files)
    monkeypatch.delenv("PGCLIENTENCODING")
    expected = STORED[place]
    assert stored(target) == {raw for raw in expected if raw is not None}
    assert read_by_orthanc(target) == {text for text, raw in zip(TEXTS, expected, strict=True) if raw}
    document = json.loads(result.stdout)
    refusals = {refusal["path"]: refusal["reason"] for refusal in document["refusals"]}
    assert set(refusals) == {str(files / f"{n}.dcm") for n, raw in enumerate(expected, 1) if raw is None}
    for reason in refusals.values():
        assert f"encoding {place.encoding}" in reason
        assert "cannot store a character" in reason
    assert result.exit_code == (6 if refusals else 0)


def run_init(target: db.Target) -> None:
    done("init", "--uri", target.dsn)


def test_a_setting_of_another_role_does_not_count(
    fresh: db.Target, role: str, files: Path, tmp_path: Path
) -> None:
    """The administrator's own setting says nothing about Orthanc, whose role owns the tables."""
    identifier = sql.Identifier(role)
    with db.session(fresh, autocommit=True) as conn, conn.cursor() as cur:
        cur.execute(sql.SQL("ALTER ROLE {} LOGIN").format(identifier))
        cur.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        )
        for (table,) in cur.fetchall():
            cur.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(table), identifier))
        cur.execute(
            sql.SQL("ALTER ROLE CURRENT_USER IN DATABASE {} SET client_encoding = 'LATIN1'").format(
                sql.Identifier(conn.info.dbname)
            )
        )
    done("import", "--uri", fresh.dsn, "--storage-dir", tmp_path / "area", files)
    assert stored(fresh) == set(RAW)


@pytest.mark.parametrize("of_role", [None, "EUC_JP"])
def test_the_encoding_of_orthanc(database: MakeDatabase, of_role: str | None) -> None:
    """In the order in which PostgreSQL applies settings, and by its own name for it."""
    target = database(Place(of_role=of_role, of_database="iso-8859-1"))
    with db.session(target, readonly=True) as conn:
        assert encoding.of_orthanc(conn) == (of_role or "LATIN1")


COMMANDS = [
    "status", "doctor", "doctor --deep", "verify schema", "verify schema --deep", "verify schema --repair --apply",
    "check-lock", "check-auth", "downgrade --to 6 --yes --export {folder}/export", "upgrade --plan", "upgrade --yes",
    "support-bundle {folder}/bundle.tar.gz", "keepalive-test --ages 1", "wait --ready",
]  # fmt: skip


def exit_codes(target: db.Target, folder: Path, **environment: str) -> dict[str, int]:
    folder.mkdir()
    exit_codes = {}
    for line in COMMANDS:
        name, *words = line.format(folder=folder).split()
        result = pgorthanc(name, *words, "--uri", target.dsn, **environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
        exit_codes[line] = result.exit_code
    return exit_codes


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, id=str(place), marks=[] if place in (Place(of_role="LATIN1"), Place("WIN1252"))
                     else pytest.mark.once)
        for place in STORED
    ],
)  # fmt: skip
def test_every_command_under_every_setting(
    database: MakeDatabase, files: Path, tmp_path: Path, place: Place
) -> None:
    """They do their work, and what was stored stays."""
    target = database(place)
    run_init(target)
    pgorthanc("import", "--uri", target.dsn, "--storage-dir", tmp_path / "area", files)
    before = stored(target)
    run(target, f"INSERT INTO keyvaluestores VALUES ('store', '{FRENCH}', 'x')")
    ends = exit_codes(target, tmp_path / "out", PGCLIENTENCODING="SJIS")
    assert stored(target) == before
    warnings = {"doctor", "doctor --deep"}  # about the encoding, where it is not UTF8 throughout
    assert {command for command, code in ends.items() if code} in (set(), warnings)
    assert {ends[command] for command in warnings} <= {0, 6}


@pytest.mark.parametrize("place", [p for p, raw in STORED.items() if None not in raw], ids=str)
def test_what_a_downgrade_exports_is_what_orthanc_reads(
    database: MakeDatabase, tmp_path: Path, place: Place
) -> None:
    target = database(place)
    run_init(target)
    with contextlib.closing(
        psycopg2.connect(make_dsn(**{**db.parse_dsn(target.dsn), "client_encoding": ""}))
    ) as conn:
        with conn, conn.cursor() as cur:
            insert = "INSERT INTO keyvaluestores VALUES ('store', '{}', 'x')"
            cur.execute(insert.format("".join(TEXTS)).encode())  # the bytes are UTF-8, as Orthanc's
    done("downgrade", "--to", 4, "--yes", "--export", tmp_path / "export", "--uri", target.dsn)
    assert "".join(TEXTS) in (tmp_path / "export").read_text("utf-8")


@pytest.mark.parametrize("place", [Place(), Place(of_database="LATIN1"), Place(of_role="LATIN1")], ids=str)
def test_migrate_sqlite_stores_what_orthanc_stores(
    database: MakeDatabase, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sqliteindex.rich(tmp_path / "index")
    sqliteindex.change(source, f"UPDATE MainDicomTags SET value = '{''.join(TEXTS)}' WHERE tagGroup = 8")
    target = database(place)
    monkeypatch.setenv("PGCLIENTENCODING", "SJIS")
    done("migrate-sqlite", source, "--uri", target.dsn, "--jobs", 1)
    monkeypatch.delenv("PGCLIENTENCODING")
    with contextlib.closing(
        psycopg2.connect(make_dsn(**{**db.parse_dsn(target.dsn), "client_encoding": ""}))
    ) as conn:
        with conn.cursor() as cur:
            cur.execute(
                "SELECT DISTINCT convert_to(value, %s) FROM maindicomtags WHERE taggroup = 8",
                (conn.info.parameter_status("client_encoding"),),
            )
            assert [bytes(value).decode() for (value,) in cur.fetchall()] == ["".join(TEXTS)]
