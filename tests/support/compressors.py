"""Programs and worker processes of a test without isal, as on a machine without the extra `fast`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pgorthanc_cli.storage import compression


@contextmanager
def without_isal() -> Iterator[None]:
    """Compress by zlib, whose bytes are those of Orthanc; worker processes are forked and do so, too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "isal", None)
        compression.compressors.cache_clear()
        yield
    compression.compressors.cache_clear()
