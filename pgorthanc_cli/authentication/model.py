"""Results of a check of a login, and of a change of its method."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pgorthanc_cli import db


@dataclass(frozen=True)
class PluginVerdict:
    """Whether a release of Orthanc's plugin can log in as this role.

    Attributes:
        release: `up to 3.2`, `3.3 and later`, or the one given with --plugin.
        works: None if that depends on the machine on which Orthanc runs.
        why: The reason, and what that release needs in its configuration.
    """

    release: str
    works: bool | None
    why: str


@dataclass(frozen=True)
class Remedy:
    """What to do.

    Attributes:
        text: The reason, and the instruction unless the rest has it.
        command: Words of a pgorthanc command, without its connection options.
        statement: SQL, or a command of psql, for an administrator.
    """

    text: str
    command: tuple[str, ...] = ()
    statement: str = ""

    def __str__(self) -> str:
        action = " ".join(("pgorthanc", *self.command)) if self.command else self.statement
        return f"{self.text}: {action}" if action else self.text


@dataclass(frozen=True)
class SslMode:
    """The outcome of one sslmode, tried with libpq up to the request for a password; no password is sent.

    Attributes:
        sslmode: One of `constants.SSLMODES`.
        works: Whether the login works; without a password, whether the server would ask for it.
        encrypted: Whether the connection is encrypted; None if there is none.
        verifies: What libpq verifies: `nothing`, `authority` or `authority and host name`.
        detail: Why it does not work.
    """

    sslmode: str
    works: bool
    encrypted: bool | None
    verifies: str
    detail: str


@dataclass(frozen=True)
class Tls:
    """TLS between this machine and the server.

    Attributes:
        used: Whether the login with the target's sslmode is encrypted; None if there was none.
        offered: Whether the server offers TLS.
        protocol: Such as TLSv1.3; None without TLS.
        cipher: The cipher suite.
        subject: The subject of the server's certificate.
        issuer: Its issuer.
        names: Its host names and addresses.
        not_before: UTC.
        expires: UTC.
        days_left: Days until it expires, negative afterwards.
        self_signed: Whether subject and issuer are the same.
        detail: Why there is no TLS, or why sslmode=prefer does not use it.
    """

    used: bool | None
    offered: bool
    protocol: str | None = None
    cipher: str | None = None
    subject: str | None = None
    issuer: str | None = None
    names: tuple[str, ...] = ()
    not_before: datetime | None = None
    expires: datetime | None = None
    days_left: int | None = None
    self_signed: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class LoginReport:
    """How this client logs in, and which releases of Orthanc's plugin can do so.

    Attributes:
        role: The role that logs in.
        server: Host and port, or the folder of the socket.
        login: `works`, `password needed` (none was given), or `refused`.
        refusal: The reason, if refused; else empty.
        method: The method that the server requires with the target's sslmode, as in pg_hba.conf; also
            scram-sha-256-plus (with channel binding), `no line` (no line matches this client; `reject` if a
            visible line rejects it), `refused` (for another reason), `trust or peer` and `trust or cert` (the
            protocol does not distinguish them).
        before_tls: The method in plain text.
        after_tls: The method within TLS; None without TLS.
        tls: Encryption and certificate.
        channel_binding: `used`, `offered` or `not offered`.
        sslmodes: The outcome of each sslmode; empty on a UNIX socket, where there is no TLS.
        stored: Kind of the stored password: scram-sha-256, md5, none; None: hidden from us.
        password_encryption: The setting in the session that inspected the server.
        valid_until: When the password expires, `never`; None: hidden from us.
        hba_line: The line of pg_hba.conf that matches: file:number: line; None: hidden from us.
        libpq: Version of libpq in this program.
        plugins: The verdict for each release.
        plugin: The release that decides the exit code: the one in use if known, else the latest.
        remedies: What to do, the best first; `fixes` are the same in parts.
        notes: What is hidden from us and which privilege is missing; other remarks.
        doubts: Those of the notes that put the rest in doubt.
        sslmode: That of the target.
        endpoint: The database, server and role; None without a login.
    """

    role: str
    server: str
    login: str
    refusal: str
    method: str
    before_tls: str
    after_tls: str | None
    tls: Tls
    channel_binding: str
    sslmodes: tuple[SslMode, ...]
    stored: str | None
    password_encryption: str | None
    valid_until: str | None
    hba_line: str | None
    libpq: str
    plugins: tuple[PluginVerdict, ...] = ()
    plugin: str = "latest"
    remedies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fixes: tuple[Remedy, ...] = ()
    doubts: tuple[str, ...] = ()
    sslmode: str = "prefer"
    endpoint: db.Endpoint | None = None

    @property
    def is_local(self) -> bool:
        """Whether the connection is a UNIX socket."""
        return self.server.startswith(("/", "@"))

    @property
    def works_for_plugin(self) -> bool:
        """Whether the release in use can log in, or may be able to."""
        return not self.plugins or self.plugins[-1].works is not False

    @property
    def works_everywhere(self) -> bool:
        """Whether no release is known to fail."""
        return all(plugin.works is not False for plugin in self.plugins)


@dataclass(frozen=True)
class MethodChanged:
    """What `fix` has changed.

    Attributes:
        role: The role.
        wanted: The target method, md5 or scram-sha-256.
        stored_before: Kind of the stored password before.
        stored: Kind of the stored password now.
        method_before: The method that the server required before.
        method: The method that it requires now; a login with it has worked.
        hba_line: The changed line of pg_hba.conf; None: no line had to be changed.
        backup: Copy of pg_hba.conf before the change; None: it was not changed.
        notes: What was not changed, and why.
    """

    role: str
    wanted: str
    stored_before: str | None
    stored: str
    method_before: str
    method: str
    hba_line: str | None
    backup: str | None
    notes: tuple[str, ...]
