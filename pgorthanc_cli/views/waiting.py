"""The page about a wait that has ended well."""

from __future__ import annotations

from pgorthanc_cli.text import duration
from pgorthanc_cli.views.page import Page
from pgorthanc_cli.waiting import Reached


def page(reached: Reached) -> Page:
    """Return the page."""
    waited = f"after {duration(reached.waited_s)}" if reached.waited_s else "immediately"
    where = (str(reached.endpoint), *reached.endpoint.login)
    return Page(f"Conditions met {waited}: {reached.reached}.", where)
