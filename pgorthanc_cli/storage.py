"""Where the bytes of attachments are: Orthanc's filesystem area, and PostgreSQL large objects.

An attachment is stored as it is (compression 1) or as an 8-byte little-endian size and a zlib stream
(compression 2), which is what Orthanc's StorageCompression writes (INGEST.md 8).
"""

from __future__ import annotations

import os
import struct
import uuid as uuids
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from psycopg2 import sql
from psycopg2.extras import execute_values

from pgorthanc_cli import durable
from pgorthanc_cli.errors import PgOrthancError, RevisionError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

CHUNK_BYTES = 1 << 20
_PER_FOLDER = 64  # new UUIDs that share a folder
_TRIES = 5  # an empty folder may vanish between making it and using it: Orthanc removes empty folders

_Made = TypeVar("_Made")


class Area(Protocol):
    """A place for attachments, addressed by their UUID and file type (1 DICOM, 3 DICOM until pixel data)."""

    def put(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Store an attachment; it is there completely or not at all."""

    def get(self, uuid: str, file_type: int) -> bytes:
        """Its stored bytes.

        Raises:
            PgOrthancError: There is no such attachment.
        """

    def delete(self, uuid: str, file_type: int) -> None:
        """Remove it; nothing happens if it is not there."""


class FilesystemArea:
    """Orthanc's filesystem storage area: `<root>/<uuid[0:2]>/<uuid[2:4]>/<uuid>` (INGEST.md 12.1)."""

    def __init__(self, root: Path, *, sync: bool = True) -> None:
        """`sync` false leaves out the fsync (Orthanc's SyncStorageArea)."""
        self.root = root
        self.sync = sync
        self._unsynced: list[str] | None = None  # the files of a `batch`
        self._owner: tuple[int, int] | None = None

    def path(self, uuid: str) -> Path:
        """Where the attachment's file is."""
        return Path(self._path(uuid))

    def _path(self, uuid: str) -> str:
        return f"{self.root}/{uuid[:2]}/{uuid[2:4]}/{uuid}"

    def prepare(self) -> None:
        """Make the root folder if it is missing, and find out whether files can be written to it.

        Raises:
            PgOrthancError: The folder cannot be made or written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise unusable(self.root, error) from error

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What is stored within the block is synced as a whole at its end: much cheaper than file by file.

        The files have their final names from the start. If the block fails, some are there and some are not: the
        caller must have written down their UUIDs.

        Raises:
            OSError: Something could not be made durable.
        """
        with durable.Group(self.root) as group:
            self._unsynced = []
            try:
                yield
                if self.sync:
                    group.sync(self._unsynced)
            finally:
                self._unsynced = None

    def put(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the chunks to a new file."""

        def write(descriptor: int) -> None:
            for chunk in chunks:
                _write_all(descriptor, chunk)

        self.fill(uuid, write)

    def fill(self, uuid: str, write: Callable[[int], None]) -> None:
        """Write under a temporary name, fsync, rename: a file with the final name is always whole (but see `batch`).

        `write` gets the descriptor of the new file.
        """
        final = self._path(uuid)
        in_batch = self._unsynced is not None
        path = final if in_batch else str(temporary_path(Path(final)))
        file = self._create(path)
        try:
            with file:
                write(file.fileno())
                if self.sync and not in_batch:
                    os.fdatasync(file.fileno())
            if not in_batch:
                os.rename(path, final)
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise
        self._sync_name(final)

    def link(self, uuid: str, path: str) -> None:
        """Give an existing file its name in the area, too: owner and mode stay what they are."""
        final = self._path(uuid)
        self._with_folders(final, lambda: os.link(path, final))
        self._sync_name(final)

    def _sync_name(self, final: str) -> None:
        """Make the name of a new file durable, now or with the batch."""
        if self._unsynced is not None:
            self._unsynced.append(final)
        elif self.sync:
            durable.sync_folder(os.path.dirname(final))

    def get(self, uuid: str, file_type: int) -> bytes:
        """The bytes of the file."""
        try:
            return self.path(uuid).read_bytes()
        except OSError as error:
            raise PgOrthancError(f"attachment {uuid} cannot be read: {error.strerror}") from error

    def delete(self, uuid: str, file_type: int = 0) -> None:
        """Remove the file, then its two folders if they are empty, as Orthanc does."""
        final = self.path(uuid)
        temporary_path(final).unlink(missing_ok=True)
        final.unlink(missing_ok=True)
        for folder in (final.parent, final.parent.parent):
            try:
                folder.rmdir()
            except OSError:
                return

    def _create(self, path: str) -> FileIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = FileIO(self._with_folders(path, lambda: os.open(path, flags, 0o666)), "wb")
        self._hand_over(file.fileno())
        return file

    def _with_folders(self, path: str, make: Callable[[], _Made]) -> _Made:
        """Make something at a path, whose two folders may be missing."""
        folder = os.path.dirname(path)
        for _ in range(_TRIES):
            try:
                return make()
            except FileNotFoundError:
                for each in (os.path.dirname(folder), folder):
                    self._make_folder(each)
        return make()

    def _make_folder(self, folder: str) -> None:
        try:
            os.mkdir(folder)
        except FileExistsError:
            return
        except FileNotFoundError:
            return  # the folder above has just been removed as empty; the next try makes both
        self._hand_over(folder)
        if self.sync and self._unsynced is None:
            durable.sync_folder(os.path.dirname(folder))

    def _hand_over(self, made: str | int) -> None:
        """What root writes must belong to whom the area belongs to: Orthanc runs as its own user."""
        if os.geteuid() == 0:
            if self._owner is None:
                status = self.root.stat()
                self._owner = status.st_uid, status.st_gid
            if self._owner != (0, os.getegid()):
                os.chown(made, *self._owner)


class LargeObjectArea:
    """The PostgreSQL storage area: one large object per attachment, listed in `storagearea` (SCHEMA.md 12).

    Works inside the caller's transaction, so that rows and attachments appear together.
    """

    def __init__(self, conn: Connection) -> None:
        """Finds the table, and its owner: Orthanc's role must own the large objects, or it cannot delete them.

        Raises:
            RevisionError: There is no storage area in this schema.
            PgOrthancError: What this role makes would not belong to the owner of the table.
        """
        self.conn = conn
        with conn.cursor() as cur:
            cur.execute(
                """SELECT pg_get_userbyid(relowner), pg_get_userbyid(relowner) <> current_user,
                          pg_has_role(current_user, relowner, 'MEMBER'), current_user
                   FROM pg_class WHERE oid = to_regclass('storagearea')"""
            )
            row = cur.fetchone()
            cur.execute(
                "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
            )
            self._lz4 = cur.fetchone() == (True,)  # since PostgreSQL 14, if it was built with it
        if row is None:
            raise RevisionError(
                "there is no storage area in this schema, expected the table storagearea",
                "run: pgorthanc init --with-storage; or name a folder with --storage-dir",
            )
        self.owner = row[0] if row[1] else None
        if self.owner and not row[2]:
            raise PgOrthancError(
                f"large objects made by role {row[3]} could not be deleted by {row[0]}, the owner of storagearea",
                f"log in as {row[0]}, or let an administrator run: GRANT {row[0]} TO {row[3]}",
            )

    def put(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a new large object and its row."""
        self.put_all([(uuid, file_type, chunks)])

    def put_all(self, attachments: Iterable[tuple[str, int, Iterable[bytes | memoryview]]]) -> None:
        """Write new large objects and their rows: UUID, file type and content of each."""
        with self.conn.cursor() as cur:
            if self._lz4:
                # PostgreSQL tries to compress every 2 kB of an object: in vain, but in half of the time.
                cur.execute("SET LOCAL default_toast_compression = lz4")
            rows = [
                (uuid, self._write(cur, chunks), _content_type(file_type))
                for uuid, file_type, chunks in attachments
            ]
            execute_values(cur, "INSERT INTO storagearea (uuid, content, type) VALUES %s", rows)

    def put_back(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the large object of an attachment whose own is missing, whether its row is there or not."""
        with self.conn.cursor() as cur:
            oid = self._write(cur, chunks)
            cur.execute(
                """INSERT INTO storagearea (uuid, content, type) VALUES (%s, %s, %s)
                   ON CONFLICT (uuid) DO UPDATE SET content = excluded.content""",
                (uuid, oid, _content_type(file_type)),
            )

    def _write(self, cur: Cursor, chunks: Iterable[bytes | memoryview]) -> int:
        large_object: Any = self.conn.lobject(0, "wb")
        for chunk in chunks:
            large_object.write(bytes(chunk))
        large_object.close()
        oid: int = large_object.oid
        if self.owner:
            cur.execute(
                sql.SQL("ALTER LARGE OBJECT {} OWNER TO {}").format(
                    sql.Literal(oid), sql.Identifier(self.owner)
                )
            )
        return oid

    def get(self, uuid: str, file_type: int) -> bytes:
        """The bytes of the large object."""
        with self.conn.cursor() as cur:
            cur.execute(
                "SELECT lo_get(content) FROM storagearea WHERE uuid = %s AND type = %s",
                (uuid, _content_type(file_type)),
            )
            row = cur.fetchone()
        if row is None:
            raise PgOrthancError(f"attachment {uuid} is not in the storage area of the database")
        return bytes(row[0])

    def delete(self, uuid: str, file_type: int) -> None:
        """Delete the row; the rule on the table unlinks the large object, so one that is missing is created first."""
        place = (uuid, _content_type(file_type))
        with self.conn.cursor() as cur:
            cur.execute(
                """SELECT pg_catalog.lo_create(content) FROM storagearea WHERE uuid = %s AND type = %s
                       AND NOT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata m WHERE m.oid = content);
                   DELETE FROM storagearea WHERE uuid = %s AND type = %s""",
                (*place, *place),
            )


def encode(data: bytes | mmap | memoryview, *, compress: bool) -> Iterator[bytes | memoryview]:
    """The bytes to store for `data`, in pieces of about 1 MiB."""
    view = memoryview(data)
    pieces = (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
    if not compress:
        yield from pieces
        return
    yield struct.pack("<Q", len(view))
    if view:
        packer = zlib.compressobj(6)
        for piece in pieces:
            yield packer.compress(piece)
        yield packer.flush()


def decode(stored: bytes) -> bytes:
    """The content of a compressed attachment.

    Raises:
        PgOrthancError: It is damaged, or no compressed attachment.
    """
    try:
        (length,) = struct.unpack_from("<Q", stored)
        content = zlib.decompress(stored[8:]) if length else b""
    except (struct.error, zlib.error) as error:
        raise PgOrthancError(f"a compressed attachment is damaged: {error}") from error
    if len(content) != length:
        raise PgOrthancError(f"a compressed attachment has {len(content)} bytes, expected {length}")
    return content


def unusable(root: Path, error: OSError) -> PgOrthancError:
    """What to tell when the storage folder cannot be written to."""
    return PgOrthancError(
        f"the storage folder {root} cannot be written to: {error.strerror or error}",
        "free space, mend its permissions, or name another folder with --storage-dir; then run it again",
    )


def new_uuids(count: int) -> list[str]:
    """Random UUIDs (version 4); each 64 of them lie in one folder, so that there are fewer to make and to sync."""
    made = [str(uuids.uuid4()) for _ in range(count)]
    return [made[n - n % _PER_FOLDER][:4] + name[4:] for n, name in enumerate(made)]


def temporary_path(final: Path) -> Path:
    """The name under which a file is written before it is whole."""
    return final.with_name(f".{final.name}.pgorthanc")


def _write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _content_type(file_type: int) -> int:
    """The plugin's content type: 1 to 3 as the file type, 0 for user-defined attachments (SCHEMA.md 5)."""
    return file_type if 1 <= file_type <= 3 else 0
