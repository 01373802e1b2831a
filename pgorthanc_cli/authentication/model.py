"""What a check of the login finds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Plugin:
    """A release of Orthanc's plugin, and whether it can log in as this role.

    Attributes:
        release: `up to 3.2`, `3.3 and later`, or the one that was asked for.
        works: None where that depends on the machine on which Orthanc runs.
        why: The reason, and what that release needs in its configuration.
    """

    release: str
    works: bool | None
    why: str


@dataclass(frozen=True)
class SslMode:
    """One sslmode, tried with libpq up to the question for the password; no password is sent.

    Attributes:
        sslmode: libpq's word.
        works: Whether the login works that way; without a password, whether the server would let it try.
        encrypted: Whether the connection is; None if there is none.
        verifies: What libpq makes sure of: `nothing`, `authority` or `authority and host name`.
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
        used: Whether the login, as it was asked for, is encrypted; None if none was possible.
        offered: Whether the server offers it.
        protocol: Such as TLSv1.3; None without TLS.
        cipher: The cipher suite.
        subject: Whom the server's certificate is for.
        issuer: Who signed it.
        names: The host names and addresses that it is for.
        not_before: UTC.
        expires: UTC.
        days_left: Until it expires, negative afterwards.
        self_signed: Whether subject and issuer are the same.
        detail: Why there is no TLS, or why sslmode=prefer makes no use of it.
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

    def __str__(self) -> str:
        """As the table shows it."""
        if not self.offered:
            return f"not offered: {self.detail}"
        lines = [f"{'used' if self.used else 'offered, not used'}: {self.protocol}, {self.cipher}"]
        lines.extend(filter(None, [self.detail]))
        if self.expires is not None:
            kind = "self-signed" if self.self_signed else f"signed by {self.issuer}"
            lines.append(f"certificate for {self.subject} ({', '.join(self.names) or 'no names'}), {kind}")
            left = (
                f"{self.days_left} days left"
                if self.days_left is not None and self.days_left >= 0
                else "EXPIRED"
            )
            lines.append(f"valid until {self.expires:%Y-%m-%d %H:%M} UTC: {left}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """How this client logs in, and what that means for Orthanc.

    Attributes:
        role: The role that was examined.
        server: Host and port, or the folder of the socket.
        login: `works`, `password needed` (none was given), or `refused`.
        refusal: The reason, if refused; else empty.
        method: What the server asks on the connection as it was asked for; a word of pg_hba.conf, also
            scram-sha-256-plus (with channel binding), `no line` (no line lets this client in; `reject` where a line
            can be seen that says so), `refused` (for another reason than a line), `trust or peer` and `trust or
            cert` (it cannot be seen which).
        before_tls: What it asks in plain text.
        after_tls: What it asks within TLS; None without TLS.
        tls: Encryption and certificate.
        channel_binding: `used`, `offered` or `not offered`.
        sslmodes: Each sslmode, tried; empty through a socket, where there is no TLS.
        stored: Kind of the stored password: scram-sha-256, md5, none; None: not to be seen.
        password_encryption: Of new passwords of the session that was looked with.
        valid_until: When the password expires, `never`; None: not to be seen.
        hba_line: The line that decides: file:number: line; None: not to be seen.
        libpq: Version of libpq in this program.
        plugins: The verdict for each release.
        plugin: The release in use, as far as that is known, else the latest one: the one that counts.
        remedies: What to do, the best first.
        notes: What could not be seen, and which right is missing; what else is worth knowing.
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
    plugins: tuple[Plugin, ...] = ()
    plugin: str = "latest"
    remedies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether it goes through a socket of the machine."""
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
class Fixed:
    """What `fix` has changed.

    Attributes:
        role: The role.
        wanted: md5 or scram-sha-256.
        stored_before: Kind of the stored password before.
        stored: Kind of the stored password now.
        method_before: What the server asked before.
        method: What it asks now; a login with it has worked.
        hba_line: The line as it is now; None: no line had to be changed.
        backup: Copy of pg_hba.conf as it was before; None: it was not changed.
        notes: What was left as it is, and why.
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
