"""What worker processes do: list a part of the area, or check the content of some rows."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgorthanc_cli import db, files
from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.scrub import bulk as scrub_bulk
from pgorthanc_cli.scrub import content, model
from pgorthanc_cli.scrub.model import Difference, Row, Settings
from pgorthanc_cli.storage import CHUNK_BYTES, FilesystemArea, bulk, file_path, is_uuid, listing
from pgorthanc_cli.workers import checkpoint

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_GONE = (errno.ENOENT, errno.ENOTDIR)


class Reader:
    """Reads stored bytes: from files, or from large objects on a connection of its own."""

    def __init__(self, target: db.Target, settings: Settings) -> None:
        """Open nothing yet."""
        self.target = target
        self.settings = settings
        self.area = FilesystemArea(settings.storage_dir) if settings.storage_dir else None
        self._conn: Connection | None = None

    @property
    def conn(self) -> Connection:
        """The connection; each batch is read in one transaction."""
        if self._conn is None or self._conn.closed:
            self._conn = db.connect(self.target, readonly=True)
        return self._conn

    def list_part(self, digits: str) -> listing.Listing:
        """List a part of the filesystem area."""
        assert self.area  # noqa: S101 - large objects are listed by the index's own query
        sizes = self.settings.depth == model.SIZE
        return listing.list_part(self.area, digits, sizes=sizes)

    def hash_part(self, part: tuple[str, str]) -> scrub_bulk.Hashed | None:
        """Compare the content of small files; None if rows must be looked at one by one.

        Args:
            part: Digits and text, from `bulk.joined`.
        """
        assert self.area  # noqa: S101
        digits, text = part
        words = text.split(" ") if text else []
        uuids, values = words[::2], words[1::2]
        claimed = set(uuids)
        if len(claimed) < len(uuids) or str(scrub_bulk.NO_NAME) in values:
            return None
        doubtful, size = [], 0
        with self._rights():
            folder = self.area.descriptor
            for number, (uuid, value) in enumerate(zip(uuids, values, strict=True)):
                if not number & 7:
                    checkpoint()
                expected, _, md5 = value.partition("-")
                if expected and _has_content(folder, uuid, int(expected), md5):
                    size += int(expected)
                else:
                    doubtful.append(uuid)
        claimed.difference_update(doubtful)
        # Only now: what was written meanwhile has its second look.
        listing = self.list_part(digits)
        for uuid in claimed & listing.sizes.keys():
            del listing.sizes[uuid]
        return scrub_bulk.Hashed(len(claimed), size, doubtful, listing)

    def check(self, rows: Sequence[tuple[Any, ...]]) -> list[Difference]:
        """Return what differs between rows (also as plain tuples) and their content."""
        if not self.area:
            return self._check_objects([Row(*row) for row in rows])
        differences = []
        is_hash = self.settings.depth == model.HASH
        with self._rights():
            folder = self.area.descriptor
            for row in map(Row._make, rows):
                if is_hash and _is_intact(row, folder):
                    continue
                if difference := self._check_file(row):
                    differences.append(difference)
        return differences

    # --- files ------------------------------------------------------------------------

    def _check_file(self, row: Row) -> Difference | None:
        checkpoint()
        assert self.area  # noqa: S101
        try:
            descriptor = self.area.open_file(row.uuid, row.path)
        except OSError as error:
            return _unopened(row, error)
        try:
            if self.settings.depth == model.EXISTS:
                return None
            if self.settings.depth == model.SIZE:
                actual = os.fstat(descriptor).st_size
                damage = content.shallow_problem(row, actual, store_md5=self.settings.store_md5)
                return Difference(*damage, row) if damage else None
            return self._compare(row, lambda: _chunks(descriptor))
        except OSError as error:
            return Difference(model.UNREADABLE, error.strerror or str(error), row)
        finally:
            os.close(descriptor)

    def _rights(self) -> files.OwnerRights:
        assert self.area  # noqa: S101
        return self.area.rights

    def instance_in(self, path: str) -> str:
        """Return the instance in a file of the area, empty if it is not a DICOM file.

        Raises:
            OSError: It cannot be read.
        """
        assert self.area  # noqa: S101
        descriptor = self.area.open_file("", path)
        try:
            return self._identify(lambda: _chunks(descriptor))
        finally:
            os.close(descriptor)

    def stored(self, uuid: str) -> bytes:
        """Return the stored bytes of an attachment, which need not have a row.

        Raises:
            OSError: There is none, or it cannot be read.
        """
        if self.area:
            with self.area.open(uuid) as stream:
                return stream.read()
        with db.translate_errors(self.conn, self.target.schema):
            query = "SELECT content::int8 FROM index.storagearea WHERE uuid = %s"
            oid = db.value(self.conn, query, uuid)
            stored = b"".join(self._pieces(oid)) if oid else None
            self.conn.rollback()
        if stored is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return stored

    def size(self, row: Row) -> int | None:
        """Return the size of the file of a row, None if there is none, or it cannot be seen."""
        assert self.area  # noqa: S101
        try:
            status = self.area.stat(row.path or file_path(row.uuid))
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def changed(self, path: str) -> float | None:
        """Return when a file of the area has last changed, None if it is gone."""
        assert self.area  # noqa: S101
        try:
            return self.area.stat(path).st_ctime
        except OSError as error:
            return None if error.errno in _GONE else 0.0

    # --- large objects ------------------------------------------------------------------

    def _check_objects(self, rows: Sequence[Row]) -> list[Difference]:
        small = [row for row in rows if (row.actual_size or 0) <= bulk.WHOLE_BYTES]
        differences: list[Difference] = []
        with db.translate_errors(self.conn, self.target.schema):
            contents = bulk.contents(self.conn, [row.oid for row in small]) if small else {}
            for row in rows:
                checkpoint()
                damage: Difference | None
                if (row.actual_size or 0) > bulk.WHOLE_BYTES:
                    damage = self._compare(row, partial(self._pieces, row.oid))
                elif row.oid in contents:
                    damage = self._compare(row, partial(iter, [contents[row.oid]]))
                else:
                    damage = Difference(model.MISSING, "the large object is gone", row)
                differences += [damage] if damage else []
            self.conn.rollback()
        return differences

    def _pieces(self, oid: int) -> Iterator[bytes]:
        for piece in bulk.pieces(self.conn, oid):
            checkpoint()
            yield piece

    def object_instance(self, oid: int) -> str:
        """Return the instance in a large object, empty if it is not a DICOM file."""
        with db.translate_errors(self.conn, self.target.schema):
            instance = self._identify(lambda: self._pieces(oid))
            self.conn.rollback()
        return instance

    # --- both ---------------------------------------------------------------------------

    def _compare(self, row: Row, chunks: content.Chunks) -> Difference | None:
        if damage := content.row_problem(row, store_md5=self.settings.store_md5):
            return Difference(*damage, row)
        compressed = row.compression == content.ZLIB
        actual = content.digest(chunks(), compressed=compressed)
        difference = content.judge(row, actual)
        if difference is None and self.settings.depth != model.IDENTITY:
            return None
        is_dicom = row.instance and row.file_type in content.DICOM_TYPES
        damages = (model.TRUNCATED, model.TOO_LONG, model.ALTERED)
        if is_dicom and (difference is None or difference[0] in damages):
            instance = self._identify(chunks)
            if instance and instance != row.instance:
                return Difference(
                    model.WRONG_INSTANCE, f"it holds instance {instance}", row, instance=instance
                )
            if not instance and difference is None:
                return Difference(model.WRONG_INSTANCE, "it is not a DICOM file that Orthanc stores", row)
        return Difference(*difference, row) if difference else None

    def _identify(self, chunks: content.Chunks) -> str:
        profile = self.settings.profile
        return content.instance_of(chunks(), profile) or content.instance_of(
            chunks(), profile, compressed=True
        )


def _is_intact(row: Row, folder: int) -> bool:
    """Return whether a small file has exactly the bytes of its row: the usual case.

    False says nothing: then it is checked in full.
    """
    size, md5 = row.stored_size, row.stored_md5
    if row.compression != 1 or row.path or not md5 or md5 != row.md5 or size is None or size != row.size:
        return False
    checkpoint()
    return size < CHUNK_BYTES and _has_content(folder, row.uuid, size, md5)


def _has_content(folder: int, uuid: str, size: int, md5: str) -> bool:
    """Return whether a small file in the usual place has this content; with as few system calls as possible."""
    if not is_uuid(uuid):
        return False
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(file_path(uuid), flags, dir_fd=folder)
        try:
            content = os.read(descriptor, size + 1)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return len(content) == size and hashlib.md5(content, usedforsecurity=False).hexdigest() == md5


def _unopened(row: Row, error: OSError) -> Difference:
    if error.errno in _GONE:
        return Difference(model.MISSING, "", row)
    if isinstance(error, files.NotRegularFile):
        return Difference(model.MISSING, f"{error.strerror} is in its place", row)
    if error.errno == errno.ELOOP:
        return Difference(model.SYMLINK, "", row)
    return Difference(model.UNREADABLE, error.strerror or str(error), row)


def _chunks(descriptor: int) -> Iterator[bytes]:
    """Yield the content of a file, from its beginning.

    Never asks for much more than there is: Python would allocate all of it for a small file.
    """
    position, size = 0, os.fstat(descriptor).st_size
    while chunk := os.pread(descriptor, min(CHUNK_BYTES, max(size - position, 0) + 1), position):
        yield chunk
        position += len(chunk)
        if position == size == len(chunk):
            return  # a small file that was read at once
        checkpoint()


_reader: Reader | None = None


def work(target: db.Target, settings: Settings, task: str, argument: Any) -> Any:
    """Run a method of this process's reader: `list_part` or `check`."""
    global _reader
    if _reader is None or (_reader.target, _reader.settings) != (target, settings):
        _reader = Reader(target, settings)
    return getattr(_reader, task)(argument)


def unreadable_area(root: Path, error: OSError) -> PgOrthancError:
    """Return the error for a storage folder that cannot be read at all."""
    if isinstance(error, FileNotFoundError):
        return PgOrthancError(
            f"the storage folder {root} does not exist",
            "check that it is mounted, or name the right folder with --storage-dir",
        )
    return PgOrthancError(
        f"the storage folder {root} cannot be read: {error.strerror or error}",
        "run it as the owner of the folder, usually the user of Orthanc",
    )
