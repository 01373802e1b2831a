"""Where the bytes of attachments are: Orthanc's filesystem area, and PostgreSQL large objects.

An attachment is stored as it is (compression 1) or as an 8-byte little-endian size and a zlib stream
(compression 2), which is what Orthanc's StorageCompression writes (INGEST.md 8).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from psycopg2 import sql

from pgorthanc_cli.errors import PgOrthancError, RevisionError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

CHUNK_BYTES = 1 << 20
_TRIES = 5  # an empty folder may vanish between making it and using it: Orthanc removes empty folders


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

    def path(self, uuid: str) -> Path:
        """Where the attachment's file is."""
        return self.root / uuid[:2] / uuid[2:4] / uuid

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

    def put(self, uuid: str, file_type: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Write under a temporary name, fsync, rename: a file with the final name is always whole."""
        final = self.path(uuid)
        temporary = temporary_path(final)
        descriptor = self._create(temporary)
        try:
            with open(descriptor, "wb", buffering=0) as file:
                for chunk in chunks:
                    _write_all(file.fileno(), chunk)
                if self.sync:
                    os.fdatasync(file.fileno())
            temporary.rename(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if self.sync:
            sync_folder(final.parent)

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

    def _create(self, path: Path) -> int:
        for attempt in range(_TRIES):
            for folder in (path.parent.parent, path.parent):
                if _make_folder(folder):
                    self._hand_over(folder)
                    if self.sync:
                        sync_folder(folder.parent)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                if attempt == _TRIES - 1:
                    raise
                continue
            self._hand_over(path)
            return descriptor
        raise AssertionError("unreachable")

    def _hand_over(self, path: Path) -> None:
        """What root writes must belong to whom the area belongs to: Orthanc runs as its own user."""
        if os.geteuid() == 0:
            owner = self.root.stat()
            os.chown(path, owner.st_uid, owner.st_gid)


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
        large_object: Any = self.conn.lobject(0, "wb")
        for chunk in chunks:
            large_object.write(bytes(chunk))
        large_object.close()
        with self.conn.cursor() as cur:
            if self.owner:
                cur.execute(
                    sql.SQL("ALTER LARGE OBJECT {} OWNER TO {}").format(
                        sql.Literal(large_object.oid), sql.Identifier(self.owner)
                    )
                )
            cur.execute(
                "INSERT INTO storagearea (uuid, content, type) VALUES (%s, %s, %s)",
                (uuid, large_object.oid, _content_type(file_type)),
            )

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
        """Delete the row; the rule on the table unlinks the large object."""
        with self.conn.cursor() as cur:
            cur.execute(
                "DELETE FROM storagearea WHERE uuid = %s AND type = %s", (uuid, _content_type(file_type))
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


def temporary_path(final: Path) -> Path:
    """The name under which a file is written before it is whole."""
    return final.with_name(f".{final.name}.pgorthanc")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    except FileNotFoundError:
        # the folder above has just been removed as empty; the next try makes both
        return False
    return True


def _write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _content_type(file_type: int) -> int:
    """The plugin's content type: 1 to 3 as the file type, 0 for user-defined attachments (SCHEMA.md 5)."""
    return file_type if 1 <= file_type <= 3 else 0
