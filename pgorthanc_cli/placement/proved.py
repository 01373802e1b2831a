"""What a move that changes rows has proved in its target: kept in a file, compared with the index, and put into it.

A line of the file is written when an attachment is durable in the target. In the end the
rows are changed in one transaction: so a run that is killed leaves the index as it was, or
as it shall be.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from pgorthanc_cli import db, files, index
from pgorthanc_cli.index import customdata
from pgorthanc_cli.placement.model import Attachment, MoveSettings
from pgorthanc_cli.placement.row_worker import Entry
from pgorthanc_cli.storage import UUID_PATTERN, FilesystemArea, write_error

_FETCHED = 5000
_BYTES = r"(?:\\\\x[0-9a-f]*|\\N)"
_LINE = re.compile(
    rf"[0-9]+\t[0-9]+\t{UUID_PATTERN}\t{_BYTES}\t{_BYTES}\t[12]\t[0-9]+\t[0-9a-f]{{32}}\n".encode()
)
_TABLE = """
    CREATE TEMPORARY TABLE IF NOT EXISTS pgorthanc_proved (
        number bigint GENERATED ALWAYS AS IDENTITY, id bigint, filetype integer, uuid text, old bytea, new bytea,
        compression integer, size bigint, md5 text);
    TRUNCATE pg_temp.pgorthanc_proved"""
# The last line of an attachment counts.
_READY = """
    CREATE INDEX IF NOT EXISTS pgorthanc_proved_key ON pg_temp.pgorthanc_proved (id, filetype);
    DELETE FROM pg_temp.pgorthanc_proved p USING pg_temp.pgorthanc_proved later
        WHERE later.id = p.id AND later.filetype = p.filetype AND later.uuid = p.uuid AND later.number > p.number;
    CREATE INDEX IF NOT EXISTS pgorthanc_proved_old ON pg_temp.pgorthanc_proved (old)
        WHERE pg_catalog.encode(old, 'escape') ~ '"p":"[^"]';
    ANALYZE pg_temp.pgorthanc_proved"""
_SAME = "p.id = a.id AND p.filetype = a.filetype AND p.uuid = a.uuid"


class Journal:
    """The file, at the top of the target folder, or of the source folder of a move into large objects."""

    def __init__(self, settings: MoveSettings, identity: str) -> None:
        """Take the move and the identity of the index; open nothing yet."""
        root = settings.target.folder or settings.source.folder
        assert root  # noqa: S101 - one end is a folder
        self._area = FilesystemArea(root)
        move = f"{identity}\n{settings.source}\n{settings.target}\n{settings.compression}\n{settings.names_files}"
        self.name = f".pgorthanc-move-{hashlib.sha256(move.encode()).hexdigest()[:12]}.rows"

    def append(self, entries: Iterable[Entry]) -> None:
        """Write lines durably.

        Raises:
            PgOrthancError: The folder cannot be written to.
        """
        lines = "".join(_line(entry) for entry in entries).encode()
        if not lines:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with self._area.rights:
                descriptor = os.open(self.name, flags, files.PRIVATE, dir_fd=self._area.descriptor)
                with os.fdopen(descriptor, "r+b") as stream:
                    _seek_behind_last_line(stream.fileno())
                    stream.write(lines)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.fsync(self._area.descriptor)
        except OSError as error:
            raise write_error(self._area.root, error) from error

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that are whole; none without a file."""
        with suppress(FileNotFoundError):
            with self._area.rights:
                descriptor = files.open_regular(self.name, os.O_NOFOLLOW, folder=self._area.descriptor)
            with os.fdopen(descriptor, "rb") as stream:
                yield from (line for line in stream if _LINE.fullmatch(line))

    def remove(self) -> None:
        """Remove the file: what it says is done."""
        with suppress(OSError), self._area.rights:
            os.unlink(self.name, dir_fd=self._area.descriptor)


