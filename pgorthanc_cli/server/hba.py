"""pg_hba.conf: what its lines say, which of them decides for a client, and the change of exactly one of them.

`rules` asks the server, whose parser follows includes; `parse` reads the bytes of one file. Facts: PostgreSQL,
"The pg_hba.conf File", and for quotes, commas and continued lines the behaviour of the server's own tokenizer,
held against `pg_hba_file_rules` by the tests.
"""

from __future__ import annotations

import glob
import ipaddress
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from pgorthanc_cli.errors import PgOrthancError

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

_KINDS = ("local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")
_ENCRYPTIONS = {
    "hostssl": ("tls",),
    "hostnossl": ("none", "gss"),
    "hostgssenc": ("gss",),
    "hostnogssenc": ("none", "tls"),
}
_HBA_FILE = "coalesce((SELECT setting FROM pg_catalog.pg_settings WHERE name = 'hba_file'), '')"
_TOKEN = re.compile(rb'(?:"[^"]*"?|[^ \t\r\n,"#])+')
_CONTINUATION = re.compile(rb"\\\r?\n")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class IndeterminateMatch(PgOrthancError):
    """Whether a line matches depends on what only the server knows; the message names the line."""


@dataclass(frozen=True)
class Rule:
    """A line that lets clients in, or keeps them out.

    Attributes:
        file: The file it stands in; empty if the server does not say.
        line: Number of its (first) line, from 1.
        kind: local, host, hostssl, hostnossl, hostgssenc or hostnogssenc.
        databases: Names and words; what was quoted and could be taken for a word keeps its quotes.
        roles: Likewise.
        address: An address with its length (10.0.0.0/8), a name, all, samehost or samenet; None for local.
        method: trust, reject, md5, scram-sha-256, ...
        options: Such as `clientcert=verify-full`.
    """

    file: str
    line: int
    kind: str
    databases: tuple[str, ...]
    roles: tuple[str, ...]
    address: str | None
    method: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The line as one would write it."""
        fields = (self.kind, ",".join(self.databases), ",".join(self.roles), self.address or "", self.method)
        return " ".join(field for field in (*fields, *self.options) if field)


@dataclass(frozen=True)
class Client:
    """A connection as the server sees it.

    Attributes:
        role: The role that it asks for.
        database: The database that it asks for; `replication=True` asks for none.
        address: Its address, as inet_client_addr() gives it; None through the socket of the machine.
        encryption: none, tls or gss.
        groups: The roles that this one is a member of, see `groups`.
        replication: Whether it is a physical replication connection, such as pg_basebackup's.
        server: The address it has reached, if that is known.
    """

    role: str
    database: str
    address: str | None
    encryption: str = "none"
    groups: frozenset[str] = frozenset()
    replication: bool = False
    server: str | None = None


def rules(conn: Connection) -> list[Rule]:
    """The lines of the files as they are now, in their order; lines with errors are left out (see `errors`).

    Raises:
        psycopg2.errors.InsufficientPrivilege: The role may not see `pg_hba_file_rules`; superusers may.
    """
    file = "file_name" if conn.server_version >= 160000 else _HBA_FILE
    order = "rule_number" if conn.server_version >= 160000 else "line_number"
    query = f"""SELECT {file}, line_number, type, database, user_name, address, netmask, auth_method, options
                FROM pg_catalog.pg_hba_file_rules WHERE error IS NULL ORDER BY {order}"""  # noqa: S608
    with conn.cursor() as cur:
        cur.execute(query)
        return [
            Rule(name, line, kind, tuple(databases), tuple(roles), _cidr(address, mask), method, tuple(options or ()))
            for name, line, kind, databases, roles, address, mask, method, options in cur.fetchall()
        ]  # fmt: skip


def errors(conn: Connection) -> list[str]:
    """What the server does not understand in the files as they are now; it would not load them."""
    with conn.cursor() as cur:
        cur.execute(
            """SELECT format('line %s: %s', line_number, error) FROM pg_catalog.pg_hba_file_rules
               WHERE error IS NOT NULL ORDER BY line_number"""
        )
        return [text for (text,) in cur.fetchall()]


def groups(conn: Connection, role: str) -> frozenset[str]:
    """The roles that a role is a member of, directly or not, itself included: what `+group` means."""
    with conn.cursor() as cur:
        cur.execute(
            """WITH RECURSIVE member (oid) AS (
                   SELECT oid FROM pg_catalog.pg_roles WHERE rolname = %s
                   UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN member ON m.member = member.oid
               ) SELECT rolname FROM pg_catalog.pg_roles JOIN member USING (oid)""",
            (role,),
        )
        return frozenset(name for (name,) in cur.fetchall())


def match(lines: Iterable[Rule], client: Client) -> Rule | None:
    """The line that decides for a client: the first one that fits; None: the server refuses it for want of one.

    Raises:
        IndeterminateMatch: A line before it names `samenet`, or names in another file.
    """
    return next((rule for rule in lines if _fits(rule, client)), None)


def is_for(rule: Rule, role: str, groups: frozenset[str]) -> bool:
    """Whether a line may decide for a role, from wherever and to whichever database it connects.

    Raises:
        IndeterminateMatch: The line takes its roles from another file.
    """
    client = Client(role, "", None, groups=groups)
    return any(_is_role(rule, word, client) for word in rule.roles)


def _fits(rule: Rule, client: Client) -> bool:
    if (rule.kind == "local") != (client.address is None):
        return False
    if client.encryption not in _ENCRYPTIONS.get(rule.kind, (client.encryption,)):
        return False
    return (
        any(_is_role(rule, word, client) for word in rule.roles)
        and any(_is_database(rule, word, client) for word in rule.databases)
        and (client.address is None or _is_address(rule, ipaddress.ip_address(client.address), client.server))
    )


def _is_database(rule: Rule, word: str, client: Client) -> bool:
    if client.replication or word == "replication":
        return client.replication and word == "replication"
    if word == "sameuser":
        return client.database == client.role
    if word in ("samerole", "samegroup"):
        return client.database in client.groups
    return word == "all" or _is_name(rule, word, client.database)


def _is_role(rule: Rule, word: str, client: Client) -> bool:
    if word.startswith("+"):
        return word[1:] in client.groups
    return word == "all" or _is_name(rule, word, client.role)


def _is_name(rule: Rule, word: str, name: str) -> bool:
    if word.startswith("@"):
        raise IndeterminateMatch(f"line {rule.line} of pg_hba.conf takes names from the file {word[1:]}")
    if word.startswith("/"):  # since PostgreSQL 16
        try:
            return re.search(word[1:], name) is not None
        except re.error:
            raise IndeterminateMatch(
                f"line {rule.line} of pg_hba.conf has a regular expression: {word}"
            ) from None
    return word in (name, f'"{name}"')


def _is_address(rule: Rule, address: Address, server: str | None) -> bool:
    word = rule.address or ""
    if word == "all":
        return True
    if word in ("samehost", "samenet"):
        if address.is_loopback or (server and address == ipaddress.ip_address(server)):
            return True
        if word == "samenet" or server is None:
            raise IndeterminateMatch(
                f"line {rule.line} of pg_hba.conf depends on the networks of the server ({word})"
            )
        return False
    if "/" in word:
        network = ipaddress.ip_network(word, strict=False)
        return address.version == network.version and address in network
    return _has_name(address, word)


def _has_name(address: Address, name: str) -> bool:
    """As the server does it: the name of the address, and the address of that name again."""
    try:
        found = socket.gethostbyaddr(str(address))[0].lower()
        known = {entry[4][0] for entry in socket.getaddrinfo(found, None)}
    except OSError:
        return False
    fits = found.endswith(name.lower()) if name.startswith(".") else found == name.lower()
    return fits and str(address) in known


def _cidr(address: str | None, mask: str | None) -> str | None:
    if address is None or mask is None:
        return address
    return f"{address}/{int(ipaddress.ip_address(mask)).bit_count()}"


# One file, to the byte


@dataclass(frozen=True)
class _Line:
    """A line, with those that continue it: where it lies in the file, and where its fields lie in it."""

    number: int
    start: int
    content: bytes
    fields: tuple[tuple[_Token, ...], ...]

    def words(self, index: int) -> tuple[str, ...]:
        return tuple(token.word for token in self.fields[index])

    @property
    def method(self) -> int:
        """Which field is the method; the netmask of an address may stand in a field of its own."""
        if self.words(0)[0] == "local":
            return 3
        return 5 if _is_ip(self.words(3)[0]) else 4


@dataclass(frozen=True)
class _Token:
    word: str
    start: int
    end: int


def parse(content: bytes, file: str = "") -> list[Rule]:
    """The lines of one file. Includes are not followed, and lines that are no rules are left out."""
    return [_rule(line, file) for line in _lines(content)]


def _rule(line: _Line, file: str) -> Rule:
    at = line.method
    address = None if at == 3 else line.words(3)[0]
    if at == 5:
        address = _cidr(address, line.words(4)[0])
    options = tuple(word for index in range(at + 1, len(line.fields)) for word in line.words(index))
    return Rule(
        file, line.number, line.words(0)[0], line.words(1), line.words(2), address, line.words(at)[0], options
    )


def _lines(content: bytes) -> Iterator[_Line]:
    """The rules; a line that ends with a backslash goes on with the next one (since PostgreSQL 14)."""
    number = 1
    for found in re.finditer(rb"(?:[^\n]*\\\r?\n)*[^\n]*(?:\n|\Z)", content):
        fields = tuple(_fields(found[0]))
        line = _Line(number, found.start(), found[0], fields)
        if len(fields) > 3 and line.words(0)[0] in _KINDS and len(fields) > line.method:
            yield line
        number += found[0].count(b"\n")


def _fields(line: bytes) -> Iterator[tuple[_Token, ...]]:
    """The tokens of each field; a comma goes on with the same field, whatever blanks follow it."""
    skipped = {at for found in _CONTINUATION.finditer(line) for at in range(*found.span())}
    places = [at for at in range(len(line)) if at not in skipped]
    text = bytes(line[at] for at in places)
    field: list[_Token] = []
    at = 0
    while (found := _TOKEN.search(text, at)) and b"#" not in text[at : found.start()]:
        at = found.end()
        field.append(
            _Token(_word(found[0].decode("utf-8", "replace")), places[found.start()], places[at - 1] + 1)
        )
        if text[at : at + 1] != b",":
            yield tuple(field)
            field = []
    if field:
        yield tuple(field)


def _word(token: str) -> str:
    """A token as it is meant; quotes stay where the bare name would be a word of another meaning."""
    bare = re.sub(r'"((?:[^"]|"")*)"?', lambda quoted: quoted[1].replace('""', '"'), token)
    special = bare in ("all", "sameuser", "samerole", "samegroup", "replication") or bare[:1] in (
        "+",
        "@",
        "/",
    )
    return f'"{bare}"' if token.startswith('"') and special else bare


def _is_ip(word: str) -> bool:
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Edit:
    """A change of a file that was made and can be undone.

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
        """Put the file back as it was; the backup stays.

        Raises:
            PgOrthancError: Somebody else has changed the file since, or it cannot be written.
        """
        if _read(self.path) != self._written:
            raise PgOrthancError(
                f"{self.path} was changed by somebody else meanwhile, and is left alone",
                f"compare it with the file before our change, {self.backup}, and put line {self.line} back",
            )
        _write(self.path, _read(self.backup))


