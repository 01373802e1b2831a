"""An unknown message without the names and values in it.

Whatever is not a word of PostgreSQL's or the plugin's messages may be the name of a
patient or a password, so only words that are listed are kept.
"""

from __future__ import annotations

import re

from pgorthanc_cli.orthanc_log.plugin_messages import FROM_PLUGIN
from pgorthanc_cli.orthanc_log.server_messages import FROM_SERVER

_LONGEST = 160
# Quoted or in parentheses is a name or a value, whatever it looks like.
_VALUES = re.compile(r""""[^"]*"|'[^']*'|«[^»]*»|»[^«]*«|„[^“]*“|\([^)]*\)|=\S*""")
_WORD = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*[.,:;!?]*")
_MORE_WORDS = """
    error fatal panic warning notice detail hint context statement log a an and any are
    as at be because been before but by can cannot could did do does due during each end
    exist failed for from had has have if in into is it its less many may missing more
    most must near no not of on one only or other out over per set should some such than
    that the then there this to too two until used was when which while will with
    without within yet aborted abnormally access accept active administrator allowed
    already argument array attempt authentication available backend bad bind block
    boolean buffer byte bytes cached call called cancel canceled canceling cascade
    certificate change changed character check client closed collation column columns
    command commands commit concurrent condition configuration conflict conflicted
    connect connection connections constraint contains conversion corrupted crash create
    current cursor data database date deadlock default defined delete deleted denied
    dependent detected different directory disconnected disk division drop duplicate
    encoding encrypted enough exceeded exception execute exceeds exists expired
    expression extension extended family field file foreign format found function full
    ignored ignoring index input insert insufficient integer internal interrupted
    invalid isolation key large length level limit list lock locks long lost match
    maximum memory message minimum mode multiple name negotiation nonexistent null
    number object operation operator option options order overflow owner page parameter
    parameters parse partition password pending permission plan prepare prepared
    privilege procedure process processes protocol query range read read-only received
    record recovery reference references referenced refused relation remaining
    replication request required reserved reset resource resources response restart
    result return returned role rollback row rows rule running schema security select
    sequence serialize serializable server session shared shutdown shutting size slots
    space standby state still stopped storage string subquery superuser support
    supported suspended syntax system table tables temporary terminated terminating text
    time timeout transaction transactions trigger truncate try tuple type types unable
    unexpected unexpectedly unique unknown unrecognized unsupported update updates use
    user value values varying version view violates wait waiting work write writing
    wrong zero libpq socket host port address Cannot Unable No Database ERROR FATAL
    PANIC WARNING NOTICE LOG PostgreSQL Orthanc SQL SSL TLS SCRAM GSSAPI
"""


def _vocabulary() -> frozenset[str]:
    texts = [_MORE_WORDS, *(message.text for message in (*FROM_PLUGIN, *FROM_SERVER))]
    words = (word for text in texts for word in _WORD.findall(_VALUES.sub(" ", text)))
    return frozenset(word.rstrip(".,:;!?") for word in words)


_VOCABULARY = _vocabulary()


def outline(text: str) -> str:
    """Return the first line of a message with `…` in place of all unknown words."""
    line = text.strip().partition("\n")[0]
    words: list[str] = []
    for word in _VALUES.sub(" … ", line).split():
        # Case matters: "field" is a word of PostgreSQL, "Field" may be a patient.
        kept = _WORD.fullmatch(word) and word.rstrip(".,:;!?") in _VOCABULARY
        if kept or words[-1:] != ["…"]:
            words.append(word if kept else "…")
    shown = " ".join(words)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST].rpartition(" ")[0] + " …"
