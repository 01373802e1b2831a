"""The page of `storage move`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pgorthanc_cli.placement import Moved
from pgorthanc_cli.text import duration, plural, printable, size
from pgorthanc_cli.views.page import Block, Note, Page, Status

LISTED = 20  # failures that are shown one by one
_OBJECTS = "large objects"
_ADVANCED = "advanced-storage"
_VACUUM = "VACUUM pg_largeobject; VACUUM pg_largeobject_metadata;"


@dataclass(frozen=True)
class Commands:
    """What to run next.

    Attributes:
        switch, clean: The same move, its next phases; `switch` is empty if a part was copied that cannot be switched.
        everything: The copy of all attachments instead of that part.
        again: The same command.
        verify: The check of the target, with the affected studies.
        verify_source: The same of the source.
        configure: Commands that change Orthanc's configuration; empty if it is not known.
        settings: What they change: a key and its value.
    """

    switch: str
    clean: str
    again: str
    verify: str
    verify_source: str
    configure: tuple[str, ...]
    settings: tuple[str, ...]
    everything: str = ""


def page(moved: Moved, commands: Commands) -> Page:
    """Return the page of a phase."""
    blocks = [*_facts(moved), *_failures(moved)]
    steps: tuple[Note, ...] = ()
    if moved.failed:
        check = commands.verify if moved.phase == "clean" else commands.verify_source
        steps = (Note("To see what is damaged, and in which studies:", paste=check),)
    elif not moved.complete:
        steps = (Note("Next, continue:", paste=commands.again),)
    elif moved.phase == "copy" and not commands.switch:
        reason = "Orthanc reads from one storage area only, so a part cannot be switched."
        steps = (Note(f"{reason} Next, copy everything:", paste=commands.everything),)
    elif moved.phase == "copy":
        steps = (Note("Next, in your maintenance window: stop Orthanc, then", paste=commands.switch),)
    elif moved.phase == "switch":
        blocks += _configuration(commands)
        steps = (Note("Next, once Orthanc has run for a while, remove the source:", paste=commands.clean),)
    where = (str(moved.endpoint), f"{_name(moved, source=True)} → {_name(moved)}", duration(moved.elapsed_s))
    status: Status = "problem" if moved.failed else "ok" if moved.complete else "warning"
    return Page(_headline(moved), where, tuple(blocks), steps, status)


def _name(moved: Moved, *, source: bool = False) -> str:
    # As a source, the plugin has more folders than one.
    if source and moved.source == _ADVANCED:
        return "the advanced storage"
    folder = moved.source_folder if source else moved.target_folder
    return printable(str(folder)) if folder else _OBJECTS


def _headline(moved: Moved) -> str:
    target = _name(moved)
    if moved.phase == "clean":
        text = f"Removed {plural(moved.removed, 'attachment')} from {_name(moved, source=True)}"
        text += f": {size(moved.freed_bytes)} are free again." if moved.freed_bytes > 0 else "."
        if not moved.removed and moved.complete:
            text = "Nothing to do: the source has no attachment of the index any more."
    elif moved.phase == "switch" and moved.complete:
        text = f"Orthanc's files are now in {target}"
        text = f"Orthanc's files are now {target}" if moved.target == "postgresql" else text
        text += f": {plural(moved.copied, 'attachment')} copied in {duration(moved.elapsed_s)}."
    elif moved.complete and not moved.attachments:
        nothing = "no attachment is selected" if moved.partial else "the index has no attachments"
        text = f"Nothing to do: {nothing}."
    elif moved.complete and not moved.copied:
        text = (
            f"Nothing to do: all {'selected ' if moved.partial else ''}attachments are already in {target}."
        )
    else:
        copied = plural(moved.copied, "attachment")
        if moved.phase == "copy" and not (moved.complete or moved.failed):
            copied = f"{moved.copied:,} of {plural(moved.attachments, 'attachment')}"
        text = f"Copied {copied} ({size(moved.bytes)}) to {target}."
    if moved.failed:
        failed = len(moved.failed)
        consequence = {
            "copy": "The switch is blocked until this is settled.",
            "switch": "The switch is not done: start Orthanc with its old configuration.",
            "clean": "They stay where they are.",
        }[moved.phase]
        return f"{text} {failed:,} failed. {consequence}"
    return text if moved.complete else f"Interrupted: {text[:1].lower()}{text[1:]}"


def _facts(moved: Moved) -> Iterator[Block]:
    if moved.already_there:
        yield Note(f"{plural(moved.already_there, 'attachment')} already there, compared, not copied again.")
    if moved.phase == "copy" and moved.complete:
        text = f"Orthanc still uses {_name(moved, source=True)}, and may go on doing so."
        what = "everything that was selected" if moved.partial else "everything"
        yield Note(f"{text} The MD5 of {what} is right in both places." if moved.attachments else text)
    if moved.phase == "switch" and moved.complete:
        yield Note(_going_back(moved))
    elif moved.phase == "switch" and not moved.failed:
        yield Note(
            "The switch is not done: until it is, start Orthanc with its old configuration only.", "warning"
        )
    if moved.unknown:
        yield Note(
            f"{plural(moved.unknown, 'attachment')} in the target, but not in the index",
            "warning",
            ("Orthanc has deleted them since the copy; verify storage --quarantine moves them aside.",)
            if moved.target_folder
            else ("Orthanc has deleted them since the copy.",),
        )
    if moved.kept:
        adopted = plural(moved.kept, "adopted file")
        yield Note(
            f"{adopted} left where {'it is' if moved.kept == 1 else 'they are'}: Orthanc goes on reading adopted "
            "files in their own folders."
            if moved.target == _ADVANCED
            else f"{adopted} copied; the {'original is' if moved.kept == 1 else 'originals are'} never removed."
        )
    yield from _leftovers(moved)


def _going_back(moved: Moved) -> str:
    source = _name(moved, source=True)
    if _ADVANCED in (moved.source, moved.target) or moved.compression:
        return (
            f"The rows of the index now fit {_name(moved)} only. The source is untouched; going back is another "
            "storage move, in the other direction."
        )
    source = source if moved.source_folder else source.capitalize()
    return (
        f"{source}: untouched. Going back needs only the old configuration, as long as Orthanc has not stored "
        "anything new."
    )


def _leftovers(moved: Moved) -> Iterator[Block]:
    if moved.left > 0:
        yield Note(
            f"{plural(moved.left, 'attachment')} stay in the source: no row of the index names them",
            "warning",
            (
                "They are orphans, or Orthanc has deleted them since the switch.",
                "Orthanc needs none of them; remove the folder yourself."
                if moved.source_folder
                else "The same command with --orphans removes them.",
            ),
        )
    if moved.vacuumed and moved.removed and not moved.freed_bytes:
        yield Note(
            "The space was not given back yet: an open transaction, or autovacuum, prevented it",
            "warning",
            ("Later, as the owner of the database, or as a superuser:",),
            _VACUUM,
        )
    if moved.vacuumed is False:
        yield Note(
            "The space was not given back: this role may not vacuum",
            "warning",
            ("As the owner of the database, or as a superuser:",),
            _VACUUM,
        )


def _failures(moved: Moved) -> Iterator[Block]:
    for failed in moved.failed[:LISTED]:
        yield Note(f"{printable(failed.uuid)}  {printable(failed.reason)}", "problem")
    if len(moved.failed) > LISTED:
        yield Note(f"and {len(moved.failed) - LISTED:,} more (--json lists them)")


def _configuration(commands: Commands) -> Iterator[Block]:
    if not commands.settings:
        yield Note("Start Orthanc again; its configuration stays as it is.")
        return
    text = "Change this BEFORE you start Orthanc, or it will not find its files:"
    yield Note(text, "warning", paste="\n".join(commands.configure or commands.settings))
