"""Which instances a reindex is about, as SQL.

A condition is on the aliases p, st, se and i of `plan.sql`: patient, study, series, instance.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from psycopg2 import sql

from pgorthanc_cli import db, dicom
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.index.model import NEW_INSTANCE
from pgorthanc_cli.reindex.model import Selection
from pgorthanc_cli.text import printable

_ALIASES = ("p", "st", "se", "i")
# An instance and what is above it. Compared by ANY, which PostgreSQL cannot turn into a hash
# of all rows of the table: that would be built again for each part of the plan.
_ANCESTRY = "ANY (ARRAY[p.internalid, st.internalid, se.internalid, i.internalid])"


class Selected:
    """A selection, looked up in the index.

    Attributes:
        condition: What selects an instance.
        roots: Internal ids of the resources that were named.
        slow: What has no index, so that the patients take a scan of a table; empty: nothing.
    """

    def __init__(self, conn: db.Session, selection: Selection) -> None:
        """Look up what is named.

        Raises:
            UsageError: The index does not have a resource that is named.
        """
        self.conn = conn
        self.selection = selection
        self.roots = self._named()
        conditions = []
        if selection.resources:
            conditions.append(_within(sql.SQL("{}").format(sql.SQL(", ").join(map(sql.Literal, self.roots)))))
        # Identifiers first: their values have an index.
        tags = sorted(selection.tags, key=lambda pair: not _is_identifier(pair[0]))
        self._tagged = [_having(tag, value) for tag, value in tags]
        conditions += [
            sql.SQL("EXISTS ({} AND id = {})").format(query, sql.SQL(_ANCESTRY)) for query in self._tagged
        ]
        self.slow = ""
        if tags and not _is_identifier(tags[0][0]):
            self.slow = f"{dicom.name_of(tags[0][0])} has no index: searching all main DICOM tags once"
        if selection.since is not None:
            conditions.append(
                sql.SQL("EXISTS ({} AND internalid = ANY (ARRAY[i.internalid]))").format(
                    _since(selection.since)
                )
            )
        self.condition: sql.Composable = sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true")

    def _named(self) -> list[int]:
        roots: list[int] = []
        for level, public_ids in self.selection.resources:
            query = "SELECT publicid, internalid FROM index.resources WHERE resourcetype = %s AND publicid = ANY(%s)"
            ids_of = dict(db.rows(self.conn, query, level, list(public_ids)))
            self.conn.rollback()
            for public_id in public_ids:
                if public_id not in ids_of:
                    raise UsageError(
                        f"the index has no {LEVELS[level]} {printable(public_id)}",
                        "give the identifier that Orthanc shows in its address, not one of DICOM's UIDs",
                    )
            roots += ids_of.values()
        return roots

    def patients(self) -> Sequence[int]:
        """Return the internal ids of all patients that have such an instance, perhaps of some more."""
        selection = self.selection
        if selection.is_everything:
            query: sql.Composable = sql.SQL(
                "SELECT internalid FROM index.resources WHERE resourcetype = 0 ORDER BY internalid"
            )
        else:
            roots: sql.Composable = sql.SQL("NULL")
            if selection.resources:
                roots = sql.SQL(", ").join(map(sql.Literal, self.roots))
            elif self._tagged:
                roots = self._tagged[0]
            elif selection.since is not None:
                roots = _since(selection.since)
            query = sql.SQL(
                """WITH RECURSIVE ancestors AS (
                       SELECT internalid, parentid FROM index.resources WHERE internalid IN ({roots})
                       UNION SELECT r.internalid, r.parentid FROM index.resources r
                           JOIN ancestors a ON r.internalid = a.parentid)
                   SELECT internalid FROM ancestors WHERE parentid IS NULL ORDER BY internalid"""
            ).format(roots=roots)
        # 8 bytes each: an archive may have millions of them.
        ids = array("q", (number for (number,) in db.rows(self.conn, query)))
        self.conn.rollback()
        return ids


def _within(ids: sql.Composable) -> sql.Composable:
    """Return the condition that an instance, or a resource above it, is one of these."""
    parts = [sql.SQL("{}.internalid IN ({})").format(sql.SQL(alias), ids) for alias in _ALIASES]
    return sql.SQL("({})").format(sql.SQL(" OR ").join(parts))


def _having(tag: int, value: str) -> sql.Composable:
    """Return the ids of the resources with this value, by Orthanc's own index where it has one."""
    is_identifier = _is_identifier(tag)
    table = "dicomidentifiers" if is_identifier else "maindicomtags"
    return sql.SQL(
        f"SELECT id FROM index.{table} WHERE taggroup = {{}} AND tagelement = {{}} AND value = {{}}"  # noqa: S608
    ).format(
        sql.Literal(tag >> 16),
        sql.Literal(tag & 0xFFFF),
        sql.Literal(dicom.normalized(value) if is_identifier else value),
    )


def _is_identifier(tag: int) -> bool:
    return any(tag in level.identifiers for level in dicom.indexed_tags(dicom.Profile()).levels)


def _since(change: int) -> sql.Composable:
    return sql.SQL("SELECT internalid FROM index.changes WHERE seq > {} AND changetype = {}").format(
        sql.Literal(change), sql.Literal(NEW_INSTANCE)
    )


def parse_condition(text: str) -> tuple[int, str]:
    """Return tag and value of `TAG=VALUE`.

    Raises:
        UsageError: It is something else, or no such tag is known.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--where {printable(text)} is not TAG=VALUE", "write --where StudyDate=20261126")
    return dicom.parse_tag(name, "--where"), value
