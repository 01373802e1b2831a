"""One pg_hba.conf file, to the byte: its rules, and the change of exactly one line.

Facts: PostgreSQL, "The pg_hba.conf File"; for quotes, commas and continued lines the
behaviour of the server's own tokenizer, compared with `pg_hba_file_rules` by the tests.
"""

from __future__ import annotations

import glob
import ipaddress
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pgorthanc_cli.errors import PgOrthancError
from pgorthanc_cli.server.hba import Rule, cidr

_KINDS = ("local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")
_KEYWORDS = ("all", "sameuser", "samerole", "samegroup", "replication")
# Quotes may begin within a word, and one that is not closed ends with the line.
_TOKEN = re.compile(rb'(?:"[^"]*"?|[^ \t\r\n,"#])+')
_CONTINUATION = re.compile(rb"\\\r?\n")


@dataclass(frozen=True)
class _Line:
    """A line with its continuations; `start` and fields are positions in the file."""

    number: int
    start: int
    content: bytes
    fields: tuple[tuple[_Token, ...], ...]

    def words(self, index: int) -> tuple[str, ...]:
        return tuple(token.word for token in self.fields[index])

    @property
    def method(self) -> int:
        """Return which field is the method; a netmask may be a field of its own."""
        if self.words(0)[0] == "local":
            return 3
        return 5 if _is_ip(self.words(3)[0]) else 4


@dataclass(frozen=True)
class _Token:
    word: str
    start: int
    end: int


def parse(content: bytes, file: str = "") -> list[Rule]:
    """Return the rules of one file; includes are not followed."""
    return [_rule(line, file) for line in _lines(content)]


def _rule(line: _Line, file: str) -> Rule:
    method = line.method
    address = None if method == 3 else line.words(3)[0]
    if method == 5:
        address = cidr(address, line.words(4)[0])
    options: list[str] = []
    for index in range(method + 1, len(line.fields)):
        options += line.words(index)
    return Rule(
        file=file,
        line=line.number,
        kind=line.words(0)[0],
        databases=line.words(1),
        roles=line.words(2),
        address=address,
        method=line.words(method)[0],
        options=tuple(options),
    )


def _lines(content: bytes) -> Iterator[_Line]:
    """Yield the rules; a backslash at the end continues a line (since PostgreSQL 14)."""
    number = 1
    for match in re.finditer(rb"(?:[^\n]*\\\r?\n)*[^\n]*(?:\n|\Z)", content):
        fields = tuple(_fields(match[0]))
        line = _Line(number, match.start(), match[0], fields)
        if len(fields) > 3 and line.words(0)[0] in _KINDS and len(fields) > line.method:
            yield line
        number += match[0].count(b"\n")


def _fields(line: bytes) -> Iterator[tuple[_Token, ...]]:
    """Yield the tokens of each field; a comma continues it, whatever blanks follow."""
    # The tokenizer sees the line without its continuations; `offsets` leads back to the
    # positions in the file.
    skipped: set[int] = set()
    for continuation in _CONTINUATION.finditer(line):
        skipped.update(range(*continuation.span()))
    offsets = [offset for offset in range(len(line)) if offset not in skipped]
    text = bytes(line[offset] for offset in offsets)
    field: list[_Token] = []
    end = 0
    while (match := _TOKEN.search(text, end)) and b"#" not in text[end : match.start()]:
        end = match.end()
        word = _word(match[0].decode("utf-8", "replace"))
        field.append(_Token(word, offsets[match.start()], offsets[end - 1] + 1))
        if text[end : end + 1] != b",":
            yield tuple(field)
            field = []
    if field:
        yield tuple(field)


def _word(token: str) -> str:
    """Return a token without quotes, unless the bare name would be a keyword."""
    bare = re.sub(r'"((?:[^"]|"")*)"?', lambda quoted: quoted[1].replace('""', '"'), token)
    # "all" in quotes is a role of that name: the quotes carry the meaning, so they stay.
    special = bare in _KEYWORDS or bare.startswith(("+", "@", "/"))
    return f'"{bare}"' if token.startswith('"') and special else bare


