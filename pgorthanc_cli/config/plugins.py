"""The libraries that the option "Plugins" loads, and the release of Orthanc's PostgreSQL plugins among them.

Nothing is loaded: the release is what `OrthancPluginGetVersion` would return, found by reading its machine code
(x86-64 and AArch64: load an address, return).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgorthanc_cli import files
from pgorthanc_cli.errors import UsageError

INDEX, STORAGE = "libOrthancPostgreSQLIndex", "libOrthancPostgreSQLStorage"
# Storage plugins whose files are elsewhere: their section, and the key that switches them on; without a key the section
# alone does. AdvancedStorage is not among them: it reads what lies where Orthanc's own storage puts it.
_STORAGES = {
    "AwsS3Storage": "", "AzureBlobStorage": "", "GoogleCloudStorage": "", "S3Zip": "",
    "MySQL": "EnableStorage", "Odbc": "EnableStorage",
}  # fmt: skip
_LARGEST_SCRIPT = 4 << 20
_X86_64, _AARCH64 = 62, 183
_LONGEST = 64  # of a release, in bytes
# endbr64 or nothing; lea rax, [rip + offset]; ret
_X86_CODE = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?\x48\x8d\x05(....)\xc3", re.DOTALL)
_STEP = re.compile(rb"from revision \d+ to revision (\d+)")


@dataclass(frozen=True)
class Plugin:
    """A library that Orthanc would load.

    Attributes:
        path: Of the library.
        name: Its name without `.so` and what follows.
        release: Of a PostgreSQL plugin, as in `10.3`, or `mainline`; None if it cannot be told.
        revision: Of a PostgreSQL plugin without a number: the highest revision that it speaks of.
    """

    path: Path
    name: str
    release: str | None = None
    revision: int | None = None

    @property
    def is_index(self) -> bool:
        """Whether this is the PostgreSQL plugin for the index."""
        return self.name == INDEX

    @property
    def is_storage(self) -> bool:
        """Whether this is the PostgreSQL plugin for attachments."""
        return self.name == STORAGE


def other_storages(root: Mapping[str, Any], folder: Path, *, large_objects: bool) -> list[str]:
    """Name the plugins of a configuration that keep attachments elsewhere than Orthanc itself would.

    A section counts whether "Plugins" names the library or not: a container image loads it by other means.

    Args:
        root: The top-level keys of the configuration.
        folder: Where relative paths start from.
        large_objects: The PostgreSQL plugin stores attachments; then any other storage plugin is one too many.
    """
    found = [
        section
        for section, key in (_STORAGES | ({"AdvancedStorage": "Enable"} if large_objects else {})).items()
        if isinstance(values := root.get(section), dict) and (not key or values.get(key) is True)
    ]
    script = root.get("PythonScript")
    if isinstance(script, str) and script and "S3Zip" not in found and _stores(folder / script):
        found.append(f"PythonScript {script}")
    return found


def _stores(script: Path) -> bool:
    """Whether a script of the Python plugin, or one beside it that it imports, registers a storage area."""
    content = _script(script)
    imported = re.findall(rb"^\s*(?:import|from)\s+(\w+)", content, re.MULTILINE)
    beside = [script.with_name(f"{name.decode()}.py") for name in imported if name != b"orthanc"]
    return any(b"RegisterStorageArea" in each for each in (content, *map(_script, beside)))


def _script(path: Path) -> bytes:
    """The content of a regular file; empty: there is none that can be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            return stream.read(_LARGEST_SCRIPT)
    except (OSError, ValueError):
        return b""


def resolve(entries: list[object], folder: Path) -> tuple[list[Plugin], list[str]]:
    """The libraries of the entries of "Plugins", and the entries that lead nowhere.

    An entry is a library or a folder of libraries, relative to the folder of the configuration.
    """
    found, missing = [], []
    for entry in entries:
        place = folder / str(entry)
        if place.is_dir():
            found += [look(file) for file in sorted(place.iterdir()) if file.suffix.lower() == ".so"]
        elif place.is_file():
            found.append(look(place))
        else:
            missing.append(str(entry))
    return found, missing


