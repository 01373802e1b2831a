"""Checks of tables and indexes: queries without an index, pending work, bloat, stored files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg2.errors

from pgorthanc_cli import db
from pgorthanc_cli.doctor.model import Status, Subject, Verdict, check
from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.verify import content
from pgorthanc_cli.schema.verify.model import Finding
from pgorthanc_cli.text import plural, size

_MB = 1_000_000
_BLOATED_BYTES, _FEW_ROWS = 64 * _MB, 20_000
_DEAD_ROWS, _DEAD_SHARE = 100_000, 0.4
_MANY_PENDING = 100_000
UNUSED_BYTES = 100 * _MB

# Orthanc writes to them with every instance, and its housekeeping empties them again.
_QUEUES = ("globalintegerschanges", "invalidchildcounts")

# None of the queries that Orthanc sends all day may read a whole table.
_TYPICAL = {
    "a resource by its public id": "SELECT internalid FROM index.resources WHERE publicid = 'x'",
    "the children of a resource": "SELECT internalid FROM index.resources WHERE parentid = 1",
    "the main DICOM tags of a resource": "SELECT value FROM index.maindicomtags WHERE id = 1",
    "a resource by a DICOM identifier": "SELECT id FROM index.dicomidentifiers WHERE value = 'x'",
    "the metadata of a resource": "SELECT value FROM index.metadata WHERE id = 1 AND type = 1",
    "the attachments of a resource": "SELECT uuid FROM index.attachedfiles WHERE id = 1",
    "the changes since a number": "SELECT seq FROM index.changes WHERE seq > 1 ORDER BY seq LIMIT 10",
}
# A unique index serves even if no query ever reads it.
_UNUSED_INDEXES = """
    SELECT indexrelname, pg_relation_size(indexrelid) FROM pg_stat_user_indexes JOIN pg_index USING (indexrelid)
        WHERE schemaname = index_schema() AND NOT indisunique AND idx_scan = 0
"""
# An index that is being built CONCURRENTLY is invalid until it is complete.
_INVALID_INDEXES = """
    SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE c.relnamespace = quote_ident(index_schema())::regnamespace AND NOT i.indisvalid
            AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid) ORDER BY 1
"""
_TABLES = """
    SELECT s.relname, s.n_live_tup, s.n_dead_tup, pg_table_size(s.relid),
           greatest(s.last_autovacuum, s.last_vacuum)::timestamp(0)::text,
           'autovacuum_enabled=false' = ANY (coalesce(c.reloptions, '{}'))
        FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
        WHERE s.schemaname = index_schema() ORDER BY 1
"""
# At most so many are counted: without housekeeping there may be millions.
_PENDING_COUNTERS = "SELECT count(*) FROM (SELECT FROM index.globalintegerschanges LIMIT %s) AS pending"
_PENDING_CHILD_COUNTS = "SELECT count(*) FROM (SELECT FROM index.invalidchildcounts LIMIT %s) AS pending"
_MISSING_CHILD_COUNTS = (
    "SELECT EXISTS (SELECT FROM index.resources WHERE resourcetype < 3 AND childcount IS NULL)"
)


@check("indexes", needs_index=True)
def indexes(subject: Subject) -> Verdict:
    """Check that the indexes are valid and serve Orthanc's queries."""
    invalid = [name for (name,) in db.rows(subject.conn, _INVALID_INDEXES)]
    without_index = list(_queries_without_index(subject))
    orthanc_names = {
        name for number in catalog.revisions() for name in catalog.expected(number, with_storage=True)
    } | {f"index {catalog.TRIGRAM_INDEX}"}
    unused = [
        (name, index_bytes)
        for name, index_bytes in db.rows(subject.conn, _UNUSED_INDEXES)
        if index_bytes > UNUSED_BYTES and not {f"index {name}", name} & {*orthanc_names, *invalid}
    ]
    # A unique index that someone has added may be invalid because of duplicates: they stay.
    verbs = {name: "REINDEX" if f"index {name}" in orthanc_names else "DROP" for name in invalid}
    problems = [
        *(
            f"{name} is invalid{'' if verb == 'REINDEX' else ', and the plugin does not need it'}"
            for name, verb in verbs.items()
        ),
        *(f"no index serves: {query}" for query in without_index),
        *(
            f"{name} ({size(index_bytes)}), which the plugin does not need, was never used and "
            "slows down every write"
            for name, index_bytes in unused
        ),
    ]
    fixes = [f"{verb} INDEX CONCURRENTLY {_qualified(subject, name)};" for name, verb in verbs.items()]
    fixes += [f"DROP INDEX CONCURRENTLY {_qualified(subject, name)};" for name, _ in unused]
    hint, command = "As the owner of the index:", ""
    if without_index:
        hint, command = "Such queries read whole tables. Show how to repair it:", "verify schema --print-sql"
        fixes = []  # the missing ones come first
    return Verdict(
        "CRITICAL" if without_index else "WARNING" if problems else "OK",
        "; ".join(problems) or f"all are valid and serve {len(_TYPICAL)} typical queries",
        hint,
        {"invalid_indexes": len(invalid)},
        statements="\n".join(fixes),
        command=command,
    )


