"""The manifests of docker/kubernetes as `kubectl kustomize` builds them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.command_line import ROOT

KUBERNETES = ROOT / "docker" / "kubernetes"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
KUBECTL = Path(sys.executable).with_name("kubectl")
OVERLAYS = ("cpu", "nvidia")
ENVIRONMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(\S+)")
VARIABLE = re.compile(r"\$\(([A-Z_]+)\)")

Manifest = dict[str, Any]


def build(folder: Path) -> list[Manifest]:
    """All objects of a folder with a kustomization."""
    done = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def overlay(name: str) -> list[Manifest]:
    """One of those that are there."""
    return build(KUBERNETES / "overlays" / name)


def compose(folder: Path, *components: str) -> list[Manifest]:
    """The base with components, as somebody's own kustomization in another folder names them."""
    folder.mkdir(exist_ok=True)
    there = os.path.relpath(KUBERNETES, folder)
    written = {
        "namespace": "masc",
        "resources": [f"{there}/base"],
        "components": [f"{there}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(written))
    return build(folder)


def one(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The object of a kind and a name, without what kustomize appends to the latter."""
    (found,) = [
        manifest
        for manifest in objects
        if manifest["kind"] == kind
        and re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", manifest["metadata"]["name"])
    ]
    return found


def workloads(objects: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Names and pod templates of whatever makes pods."""
    for manifest in objects:
        if manifest["kind"] in {"Deployment", "StatefulSet"}:
            yield manifest["metadata"]["name"], manifest["spec"]["template"]


def container(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The container of a workload."""
    (found,) = one(objects, kind, name)["spec"]["template"]["spec"]["containers"]
    return found


def image_environment(stage: str) -> dict[str, str]:
    """What an image of the Dockerfile sets, with the stages that it is made from."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    found: dict[str, str] = {}
    for head, body in re.findall(r"^FROM (.+)$((?:\n(?!FROM ).*)*)", text, re.MULTILINE):
        parent, _, name = head.partition(" AS ")
        if name == stage:
            found = image_environment(parent)
            for line in re.findall(r"^ENV (.+)$", body, re.MULTILINE):
                found |= dict(ENVIRONMENT.findall(line))
    return found


def environment(
    objects: Sequence[Manifest], of: Manifest, secrets: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Variables that a pod of these manifests gives a container, in the order of Kubernetes'."""
    found: dict[str, str] = {}
    for source in of.get("envFrom", ()):
        if "configMapRef" in source:
            found |= one(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        else:
            found |= secrets.get(source["secretRef"]["name"], {})
    for variable in of.get("env", ()):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            key = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = secrets[key["name"]][key["key"]]
    return found


def arguments(of: Manifest, variables: Mapping[str, str]) -> list[str]:
    """Arguments of a container, with its variables in their places."""
    return [VARIABLE.sub(lambda found: variables[found[1]], part) for part in of["args"]]