def _seek_behind_last_line(descriptor: int) -> None:
    """Go to the end; drop half a line that a killed run has left."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    start = max(0, size - 65536)
    rest = os.pread(descriptor, size - start, start)
    end = start + rest.rfind(b"\n") + 1
    os.ftruncate(descriptor, end)
    os.lseek(descriptor, end, os.SEEK_SET)


def _line(entry: Entry) -> str:
    """Return a line as COPY reads it."""
    resource, file_type, uuid, old, new, compression, size, md5 = entry
    data = ["\\N" if each is None else f"\\\\x{bytes(each).hex()}" for each in (old, new)]
    return "\t".join([str(resource), str(file_type), uuid, *data, str(compression), str(size), md5]) + "\n"


class ProvedRows:
    """The lines of a journal as a temporary table, joined with the index."""

    def __init__(self, conn: db.Session, selected: str) -> None:
        """Take the session, and the condition of the attachments that are meant."""
        self.conn = conn
        self._selected = selected
        self._capabilities = index.Capabilities.read(conn)
        self._customdata = (
            "NULLIF(a.customdata, ''::bytea)" if self._capabilities.custom_data else "NULL::bytea"
        )
        self._switched = f"""(p.new IS NOT DISTINCT FROM {self._customdata}
            AND p.compression = a.compressiontype AND p.size = a.compressedsize)"""
        conn.rollback()

    def load(self, journal: Journal) -> None:
        """Fill the table."""
        with self.conn, self.conn.cursor() as cur, tempfile.TemporaryFile() as lines:
            cur.execute(_TABLE)
            lines.writelines(journal.lines())
            lines.seek(0)
            columns = "id, filetype, uuid, old, new, compression, size, md5"
            cur.copy_expert(f"COPY pg_temp.pgorthanc_proved ({columns}) FROM STDIN", lines)
            cur.execute(_READY)

    def attachments(self) -> Iterator[Attachment]:
        """Yield the attachments of the index in the order of their keys, with what was proved of them.

        Also after a switch: what is recorded must not be recorded again with the new customdata
        as the old one, which names the source for `clean`.
        """
        replaces = f"""EXISTS (SELECT FROM pg_temp.pgorthanc_proved o WHERE o.old = {self._customdata}
            AND pg_catalog.encode(o.old, 'escape') ~ '"p":"[^"]' AND o.uuid <> a.uuid)"""
        query = f"""SELECT {self._columns(self._customdata)}, p.size, p.md5, {replaces}
            FROM index.attachedfiles a LEFT JOIN pg_temp.pgorthanc_proved p
                ON {_SAME} AND (p.old IS NOT DISTINCT FROM {self._customdata} OR {self._switched})
            WHERE (a.id, a.filetype) > (%s, %s) AND {self._selected}
            ORDER BY a.id, a.filetype LIMIT {_FETCHED}"""  # noqa: S608 - constants and numbers
        yield from self._pages(query)

    def switched(self) -> Iterator[Attachment]:
        """Yield the attachments whose rows are as the move shall leave them, with their old customdata."""
        query = f"""SELECT {self._columns("p.old")}, p.size, p.md5, false
            FROM index.attachedfiles a JOIN pg_temp.pgorthanc_proved p ON {_SAME}
            WHERE (a.id, a.filetype) > (%s, %s) AND {self._switched} AND {self._selected}
            ORDER BY a.id, a.filetype LIMIT {_FETCHED}"""  # noqa: S608 - constants
        yield from self._pages(query)

    def _columns(self, data: str) -> str:
        return f"""a.id, a.filetype, a.uuid, a.compressedsize, COALESCE(a.compressedhash, ''), a.compressiontype,
            a.uncompressedsize, COALESCE(a.uncompressedhash, ''), {data}"""

    def _pages(self, query: str) -> Iterator[Attachment]:
        last = (-1, -1)
        while rows := db.rows(self.conn, query, *last):
            self.conn.rollback()
            for row in rows:
                # A memoryview cannot be pickled.
                attachment = Attachment(*row)
                data = attachment.customdata
                yield attachment._replace(customdata=None if data is None else bytes(data))
            last = rows[-1][:2]
        self.conn.rollback()

    def deleted(self) -> int:
        """Return how many attachments the target has that the index no longer names."""
        query = f"""SELECT count(*) FROM pg_temp.pgorthanc_proved p
            WHERE NOT EXISTS (SELECT FROM index.attachedfiles a WHERE {_SAME})"""  # noqa: S608
        count: int = db.value(self.conn, query)
        self.conn.rollback()
        return count

    def conflicts(self) -> list[str]:
        """Return the UUIDs of attachments whose path in the target another one has, too."""
        if not self._capabilities.custom_data:
            return []
        query = f"""WITH live AS (
                SELECT p.uuid, p.new, count(*) OVER (PARTITION BY p.new) AS number
                FROM index.attachedfiles a JOIN pg_temp.pgorthanc_proved p ON {_SAME}
                WHERE pg_catalog.encode(p.new, 'escape') ~ '"p":"[^"]')
            SELECT uuid FROM live WHERE number > 1 OR EXISTS (
                SELECT FROM index.attachedfiles b WHERE b.customdata = live.new AND b.uuid <> live.uuid)"""  # noqa: S608
        uuids = [uuid for (uuid,) in db.rows(self.conn, query)]
        self.conn.rollback()
        return uuids

    def adopted(self, paths: Sequence[str]) -> set[str]:
        """Return those of the paths under which the index has adopted files."""
        if not self._capabilities.custom_data:
            return set()
        with self.conn, self.conn.cursor() as cur:
            store = index.key_values.ADOPTED
            return set(index.key_values.values(cur, self._capabilities, store, paths))

    def switch(self) -> int:
        """Change the rows of all that was proved, in one transaction; return how many were changed.

        Counters follow, and what the plugin keeps about adopted files is removed with their
        rows, as the plugin does.
        """
        data = self._capabilities.custom_data
        changed = "p.compression <> a.compressiontype OR p.size <> a.compressedsize"
        changed += f" OR p.new IS DISTINCT FROM {self._customdata}" if data else ""
        chosen = (
            f"{_SAME} AND p.old IS NOT DISTINCT FROM {self._customdata} AND ({changed}) AND {self._selected}"
        )
        joined = f"FROM index.attachedfiles a JOIN pg_temp.pgorthanc_proved p ON {chosen}"
        with self.conn, self.conn.cursor() as cur:
            grown = db.value(self.conn, f"SELECT COALESCE(sum(p.size - a.compressedsize), 0)::int8 {joined}")
            if data:
                absolute = """pg_catalog.encode(p.old, 'escape') ~ '"p"\\s*:\\s*"/'"""
                cur.execute(f"SELECT p.old {joined} WHERE {absolute}")
                for (old,) in cur.fetchall():
                    path = customdata.read(bytes(old)).path
                    if path:
                        customdata.forget_path(cur, self._capabilities, path)
            column = "customdata = p.new, " if data else ""
            cur.execute(
                f"""UPDATE index.attachedfiles a SET {column} compressiontype = p.compression,
                        compressedsize = p.size,
                        compressedhash = CASE WHEN COALESCE(a.compressedhash, '') = '' THEN a.compressedhash
                                              ELSE p.md5 END
                    FROM pg_temp.pgorthanc_proved p WHERE {chosen}"""  # noqa: S608
            )
            count = cur.rowcount
            self._count(grown)
        return count

    def _count(self, grown: int) -> None:
        """Add to the counter of stored bytes, which no trigger does for an UPDATE (SCHEMA.md 6)."""
        with self.conn.cursor() as cur:
            if not grown:
                return
            if self._capabilities.statistics_deltas:
                cur.execute("INSERT INTO index.globalintegerschanges (key, value) VALUES (0, %s)", (grown,))
            elif db.value(
                self.conn, "SELECT to_regclass(quote_ident(index_schema()) || '.globalintegers') IS NOT NULL"
            ):
                cur.execute("UPDATE index.globalintegers SET value = value + %s WHERE key = 0", (grown,))
