"""Servers that speak other languages: locales made in a folder (no root needed), PostgreSQL's own translations.

What a server says before a login follows lc_messages; its bytes follow the LC_CTYPE that it was started with.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import pytest

from pgorthanc_cli.server import programs
from tests.support.real_servers import Server

# A short name -> locale. Not all of them write UTF-8.
LANGUAGES = {
    "English": "C",
    "German": "de_DE.UTF-8",
    "French": "fr_FR.UTF-8",
    "Japanese": "ja_JP.UTF-8",
    "German, Latin-1": "de_DE.ISO-8859-1",
    "Japanese, EUC-JP": "ja_JP.EUC-JP",
}
# The quick suite has English and one more; the others are `once`.
PARAMETERS = [
    pytest.param(name, id=name, marks=[] if name in ("English", "German") else [pytest.mark.once])
    for name in LANGUAGES
]


@functools.cache
def locales() -> Path:
    """A folder for LOCPATH that holds all of them.

    It is made once for each run, and skips the test where the sources of locales (Debian: `locales`) are missing.
    """
    folder = Path(tempfile.mkdtemp(prefix="pgorthanc-locales-", dir="/tmp"))
    folder.chmod(0o755)
    for locale in LANGUAGES.values():
        source, _, charset = locale.partition(".")
        if not charset:
            continue
        if not Path("/usr/share/i18n/locales", source).is_file():
            pytest.skip("needs the sources of locales (apt-get install locales)")
        command = ["localedef", "--no-archive", "-c", "-i", source, "-f", charset, str(folder / locale)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (folder / locale).is_dir(), done.stderr
    return folder


class Localized(Server):
    """A server in its own folder, with the messages of a language; everything else is as in English."""

    def __init__(self, language: str, hba: str, settings: str, major: int | None = None) -> None:
        self.language, self.locale = language, LANGUAGES[language]
        words = f"lc_messages = '{self.locale}'\n" if language != "English" else ""
        super().__init__(hba, settings + words, major)
        if language == "English":
            return
        translations = _translations(self.programs, self.locale[:2])
        if not translations:
            self.remove()
            pytest.skip(f"{self.programs} has no translations: another language cannot be tried")

    def run(self, name: str, *arguments: str) -> programs.Completed:
        if self.locale == "C":
            return super().run(name, *arguments)
        with mock.patch.dict(os.environ, LOCPATH=str(locales())):
            return super().run(name, *arguments)

    def start(self, *options: str) -> Server:
        if self.locale == "C":
            return super().start(*options)
        wrapper = self.folder / "postgres"
        wrapper.write_text(
            f"#!/bin/sh\nunset LC_ALL\nexport LC_CTYPE={self.locale} LOCPATH={locales()}\n"
            f'exec {self.programs.bin / "postgres"} "$@"\n'
        )
        wrapper.chmod(0o755)
        log = str(self.folder / "log")
        self.run(
            "pg_ctl",
            "start",
            "-w",
            "-D",
            str(self.data),
            "-l",
            log,
            "-p",
            str(wrapper),
            "-o",
            " ".join(options),
        )
        return self


def _translations(installation: programs.Programs, language: str) -> bool:
    """Whether this build of PostgreSQL carries the messages of its server in that language."""
    name = f"{language}/LC_MESSAGES/postgres-{installation.version[0]}.mo"
    roots = (Path("/usr/share/locale"), installation.bin.parent / "share" / "locale")
    return any((root / name).is_file() for root in roots)
