"""The messages of Orthanc's PostgreSQL plugin in a log of Orthanc, explained.

`plugin_messages.py` and `server_messages.py` are the table of known messages: a new one
is one entry there, its text in docs/troubleshooting.md, and a line in
tests/orthanc_log/examples.log.
"""

from pgorthanc_cli.orthanc_log.explain import Explained, Explanation, Unexplained, explain
from pgorthanc_cli.orthanc_log.model import Message
from pgorthanc_cli.orthanc_log.plugin_messages import FROM_PLUGIN
from pgorthanc_cli.orthanc_log.server_messages import FROM_SERVER

__all__ = [
    "FROM_PLUGIN",
    "FROM_SERVER",
    "Explained",
    "Explanation",
    "Message",
    "Unexplained",
    "explain",
]