def set_method(path: Path, rule: Rule, method: str) -> Edit:
    """Write another method into a line, and leave every other byte of the file as it is.

    The server goes on with the old lines until it reloads.

    Raises:
        PgOrthancError: The line of that number is not this rule, or the file cannot be read or written.
    """
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
    """Put a new line before the line of that number (1: the first); what comes first counts.

    Raises:
        PgOrthancError: The file cannot be read or written.
    """
    content = _read(path)
    lines = content.split(b"\n")[: before - 1]
    start = sum(len(line) + 1 for line in lines)
    if start > len(content):
        raise PgOrthancError(
            f"{path} has no line {before - 1} that ends with a line feed", "look at the end of the file"
        )
    return _edit(path, content, (before, start), b"", text.encode() + b"\n")


def _edit(path: Path, content: bytes, place: tuple[int, int], old: bytes, new: bytes) -> Edit:
    number, start = place
    written = content[:start] + new + content[start + len(old) :]
    backup = _back_up(path)
    _write(path, written)
    before, after = (text.decode("utf-8", "replace").strip() for text in (old, new))
    return Edit(path, number, before, after, backup, written)


def _outline(rule: Rule) -> tuple[object, ...]:
    """What a rule read from the file and one told by the server have in common: there quotes are lost."""
    return rule.kind, rule.address, rule.method


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PgOrthancError(f"{path} cannot be read: {error.strerror}", _hint(path)) from None


