"""The finding about the index for wildcard searches, for every page that shows an index."""

from __future__ import annotations

from pgorthanc_cli import db
from pgorthanc_cli.schema.catalog import TRIGRAM_INDEX
from pgorthanc_cli.views.page import Note

VALID = "wildcard searches use an index"


def finding(state: str, schema: str) -> Note | None:
    """Return the finding about a trigram index that is not valid, see `catalog.trigram`."""
    if state == "valid":
        return None
    namespace = db.quote_ident(schema)
    if state == "invalid":
        return Note(
            "The index for wildcard searches is not valid, so these searches are slow.",
            "warning",
            ("It is still being built, or that failed. In the latter case, as its owner:",),
            f"REINDEX INDEX CONCURRENTLY {namespace}.{TRIGRAM_INDEX};",
        )
    reason = "The server does not have the extension pg_trgm. Install the package postgresql-contrib on it."
    details = ("As the owner of the database (up to PostgreSQL 12, as a superuser):",)
    return Note(
        "There is no index for wildcard searches, so these searches are slow.",
        "warning",
        (reason, *details) if state == "unavailable" else details,
        "CREATE EXTENSION IF NOT EXISTS pg_trgm;\n"
        f"CREATE INDEX CONCURRENTLY {TRIGRAM_INDEX}\n"
        f"    ON {namespace}.dicomidentifiers USING gin (value gin_trgm_ops);",
    )
