"""Writes the catalog of the revision that scripts/PrepareIndex.sql creates: catalog.py (`make catalog`).

The server is that of PGORTHANC_TEST_DSN (a role that may create databases), or a private
one. It must have pg_trgm.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn

from pgorthanc_cli import catalogs, db
from pgorthanc_cli.schema import catalog, steps
from pgorthanc_cli.server import embedded

FOLDER = Path(str(catalogs.__file__)).parent
SCRATCH = "pgorthanc_catalog"


def main() -> None:
    """Write the files on a scratch database."""
    dsn = os.environ.get("PGORTHANC_TEST_DSN")
    if dsn:
        on_server(dsn)
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user when this runs as root
        with embedded.attach(Path(folder) / "server", superuser=True) as target:
            on_server(target.dsn)


def on_server(dsn: str) -> None:
    """Write the files on a server where databases can be created."""
    with db.session(db.Target(dsn), autocommit=True, need_schema=False) as admin, admin.cursor() as cur:
        cur.execute(f"CREATE DATABASE {SCRATCH}")
        try:
            with closing(db.connect(db.Target(make_dsn(dsn, dbname=SCRATCH)))) as conn:
                write(conn)
        finally:
            cur.execute(f"DROP DATABASE {SCRATCH}")


def write(conn: Connection) -> None:
    """Run the scripts in an empty database, and write what they create."""
    with conn, conn.cursor() as cur:
        cur.execute(steps.text(steps.PREPARE_INDEX))
        of_index = catalog.snapshot(conn, "public")
        cur.execute(steps.text(steps.STORAGE_AREA))
        objects = catalog.snapshot(conn, "public")
    if catalog.trigram(conn, of_index) != "valid":
        raise SystemExit("the server lacks pg_trgm, so the catalog would be incomplete")
    of_storage = {name: text for name, text in objects.items() if name not in of_index}
    for name, content in ((f"rev{of_index['property 4']}.json", of_index), ("storagearea.json", of_storage)):
        (FOLDER / name).write_text(catalog.dump(content), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
