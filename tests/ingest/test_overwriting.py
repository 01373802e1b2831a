"""Replacing many instances at once leaves what replacing them one by one with Orthanc's own functions leaves."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from random import Random

import pytest

from pgorthanc_cli import db, dicom, index
from pgorthanc_cli.index import Attachment, Outcome, Overwrite, Record
from tests.ingest.test_bookkeeping import OWN_TRIGGER, check
from tests.support import samples
from tests.support.indexdump import dump
from tests.support.schemas import REVISIONS, init
from tests.support.schemas import run as run_sql

Removed = list[tuple[str, int]]


def records(random: Random, count: int) -> Iterable[Record]:
    """Few instances of few series, again and again: some are changed, some are the only ones of their parents."""
    profile = dicom.Profile()
    for _ in range(count):
        patient, study, series = (random.choice([1, 1, 2]) for _ in range(3))
        number = random.randint(1, 3) if (patient, study) != (2, 2) else 1
        content = samples.instance(
            f"P{patient}",
            f"1.2.{patient}.{study}",
            f"1.2.{patient}.{study}.{series}",
            number,
            SeriesDescription=f"version {random.randint(1, 2)}",
            ImagesInAcquisition=2,
        )
        instance = dicom.parse(content, profile)
        md5 = hashlib.md5(content).hexdigest()
        size = len(content)
        files = [Attachment(1, str(uuid.UUID(int=random.getrandbits(128))), size, size, 1, md5, md5)]
        if random.random() < 0.3:
            files.append(files[0]._replace(file_type=3, uuid=str(uuid.UUID(int=random.getrandbits(128)))))
        yield Record(instance.levels, instance.expected_instances, instance.index_in_series, tuple(files), {})


def one_by_one(
    writer: index.Writer, batch: Sequence[Record], overwrite: Overwrite
) -> tuple[list[Outcome], Removed]:
    """Delete with the functions or triggers of the schema, then insert a single instance."""
    conn = writer.conn
    outcomes: list[Outcome] = []
    removed: Removed = []
    for record in batch:
        with conn, conn.cursor() as cur:
            cur.execute(
                """SELECT internalid, uncompressedhash FROM resources LEFT JOIN attachedfiles
                   ON id = internalid AND filetype = 1 WHERE publicid = %s""",
                (record.levels[3].public_id,),
            )
            stored = cur.fetchone()
            replaces = overwrite is Overwrite.ALWAYS or (
                overwrite is Overwrite.IF_CHANGED
                and stored is not None
                and stored[1] != record.attachments[0].uncompressed_hash
            )
            if stored and replaces:
                cur.execute("SELECT to_regproc('deleteresource') IS NOT NULL")
                if cur.fetchone() == (True,):
                    cur.execute("SELECT deleteresource(%s)", (stored[0],))
                else:
                    cur.execute("DELETE FROM deletedfiles")
                    cur.execute("DELETE FROM resources WHERE internalid = %s", (stored[0],))
                cur.execute("SELECT uuid, filetype FROM deletedfiles")
                removed += cur.fetchall()
            result = writer.write([record])
        outcomes += result.outcomes if not (stored and replaces) else [Outcome.OVERWRITTEN]
    return outcomes, removed


@pytest.mark.parametrize(
    ("revision", "statements"),
    [*((revision, ()) for revision in REVISIONS), (2, OWN_TRIGGER), (REVISIONS[-1], OWN_TRIGGER)],
)
def test_replacing_at_once_is_replacing_one_by_one(
    new_database: Callable[..., db.Target], revision: int, statements: tuple[str, ...]
) -> None:
    """Random batches, with instances that occur several times in a batch; parents that go and come back."""
    random = Random(revision + len(statements))
    targets = new_database(), new_database()
    for target in targets:
        init(target, revision=revision)
        run_sql(target, *statements)
    with db.session(targets[0]) as ours, db.session(targets[1]) as reference:
        set_based, single = index.Writer(ours), index.Writer(reference)
        for _ in range(6):
            set_based.overwrite = overwrite = random.choice([*Overwrite, Overwrite.ALWAYS])
            batch = list(records(random, random.choice([1, 5, 15])))
            with ours:
                result = set_based.write(batch)
            outcomes, removed = one_by_one(single, batch, overwrite)
            assert result.outcomes == outcomes
            assert sorted(result.removed) == sorted(removed)
            assert dump(ours) == dump(reference)
    for target in targets:
        check(target)
