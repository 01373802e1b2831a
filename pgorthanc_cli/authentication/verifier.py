"""Whether a password belongs to what the server has stored of it (PostgreSQL, "pg_authid"; RFC 5802, RFC 7677)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from pgorthanc_cli.db.wire import prepared

_SCRAM = re.compile(r"SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):")


def matches(stored: str, role: str, password: str) -> bool:
    """Whether the stored md5 or SCRAM verifier was made of this password; False for any other kind."""
    found = _SCRAM.match(stored)
    if found is None:
        return hmac.compare_digest(stored, "md5" + hashlib.md5((password + role).encode()).hexdigest())  # noqa: S324
    iterations, salt, stored_key = int(found[1]), base64.b64decode(found[2]), base64.b64decode(found[3])
    return any(
        hmac.compare_digest(stored_key, _stored_key(word, salt, iterations))
        for word in (password, prepared(password))
    )


def _stored_key(password: str, salt: bytes, iterations: int) -> bytes:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    return hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
