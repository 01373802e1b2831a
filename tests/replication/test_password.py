"""`replication primary`: a refused login is never "ready", in no language; a new password reaches every standby."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from pgorthanc_cli import db, replication
from pgorthanc_cli.errors import PartialFailure, PgOrthancError, UsageError
from pgorthanc_cli.replication.password import PASSFILE
from pgorthanc_cli.server.private import open_cluster
from tests.replication.site import HBA, Site, pgorthanc, stop
from tests.support.real_servers import wait_until

ROLE = replication.ROLE
NewSite = Callable[..., Site]


@pytest.fixture(scope="module")
def german() -> Iterator[Path]:
    """A folder for LOCPATH with a German locale, where every account can read it."""
    if not Path("/usr/share/i18n/locales/de_DE").exists():
        pytest.skip("needs the sources of locales: apt-get install locales")
    folder = Path(tempfile.mkdtemp(prefix="pgorthanc-locales-", dir="/tmp"))
    folder.chmod(0o755)
    command = ["localedef", "--no-archive", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")]
    subprocess.run(command, check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["C", "de_DE.UTF-8"])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A value of lc_messages."""
    if request.param != "C":
        monkeypatch.setenv("LOCPATH", str(request.getfixturevalue("german")))
    return str(request.param)


def in_language(new_site: NewSite, language: str, **options: str) -> Site:
    site = new_site(settings=f"lc_messages='{language}'\n", **options)
    if language != "C" and "Division durch Null" not in said_of(site):
        of_the_system = site.primary.programs.bin.parts[:2] == ("/", "usr")
        assert not of_the_system, "the system's PostgreSQL has its messages in German; the wheel's has not"
    return site


def said_of(site: Site) -> str:
    """What the server says to a wrong statement."""
    with pytest.raises(psycopg2.Error) as failed:
        site.primary.sql("SELECT 1/0")
    return str(failed.value)


def test_a_wrong_password_is_not_ready(new_site: NewSite, language: str) -> None:
    site = in_language(new_site, language)
    assert site.prepared().login == "works"
    site.primary.sql(f"ALTER ROLE {ROLE} PASSWORD 'changed elsewhere'")
    with pytest.raises(PgOrthancError, match=f"role {ROLE} cannot log in") as refused:
        site.prepared()
    assert "--new-password" in str(refused.value.hint)
    site.primary.sql(f"ALTER ROLE {ROLE} PASSWORD NULL")
    with pytest.raises(PgOrthancError, match=f"role {ROLE} cannot log in"):
        site.prepared()


def test_a_right_password_that_is_refused_is_not_ready(new_site: NewSite, language: str) -> None:
    site = in_language(new_site, language)
    site.prepared()
    site.primary.sql(f"ALTER ROLE {ROLE} VALID UNTIL '2001-01-01'")
    with pytest.raises(PgOrthancError, match="though its password is right") as refused:
        site.prepared()
    assert "log of the server" in str(refused.value.hint)


def test_what_cannot_be_tried_from_here_is_no_refusal_and_the_password_is_compared(
    new_site: NewSite, language: str
) -> None:
    """The standby's address is let in, that of this machine is not."""
    site = in_language(new_site, language, hba=HBA.replace("host all all", f"host replication {ROLE}"))
    site.primary.write("pg_hba.conf", "local all all trust\n")
    site.primary.set("listen_addresses", "127.0.0.1")
    site.primary.sql("SELECT pg_reload_conf()")
    prepared = site.prepared(allow=("10.1.2.3",))
    assert prepared.login.startswith("not tried from here")
    site.primary.sql(f"ALTER ROLE {ROLE} PASSWORD 'changed elsewhere'")
    with pytest.raises(PgOrthancError, match="cannot log in"):
        site.prepared(allow=("10.1.2.3",))


# A new password


def renewed(site: Site, *more: str) -> subprocess.CompletedProcess[str]:
    return pgorthanc(
        "replication", "primary", "--uri", site.administrator.dsn, "--allow", "127.0.0.1", "--passfile", site.passfile,
        "--new-password", *more,
    )  # fmt: skip


