"""In the place of the package isal: as if the extra `fast` was not installed."""

raise ImportError
