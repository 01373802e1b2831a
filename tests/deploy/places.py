"""Files below `deploy/`, read as what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
_VARIABLE = re.compile(r"\$\{(\w+):\?[^}]*\}")

Mapping = dict[str, Any]


def documents(path: Path) -> list[Mapping]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def compose() -> Mapping:
    """The compose file."""
    (document,) = documents(DEPLOY / "compose.yaml")
    return document


def manifests() -> Iterator[tuple[str, Mapping]]:
    """The manifests for Kubernetes, each with the name of its file."""
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in documents(path):
                yield path.name, document


def pods(value: object) -> Iterator[Mapping]:
    """The specifications of pods within a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)


def containers() -> Iterator[tuple[str, Mapping]]:
    """The containers of all manifests, each with the name of its file."""
    for name, manifest in manifests():
        for pod in pods(manifest):
            for container in (*pod.get("initContainers", ()), *pod["containers"]):
                yield name, container


def filled_in(text: str, values: dict[str, str]) -> str:
    """A text of the compose file with the variables that an operator has to set."""
    return _VARIABLE.sub(lambda match: values[match[1]], text)
