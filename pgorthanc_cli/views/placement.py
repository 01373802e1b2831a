"""The page of `storage show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pgorthanc_cli.placement import Area, Shown
from pgorthanc_cli.text import plural, printable, size
from pgorthanc_cli.views.page import Block, Note, Page, Table

_AREAS = {
    "postgresql": "large objects of the database",
    "filesystem": "files in StorageDirectory",
    "advanced-storage": "files of the advanced-storage plugin",
    "adopted": "adopted files, which Orthanc only reads",
    "unknown": "kept by a storage plugin that pgorthanc does not know",
}
_CONTENTS = {
    "dicom": "DICOM",
    "dicom-as-json": "DICOM as JSON",
    "dicom-until-pixel-data": "DICOM until pixel data",
    "user": "attached by users or plugins",
}
# In its own transaction each: ALTER LARGE OBJECT takes a lock that is kept until the end of one.
_NEW_OWNER = """DO $$ DECLARE object oid; BEGIN
    FOR object IN SELECT oid FROM pg_largeobject_metadata WHERE pg_get_userbyid(lomowner) <> {owner}
            AND oid IN (SELECT content FROM {schema}.storagearea) LOOP
        EXECUTE format('ALTER LARGE OBJECT %s OWNER TO %I', object, {owner}); COMMIT;
    END LOOP; END $$;"""


def page(result: Shown, schema: str, check: str = "") -> Page:
    """Return the page.

    Args:
        result: The answer of `placement.show`.
        schema: The namespace of the index, for SQL to paste.
        check: The command that checks index against storage.
    """
    blocks: list[Block] = []
    if result.areas:
        blocks.append(
            Table(
                tuple(map(_area_row, result.areas)), ("where", "attachments", "content", "takes"), (1, 2, 3)
            )
        )
        blocks.append(_contents(result))
    blocks += _groups(result)
    blocks += _findings(result, schema)
    steps = [Note("To check that index and files fit together:", paste=check)] if check else []
    bad = result.orphans or result.wrong_owner
    return Page(
        _headline(result.areas),
        (str(result.endpoint), *result.endpoint.login),
        tuple(blocks),
        tuple(steps),
        "warning" if bad else "ok",
    )


def _headline(areas: Sequence[Area]) -> str:
    if not areas:
        return "The index has no attachments."
    count, taken = sum(area.attachments for area in areas), sum(area.stored_bytes for area in areas)
    return (
        f"{plural(count, 'attachment')} {'takes' if count == 1 else 'take'} {size(taken)}"
        f"{f', in {len(areas)} places' if len(areas) > 1 else ''}."
    )


def _area_row(area: Area) -> tuple[str, str, str, str]:
    name = _AREAS[area.kind] + (f", storage {printable(area.storage)}" if area.storage else "")
    overhead = "" if not area.overhead_percent else f" ({area.overhead_percent:+,.0f}%)"
    return name, f"{area.attachments:,}", size(area.bytes), size(area.stored_bytes) + overhead


def _contents(result: Shown) -> Table:
    rows = []
    for each in result.contents:
        where = "large objects" if each.area == "postgresql" else each.area
        compression = "" if each.compression == "none" else f", {each.compression}"
        rows.append(
            (
                f"{_CONTENTS[each.content]}{compression}",
                where,
                f"{each.attachments:,}",
                size(each.stored_bytes),
            )
        )
    return Table(tuple(rows), ("kind", "where", "attachments", "stored"), (2, 3))


def _groups(result: Shown) -> Iterator[Table]:
    for by in dict.fromkeys(group.by for group in result.groups):
        rows = tuple(
            (printable(each.value) or "unknown", f"{each.attachments:,}", size(each.stored_bytes))
            for each in result.groups
            if each.by == by
        )
        yield Table(rows, (by, "attachments", "stored"), (1, 2), all_with="--json")


def _findings(result: Shown, schema: str) -> Iterator[Note]:
    if result.wrong_owner:
        verb = "belongs" if result.wrong_owner == 1 else "belong"
        owner = result.owner or ""
        yield Note(
            f"{plural(result.wrong_owner, 'large object')} {verb} to another role",
            "problem",
            (
                f"Orthanc's role {printable(owner)} cannot delete them: DELETE fails in Orthanc.",
                "To correct their owner, as a superuser in psql:",
            ),
            _NEW_OWNER.format(schema=_identifier(schema), owner="'" + owner.replace("'", "''") + "'"),
        )
    if result.orphans:
        yield Note(
            f"{plural(result.orphans, 'large object')} {'is' if result.orphans == 1 else 'are'} of no attachment",
            "warning",
            ("They take space. What is being stored at this moment is among them.",),
        )
    if result.other_objects:
        yield Note(
            f"{plural(result.other_objects, 'large object')} of other roles: what the large objects take includes them."
        )
    if result.unreadable_tables:
        tables = ", ".join(map(printable, result.unreadable_tables))
        yield Note(
            "Large objects that no table names could not be looked for",
            "unknown",
            (f"This role may not read {tables}, which may name some.",),
        )


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
