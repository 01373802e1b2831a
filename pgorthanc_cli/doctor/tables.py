"""The tables: indexes that are there and can be used, work that waits, rows that nobody tidied up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pgorthanc_cli.doctor.model import Status, Subject, Verdict
from pgorthanc_cli.schema import catalog

_MB = 1_000_000
_BLOATED_BYTES, _FEW_ROWS = 64 * _MB, 20_000
_DEAD_ROWS, _DEAD_SHARE = 100_000, 0.4
_MANY_NOTES = 100_000
_UNUSED_BYTES = 100 * _MB

# Written with every instance, and emptied again by Orthanc's housekeeping: queues, which must stay small.
_QUEUES = ("globalintegerschanges", "invalidchildcounts")

# What Orthanc asks all day; none of it may read a table as a whole.
_TYPICAL = {
    "a resource by its public id": "SELECT internalid FROM index.resources WHERE publicid = 'x'",
    "the children of a resource": "SELECT internalid FROM index.resources WHERE parentid = 1",
    "the main DICOM tags of a resource": "SELECT value FROM index.maindicomtags WHERE id = 1",
    "a resource by a DICOM identifier": "SELECT id FROM index.dicomidentifiers WHERE value = 'x'",
    "the metadata of a resource": "SELECT value FROM index.metadata WHERE id = 1 AND type = 1",
    "the attachments of a resource": "SELECT uuid FROM index.attachedfiles WHERE id = 1",
    "the changes since a number": "SELECT seq FROM index.changes WHERE seq > 1 ORDER BY seq LIMIT 10",
}
_EXTRA = """
    SELECT indexrelname, pg_relation_size(indexrelid) FROM pg_stat_user_indexes JOIN pg_index USING (indexrelid)
        WHERE schemaname = index_schema() AND NOT indisunique AND idx_scan = 0
"""
_INVALID = """
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
_NOTES = "SELECT count(*) FROM (SELECT FROM index.globalintegerschanges LIMIT %s) AS noted"
_MARKS = "SELECT count(*) FROM (SELECT FROM index.invalidchildcounts LIMIT %s) AS marked"
_MISSING = "SELECT EXISTS (SELECT FROM index.resources WHERE resourcetype < 3 AND childcount IS NULL)"


def indexes(subject: Subject) -> Verdict:
    """Whether each index is there, valid, and good for what Orthanc asks."""
    invalid = [name for (name,) in subject.rows(_INVALID)]
    unfit = list(_without_index(subject))
    wanted = {name for number in catalog.revisions() for name in catalog.expected(number, with_storage=True)}
    unused = [
        f"{name} ({size // _MB} MB)"
        for name, size in subject.rows(_EXTRA)
        if size > _UNUSED_BYTES and f"index {name}" not in wanted
    ]
    words = [
        *(f"{name} is invalid" for name in invalid),
        *(f"no index serves: {what}" for what in unfit),
        *(f"{what} is none of Orthanc's, was never used, and slows down every write" for what in unused),
    ]
    return Verdict(
        "CRITICAL" if unfit else "WARNING" if words else "OK",
        "; ".join(words) or f"all are valid, and serve {len(_TYPICAL)} typical queries",
        "missing: pgorthanc verify schema --repair; invalid: REINDEX INDEX CONCURRENTLY name; unused: DROP INDEX "
        "CONCURRENTLY name",
        {"invalid_indexes": len(invalid)},
    )


def _without_index(subject: Subject) -> Iterator[str]:
    """Typical queries for which the server would have to read a whole table."""
    for what, query in _TYPICAL.items():
        # Small tables are rightly read as a whole. Both statements are one transaction, as they are sent together.
        ((plan,),) = subject.rows(f"SET LOCAL enable_seqscan = off; EXPLAIN (FORMAT JSON) {query}")
        if not _searches(plan[0]["Plan"]):
            yield what


def _searches(plan: dict[str, Any]) -> bool:
    """Whether an index leads to the rows: one that is only walked through has no condition."""
    return "Index Cond" in plan or any(map(_searches, plan.get("Plans", [])))


def counters(subject: Subject) -> Verdict:
    """Notes that wait to be added to the counters."""
    if "table globalintegerschanges" not in subject.found:
        return Verdict("OK", "kept up to date with every change at this revision")
    (waiting,) = subject.row(_NOTES, _MANY_NOTES)
    return Verdict(
        "WARNING" if waiting >= _MANY_NOTES else "OK",
        f"{_at_most(waiting, _MANY_NOTES)} notes wait to be added",
        "an Orthanc adds them while it runs (housekeeping); does one run? Otherwise: SELECT updatestatistics();",
        {"pending_notes": waiting},
    )


def child_counts(subject: Subject) -> Verdict:
    """Numbers of children that Orthanc has to count at each request."""
    if "column resources.childcount" not in subject.found:
        return Verdict("OK", "not kept at this revision")
    marked = subject.row(_MARKS, _MANY_NOTES)[0] if "table invalidchildcounts" in subject.found else 0
    (missing,) = subject.row(_MISSING)
    words = [f"{_at_most(marked, _MANY_NOTES)} wait to be counted again"]
    if missing:
        words.append("some were never counted, and Orthanc counts them at each request")
    return Verdict(
        "WARNING" if missing or marked >= _MANY_NOTES else "OK",
        "; ".join(words),
        "run: pgorthanc upgrade --phase finish",
        {"pending_child_counts": marked},
    )


def vacuum(subject: Subject) -> Verdict:
    """Rows that nobody tidied up."""
    wasted: list[str] = []
    disabled: list[str] = []
    dead_rows = 0
    for name, live, dead, size, last, off in subject.rows(_TABLES):
        dead_rows += dead
        if off:
            disabled.append(name)
        if (name in _QUEUES and size > _BLOATED_BYTES and live < _FEW_ROWS) or (
            dead > _DEAD_ROWS and dead > _DEAD_SHARE * max(live, 1)
        ):
            wasted.append(
                f"{name}: {size // _MB} MB, {live:,} rows, {dead:,} dead ones, last tidied {last or 'never'}"
            )
    words = [*wasted, *(f"autovacuum is off for table {name}" for name in disabled)]
    status: Status = "WARNING" if words else "OK"
    names = ", ".join(line.partition(":")[0] for line in wasted)
    return Verdict(
        status,
        "; ".join(words) or f"tables are tidy ({dead_rows:,} dead rows)",
        f"look at transactions and settings above, then: VACUUM (ANALYZE) {names or 'table'}; with FULL it also gives "
        "the room back, but locks the table"
        if not disabled
        else f"ALTER TABLE {disabled[0]} RESET (autovacuum_enabled);",
        {"dead_rows": dead_rows},
    )


def _at_most(count: int, limit: int) -> str:
    return f"{count:,}" if count < limit else f"{limit:,} or more"