def _back_up(path: Path) -> Path:
    """A copy beside the file, with its owner and mode; its name is none that include_dir takes.

    An earlier copy of the same content will do.
    """
    for earlier in sorted(path.parent.glob(f"{glob.escape(path.name)}.*.pgorthanc")):
        if earlier.is_file() and not earlier.is_symlink() and _read(earlier) == _read(path):
            return earlier
    backup = Path(f"{path}.{datetime.now(timezone.utc):%Y%m%dT%H%M%S.%fZ}.pgorthanc")
    try:
        shutil.copy2(path, backup)
        _own_as(backup, path)
    except OSError as error:
        raise PgOrthancError(f"{backup} cannot be written: {error.strerror}", _hint(path)) from None
    return backup


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, with the owner and mode of the file; a link goes on naming the same file."""
    real = path.resolve()
    _sweep(real)
    new = real.with_name(f"{real.name}.{os.getpid()}.new")
    try:
        with open(new, "xb") as stream:
            _own_as(new, real)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(real)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise PgOrthancError(f"{path} cannot be written: {error.strerror}", _hint(path)) from None


def _sweep(path: Path) -> None:
    """Remove the new files of runs that were killed before they could take the place of this one."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.new"):
        pid = left.name.removeprefix(f"{path.name}.").removesuffix(".new")
        if pid.isdecimal() and not left.is_symlink() and not _runs(int(pid)):
            left.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether another process has that number; ours may be that of a run that was killed."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # another account's, or no process id: not ours to judge
    return True


def _own_as(path: Path, model: Path) -> None:
    status = model.stat()
    shutil.copymode(model, path)
    if (path.stat().st_uid, path.stat().st_gid) != (status.st_uid, status.st_gid):
        os.chown(path, status.st_uid, status.st_gid)


def _hint(path: Path) -> str:
    return f"run it as the owner of the folder {path.parent}, on the machine of the server"