def reconnected(site: Site) -> None:
    """Every standby has to log in again, and does."""
    before = site.primary.sql("SELECT string_agg(pid::text, ' ') FROM pg_stat_replication")
    site.primary.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
    streams = f"""SELECT count(*) FROM pg_stat_replication
                  WHERE state = 'streaming' AND pid <> ALL (string_to_array('{before}', ' ')::int[])"""
    wait_until(lambda: site.primary.sql(streams) != "0", timeout_s=30)


def test_a_new_password_reaches_the_standby_on_this_machine(pair: Site) -> None:
    old = (pair.folder / PASSFILE).read_text()
    done = renewed(pair, "--json")
    assert done.returncode == 0, done.stderr
    [standby] = json.loads(done.stdout)["standbys"]
    assert (standby["name"], standby["slot"], standby["streaming"]) == (
        "pgorthanc_standby",
        "pgorthanc_standby",
        True,
    )
    assert standby["password"] == f"updated in {pair.folder / PASSFILE}"
    new = (pair.folder / PASSFILE).read_text()
    assert new == pair.passfile.read_text() != old
    owner = (pair.folder / PASSFILE).stat()
    assert (owner.st_mode & 0o777, owner.st_uid) == (0o600, open_cluster(pair.folder).account.uid)
    reconnected(pair)
    assert new.rpartition(":")[2].strip() not in done.stdout + done.stderr


def test_a_standby_that_cannot_be_reached_from_here_is_not_cut_off_unasked(pair: Site) -> None:
    """Its password file is not where ours is: as if it were on another machine."""
    open_cluster(pair.folder).stop()
    standby, elsewhere = open_cluster(pair.folder), pair.primary.folder / "elsewhere.pgpass"
    shutil.move(pair.folder / PASSFILE, elsewhere)
    conninfo = {**db.parse_dsn(standby.setting("primary_conninfo")), "passfile": str(elsewhere)}
    standby.set({"primary_conninfo": " ".join(f"{name}='{value}'" for name, value in conninfo.items())})
    standby.start()
    pair.wait_until_level()
    old = pair.passfile.read_text()
    refused = renewed(pair)
    assert refused.returncode == UsageError.exit_code
    assert (
        "would cut off, at their next connection: pgorthanc_standby (127.0.0.1, slot pgorthanc_standby)"
        in refused.stderr
    )
    assert "--yes" in refused.stderr
    assert pair.passfile.read_text() == old
    reconnected(pair)

    done = renewed(pair, "--yes", "--json")
    assert done.returncode == PartialFailure.exit_code
    [user] = json.loads(done.stdout)["standbys"]
    assert f"copy {pair.passfile} to the standby's machine" in user["password"]
    install = (
        user["password"].rpartition(": ")[2].replace("DATA-FOLDER-OF-THE-STANDBY/" + PASSFILE, str(elsewhere))
    )
    subprocess.run(install, shell=True, check=True, cwd=pair.passfile.parent)  # noqa: S602 - the command as printed
    standby.account.own(elsewhere)
    assert elsewhere.read_text() == pair.passfile.read_text() != old
    reconnected(pair)


def test_a_standby_that_is_away_is_named(pair: Site) -> None:
    stop(pair.folder)
    wait_until(lambda: pair.primary.sql("SELECT bool_or(active) FROM pg_replication_slots") == "False")
    done = renewed(pair)
    assert done.returncode == PartialFailure.exit_code
    assert (
        "FAIL standby pgorthanc_standby (away, slot pgorthanc_standby) still has the old password"
        in done.stdout
    )
    assert "install -m 600 replication.pgpass" in done.stdout


# What plan says without an address


def test_a_line_that_nobody_knows_is_not_ok(site: Site) -> None:
    def row(target: db.Target) -> tuple[str, str, bool]:
        with db.session(target, autocommit=True, readonly=True, need_schema=False) as conn:
            plan = replication.plan(conn, replication.Requirements())
        [item] = [item for item in plan.items if item.name == "pg_hba.conf"]
        return item.found, item.state, plan.ready

    assert row(site.administrator) == ("no line for replication over the network", "missing", False)
    site.prepared()
    assert row(site.administrator) == ("unknown: line 1 may be for it", "advice", False)
    assert row(site.orthanc(site.primary.port)) == ("hidden", "hidden", False)
