"""Sites, each with its own servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.replication.site import Site, make_template
from tests.support.real_servers import Server


@pytest.fixture(scope="session")
def templates() -> Iterator[Callable[[int | None], Path]]:
    """Data folders to be copied, one for each version."""
    made: dict[int | None, Server] = {}

    def template(major: int | None) -> Path:
        if major not in made:
            made[major] = make_template(major)
        return made[major].data

    yield template
    for server in made.values():
        server.remove()


@pytest.fixture
def new_site(tmp_path: Path, templates: Callable[[int | None], Path]) -> Iterator[Callable[..., Site]]:
    """Makes sites with their own servers, which are gone after the test."""
    made: list[Site] = []

    def make(*, major: int | None = None, **options: Any) -> Site:
        made.append(Site(tmp_path, templates(major), major=major, **options))
        return made[-1]

    yield make
    for site in made:
        site.remove()


@pytest.fixture
def site(new_site: Callable[..., Site]) -> Site:
    """A primary with an empty index."""
    return new_site()


@pytest.fixture(scope="session")
def stopped_pair(
    templates: Callable[[int | None], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A primary with an empty index, and its standby; to be copied."""
    made = Site(tmp_path_factory.mktemp("pair"), templates(None))
    try:
        made.prepared()
        made.standby()
        made.wait_until_level()
        made.stop()
        yield made
    finally:
        made.remove()


@pytest.fixture
def pair(stopped_pair: Site, tmp_path: Path) -> Iterator[Site]:
    """A primary with an empty index, and its standby, which has all of it."""
    made = stopped_pair.copy(tmp_path)
    yield made
    made.remove()
