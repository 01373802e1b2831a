"""The configuration that the container image orthancteam/orthanc gives to its Orthanc.

Lowest first: files, JSON files among the secrets, ORTHANC_JSON, variables `ORTHANC__SECTION__OPTION_NAME`, secrets
named like such variables; then the image's own defaults. From the published description of the image, not measured.
Orthanc itself and other images know nothing of this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pgorthanc_cli import files as disk
from pgorthanc_cli.config import documents, jsontext
from pgorthanc_cli.config.documents import ConfigurationError, Document, Problem, Source
from pgorthanc_cli.config.options import POSTGRESQL_KEYS, SECTION, keys_of_variable, variable_of
from pgorthanc_cli.errors import UsageError

IMAGE = "orthancteam/orthanc"
PREFIX = "ORTHANC__"
SECRETS = Path("/run/secrets")
_SUFFIX = "_SECRET"  # ORTHANC__POSTGRESQL__PASSWORD_SECRET=db.password: the option is what that secret holds
_ENABLING_VARIABLE = "POSTGRESQL_PLUGIN_ENABLED"
# Variables of older images, and their options.
_DEPRECATED = {
    "PG_HOST": "Host", "PG_PORT": "Port", "PG_DB": "Database", "PG_USER": "Username", "PG_PASSWORD": "Password",
}  # fmt: skip
_UNREPLACED = re.compile(r"\$\{[^}]*\}")
_DEFAULTS = {"EnableIndex": True, "Lock": False}
_LOGIN_DEFAULTS = {"Database": "postgres", "Username": "postgres", "Password": "postgres"}


def read(
    path: Path | documents.Paths | None, environ: Mapping[str, str], secrets: Path = SECRETS
) -> Document:
    """Return the merged configuration, each value with its file or variable.

    Args:
        path: A file or a folder of files; None if the container has none.
        environ: The environment of the container.
        secrets: The folder of its secrets; it need not exist.

    Raises:
        ConfigurationError: A file, ORTHANC_JSON or a secret that cannot be read or is not JSON where it must be.
    """
    document = Document()
    for file in (*(documents.files(path) if path else ()), *_secret_files(secrets, ".json")):
        _merge_text(document, documents.load(file, environ))
    given = environ.get("ORTHANC_JSON")
    if given:
        _merge_text(document, Source(Path("ORTHANC_JSON"), given, given, (), ()))
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name.endswith(_SUFFIX):
            _set_secret(document, name, environ[name], secrets)
        else:
            _set(document, name, environ[name], name)
    for file in _secret_files(secrets, ""):
        # A secret that is JSON was merged above, with the files.
        if file.name.startswith(PREFIX) and file.suffix != ".json":
            _set(document, file.name, _secret(file), str(file))
    _add_defaults(document, environ)
    document.problems.extend(_mistakes(environ))
    return document


def _set_secret(document: Document, variable: str, secret: str, secrets: Path) -> None:
    """Set an option whose variable names the secret that holds it."""
    file = secrets / secret
    if not file.is_file():
        message = f"{variable} names a secret, and {secrets} has no such file"
        document.problems.append(Problem("", "error", message, "give the secret to the container", variable))
        return
    _set(document, variable.removesuffix(_SUFFIX), _secret(file), f"{variable}, {file}")


def _mistakes(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Yield the variables that the image does not treat as they suggest."""
    for name, option in _DEPRECATED.items():
        if name in environ:
            message = f"{name} is deprecated: the image {IMAGE} of 26.7.0 and later does not start with it"
            yield Problem(
                f"{SECTION}.{option}", "error", message, f"write {variable_of(SECTION, option)}", name
            )
    for name, value in environ.items():
        if name.startswith(("ORTHANC_", "POSTGRESQL_PLUGIN")) and (match := _UNREPLACED.search(value)):
            message = f"{name} holds {match[0]}: the image does not replace it, only compose does"
            yield Problem("", "error", message, "write the value itself", name)


def variables(file: Path) -> dict[str, str]:
    """Return the variables of a file of lines `NAME=value`, as `docker run --env-file` reads it.

    Raises:
        ConfigurationError: It cannot be read.
    """
    # Docker takes quotes and `export` as part of the text: nothing of them is interpreted.
    lines = [line.strip() for line in _text(file).splitlines()]
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, equals, value in pairs if equals}


def _secret_files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.name.endswith(ending) and file.is_file())


def _secret(file: Path) -> str:
    # Editors end a file with a line feed, which is no part of a password.
    return _text(file).rstrip("\r\n")


def _text(file: Path) -> str:
    try:
        return disk.read(file).decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(f"{file}: cannot be read: {reason}") from None
    except UsageError as error:
        raise ConfigurationError(error.message, error.hint) from None


def _merge_text(document: Document, source: Source) -> None:
    root = documents.parse(source, document.problems)
    document.sources.append(source)
    places = Document()
    documents.record(root, source, places)
    _merge(document, document.values, root.value, (), places.location)


def _set(document: Document, variable: str, text: str, origin: str) -> None:
    """Set the option of a variable, whose value is JSON if it parses as JSON, else text."""
    keys = keys_of_variable(variable)
    if not all(keys):
        return
    value = _value(text)
    key = POSTGRESQL_KEYS.get(keys[1]) if len(keys) == 2 and keys[0] == SECTION else None
    if key and key.types == (str,) and not isinstance(value, str):
        message = f"{variable} must be text, and it reads like JSON"
        hint = "put it in double quotes within the variable"
        document.problems.append(Problem(".".join(keys), "warning", message, hint, origin))
        value = text
    for key_name in reversed(keys):
        value = {key_name: value}
    _merge(document, document.values, value, (), lambda *_: origin)


def _value(text: str) -> Any:
    try:
        document = jsontext.parse(text)
    except jsontext.JsonError:
        return text
    # Text that merely begins like JSON, such as `5 rue X`, is text.
    return text if document.rest is not None else document.root.value


def _merge(
    document: Document, into: dict[str, Any], new: Any, above: documents.Keys, location: Callable[..., str]
) -> None:
    """Merge objects member by member; of anything else the later one counts."""
    for name, value in new.items():
        keys = (*above, name)
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(document, into[name], value, keys, location)
            continue
        if name in into and into[name] != value:
            message = f'"{name}" is given twice: this one counts, not that of {document.location(*keys)}'
            document.problems.append(Problem(".".join(keys), "info", message, None, location(*keys)))
        into[name] = value
        document.places[keys] = location(*keys)
        for inner in _inner(value):
            document.places[keys + inner] = location(*keys, *inner)


def _inner(value: Any) -> Iterator[documents.Keys]:
    for name, member in value.items() if isinstance(value, dict) else ():
        yield (name,)
        yield from ((name, *keys) for keys in _inner(member))


def _add_defaults(document: Document, environ: Mapping[str, str]) -> None:
    """Add the defaults of the image for a plugin that has a section, or is enabled by its variable."""
    enabled = environ.get(_ENABLING_VARIABLE, "").lower() == "true"
    section = document.values.setdefault(SECTION, {}) if enabled else document.values.get(SECTION)
    if not isinstance(section, dict):
        return
    for name, value in (_DEFAULTS | ({} if "ConnectionUri" in section else _LOGIN_DEFAULTS)).items():
        if name not in section:
            section[name] = value
            document.places[SECTION, name] = f"default of the image {IMAGE}"