def look(library: Path) -> Plugin:
    """A library, with its release if it is one of the PostgreSQL plugins."""
    name = library.name.partition(".so")[0]
    if name not in (INDEX, STORAGE):
        return Plugin(library, name)
    try:
        content = files.read(library, limit=1_000_000_000)
    except (OSError, UsageError):
        return Plugin(library, name)
    release = _release(content) or _from_name(library)
    steps = [int(step) for step in _STEP.findall(content)]
    return Plugin(library, name, release, max(steps, default=None))


def _from_name(library: Path) -> str | None:
    """From the name of the file, as in Debian: `libOrthancPostgreSQLIndex.so.5.0`."""
    ending = library.resolve().name.partition(".so.")[2]
    return ending if re.fullmatch(r"\d+(\.\d+)+", ending) else None


def _release(content: bytes) -> str | None:
    """What `OrthancPluginGetVersion` returns; None if this is no such library, or its code looks different."""
    try:
        return _Library(content).returned_text("OrthancPluginGetVersion")
    except (struct.error, IndexError, UnicodeDecodeError, ValueError):
        return None


class _Library:
    """As much of a 64-bit little-endian ELF file as is needed; see elf(5)."""

    def __init__(self, content: bytes) -> None:
        if content[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        self.content = content
        self.machine = self._unpack("<H", 18)[0]
        headers, sections = self._unpack("<QQ", 32)
        header_size, header_count, section_size, section_count = self._unpack("<HHHH", 54)
        self.segments = [self._unpack("<IIQQQQ", headers + n * header_size) for n in range(header_count)]
        self.sections = [
            self._unpack("<IIQQQQIIQQ", sections + n * section_size) for n in range(section_count)
        ]

    def returned_text(self, function: str) -> str | None:
        """The text that a function without arguments returns, if it does nothing else."""
        start = self._address(function)
        code = self._bytes(start, 16)
        if self.machine == _X86_64:
            found = _X86_CODE.match(code)
            address = start + found.end(1) + struct.unpack("<i", found[1])[0] if found else None
        else:
            address = self._aarch64(start) if self.machine == _AARCH64 else None
        if address is None:
            return None
        text = self._bytes(address, _LONGEST).partition(b"\0")[0]
        return text.decode("ascii") if re.fullmatch(rb"mainline|\d+(?:\.\d+)+", text) else None

    def _aarch64(self, start: int) -> int | None:
        """`adrp x0, page; add x0, x0, #offset; ret`, maybe after `bti c`."""
        words = self._unpack("<4I", self._offset(start))
        if words[0] == 0xD503245F:
            start, words = start + 4, self._unpack("<4I", self._offset(start) + 4)
        page, add, back = words[:3]
        if page & 0x9F00001F != 0x90000000 or add & 0xFFC003FF != 0x91000000 or back != 0xD65F03C0:
            return None
        pages = (page >> 29 & 3) | (page >> 5 & 0x7FFFF) << 2
        pages -= (pages & 1 << 20) << 1
        return (start & ~0xFFF) + (pages << 12) + (add >> 10 & 0xFFF)

    def _address(self, symbol: str) -> int:
        dynamic_symbols = 11
        for _, kind, _, _, offset, size, link, _, _, entry in self.sections:
            if kind != dynamic_symbols:
                continue
            names = self.sections[link][4]
            for at in range(offset, offset + size, entry):
                name, _, _, _, value, _ = self._unpack("<IBBHQQ", at)
                if self.content.startswith(symbol.encode() + b"\0", names + name):
                    return int(value)
        raise ValueError(f"no {symbol}")

    def _bytes(self, address: int, size: int) -> bytes:
        offset = self._offset(address)
        return self.content[offset : offset + size]

    def _offset(self, address: int) -> int:
        """Where in the file the memory of an address comes from."""
        for kind, _, offset, start, _, size in self.segments:
            if kind == 1 and start <= address < start + size:
                return int(offset + address - start)
        raise ValueError("no such address")

    def _unpack(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from(layout, self.content, at)
