"""The PostgreSQL storage area: large objects, listed in `storagearea` (SCHEMA.md 12)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import sql
from psycopg2.extras import execute_values

from pgorthanc_cli import db
from pgorthanc_cli.errors import PgOrthancError, RevisionError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

    from pgorthanc_cli.storage.area import Stream


class LargeObjectArea:
    """Attachments as large objects.

    Works inside the caller's transaction, so that rows and attachments appear together.
    """

    def __init__(self, conn: Connection) -> None:
        """Find the table and its owner, who must own the large objects to delete them.

        Raises:
            RevisionError: There is no storage area in this schema.
            PgOrthancError: The owner of the table could not delete what this role
                creates.
        """
        self.conn = conn
        table = db.row(
            conn,
            """SELECT pg_get_userbyid(relowner), pg_get_userbyid(relowner) <> current_user,
                      pg_has_role(current_user, relowner, 'MEMBER'), current_user
               FROM pg_class WHERE oid = to_regclass(quote_ident(index_schema()) || '.storagearea')""",
        )
        if table is None:
            revision = db.value(conn, "SELECT value FROM index.globalproperties WHERE property = 4")
            raise RevisionError(
                "there is no storage area in this schema, expected the table storagearea",
                "name a folder with --storage-dir, or create the storage area: pgorthanc init --with-storage "
                f"--revision {revision}",
            )
        owner, is_other, is_member, current_user = table
        self.owner = owner if is_other else None
        if self.owner and not is_member:
            raise PgOrthancError(
                f"large objects made by role {current_user} could not be deleted by {owner},"
                " the owner of storagearea",
                f"log in as {owner}, or let an administrator run: "
                f"GRANT {db.quote_ident(owner)} TO {db.quote_ident(current_user)};",
            )
        # Since PostgreSQL 14, where the server was built with it.
        self._has_lz4 = db.value(
            conn, "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
        )

    def put(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a new large object and its row."""
        self.put_many([(uuid, file_type, chunks)])

    def put_many(self, attachments: Iterable[tuple[str, int, Iterable[bytes | memoryview]]]) -> None:
        """Write new large objects and their rows: UUID, file type and content of each."""
        with self.conn.cursor() as cur:
            if self._has_lz4:
                # PostgreSQL tries to compress every 2 kB page of an object. Compressed
                # images do not shrink, and with lz4 the attempt takes half of the time.
                cur.execute("SET LOCAL default_toast_compression = lz4")
            rows = [
                (uuid, self._write(cur, chunks), _content_type(file_type))
                for uuid, file_type, chunks in attachments
            ]
            execute_values(cur, "INSERT INTO storagearea (uuid, content, type) VALUES %s", rows)

    def restore(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the missing large object of an attachment, with or without a row."""
        with self.conn.cursor() as cur:
            oid = self._write(cur, chunks)
            cur.execute(
                """INSERT INTO storagearea (uuid, content, type) VALUES (%s, %s, %s)
                   ON CONFLICT (uuid) DO UPDATE SET content = excluded.content""",
                (uuid, oid, _content_type(file_type)),
            )

    def _write(self, cur: Cursor, chunks: Iterable[bytes | memoryview]) -> int:
        large_object: Any = self.conn.lobject(0, "wb")
        try:
            for chunk in chunks:
                large_object.write(bytes(chunk))
            large_object.close()
        except psycopg2.Error:
            # On a broken connection, psycopg2 would print an error of its own when the object is collected.
            if self.conn.closed:
                self.conn.close()
            raise
        oid: int = large_object.oid
        if self.owner:
            statement = sql.SQL("ALTER LARGE OBJECT {} OWNER TO {}")
            cur.execute(statement.format(sql.Literal(oid), sql.Identifier(self.owner)))
        return oid

    def open(self, uuid: str, file_type: int) -> AbstractContextManager[Stream]:
        """Open a large object for reading, in the transaction of the caller.

        Raises:
            FileNotFoundError: The attachment has no row in `storagearea`.
        """
        oid = db.value(
            self.conn,
            "SELECT content FROM index.storagearea WHERE uuid = %s AND type = %s",
            uuid,
            _content_type(file_type),
        )
        if oid is None:
            raise FileNotFoundError(errno.ENOENT, "it is not in the storage area of the database", uuid)
        large_object: Any = self.conn.lobject(oid, "rb")
        return closing(large_object)

    def delete(self, uuid: str, file_type: int) -> None:
        """Delete the row, and with it the large object.

        A rule on the table unlinks the object and fails if there is none, so a missing
        one is created first.
        """
        self.delete_many([(uuid, file_type)])

    def delete_many(self, attachments: Iterable[tuple[str, int]]) -> None:
        """Delete rows and large objects: UUID and file type of each, those that exist.

        Each object takes a lock until the end of the transaction, of max_locks_per_transaction
        for each session of the server.
        """
        keys = [(uuid, _content_type(file_type)) for uuid, file_type in attachments]
        uuids, types = [uuid for uuid, _ in keys], [content_type for _, content_type in keys]
        chosen = "(uuid, type) IN (SELECT * FROM unnest(%s::varchar[], %s::integer[]))"
        with self.conn.cursor() as cur:
            cur.execute(
                f"""SELECT pg_catalog.lo_create(content) FROM storagearea WHERE {chosen}
                        AND NOT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata m
                                        WHERE m.oid = content);
                    DELETE FROM storagearea WHERE {chosen}""",  # noqa: S608 - a constant
                (uuids, types) * 2,
            )


def _content_type(file_type: int) -> int:
    """Return the plugin's content type: file types 1 to 3, otherwise 0 (SCHEMA.md 5)."""
    return file_type if 1 <= file_type <= 3 else 0
