"""The pages about a standby that was created, promoted, or brought back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping

from pgorthanc_cli.replication import SLOT, Promoted, Rejoined, Standby
from pgorthanc_cli.text import plural, printable, size
from pgorthanc_cli.views.page import Block, Note, Page, Status

_SERVICE = "To print a service that starts it with its machine:"
_WATCH = "Next, watch both servers, now and in your monitoring:"


# A new standby


def standby_page(created: Standby, *, status: str, service: str) -> Page:
    """Return the page of a standby that was created.

    Args:
        created: The standby.
        status: The command that shows both servers.
        service: The command that prints a service to start the standby with its machine.
    """
    primary, folder = printable(created.primary), printable(created.directory)
    where = (f"folder {folder}", f"PostgreSQL {created.version}", f"slot {created.slot}")
    checksums = ", and each page, by its checksum" if created.checksums else ""
    blocks: list[Block] = []
    if created.verified:
        blocks.append(Note(f"each file of the copy was verified{checksums}", "ok"))
    else:
        text = "the copy was not verified: no usable pg_verifybackup (it came with PostgreSQL 13)"
        blocks.append(Note(text, "unknown"))
    blocks += _comparison(created.index, created.difference)
    if created.streaming:
        but = ", but its index differs" if _differs(created.difference) else ""
        headline = f"Standby {_place(created.listen, created.port)} streams from {primary}{but}."
        steps = (Note(_WATCH, paste=status), Note(_SERVICE, paste=service))
    else:
        headline = f"Copied {primary} into {folder}. The standby has not been started."
        steps = (_start(created.start_command), Note("Then watch both servers:", paste=status))
    return Page(headline, where, tuple(blocks), steps, "problem" if _differs(created.difference) else "ok")


def _place(listen: str, port: int) -> str:
    return f"on port {port}" if listen == "*" else f"{printable(listen)}:{port}"


def _start(command: str) -> Note:
    return Note("Next, start it:", paste=command)


def _differs(difference: str) -> bool:
    return difference != "none" and not difference.startswith("not compared")


def _comparison(index: Mapping[str, int | str | None] | None, difference: str) -> Iterator[Note]:
    """Yield how the index compares with the primary's; nothing if it was not asked for."""
    if difference == "none" and index:
        studies = index["studies"]
        count = f", {plural(studies, 'study', 'studies')}" if isinstance(studies, int) else ""
        yield Note(f"the index is the same on both servers: revision {index['revision']}{count}", "ok")
    elif _differs(difference):
        advice = "If a program is importing now, they can differ for a moment; else make the standby again."
        yield Note(f"the index differs: {printable(difference)}", "problem", (advice,))
    elif difference != "not compared":
        reason = printable(difference.removeprefix("not compared: "))
        advice = "Name a login for Orthanc's database that both servers accept."
        yield Note(f"the index was not compared: {reason}", "unknown", (advice,))


# A new primary


def promoted_page(promoted: Promoted, preparation: str) -> Page:
    """Return the page of a standby that is the primary now.

    `preparation` is the command that lets the old primary connect to it.
    """
    blocks: list[Block] = [Note(f"old primary {printable(promoted.old_primary)}", "ok"), _lost(promoted)]
    blocks += [
        Note(f"slot {printable(slot)} was created, for a standby to come", "ok") for slot in promoted.slots
    ]
    uri = f'"ConnectionUri": {json.dumps(promoted.connection_uri)}'
    text = "Put this into the configuration of every Orthanc (add its password first, as ROLE:PASSWORD@):"
    blocks.append(Note(text, paste=uri))
    # That setting is not taken over: the standby that it names is this server.
    blocks.append(Note("Commits wait for no standby now."))
    source = _dsn(promoted)
    slot = f" --slot {promoted.slot}" if promoted.slot != SLOT else ""
    steps = (
        Note("Next, start one Orthanc, read its log, then start the others. Do not start the old primary."),
        Note(
            "To let the old primary connect as the standby, as a superuser of this server:",
            paste=preparation,
        ),
        Note(
            "To bring it back as the standby, on its machine:",
            paste=f"pgorthanc replication rejoin --pgdata DIR --from {shlex.quote(source)}{slot}",
        ),
        Note("To let commits wait for it, once it streams:", paste=f"{preparation} --synchronous"),
    )
    headline = f"Promoted {printable(promoted.server)} to primary (timeline {promoted.timeline})."
    status: Status = "warning" if promoted.lost_commits else "ok"
    return Page(headline, blocks=tuple(blocks), next_steps=steps, status=status)


def _lost(promoted: Promoted) -> Note:
    if promoted.lost_commits is None:
        text = "commits that only the old primary has were not counted"
        return Note(text, "unknown", ("`pgorthanc replication rejoin` counts them.",))
    if promoted.lost_commits:
        commits = plural(promoted.lost_commits, "commit")
        return Note(
            f"{commits} of the old primary ({size(promoted.lost_bytes or 0)} of WAL) are missing here",
            "warning",
            ("Keep its folder, and import the files of these studies again.",),
        )
    return Note("nothing that the old primary has committed is lost", "ok")


def _dsn(promoted: Promoted) -> str:
    host, _, port = promoted.server.rpartition(":")
    # Such an address means another machine there.
    name = "NEW-PRIMARY" if host in ("127.0.0.1", "[::1]", "localhost") else host.strip("[]")
    return f"host={name} port={port} user={promoted.role} passfile=replication.pgpass"


# An old primary


def rejoined_page(rejoined: Rejoined, *, status: str) -> Page:
    """Return the page of an old primary that is a standby now; `status` shows both."""
    primary, folder = printable(rejoined.primary), printable(rejoined.directory)
    where = (f"slot {rejoined.slot}", f"timeline {rejoined.timeline}")
    blocks: list[Block] = [_method(rejoined)]
    if rejoined.lost_commits:
        text = f"{plural(rejoined.lost_commits, 'commit')} that only it had were discarded"
        blocks.append(Note(f"{text} ({size(rejoined.lost_bytes)} of WAL)", "warning"))
    blocks += _comparison(rejoined.index, rejoined.difference)
    if rejoined.streaming:
        but = ", but its index differs" if _differs(rejoined.difference) else ""
        headline = f"The old primary in {folder} follows {primary} as its standby{but}."
        steps: tuple[Note, ...] = (Note(_WATCH, paste=status),)
    else:
        headline = f"The old primary in {folder} is a standby of {primary}. It has not been started."
        steps = (_start(rejoined.start_command), Note("Then watch both servers:", paste=status))
    problem = _differs(rejoined.difference)
    judgement: Status = "problem" if problem else "warning" if rejoined.lost_commits else "ok"
    return Page(headline, where, tuple(blocks), steps, judgement)


def _method(rejoined: Rejoined) -> Note:
    if rejoined.method == "follow":
        return Note(f"its data were kept: it had nothing that {printable(rejoined.primary)} lacks", "ok")
    if rejoined.method == "rewind":
        return Note(f"its data were rewound to {rejoined.forked_at}, where the two parted", "ok")
    return Note(
        "its data were copied again",
        "ok",
        (
            f"A copy was needed: {printable(rejoined.why)}.",
            f"The old data are in {printable(rejoined.kept)}: remove that folder when you do not need it any more.",
        ),
    )
