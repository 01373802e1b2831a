"""Access to PostgreSQL, the only room that connects: targets, sessions, advisory locks, and their errors."""

from pgorthanc_cli.db.advisory import (
    LOCK_CREATE_INSTANCE,
    LOCK_DATABASE_SETUP,
    LOCK_INDEX,
    LOCK_MOVE,
    LOCK_NAMES,
    LOCK_REINDEX,
    LOCK_STORAGE,
    LOCK_TRANSITION,
    OUR_LOCKS,
    LockHolder,
    advisory_lock,
    held_error,
    lock_holders,
)
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
    effective_parameters,
    parse_dsn,
    replication_session,
    session,
    wait_for_answer,
)
from pgorthanc_cli.db.endpoint import Endpoint, endpoint
from pgorthanc_cli.db.safe_session import (
    READ_PREAMBLE,
    SAFE_SEARCH_PATH,
    Session,
    backend_pid,
    described_rows,
    quote_ident,
    reset_statement,
    row,
    rows,
    statement,
    trusted_rows,
    value,
)
from pgorthanc_cli.db.scans import announce_scans
from pgorthanc_cli.db.statement_errors import error_hint, primary_message, translate_errors
from pgorthanc_cli.errors import MissingDatabase, PasswordRequired

__all__ = [
    "KEEPALIVE", "LOCK_CREATE_INSTANCE", "LOCK_DATABASE_SETUP", "LOCK_INDEX",
    "LOCK_MOVE", "LOCK_NAMES", "LOCK_REINDEX", "LOCK_STORAGE", "LOCK_TRANSITION", "MASK",
    "OUR_LOCKS", "READ_PREAMBLE",
    "SAFE_SEARCH_PATH", "SECRETS", "Endpoint", "LockHolder", "MissingDatabase", "PasswordRequired",
    "Session", "Target", "advisory_lock", "allow_writes", "announce_scans", "backend_pid", "check_schema",
    "check_writable", "connect", "connect_async", "described_rows",
    "effective_parameters", "endpoint", "error_hint", "held_error", "lock_holders", "parse_dsn", "primary_message",
    "quote_ident", "replication_session", "reset_statement", "row", "rows", "session", "statement",
    "translate_errors", "trusted_rows", "value", "wait_for_answer",
]  # fmt: skip
