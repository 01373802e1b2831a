"""What a revision of the index has: the only place that knows, read from the catalogs.

No other module compares a revision with a number. Most features follow from the objects of a revision's catalog, so a
new revision needs nothing here. What the plugin does with an index, which no object shows, depends on its
release.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from pgorthanc_cli.schema import catalog
from pgorthanc_cli.schema.catalog import Catalog


class Features(NamedTuple):
    """What an index has.

    Attributes:
        metadata_revisions: Metadata and attachments have revisions: the index is at revision 1 or higher.
        labels: Resources have labels; plugin 4.0 made revision 1 without them.
        unique_public_ids: No public id occurs twice.
        statistics_deltas: Changes of the counters wait in GlobalIntegersChanges until they are added up.
        delete_function: Function deleteresource.
        recycling_function: Function patientaddedorupdated, with whatever arguments.
        recycling_counter: Counter 7 gives the next position in the recycling order; other revisions use a sequence.
        recycling_in_metadata: The recycling order is metadata 19; other revisions have PatientRecyclingOrder.
        child_counts: Resources have their number of children.
        child_count_marks: InvalidChildCounts marks the numbers that housekeeping must count again; without it, the
            trigger counts itself, and corrupts a number that is NULL.
        custom_data: Attachments have data of the storage plugin.
    """

    metadata_revisions: bool
    labels: bool
    unique_public_ids: bool
    statistics_deltas: bool
    delete_function: bool
    recycling_function: bool
    recycling_counter: bool
    recycling_in_metadata: bool
    child_counts: bool
    child_count_marks: bool
    custom_data: bool


# The release of the plugin from which on it does something (SCHEMA.md 9 to 11).
_PLUGIN_SINCE = {
    # Before, a plugin refused any other revision than its own; since then it upgrades older ones and does not look at
    # newer ones. TransactionMode is as old.
    "upgrades_older_revisions": "6.0",
    "housekeeping": "7.0",
    "read_only": "7.0",
    "sets_search_path": "10.0",
}


def of_catalog(objects: Catalog) -> Features:
    """Return the features of an index by its catalog; for one before revision 1, too."""
    functions = {name.removeprefix("function ").partition("(")[0] for name in objects}
    return Features(
        metadata_revisions="column metadata.revision" in objects,
        labels="table labels" in objects,
        unique_public_ids="constraint resources.uniquepublicid" in objects,
        statistics_deltas="table globalintegerschanges" in objects,
        delete_function="deleteresource" in functions,
        recycling_function="patientaddedorupdated" in functions,
        recycling_counter="counter 7" in objects,
        recycling_in_metadata="table patientrecyclingorder" not in objects,
        child_counts="column resources.childcount" in objects,
        child_count_marks="table invalidchildcounts" in objects,
        custom_data="column attachedfiles.customdata" in objects,
    )


@cache
def of_revision(revision: int) -> Features:
    """Return the features of a revision.

    Raises:
        RevisionError: There is no such revision.
    """
    return of_catalog(catalog.expected(revision, with_storage=False))


@cache
def first_revision(feature: str) -> int:
    """Return the first revision with a feature: the name of a field of `Features`."""
    return next(number for number in catalog.revisions() if getattr(of_revision(number), feature))


@cache
def first_revision_of_plugin(behaviour: str) -> int:
    """Return the first revision whose plugin does something.

    `upgrades_older_revisions`, `housekeeping` (every second), `read_only` (knows the option ReadOnly) or
    `sets_search_path` (after connecting).
    """
    return catalog.revision_of_plugin(_PLUGIN_SINCE[behaviour])
