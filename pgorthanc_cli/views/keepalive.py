"""The page of a keep-alive test: when idle connections are dropped, and what keeps them alive."""

from __future__ import annotations

from collections.abc import Iterator

from pgorthanc_cli.keepalive import Age, Probes, TrialResult, format_duration
from pgorthanc_cli.text import plural, printable
from pgorthanc_cli.views.page import Block, Facts, Note, Page, Status, Table

_SENDERS: dict[Probes, str] = {"none": "no packets", "client": "sent by client", "server": "sent by server"}
_OUTCOMES = {
    "alive": "alive",
    "dropped": "DROPPED",
    "closed": "CLOSED",
    "reset": "RESET",
    "pending": "not known",
}


def page(result: TrialResult, confirm: str, *, interrupted: bool = False, verbose: bool = False) -> Page:
    """Return the page; `confirm` is the command that tries the recommended parameters."""
    blocks: list[Block] = [*_ages(result.ages, ""), *_ages(result.confirmation, "Tried again:")]
    blocks += [_explanation(text, confirm) for text in result.explanations]
    if verbose:
        blocks += [Facts(tuple(_details(result)))]
    where = result.endpoint.login if result.endpoint else ()
    status: Status = "warning" if result.died else "ok"
    steps = tuple(_steps(result)) if result.died else ()
    return Page(_headline(result, interrupted=interrupted), where, tuple(blocks), steps, status)


def _headline(result: TrialResult, *, interrupted: bool) -> str:
    place = printable(result.place)
    begin = "Interrupted: " if interrupted else ""
    low, high = result.limit_s
    if high is not None:
        ends = {age.outcome for age in result.ages if age.died and age.probes == "none"}
        end = ends.pop() if len(ends) == 1 else "closed"
        when = f"{format_duration(high)} at the latest"
        if low:
            when = f"{format_duration(low)} to {format_duration(high)}"
        silently = ", without notice" if end == "dropped" else ""
        text = f"idle connections to {place} are {end} after {when}{silently}."
    elif result.died:
        count = plural(result.died, "connection")
        text = f"{count} to {place} ended during the test, but not because they were idle."
    else:
        lived = [age.age_s for age in result.ages if age.outcome == "alive"]
        longest = format_duration(max(lived)) if lived else ""
        text = f"idle connections to {place} stay alive for {longest} at least."
        if not lived:
            text = f"nothing is known yet of idle connections to {place}."
    return f"{begin}{text}" if begin else f"{text[:1].upper()}{text[1:]}"


def _ages(ages: tuple[Age, ...], title: str) -> Iterator[Block]:
    """Yield the outcomes: one row for each idle time, one column for each sender of packets."""
    if not ages:
        return
    if title:
        yield Note(title)
    senders = [sender for sender in _SENDERS if any(age.probes == sender for age in ages)]
    rows = []
    for age_s in dict.fromkeys(age.age_s for age in ages):
        found = {age.probes: _OUTCOMES[age.outcome] for age in ages if age.age_s == age_s}
        rows.append((format_duration(age_s), *(found.get(sender, "") for sender in senders)))
    head = ("idle", *(_SENDERS[sender] for sender in senders))
    yield Table(tuple(rows), head)


def _explanation(text: str, confirm: str) -> Note:
    """Return a sentence; a statement or a command that it names stands below it."""
    if "add --confirm" in text:
        return Note(text, paste=confirm)
    before, alter, statement = text.partition("ALTER ROLE ")
    if alter:
        return Note(before.rstrip(), paste=f"{alter}{statement}")
    return Note(text)


def _steps(result: TrialResult) -> Iterator[Note]:
    """Yield how to send the packets that kept every connection alive."""
    settings = [line.partition(" = ") for line in result.postgresql_conf]
    if "server" in result.passed and settings:
        statements = (f"ALTER ROLE {result.role} SET {name} = {value};" for name, _, value in settings)
        yield Note(
            "Let the server send keep-alive packets; this needs no change to Orthanc's configuration "
            "(as this role, or as administrator; then restart Orthanc):",
            paste="\n".join(statements),
        )
        return
    if "client" in result.passed:
        values = " ".join(line.replace(" = ", "=") for line in result.sysctl)
        yield Note(
            "Let Orthanc's machine send keep-alive packets (on Linux, as root; then restart Orthanc):",
            paste=f"sysctl -w {values}",
        )
        yield Note(
            "Or, if Orthanc's configuration has a ConnectionUri, add these parameters to it "
            "(plugins up to 3.2 do not know tcp_user_timeout):",
            paste=result.connection_uri,
        )


def _details(result: TrialResult) -> Iterator[tuple[str, str]]:
    for age in (*result.ages, *result.confirmation):
        yield format_duration(age.age_s), printable(str(age).partition(", ")[2])
    for end in result.sockets:
        parts = (
            f"first probe after {end.idle_s} s" if end.idle_s is not None else "",
            f"every {end.interval_s} s" if end.interval_s is not None else "",
            f"given up after {end.count}" if end.count is not None else "",
        )
        probes = ", ".join(filter(None, parts)) if end.keepalive else "no keep-alive"
        yield end.side, probes
    for name, limit_s in result.timeouts_s.items():
        if limit_s:
            yield name, format_duration(limit_s)
    if result.pooler != "none":
        yield "pooler", result.pooler
