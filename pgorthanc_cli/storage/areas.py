"""Where the bytes of attachments are: Orthanc's filesystem area, and PostgreSQL large objects.

An attachment is stored as it is (compression 1) or as an 8-byte little-endian size and a zlib stream
(compression 2), which is what Orthanc's StorageCompression writes (INGEST.md 8).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import uuid as uuids
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from psycopg2 import sql
from psycopg2.extras import execute_values

from pgorthanc_cli import files
from pgorthanc_cli.errors import PgOrthancError, RevisionError
from pgorthanc_cli.storage import durable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from psycopg2.extensions import cursor as Cursor

CHUNK_BYTES = 1 << 20
_PER_FOLDER = 64  # new UUIDs that share a folder
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUID = re.compile(UUID)
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
    """Orthanc's filesystem storage area: `<root>/<uuid[0:2]>/<uuid[2:4]>/<uuid>` (INGEST.md 12.1).

    root works in it with the rights of its owner (see `files.Rights`), through descriptors of folders, and follows
    no symbolic link: whoever owns the area decides what its names lead to. Picklable; one thread at a time.
    """

    def __init__(self, root: Path, *, sync: bool = True) -> None:
        """`sync` false leaves out the fsync (Orthanc's SyncStorageArea)."""
        self.root = root
        self.sync = sync
        self._identity: tuple[int, int] | None = None  # of the folder; another one never takes its place
        self._unsynced: list[str] | None = None  # the files of a `batch`
        self._descriptor = -1
        self._folder = ("", -1)  # the folder of the last new file, and its descriptor
        self._rights: files.Rights | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; it opens the folder itself."""
        return {"root": self.root, "sync": self.sync, "_identity": self._identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], sync=state["sync"])  # type: ignore[misc]
        self._identity = state["_identity"]

    def close(self) -> None:
        """Close the folder; it is opened again when it is needed."""
        for descriptor in (self._folder[1], self._descriptor):
            if descriptor != -1:
                os.close(descriptor)
        self._folder, self._descriptor = ("", -1), -1

    def __del__(self) -> None:
        self.close()

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
            with self.rights:
                if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.descriptor, effective_ids=True):
                    raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise unusable(self.root, error) from error

    @property
    def descriptor(self) -> int:
        """An open descriptor of the root folder.

        Raises:
            OSError: It cannot be opened, or another folder has taken its place.
        """
        if self._descriptor == -1:
            opened = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            status = os.fstat(opened)
            identity = status.st_dev, status.st_ino
            if self._identity not in (None, identity):
                os.close(opened)
                raise OSError(errno.ESTALE, "another folder has taken its place meanwhile")
            self._descriptor, self._identity = opened, identity
            self._rights = files.Rights(status.st_uid, status.st_gid)
        return self._descriptor

    @property
    def rights(self) -> files.Rights:
        """Those of the owner; everything that is done in the folder is done with them."""
        if self._rights is None:
            _ = self.descriptor
        assert self._rights is not None  # noqa: S101 - set together with the descriptor
        return self._rights

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What is stored within the block is synced as a whole at its end: much cheaper than file by file.

        The files have their final names from the start. If the block fails, some are there and some are not: the
        caller must have written down their UUIDs.

        Raises:
            OSError: Something could not be made durable.
        """
        with durable.Group(self.descriptor) as group:
            self._unsynced = []
            try:
                yield
                if self.sync:
                    with self.rights:
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
        in_batch = self._unsynced is not None
        name = _checked(uuid) if in_batch else temporary_name(uuid)
        with self.rights:
            folder, descriptor = self._in_folder(
                uuid, lambda folder: (folder, os.open(name, _NEW_FILE, 0o666, dir_fd=folder))
            )
            try:
                try:
                    write(descriptor)
                    if self.sync and not in_batch:
                        os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)
                if not in_batch:
                    os.rename(name, uuid, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                raise
            self._sync_name(uuid, folder)

    def link(self, uuid: str, descriptor: int) -> None:
        """Give an open file its name in the area, too: owner and mode stay what they are.

        The link itself is made with the rights of the caller, because an owner may not link what others own
        (fs.protected_hardlinks).
        """
        source = f"/proc/self/fd/{descriptor}"
        with self.rights:
            folder = self._in_folder(uuid, lambda folder: folder)
        for attempt in range(_TRIES):
            try:
                os.link(source, uuid, dst_dir_fd=folder, follow_symlinks=True)
                break
            except FileNotFoundError:  # the folder was removed as empty
                if attempt == _TRIES - 1:
                    raise
                self._forget_folder()
                with self.rights:
                    folder = self._in_folder(uuid, lambda folder: folder)
        with self.rights:
            self._sync_name(uuid, folder)

    def _sync_name(self, uuid: str, folder: int) -> None:
        """Make the name of a new file durable, now or with the batch."""
        if self._unsynced is not None:
            self._unsynced.append(f"{uuid[:2]}/{uuid[2:4]}/{uuid}")
        elif self.sync:
            os.fsync(folder)

    def open(self, uuid: str) -> int:
        """Open the file of an attachment to read; return its descriptor.

        Raises:
            OSError: There is none, or it is not a regular file.
        """
        with self.rights, self._existing(uuid) as (_, lower):
            return files.open_regular(uuid, os.O_NOFOLLOW, folder=lower)

    def get(self, uuid: str, file_type: int) -> bytes:
        """The bytes of the file."""
        try:
            with os.fdopen(self.open(uuid), "rb") as stream:
                return stream.read()
        except OSError as error:
            raise PgOrthancError(f"attachment {uuid} cannot be read: {error.strerror}") from error

    def delete(self, uuid: str, file_type: int = 0) -> None:
        """Remove the file, then its two folders if they are empty, as Orthanc does."""
        if not is_uuid(uuid):
            return  # no attachment of such a name is in the area
        with suppress(FileNotFoundError), self.rights, self._existing(uuid) as (upper, lower):
            for name in (temporary_name(uuid), uuid):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=lower)
            with suppress(OSError):
                os.rmdir(uuid[2:4], dir_fd=upper)
                os.rmdir(uuid[:2], dir_fd=self.descriptor)

    @contextmanager
    def _existing(self, uuid: str) -> Iterator[tuple[int, int]]:
        """The two folders of an attachment, opened one through the other."""
        upper = open_folder(_checked(uuid)[:2], self.descriptor)
        try:
            lower = open_folder(uuid[2:4], upper)
            try:
                yield upper, lower
            finally:
                os.close(lower)
        finally:
            os.close(upper)

    def _in_folder(self, uuid: str, make: Callable[[int], _Made]) -> _Made:
        """Make something in the folder of an attachment; missing folders are made. It stays open for the next one."""
        place = _checked(uuid)[:4]
        for attempt in range(_TRIES + 1):
            try:
                if self._folder[0] != place:
                    self._forget_folder()
                    with self._existing(uuid) as (_, lower):
                        self._folder = place, os.dup(lower)
                return make(self._folder[1])
            except FileNotFoundError:  # missing, or removed as empty while it was open here
                self._forget_folder()
                if attempt == _TRIES:
                    raise
            with suppress(
                FileNotFoundError
            ):  # the folder above has just been removed; the next try makes both
                self._make_folder(place[:2], self.descriptor)
                upper = open_folder(place[:2], self.descriptor)
                try:
                    self._make_folder(place[2:], upper)
                finally:
                    os.close(upper)
        raise AssertionError

    def _forget_folder(self) -> None:
        if self._folder[1] != -1:
            os.close(self._folder[1])
        self._folder = ("", -1)

    def _make_folder(self, name: str, above: int) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=above)
            if self.sync and self._unsynced is None:
                os.fsync(above)