def _is_ip(word: str) -> bool:
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Edit:
    """A change of a file that can be undone.

    Attributes:
        path: The file.
        line: Number of the line that was changed or inserted.
        before: The line as it was; empty if it was inserted.
        after: The line as it is now.
        backup: A copy of the file as it was.
    """

    path: Path
    line: int
    before: str
    after: str
    backup: Path
    _written: bytes

    def undo(self) -> None:
        """Restore the file; the backup stays.

        Raises:
            PgOrthancError: Another program has changed the file since, or it cannot be
                written.
        """
        if _read(self.path) != self._written:
            raise PgOrthancError(
                f"{self.path} was changed by another program meanwhile, and was left as it is",
                f"compare it with the file before our change, {self.backup}, and put line {self.line} back",
            )
        _write(self.path, _read(self.backup))


def set_method(path: Path, rule: Rule, method: str) -> Edit:
    """Replace the method of a line, and leave every other byte of the file unchanged.

    The server uses the old lines until it reloads.

    Raises:
        PgOrthancError: The line of that number is not this rule, or the file cannot be
            read or written.
    """
    # The file may have been edited since the server has read it.
    content = _read(path)
    line = next((line for line in _lines(content) if line.number == rule.line), None)
    if line is None or _outline(_rule(line, "")) != _outline(rule):
        raise PgOrthancError(
            f"line {rule.line} of {path} is not `{rule}` any more", "look at the file, then run it again"
        )
    old = line.fields[line.method][0]
    changed = line.content[: old.start] + method.encode() + line.content[old.end :]
    return _edit(path, content, (line.number, line.start), line.content, changed)


def insert(path: Path, text: str, *, before: int) -> Edit:
    """Insert a line before the line of that number (1: the first).

    Raises:
        PgOrthancError: The file cannot be read or written.
    """
    content = _read(path)
    lines = content.split(b"\n")[: before - 1]
    start = sum(len(line) + 1 for line in lines)
    # A last line without a line feed would be joined with ours.
    if start > len(content):
        raise PgOrthancError(
            f"{path} has no line {before - 1} that ends with a line feed", "look at the end of the file"
        )
    return _edit(path, content, (before, start), b"", text.encode() + b"\n")


def _edit(path: Path, content: bytes, position: tuple[int, int], old: bytes, new: bytes) -> Edit:
    number, start = position
    written = content[:start] + new + content[start + len(old) :]
    backup = _back_up(path)
    _write(path, written)
    before, after = (text.decode("utf-8", "replace").strip() for text in (old, new))
    return Edit(path, number, before, after, backup, written)


def _outline(rule: Rule) -> tuple[object, ...]:
    """Return what does not depend on quotes, which the server does not report."""
    return rule.kind, rule.address, rule.method


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PgOrthancError(f"{path} cannot be read: {error.strerror}", _hint(path)) from None


def _back_up(path: Path) -> Path:
    """Copy the file with owner and mode, or return an earlier copy of that content.

    include_dir ignores the name of the copy.
    """
    for earlier in sorted(path.parent.glob(f"{glob.escape(path.name)}.*.pgorthanc")):
        if earlier.is_file() and not earlier.is_symlink() and _read(earlier) == _read(path):
            return earlier
    backup = Path(f"{path}.{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}.pgorthanc")
    try:
        shutil.copy2(path, backup)
        _copy_owner(backup, path)
    except OSError as error:
        raise PgOrthancError(f"{backup} cannot be written: {error.strerror}", _hint(path)) from None
    return backup


def _write(path: Path, content: bytes) -> None:
    """Replace the file, whole or not at all, with owner and mode, through a symlink."""
    real = path.resolve()
    _sweep(real)
    new = real.with_name(f"{real.name}.{os.getpid()}.new")
    try:
        with open(new, "xb") as stream:
            # The server must be able to read it, even if root has written it.
            _copy_owner(new, real)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(real)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise PgOrthancError(f"{path} cannot be written: {error.strerror}", _hint(path)) from None


def _sweep(path: Path) -> None:
    """Remove the new files of runs that were killed before their rename."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.new"):
        pid = leftover.name.removeprefix(f"{path.name}.").removesuffix(".new")
        if pid.isdecimal() and not leftover.is_symlink() and not _runs(int(pid)):
            leftover.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Return whether another process has that pid; our own may be one of a dead run."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # another account's, or not a pid: assume that it runs
    return True


def _copy_owner(path: Path, model: Path) -> None:
    status = model.stat()
    shutil.copymode(model, path)
    if (path.stat().st_uid, path.stat().st_gid) != (status.st_uid, status.st_gid):
        os.chown(path, status.st_uid, status.st_gid)


def _hint(path: Path) -> str:
    return f"run it as the owner of the folder {path.parent}, on the machine of the server"