def _qualified(subject: Subject, name: str) -> str:
    return f"{subject.schema}.{db.quote_ident(name)}"


def _queries_without_index(subject: Subject) -> Iterator[str]:
    """Yield the typical queries for which the server has to read a whole table."""
    for name, query in _TYPICAL.items():
        # The server reads a small table as a whole although it has an index, unless it must not.
        # Sent together, both statements are one transaction, so that the setting is local to it.
        plans = db.value(subject.conn, f"SET LOCAL enable_seqscan = off; EXPLAIN (FORMAT JSON) {query}")
        if not _uses_index_condition(plans[0]["Plan"]):
            yield name


def _uses_index_condition(plan: dict[str, Any]) -> bool:
    """Return whether an index leads to the rows; one that is read as a whole has no condition."""
    return "Index Cond" in plan or any(map(_uses_index_condition, plan.get("Plans", [])))


@check("trigram", needs_index=True)
def trigram(subject: Subject) -> Verdict:
    """Check that searches with wildcards are fast."""
    state = catalog.trigram(subject.conn, subject.catalog)
    if state == "valid":
        return Verdict("OK", "wildcard searches use an index")
    if state == "unavailable":
        return Verdict(
            "WARNING",
            "wildcard searches are slow: the server lacks the extension pg_trgm",
            "Install it on the server (package postgresql-contrib), then:",
            command="doctor trigram",
        )
    index = _qualified(subject, catalog.TRIGRAM_INDEX)
    if state == "invalid":
        return Verdict(
            "WARNING",
            f"wildcard searches are slow: the index {catalog.TRIGRAM_INDEX} is invalid",
            "As the owner of the index:",
            statements=f"REINDEX INDEX CONCURRENTLY {index};",
        )
    return Verdict(
        "WARNING",
        f"wildcard searches are slow: the index {catalog.TRIGRAM_INDEX} is missing",
        "As the owner of the database, while Orthanc may run:",
        statements="CREATE EXTENSION IF NOT EXISTS pg_trgm;\n"
        f"CREATE INDEX CONCURRENTLY {catalog.TRIGRAM_INDEX} ON {subject.schema}.dicomidentifiers "
        "USING gin (value gin_trgm_ops);",
    )


@check("counters", needs_index=True)
def counters(subject: Subject) -> Verdict:
    """Check that changes of the counters do not pile up."""
    if "table globalintegerschanges" not in subject.catalog:
        return Verdict("OK", "kept up to date with every change at this revision")
    pending = db.value(subject.conn, _PENDING_COUNTERS, _MANY_PENDING)
    return Verdict(
        "WARNING" if pending >= _MANY_PENDING else "OK",
        f"{_or_more(pending, _MANY_PENDING)} pending counter updates",
        "A running Orthanc applies them (housekeeping). If none is running, apply them here:",
        {"pending_notes": pending},
        statements=f"SET search_path TO {subject.schema};\nSELECT updatestatistics();",
    )


@check("child-counts", needs_index=True)
def child_counts(subject: Subject) -> Verdict:
    """Check for child counts that Orthanc has to compute at each request."""
    if "column resources.childcount" not in subject.catalog:
        return Verdict("OK", "not kept at this revision")
    pending = 0
    if "table invalidchildcounts" in subject.catalog:
        pending = db.value(subject.conn, _PENDING_CHILD_COUNTS, _MANY_PENDING)
    messages = [f"{_or_more(pending, _MANY_PENDING)} pending child counts"]
    missing = _some_child_counts_are_missing(subject)
    if missing is None:
        messages.append("missing ones were not looked for, as resources is large (--deep does)")
    if missing:
        messages.append("some were never counted, so Orthanc counts them at each request")
    return Verdict(
        "WARNING" if missing or pending >= _MANY_PENDING else "OK",
        "; ".join(messages),
        "Count them now, while Orthanc may run:",
        {"pending_child_counts": pending},
        command="upgrade --phase finish",
    )