def open_folder(name: str, above: int) -> int:
    """Open a folder within another one; as root never through a symbolic link.

    Raises:
        OSError: There is none, or it is a link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if os.geteuid() == 0 else 0)
    try:
        return os.open(name, flags, dir_fd=above)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
            raise NotADirectoryError(
                errno.ENOTDIR, f"{name} in it is a symbolic link, which root does not follow"
            ) from None
        raise


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
                   FROM pg_class WHERE oid = to_regclass(quote_ident(index_schema()) || '.storagearea')"""
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
                "SELECT lo_get(content) FROM index.storagearea WHERE uuid = %s AND type = %s",
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


def is_uuid(name: str) -> bool:
    """Whether a name is one that Orthanc gives to an attachment: no other is ever taken for a file."""
    return _UUID.fullmatch(name) is not None


def _checked(uuid: str) -> str:
    if not is_uuid(uuid):
        raise OSError(errno.EINVAL, "its name is not a UUID")
    return uuid


def temporary_name(uuid: str) -> str:
    """The name under which a file is written before it is whole."""
    return f".{_checked(uuid)}.pgorthanc"


def _write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _content_type(file_type: int) -> int:
    """The plugin's content type: 1 to 3 as the file type, 0 for user-defined attachments (SCHEMA.md 5)."""
    return file_type if 1 <= file_type <= 3 else 0
