"""Where a connection leads: what a result names, so that a person knows where we looked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgorthanc_cli.text import printable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


@dataclass(frozen=True)
class Endpoint:
    """The database, server and role of a live connection.

    Attributes:
        database: Name of the database.
        host: Host name, address, or folder of the socket, as it was connected to.
        port: Port.
        role: Role that has logged in.
        server_version: Version of PostgreSQL, such as `15.18`.
    """

    database: str
    host: str
    port: int
    role: str
    server_version: str

    def __str__(self) -> str:
        """`database orthanc at db1:5432`: product, role and database are often all called orthanc."""
        return f"database {printable(self.database)} at {self.address}"

    @property
    def address(self) -> str:
        """`db1:5432`."""
        return f"{printable(self.host)}:{self.port}"

    @property
    def login(self) -> tuple[str, str]:
        """`role orthanc` and `PostgreSQL 15.18`."""
        return f"role {printable(self.role)}", f"PostgreSQL {self.server_version}"


def endpoint(conn: Connection) -> Endpoint:
    """Return where a live connection leads; with several hosts in the URI, the one that answered."""
    info = conn.info
    version = info.parameter_status("server_version") or ""
    host = info.host or "localhost"
    # Distributions append their own version, as in `15.18 (Debian 15.18-0+deb12u1)`.
    return Endpoint(info.dbname, host, info.port, info.user, version.partition(" ")[0])
