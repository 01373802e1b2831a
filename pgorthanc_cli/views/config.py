"""The pages about the options of a configuration, and about changing one of them."""

from __future__ import annotations

import json

from pgorthanc_cli.config.deployment import Shown
from pgorthanc_cli.config.edit import NOT_GIVEN, Edited, Renamed
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views.page import Note, Page, Table


def options_page(shown: Shown) -> Page:
    """Return the page of all options, with the origin of each."""
    given = sum(not option.origin.startswith("default") for option in shown.options)
    rows = tuple(
        (
            printable(option.key),
            printable(json.dumps(option.value, ensure_ascii=False)),
            printable(option.origin),
        )
        for option in shown.options
    )
    plugin = f"PostgreSQL plugin {shown.plugin}" if shown.plugin else "release of the plugin unknown"
    headline = f"{plural(given, 'option is', 'options are')} set; the others have their defaults."
    table = Table(rows, head=("option", "value", "origin"))
    return Page(headline, (plugin,), (table,))


def edited_page(edited: Edited, check: str) -> Page:
    """Return the page of an option that was set or removed, or would be.

    `check` is the command that checks the configuration.
    """
    key, after = printable(edited.key), printable(edited.after)
    removing = edited.after == NOT_GIVEN
    if edited.before == edited.after:
        state = "is not set" if removing else f"is {after} already"
        return Page(f"Nothing to do: {key} {state}.", (printable(edited.file),), status="ok")
    change = f"remove {key}" if removing else f"set {key} to {after}"
    before = "It is not set now." if edited.before == NOT_GIVEN else f"It is {printable(edited.before)} now."
    if edited.dry_run:
        return _planned(change, edited.file, before)
    done = f"Removed {key}." if removing else f"Set {key} to {after}."
    was = "It was not set before." if edited.before == NOT_GIVEN else f"It was {printable(edited.before)}."
    return _written(done, edited.file, edited.backup, was, check)


def renamed_page(renamed: Renamed, check: str) -> Page:
    """Return the page of an option that got another name, or would get it; `check` is as above."""
    old, new = printable(renamed.key), printable(renamed.renamed_to)
    value = f"Its value stays: {printable(renamed.value)}."
    if renamed.dry_run:
        return _planned(f"rename {old} to {new}", renamed.file, value)
    return _written(f"Renamed {old} to {new}.", renamed.file, renamed.backup, value, check)


def _planned(change: str, file: str, state: str) -> Page:
    headline = f"Dry run, nothing was changed: this would {change}."
    return Page(headline, (printable(file),), (Note(state),))


def _written(headline: str, file: str, backup: str, before: str, check: str) -> Page:
    kept = Note("The file as it was:", paste=printable(backup))
    following = Note("Next, check the configuration, then restart Orthanc:", paste=check)
    return Page(headline, (printable(file),), (Note(before), kept), (following,), "ok")
