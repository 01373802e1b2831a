"""Tests with and without the package isal of the extra `fast`, also in worker processes and programs."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgorthanc_cli.storage import compression


@contextmanager
def without_isal() -> Iterator[None]:
    """Compress by zlib, whose bytes are those of Orthanc."""
    with _first_on_the_path(Path(__file__).with_name("no_isal")):
        yield


@contextmanager
def with_isal() -> Iterator[None]:
    """Compress by isal, which is installed, or lies in the folder PGORTHANC_ISAL (pip install --target)."""
    if importlib.util.find_spec("isal"):
        yield
        return
    folder = os.environ.get("PGORTHANC_ISAL")
    if not folder:
        pytest.skip("isal is not installed, and PGORTHANC_ISAL names no folder with it")
    with _first_on_the_path(Path(folder)):
        yield


@contextmanager
def _first_on_the_path(folder: Path) -> Iterator[None]:
    """Import from a folder, here, in processes that are forked or spawned, and in programs."""
    with pytest.MonkeyPatch.context() as patched:
        _forget_isal()
        patched.syspath_prepend(folder)
        path = os.environ.get("PYTHONPATH")
        patched.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([path] if path else [])]))
        yield
    _forget_isal()


def _forget_isal() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "isal"]:
        del sys.modules[name]
    compression.compressors.cache_clear()
