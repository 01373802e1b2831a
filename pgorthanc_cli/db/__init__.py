"""The one way to a PostgreSQL server: targets, connections, sessions, advisory locks, and their errors."""

from pgorthanc_cli.db.advisory import (
    LOCK_CREATE_INSTANCE,
    LOCK_DATABASE_SETUP,
    LOCK_INDEX,
    LOCK_NAMES,
    LOCK_STORAGE,
    LOCK_TRANSITION,
    LockHolder,
    advisory_lock,
    lock_holders,
)
from pgorthanc_cli.db.connect_errors import MissingDatabase, PasswordRequired
from pgorthanc_cli.db.connection import (
    KEEPALIVE,
    MASK,
    SECRETS,
    Target,
    allow_writes,
    check_schema,
    check_writable,
    connect,
    connect_async,
    effective,
    finish,
    parse,
    replication_session,
    session,
)
from pgorthanc_cli.db.safe_session import (
    OWN_PATH,
    READING,
    Session,
    described,
    process,
    quote_ident,
    row,
    rows,
    statement,
    trusted,
    value,
)
from pgorthanc_cli.db.statement_errors import hint, primary_message, translated

__all__ = [
    "KEEPALIVE", "LOCK_CREATE_INSTANCE", "LOCK_DATABASE_SETUP", "LOCK_INDEX", "LOCK_NAMES", "LOCK_STORAGE",
    "LOCK_TRANSITION", "MASK", "OWN_PATH", "READING", "SECRETS", "LockHolder", "MissingDatabase",
    "PasswordRequired", "Session", "Target", "advisory_lock", "allow_writes", "check_schema", "check_writable",
    "connect", "connect_async", "described", "effective", "finish", "hint", "lock_holders", "parse",
    "primary_message", "process", "quote_ident", "replication_session", "row", "rows", "session", "statement",
    "translated", "trusted", "value",
]  # fmt: skip