def _some_child_counts_are_missing(subject: Subject) -> bool | None:
    """Return whether there are any; None: that would take longer than the limit of a scan."""
    limit_ms = 0 if subject.deep else round(1000 * subject.scan_limit_s)
    # Sent together, both statements are one transaction, so that the limit is local to it.
    query = f"SET LOCAL statement_timeout = {limit_ms}; {_MISSING_CHILD_COUNTS}"
    try:
        return bool(db.value(subject.conn, query))
    except psycopg2.errors.QueryCanceled:
        if subject.deep:
            raise
        return None


@check("vacuum", needs_index=True)
def vacuum(subject: Subject) -> Verdict:
    """Check for bloat, and for tables without autovacuum."""
    bloated: dict[str, str] = {}
    disabled: list[str] = []
    dead_rows = 0
    for name, live, dead, table_bytes, last_vacuum, is_disabled in db.rows(subject.conn, _TABLES):
        dead_rows += dead
        if is_disabled:
            disabled.append(name)
        has_dead_rows = dead > _DEAD_ROWS and dead > _DEAD_SHARE * max(live, 1)
        if has_dead_rows or (name in _QUEUES and table_bytes > _BLOATED_BYTES and live < _FEW_ROWS):
            bloated[name] = (
                f"{name} is bloated: {size(table_bytes)}, {plural(live, 'row')}, "
                f"{plural(dead, 'dead row')}, last vacuum {last_vacuum or 'never'}"
            )
    problems = [
        *bloated.values(),
        *(f"autovacuum is off for table {name}" for name in disabled),
    ]
    status: Status = "WARNING" if problems else "OK"
    hint = "As the owner of the tables:"
    if bloated:
        hint = "If the checks transactions and settings passed, as the owner of the tables:"
    fixes = [f"ALTER TABLE {_qualified(subject, name)} RESET (autovacuum_enabled);" for name in disabled]
    fixes += [f"VACUUM (ANALYZE) {_qualified(subject, name)};" for name in bloated]
    return Verdict(
        status,
        "; ".join(problems) or f"no bloat ({plural(dead_rows, 'dead row')})",
        hint,
        {"dead_rows": dead_rows},
        statements="\n".join(fixes),
    )


def _or_more(count: int, limit: int) -> str:
    if not count:
        return "no"
    return f"{count:,}" if count < limit else f"{limit:,} or more"


@check("large-objects", needs_index=True)
def large_objects(subject: Subject) -> Verdict:
    """Check that Orthanc can read and delete the large objects of its storage area."""
    if "table storagearea" not in subject.catalog:
        return Verdict("OK", "no PostgreSQL storage area in this schema")
    findings = content.large_objects(
        subject.conn, subject.catalog, subject.target.schema, most=_sample(subject)
    )
    return _content_verdict(
        subject,
        findings,
        "storagearea",
        "large objects exist, and belong to the owner of storagearea",
    )


@check("attachments", needs_index=True)
def attachments(subject: Subject) -> Verdict:
    """Check that Orthanc can work with the rows of all stored files."""
    where = (subject.conn, subject.catalog, subject.target.schema)
    findings = [
        *content.customdata(*where, most=_sample(subject)),
        *content.hashes(*where, most=_sample(subject)),
    ]
    return _content_verdict(subject, findings, "attachedfiles", "hashes and customdata are readable")


def _sample(subject: Subject) -> int | None:
    """Return how many rows to read; None: all of them."""
    return None if subject.deep else subject.sample_rows


def _content_verdict(subject: Subject, findings: Sequence[Finding], table: str, healthy: str) -> Verdict:
    problems = [finding for finding in findings if finding.matters]
    hints = [finding.advice for finding in problems if finding.advice]
    fixes = [fix.sql for finding in problems for fix in finding.repair]
    if fixes:
        hints.append("Show how to repair it; this changes nothing yet:")
    messages = [f"{finding.difference}: {finding.why}" for finding in findings]
    scope = ""
    if not subject.deep:
        scope = f" (first {subject.sample_rows:,} rows of {table}; --deep reads all)"
    return Verdict(
        "CRITICAL" if problems else "OK",
        ("; ".join(messages) or healthy) + scope,
        " ".join(hints) or None,
        statements="\n".join(fixes),
        command="verify schema --deep --print-sql" if fixes else "",
    )
