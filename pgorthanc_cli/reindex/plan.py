"""Which file decides which resource, and the batches in which files are read.

Orthanc processes the instances of a request in ascending order of their public ids, and
each of them rewrites its parents: the greatest id below a resource decides it. Limited to
one level, the smallest does (STORAGE.md B1). Either is known before a file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from psycopg2 import sql

from pgorthanc_cli import db
from pgorthanc_cli.index import Capabilities, customdata
from pgorthanc_cli.reindex.model import INSTANCE, Decided, Item, Settings
from pgorthanc_cli.reindex.selection import Selected

_CHUNK_INSTANCES = 20_000  # about so many, of whole patients, are planned together
_FIRST_PATIENTS, _MAX_PATIENTS = 16, 4096
# Of the instances i.
_ANCESTORS = """JOIN index.resources se ON se.internalid = i.parentid
    JOIN index.resources st ON st.internalid = se.parentid JOIN index.resources p ON p.internalid = st.parentid"""


class Series(NamedTuple):
    """A series with selected instances, or with one that decides a parent.

    Attributes:
        patient, study, series: Internal and public ids.
        selected: How many of its instances are.
        decider: The instance that decides the series: its public id, or its internal id
            with `keep_first`.
    """

    patient: tuple[int, str]
    study: tuple[int, str]
    series: tuple[int, str]
    selected: int
    decider: Any


class Batch(NamedTuple):
    """Files that are read together.

    Attributes:
        items: The files.
        patients, studies, series, instances: Selected ones that the batch is the first (the
            last, for patients) to have.
        last_patient: All patients up to this one are complete with this batch; 0: none.
    """

    items: list[Item]
    patients: int
    studies: int
    series: int
    instances: int
    last_patient: int


class Planner:
    """Plans from a session that reads, patient by patient: memory is that of some thousand instances."""

    def __init__(
        self, conn: db.Session, capabilities: Capabilities, settings: Settings, selected: Selected
    ) -> None:
        """Take the open session."""
        self.conn = conn
        self.settings = settings
        self.selected = selected
        self._customdata = "NULL::bytea"
        if capabilities.custom_data:
            self._customdata = "NULLIF(a.customdata, ''::bytea)"
        elif capabilities.preserved_custom_data:  # a downgrade has put them aside
            self._customdata = """(SELECT k.customdata FROM index.pgorthanc_kept_customdata k
                WHERE k.id = a.id AND k.filetype = a.filetype AND k.uuid = a.uuid)"""
        # Instances are listed one by one only where each has a file to read.
        self._all_instances = INSTANCE in settings.levels and not settings.limit_to_level
        self._by_id = settings.keep_first
        self._better: Callable[[Any, Any], bool] = lambda one, other: bool(one < other)
        if not (settings.keep_first or settings.limit_to_level):
            self._better = lambda one, other: bool(one > other)

    def batches(self, patients: Sequence[int]) -> Iterator[Batch]:
        """Yield the batches of these patients, in their order."""
        start, count = 0, _FIRST_PATIENTS
        while start < len(patients):
            part = list(patients[start : start + count])
            series = self._series(part)
            yield from self._batches_of(series, part[-1])
            start += len(part)
            instances = sum(each.selected for each in series)
            share = _CHUNK_INSTANCES / max(instances, 1)
            # Patients differ in size: the next piece follows what the last one had, at most fourfold.
            count = max(1, min(_MAX_PATIENTS, int(len(part) * min(share, 4))))

    # --- deciding files -------------------------------------------------------------------

    def _series(self, patients: list[int]) -> list[Series]:
        """Return the series of patients, ordered by patient and study."""
        decider = "min(i.internalid)"
        if not self._by_id:
            # Hexadecimal digits and hyphens: byte order is Orthanc's.
            decider = f'{"min" if self.settings.limit_to_level else "max"}(i.publicid COLLATE "C")'
        # As at ingest: the first instance decides, whether it is selected or not.
        everything = self.settings.keep_first or self.settings.selection.is_everything
        query = sql.SQL(
            f"""SELECT p.internalid, p.publicid, st.internalid, st.publicid, se.internalid, se.publicid,
                       instances.selected, instances.decider
                FROM index.resources p
                JOIN index.resources st ON st.parentid = p.internalid
                JOIN index.resources se ON se.parentid = st.internalid
                -- For each series alone: GROUP BY would sort all instances.
                CROSS JOIN LATERAL (
                    SELECT count(*) FILTER (WHERE {{selected}}) AS selected, {decider} AS decider
                    FROM index.resources i WHERE i.parentid = se.internalid AND {{filter}}
                ) AS instances
                WHERE p.internalid = ANY(%s) AND instances.decider IS NOT NULL
                ORDER BY p.internalid, st.internalid, se.internalid"""  # noqa: S608 - constants
        ).format(
            selected=self.selected.condition,
            filter=sql.SQL("true") if everything else self.selected.condition,
        )
        rows = db.rows(self.conn, query, patients)
        self.conn.rollback()
        return [Series((r[0], r[1]), (r[2], r[3]), (r[4], r[5]), r[6], r[7]) for r in rows]

    def _deciders(self, series: Sequence[Series]) -> dict[Any, list[Decided]]:
        """Return what each deciding instance decides, but for itself."""
        best: dict[Decided, Any] = {}
        chosen = set()
        for each in series:
            for level, (number, public_id) in enumerate((each.patient, each.study, each.series)):
                resource = Decided(level, number, public_id)
                if each.selected:
                    chosen.add(resource)
                if resource not in best or self._better(each.decider, best[resource]):
                    best[resource] = each.decider
        deciders: dict[Any, list[Decided]] = {}
        for resource, decider in best.items():
            if resource in chosen and self._is_written(resource.level, resource.id):
                deciders.setdefault(decider, []).append(resource)
        return deciders

    def _is_written(self, level: int, number: int) -> bool:
        if self.settings.limit_to_level and self.selected.roots:
            return number in self.selected.roots
        return level in self.settings.levels

    # --- batches ----------------------------------------------------------------------------

    def _batches_of(self, series: Sequence[Series], last_patient: int) -> Iterator[Batch]:
        deciders = self._deciders(series)
        group: list[Series] = []
        size, seen_studies, seen_patients = 0, set[int](), set[int]()
        for number, each in enumerate(series):
            decides = each.decider in deciders
            if each.selected or decides:
                group.append(each)
                size += each.selected if self._all_instances else int(decides)
            is_last = number == len(series) - 1
            if size < self.settings.batch_files and not is_last:
                continue
            # A study may go on in the next batch: it is counted in its first one only.
            studies = {s.study[0] for s in group if s.selected} - seen_studies
            patients = {s.patient[0] for s in group if s.selected} - seen_patients
            seen_studies |= studies
            seen_patients |= patients
            yield Batch(
                self._items(group, deciders),
                len(patients),
                len(studies),
                sum(bool(s.selected) for s in group),
                sum(s.selected for s in group),
                last_patient if is_last else each.patient[0] - 1,
            )
            group, size = [], 0
        if not series:
            yield Batch([], 0, 0, 0, 0, last_patient)

    def _items(self, group: Sequence[Series], deciders: dict[Any, list[Decided]]) -> list[Item]:
        """Return the files of some series: of all selected instances, and of those that decide."""
        column = "i.internalid" if self._by_id else "i.publicid"
        needed = [each.decider for each in group if each.decider in deciders]
        # Both ids have an index: where those that decide suffice, no other instance is looked at.
        scope: sql.Composable = sql.SQL(f"i.resourcetype = 3 AND {column} = ANY(%s)")
        arguments: list[list[Any]] = [needed]
        alone = self._instances_alone()
        ancestors, is_selected = "", sql.Composed([sql.SQL("false")])
        if self._all_instances or alone is not None:
            is_selected = sql.Composed([self.selected.condition if alone is None else alone])
            ancestors = "" if self.settings.selection.is_everything else _ANCESTORS
            scope = sql.SQL("({} OR {}) AND i.parentid = ANY(%s)").format(scope, is_selected)
            arguments.append([each.series[0] for each in group])
        query = sql.SQL(
            f"""SELECT i.internalid, i.publicid, i.parentid, {{is_selected}}, COALESCE(a.uuid, ''),
                       COALESCE(a.compressiontype, 1), COALESCE(a.uncompressedsize, 0),
                       COALESCE(m.value, ''), {self._customdata}
                FROM index.resources i {ancestors}
                LEFT JOIN index.attachedfiles a ON a.id = i.internalid AND a.filetype = 1
                LEFT JOIN index.metadata m ON m.id = i.internalid AND m.type = 14
                WHERE {{scope}}
                ORDER BY i.internalid"""  # noqa: S608 - constants
        ).format(is_selected=is_selected, scope=scope)
        rows = db.rows(self.conn, query, *arguments)
        self.conn.rollback()
        parents = {each.series[0]: each for each in group}
        return [self._item(row, parents, deciders) for row in rows if row[2] in parents]

    def _instances_alone(self) -> sql.Composable | None:
        """Return what selects instances that are written alone, None if whole series are."""
        if not self.settings.limit_to_level:
            return None
        if self.selected.roots:
            ids = sql.SQL(", ").join(map(sql.Literal, self.selected.roots))
            return sql.SQL("i.internalid IN ({})").format(ids)
        return self.selected.condition if INSTANCE in self.settings.levels else sql.SQL("false")

    def _item(
        self, row: tuple[Any, ...], parents: dict[int, Series], deciders: dict[Any, list[Decided]]
    ) -> Item:
        number, public_id, parent, is_selected, uuid, compression, size, offset, custom = row
        series = parents[parent]
        decides = list(deciders.get(number if self._by_id else public_id, ()))
        if is_selected and self._is_written(INSTANCE, number):
            decides.append(Decided(INSTANCE, number, public_id))
        path, problem = "", "" if uuid else "the index has no DICOM file of this instance"
        if custom is not None:
            try:
                path = customdata.locate(
                    uuid, bytes(custom), self.settings.storage_dir, self.settings.storages
                )
            except customdata.NotLocated as reason:
                problem = str(reason)
        start = int(offset) if offset.isdecimal() else 0
        return Item(
            public_id,
            series.study[1],
            series.patient[0],
            uuid,
            path,
            compression,
            size,
            start,
            tuple(decides),
            problem,
        )
