"""Orthanc's default index: an SQLite file."""

from pgorthanc_cli.migrate.sources.sqlite.index import SQLiteIndex, open_index

__all__ = ["SQLiteIndex", "open_index"]
