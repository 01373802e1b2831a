"""The settings of a reindex, from options and Orthanc's configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgorthanc_cli import dicom
from pgorthanc_cli.config import OrthancConfiguration, storage_folder
from pgorthanc_cli.constants import LEVELS
from pgorthanc_cli.errors import UsageError
from pgorthanc_cli.pacing import Hours, Limits
from pgorthanc_cli.reindex.model import ALL_LEVELS, Selection, Settings
from pgorthanc_cli.reindex.selection import parse_condition
from pgorthanc_cli.text import printable


def from_options(
    orthanc: OrthancConfiguration | None,
    *,
    storage: str | None = None,
    storage_dir: Path | None = None,
    level: str | None = None,
    resources: Mapping[str, tuple[str, ...]] | None = None,
    where: tuple[str, ...] = (),
    since: int | None = None,
    default_encoding: str | None = None,
    orthanc_version: str = "1.13.0",
    max_files_per_s: float | None = None,
    max_bytes_per_s: float | None = None,
    schedule: str | None = None,
    batch_files: int = 500,
    **options: Any,
) -> Settings:
    """Return what the options of `reindex` ask for.

    Raises:
        UsageError: The options contradict each other, or nothing names the storage.
    """
    selection = Selection(
        resources=tuple((LEVELS.index(name), ids) for name, ids in (resources or {}).items() if ids),
        tags=tuple(map(parse_condition, where)),
        since=since,
    )
    _check(selection, level, **options)
    return Settings(
        storage_dir=storage_folder(storage, storage_dir, orthanc),
        profile=profile_of(orthanc, default_encoding, orthanc_version),
        selection=selection,
        levels=_levels(level) if level else ALL_LEVELS,
        storages=orthanc.advanced_storage if orthanc else None,
        server=orthanc.database_server_identifier if orthanc else None,
        limits=Limits(max_files_per_s, max_bytes_per_s),
        hours=Hours.parse(schedule) if schedule else None,
        # A batch is read without a pause: no more than what is allowed in a second.
        batch_files=min(batch_files, max(1, int(max_files_per_s or batch_files))),
        is_configured=orthanc is not None,
        **options,
    )


def profile_of(
    orthanc: OrthancConfiguration | None, default_encoding: str | None, orthanc_version: str
) -> dicom.Profile:
    """Return what decides the rows of a file.

    Raises:
        UsageError: A tag, the encoding or the version is not known.
    """
    configuration = orthanc or OrthancConfiguration()
    profile = dicom.Profile(
        orthanc_version=_version(orthanc_version),
        default_encoding=default_encoding or configuration.default_encoding,
        extra_main_dicom_tags=tuple(configuration.extra_main_dicom_tags.items()),
    )
    dicom.check_profile(profile)
    return profile


def _check(
    selection: Selection,
    level: str | None,
    *,
    keep_first: bool = False,
    limit_to_level: bool = False,
    dry_run: bool = False,
    journal: Path | None = None,
    **_others: Any,
) -> None:
    if dry_run and journal:
        raise UsageError("--dry-run does nothing that a journal could remember", "leave out --journal")
    if keep_first and limit_to_level:
        raise UsageError(
            "--keep-first and --limit-to-level name two files that decide a resource", "give one of them"
        )
    if limit_to_level and bool(selection.resources) == bool(level):
        raise UsageError(
            "--limit-to-level needs the resources to write, either by name or by their level",
            "add --study ID, or --level study",
        )
    if len([True for part in (selection.resources, selection.tags, selection.since is not None) if part]) > 1:
        raise UsageError("identifiers, --where and --since are three ways to choose", "give one of them only")


def _levels(text: str) -> frozenset[int]:
    numbers = set()
    for name in text.split(","):
        if name.strip().lower() not in LEVELS:
            raise UsageError(
                f"--level: {printable(name)!r} is not a level",
                f"the levels are {', '.join(LEVELS)}; separate several by commas",
            )
        numbers.add(LEVELS.index(name.strip().lower()))
    return frozenset(numbers)


def _version(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise UsageError(f'--orthanc-version: "{text}" is not three numbers such as 1.13.0')
    major, minor, patch = map(int, match.groups())
    return major, minor, patch
