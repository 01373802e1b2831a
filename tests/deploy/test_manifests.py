"""The compose file and the manifests for Kubernetes: what can be checked without a container runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from pgorthanc_cli import __version__, db
from pgorthanc_cli.schema import catalog
from tests.deploy.places import DEPLOY, Mapping, compose, containers, documents, filled_in, manifests, pods
from tests.support import commandlines
from tests.support.real_servers import Server

PLUGIN = catalog.plugins(catalog.newest()).split()[0]
VALUES = {"ORTHANC_PLUGIN": PLUGIN, "ORTHANC_IMAGE": "orthancteam/orthanc:release"}
SERVICES: dict[str, Mapping] = compose()["services"]
JOBS = ("pgorthanc", "pgorthanc-upgrade")


def command_of(service: str) -> list[str]:
    return [filled_in(word, VALUES) for word in SERVICES[service]["command"]]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_loads(path: Path) -> None:
    assert all(isinstance(document, dict) for document in documents(path))


@pytest.mark.parametrize("service", JOBS)
def test_the_parser_accepts_the_commands_of_the_compose_file(service: str) -> None:
    assert commandlines.refusal(command_of(service)) is None


def test_the_parser_accepts_the_arguments_in_kubernetes() -> None:
    ours = [container["args"] for _, container in containers() if "pgorthanc" in container["image"]]
    assert len(ours) == 4
    assert [commandlines.refusal(words) for words in ours] == [None] * 4


def test_kubernetes_waits_for_the_revision_to_which_it_upgrades() -> None:
    arguments = {container["name"]: container["args"] for _, container in containers() if "args" in container}
    wait, upgrade = arguments["wait"], arguments["upgrade"]
    revision = wait[wait.index("--revision") + 1]
    assert revision == upgrade[upgrade.index("--to") + 1]
    assert int(revision) in catalog.revisions()


def test_images_are_pinned() -> None:
    """By a tag here, or by one that the operator has to choose."""
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    chosen = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in kustomization["images"]}
    images = [service["image"] for service in SERVICES.values()]
    images += [chosen.get(container["image"], container["image"]) for _, container in containers()]
    for image in images:
        if not image.startswith("${ORTHANC_IMAGE:?"):
            _, _, tag = image.rpartition(":")
            assert tag not in ("", "latest"), image
            assert "/" not in tag, image
            assert "pgorthanc" not in image or tag == __version__, image


def test_the_kustomization_names_what_there_is() -> None:
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    used = {c["image"] for name, c in containers() if name in kustomization["resources"]}
    assert {image["name"] for image in kustomization["images"]} == used
    assert all((DEPLOY / "kubernetes" / name).exists() for name in kustomization["resources"])


def test_what_the_compose_file_uses_is_declared() -> None:
    document = compose()
    for service in SERVICES.values():
        secrets = [one if isinstance(one, str) else one["source"] for one in service.get("secrets", ())]
        volumes = [volume.partition(":")[0] for volume in service.get("volumes", ())]
        assert set(secrets) <= set(document["secrets"])
        assert set(volumes) <= set(document["volumes"])
        assert set(service.get("depends_on", ())) <= set(SERVICES)
    assert SERVICES["orthanc"]["depends_on"] == {"pgorthanc": {"condition": "service_completed_successfully"}}
    assert [SERVICES[name]["restart"] for name in JOBS] == ["no", "no"]


def test_only_this_machine_reaches_the_ports() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_manifest_holds_a_password() -> None:
    for _, container in containers():
        for variable in container.get("env", ()):
            assert "PASSWORD" not in variable["name"] or "secretKeyRef" in variable["valueFrom"]
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            assert "PASSWORD" not in name or name.endswith(("_FILE", "_SECRET"))


def test_our_containers_have_no_rights() -> None:
    for _, container in containers():
        if "pgorthanc" in container["image"]:
            rights = container["securityContext"]
            assert rights["runAsNonRoot"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
    for name in JOBS:
        assert SERVICES[name]["cap_drop"] == ["ALL"]


def test_jobs_do_not_run_again_by_themselves() -> None:
    """An interrupted upgrade is looked at before it is run again."""
    for _, manifest in manifests():
        if manifest["kind"] in ("Job", "CronJob"):
            assert [pod["restartPolicy"] for pod in pods(manifest)] == ["Never"]
    assert [m["spec"]["strategy"]["type"] for _, m in manifests() if m["kind"] == "Deployment"] == [
        "Recreate"
    ]


def test_selectors_select_the_pods() -> None:
    for _, manifest in manifests():
        if manifest["kind"] == "Deployment":
            spec = manifest["spec"]
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_volumes_are_declared_in_each_pod() -> None:
    for _, manifest in manifests():
        for pod in pods(manifest):
            declared = {volume["name"] for volume in pod.get("volumes", ())}
            mounted = {
                mount["name"]
                for container in pod["containers"]
                for mount in container.get("volumeMounts", ())
            }
            assert mounted == declared


def pgorthanc(
    words: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pgorthanc_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})


def in_compose() -> dict[str, str]:
    return dict(SERVICES["orthanc"]["environment"])


def in_kubernetes() -> dict[str, str]:
    (orthanc,) = (container for _, container in containers() if container["image"] == "orthanc")
    return {variable["name"]: variable.get("value", "s3cret-of-the-test") for variable in orthanc["env"]}


@pytest.mark.parametrize("environment", [in_compose(), in_kubernetes()], ids=["compose", "kubernetes"])
def test_config_check_finds_nothing_but_missing_tls(environment: dict[str, str], tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "orthanc_password").write_text("s3cret-of-the-test")
    (secrets / "orthanc_users.json").write_text(
        '{"RegisteredUsers": {"alice": "an0ther-s3cret-of-the-test"}}'
    )
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    words = ["--container", "--env-file", str(env_file), "--secrets", str(secrets), "--offline", "--json"]
    done = pgorthanc(["config", "check", *words])
    problems = json.loads(done.stdout)["problems"]
    # The network of the containers is not encrypted; deploy/README.md says so.
    assert {one["key"] for one in problems if one["severity"] != "info"} == {"PostgreSQL.EnableSsl"}


@pytest.fixture
def server() -> Iterator[Server]:
    """An empty server with passwords, as the image of PostgreSQL starts it."""
    server = Server("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n", "")
    try:
        server.create().start()
        server.sql("ALTER ROLE postgres PASSWORD 's3cret-of-postgres'")
        yield server
    finally:
        server.remove()


def run_job(service: str, server: Server, secrets: Path) -> int:
    """Run a job of the compose file, and return the revision that it leaves."""
    environment = {
        name: value.replace("/run/secrets", str(secrets))
        for name, value in SERVICES[service]["environment"].items()
    }
    words = [word.replace("/run/secrets", str(secrets)) for word in command_of(service)]
    address = {"PGORTHANC_HOST": "127.0.0.1", "PGORTHANC_PORT": str(server.port)}
    done = pgorthanc([*words, "--json"], environment | address)
    assert done.returncode == 0, done.stderr
    revision: int = json.loads(done.stdout)["revision"]
    return revision


def test_the_jobs_of_the_compose_file_on_a_real_server(server: Server, tmp_path: Path) -> None:
    """Started twice, as each `docker compose up` does, also while an Orthanc is running; then the upgrade."""
    for name, password in (
        ("postgres_password", "s3cret-of-postgres"),
        ("orthanc_password", "s3cret-of-orthanc"),
    ):
        (tmp_path / name).write_text(password)
        (tmp_path / name).chmod(0o600)
    assert run_job("pgorthanc", server, tmp_path) == catalog.newest()
    orthanc = psycopg2.connect(
        host="127.0.0.1", port=server.port, user="orthanc", password="s3cret-of-orthanc", dbname="orthanc"
    )
    with orthanc.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(%s)", (db.LOCK_INDEX,))
        assert run_job("pgorthanc", server, tmp_path) == catalog.newest()
    orthanc.close()
    assert run_job("pgorthanc-upgrade", server, tmp_path) == catalog.newest()
