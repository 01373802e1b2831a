"""Passwords: answers to PostgreSQL's md5 and SCRAM-SHA-256 challenges, and what the server stores of a password.

Facts: PostgreSQL, "pg_authid", "SASL Authentication"; RFC 5802 and RFC 7677 for SCRAM, RFC 4013 for SASLprep.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata

_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):")
_PROHIBITED = (
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
    stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
    stringprep.in_table_c9, stringprep.in_table_a1,
)  # fmt: skip


def verifier_matches(verifier: str, role: str, password: str) -> bool:
    """Return whether a stored md5 or SCRAM verifier was made of this password; False for any other kind."""
    match = _VERIFIER.match(verifier)
    if match is None:
        digest = hashlib.md5((password + role).encode()).hexdigest()  # noqa: S324 - PostgreSQL's format
        return hmac.compare_digest(verifier, f"md5{digest}")
    iterations, salt, stored_key = int(match[1]), base64.b64decode(match[2]), base64.b64decode(match[3])
    # A client without SASLprep stores the verifier of the password as it is typed.
    return any(
        hmac.compare_digest(stored_key, _stored_key(_client_key(candidate, salt, iterations)))
        for candidate in (password, saslprep(password))
    )


def md5_answer(role: str, password: str, salt: bytes) -> bytes:
    """Return the answer to an md5 challenge."""
    inner = hashlib.md5(password.encode() + role.encode()).hexdigest()  # noqa: S324 - the protocol
    return b"md5" + hashlib.md5(inner.encode() + salt).hexdigest().encode()  # noqa: S324


class ScramClient:
    """The client's side of one SCRAM-SHA-256 exchange without channel binding."""

    def __init__(self, password: str) -> None:
        self._password = password
        # The server knows the role from the start-up message, so the name here is empty.
        self._bare = f"n=,r={base64.b64encode(secrets.token_bytes(18)).decode()}"

    def first_message(self) -> bytes:
        """Return the client-first-message."""
        return b"n,," + self._bare.encode()

    def final_message(self, challenge: str) -> bytes:
        """Return the client-final-message, which proves the password.

        Raises:
            ConnectionError: The server's challenge is malformed.
        """
        attributes = dict(part.partition("=")[::2] for part in challenge.split(","))
        try:
            salt, iterations = base64.b64decode(attributes["s"]), int(attributes["i"])
            nonce = attributes["r"]
        except (KeyError, ValueError):
            raise ConnectionError("the server's challenge cannot be understood") from None
        # biws is base64 of `n,,`: no channel binding.
        final = f"c=biws,r={nonce}"
        client_key = _client_key(saslprep(self._password), salt, iterations)
        message = f"{self._bare},{challenge},{final}".encode()
        signature = hmac.digest(_stored_key(client_key), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        return f"{final},p={base64.b64encode(proof).decode()}".encode()


def saslprep(password: str) -> str:
    """Return the password as SASLprep writes it; unchanged if it holds a prohibited character."""
    mapped = (" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    normalized = unicodedata.normalize("NFKC", "".join(mapped))
    return password if any(test(c) for test in _PROHIBITED for c in normalized) else normalized


def _client_key(password: str, salt: bytes, iterations: int) -> bytes:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    return hmac.digest(salted, b"Client Key", "sha256")


def _stored_key(client_key: bytes) -> bytes:
    return hashlib.sha256(client_key).digest()
