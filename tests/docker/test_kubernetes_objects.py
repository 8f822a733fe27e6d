"""How the objects of Kubernetes' manifests go together: selectors, networks, scaling, volumes."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command_line import ROOT
from tests.compose.expressions import Expression
from tests.default_settings import default_settings
from tests.docker.manifests import (
    KUBERNETES,
    OVERLAYS,
    Manifest,
    arguments,
    build,
    container,
    image_environment,
    one,
    overlay,
    workloads,
)
from tests.docker.test_compose import COMPOSE
from tests.docker.test_prometheus import exposed_names
from tests.docs.markdown import Document

MANUAL = Document(ROOT / "docs" / "kubernetes.md")
QUEUE_METRICS = {"masc_queue_depth", "masc_queue_priority_oldest_age_seconds"}
Labels = Mapping[str, str]


def pods(objects: Sequence[Manifest]) -> dict[str, Labels]:
    """Labels of the pods of each workload."""
    return {name: template["metadata"]["labels"] for name, template in workloads(objects)}


def selects(selector: Mapping[str, Any], labels: Labels) -> bool:
    """Whether a selector fits; an empty one fits all."""
    return all(
        labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()
    ) and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", ())
    )


def test_selectors_select_what_they_are_called_after(
    combinations: dict[str, list[Manifest]],
) -> None:
    kinds = {"Deployment", "StatefulSet", "PodDisruptionBudget", "PodMonitor", "Service"}
    for objects in combinations.values():
        for manifest in objects:
            if manifest["kind"] not in kinds:
                continue
            name, selector = manifest["metadata"]["name"], manifest["spec"]["selector"]
            if manifest["kind"] == "Service":
                selector = {"matchLabels": selector}
            assert [pod for pod, one in pods(objects).items() if selects(selector, one)] == [name]


def test_services_lead_to_ports_that_there_are() -> None:
    objects = overlay("cpu")
    for kind, name in (("Deployment", "masc-server"), ("StatefulSet", "masc-redis")):
        (port,) = one(objects, "Service", name)["spec"]["ports"]
        (listening,) = container(objects, kind, name)["ports"]
        assert port["targetPort"] == listening["name"]


def test_what_prometheus_finds_is_called_as_its_rules_say(
    combinations: dict[str, list[Manifest]],
) -> None:
    objects = combinations["keda"]
    service = one(objects, "Service", "masc-server")
    front_ends = one(objects, "ServiceMonitor", "masc-server")["spec"]
    assert selects(front_ends["selector"], service["metadata"]["labels"])
    assert service["metadata"]["labels"][front_ends["jobLabel"]] == "masc-server"
    assert front_ends["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    workers = one(objects, "PodMonitor", "masc-worker")["spec"]
    assert pods(objects)["masc-worker"][workers["jobLabel"]] == "masc-worker"
    (port,) = container(objects, "Deployment", "masc-worker")["ports"]
    assert workers["podMetricsEndpoints"][0]["port"] == port["name"]


def permits(
    objects: Sequence[Manifest], direction: str, pod: Labels, peer: Labels | None, port: set[Any]
) -> bool:
    """Whether policies let a pod send to a peer, or take from it; None is outside the namespace."""
    policies = [
        manifest["spec"]
        for manifest in objects
        if manifest["kind"] == "NetworkPolicy"
        and direction in manifest["spec"]["policyTypes"]
        and selects(manifest["spec"]["podSelector"], pod)
    ]
    assert policies, f"whoever likes may reach {pod}"
    side = {"Egress": "to", "Ingress": "from"}[direction]
    for policy in policies:
        for rule in policy.get(direction.lower(), ()):
            is_peer = side not in rule or any(
                selects(one["podSelector"], peer) if peer else "namespaceSelector" in one
                for one in rule[side]
                if peer is None or "podSelector" in one
            )
            if is_peer and any(one["port"] in port for one in rule["ports"]):
                return True
    return False


def test_nobody_is_reached_but_by_those_who_have_to(
    combinations: dict[str, list[Manifest]],
) -> None:
    redis_port, http, metrics = {6379, "redis"}, {8000, "http"}, {9100, "metrics"}
    for name, objects in combinations.items():
        labels = pods(objects)
        server, worker = labels["masc-server"], labels["masc-worker"]
        is_monitored = any(one["kind"] == "PodMonitor" for one in objects)
        assert permits(objects, "Ingress", server, None, http)
        assert permits(objects, "Ingress", worker, None, metrics) is is_monitored
        assert not permits(objects, "Ingress", worker, server, metrics)
        for client in (server, worker):
            assert permits(objects, "Egress", client, None, {53})
            assert permits(objects, "Egress", client, None, {443}) is (name == "elsewhere")
            if "masc-redis" not in labels:
                assert permits(objects, "Egress", client, None, redis_port)
                continue
            redis = labels["masc-redis"]
            assert permits(objects, "Egress", client, redis, redis_port)
            assert permits(objects, "Ingress", redis, client, redis_port)
            assert not permits(objects, "Egress", client, None, redis_port)
        if "masc-redis" in labels:
            assert not permits(objects, "Ingress", labels["masc-redis"], None, redis_port)
            assert not permits(objects, "Egress", labels["masc-redis"], None, redis_port)


def test_a_role_is_reached_where_models_are_in_object_storage(
    combinations: dict[str, list[Manifest]],
) -> None:
    rules = one(combinations["elsewhere"], "NetworkPolicy", "masc-models")["spec"]["egress"]
    told = {
        (peer["ipBlock"]["cidr"], port["port"])
        for rule in rules
        for peer in rule.get("to", ())
        for port in rule["ports"]
    }
    assert told == {
        ("169.254.169.254/32", 80),
        ("169.254.170.23/32", 80),
        ("169.254.169.252/32", 988),
    }


def test_the_manual_opens_ports_by_patches(tmp_path: Path) -> None:
    (written,) = [block for block in MANUAL.blocks("yaml") if "kind: NetworkPolicy" in block]
    there = os.path.relpath(KUBERNETES, tmp_path)
    own = {
        "resources": [f"{there}/base"],
        "components": [f"{there}/components/models-url"],
        **yaml.safe_load(written),
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    objects = build(tmp_path)
    for client in pods(objects).values():
        assert all(permits(objects, "Egress", client, None, {port}) for port in (9000, 5353))
        # The collector is in a namespace of its own.
        assert permits(objects, "Egress", client, None, {4318})


def test_what_is_mounted_is_a_volume_and_pods_write_to_nothing_else(
    combinations: dict[str, list[Manifest]],
) -> None:
    for objects in combinations.values():
        for name, template in workloads(objects):
            pod = template["spec"]
            volumes = {volume["name"] for volume in pod.get("volumes", ())}
            parts = [*pod["containers"], *pod.get("initContainers", ())]
            mounts = {mount["name"] for part in parts for mount in part["volumeMounts"]}
            assert mounts == (volumes or {"data"}), name
    for name in OVERLAYS:
        objects = overlay(name)
        claim = one(objects, "PersistentVolumeClaim", "masc-models")["metadata"]["name"]
        for part in ("server", "worker"):
            template = one(objects, "Deployment", f"masc-{part}")["spec"]["template"]
            (volume,) = [one for one in template["spec"]["volumes"] if one["name"] == "models"]
            assert volume["persistentVolumeClaim"]["claimName"] == claim
            mounted = container(objects, "Deployment", f"masc-{part}")["volumeMounts"]
            folders = {one["mountPath"]: one.get("readOnly", False) for one in mounted}
            assert folders[image_environment(part)["MASC_MODELS_DIR"]] is (part == "worker")


def fill(folder: Path, pod: str) -> subprocess.Popen[bytes]:
    """The init container of a pod, with folders of this machine for its mounts."""
    template = one(overlay("cpu"), "Deployment", "masc-worker")["spec"]["template"]
    (part,) = template["spec"]["initContainers"]
    command = [
        text.replace("/models/", f"{folder}/image/").replace("/volume/", f"{folder}/volume/")
        for text in part["command"]
    ]
    return subprocess.Popen(command, env={"PATH": os.environ["PATH"], "HOSTNAME": pod})


def test_a_new_volume_is_filled_once_by_whichever_pod_is_first(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    for name in ("cifar10/1/manifest.json", "cifar10/current"):
        (tmp_path / "image" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "image" / name).write_text("1")
    (tmp_path / "volume" / ".tmp-pod-0" / "cifar10").mkdir(parents=True)  # killed in mid-copy
    started = [fill(tmp_path, f"pod-{number}") for number in range(6)]
    assert [process.wait(30) for process in started] == [0] * 6
    copied = [path.relative_to(tmp_path / "volume") for path in (tmp_path / "volume").rglob("*")]
    inside = ("cifar10", "cifar10/1", "cifar10/1/manifest.json", "cifar10/current")
    assert set(copied) == {*map(Path, inside)}
    (tmp_path / "volume" / "cifar10" / "current").write_text("2")
    assert fill(tmp_path, "pod-7").wait(30) == 0
    assert (tmp_path / "volume" / "cifar10" / "current").read_text() == "2"


@pytest.mark.parametrize(("name", "scaler"), [("elsewhere", "scale-worker"), ("keda", "keda")])
def test_workers_are_scaled_by_what_waits(
    name: str, scaler: str, combinations: dict[str, list[Manifest]]
) -> None:
    objects = combinations[name]
    kind = "ScaledObject" if scaler == "keda" else "HorizontalPodAutoscaler"
    spec = one(objects, kind, "masc-worker")["spec"]
    assert "replicas" not in one(objects, "Deployment", spec["scaleTargetRef"]["name"])["spec"]
    assert spec.get("minReplicas", spec.get("minReplicaCount")) == 1
    if scaler == "keda":
        asked = [Expression("panel", "", part["metadata"]["query"]) for part in spec["triggers"]]
        names = {name for expression in asked for name in expression.metrics}
    else:
        names = {part["external"]["metric"]["name"] for part in spec["metrics"]}
    assert names == QUEUE_METRICS
    assert names <= exposed_names()
    # Batch jobs may wait.
    if scaler == "keda":
        assert 'priority="interactive"' in spec["triggers"][1]["metadata"]["query"]
    else:
        metric = spec["metrics"][1]["external"]["metric"]
        assert metric["selector"]["matchLabels"] == {"priority": "interactive"}
    (adapter,) = [block for block in MANUAL.blocks("yaml") if "external:" in block]
    rules = yaml.safe_load(adapter)["rules"]["external"]
    assert {rule["seriesQuery"].partition("{")[0] for rule in rules} == names


def test_front_ends_are_scaled_by_their_processors(
    combinations: dict[str, list[Manifest]],
) -> None:
    objects = combinations["elsewhere"]
    spec = one(objects, "HorizontalPodAutoscaler", "masc-server")["spec"]
    assert spec["metrics"][0]["resource"]["name"] == "cpu"
    assert container(objects, "Deployment", "masc-server")["resources"]["requests"]["cpu"]
    assert "replicas" not in one(objects, "Deployment", "masc-server")["spec"]


def test_a_worker_has_a_gpu_of_its_own_and_waits_for_no_other() -> None:
    objects = overlay("nvidia")
    deployment = one(objects, "Deployment", "masc-worker")["spec"]
    (part,) = deployment["template"]["spec"]["containers"]
    assert part["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "MASC_DEVICE", "value": "cuda"} in part["env"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    written = {one["value"] for one in part["env"] if one["name"].endswith("_CACHE_DIR")}
    assert {str(Path(path).parent) for path in written} == {"/kernels"}


def test_redis_is_that_of_compose() -> None:
    service = yaml.safe_load(COMPOSE.read_text())["services"]["redis"]
    part = container(overlay("cpu"), "StatefulSet", "masc-redis")
    assert part["image"] == service["image"]
    assert part["startupProbe"]["exec"]["command"] == service["healthcheck"]["test"][1:]
    start, *options = arguments(part, {"REDISCLI_AUTH": "secret"})
    assert options[:2] == ["--requirepass", "secret"]
    assert [start, *options[2:]] == [
        re.sub(r"\$\{\w+:-(\w+)\}", r"\1", option) for option in service["command"]
    ]


@pytest.mark.parametrize("name", OVERLAYS)
def test_images_are_of_this_version(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    worker = {"cpu": "masc-worker", "nvidia": "masc-worker-gpu"}[name]
    wanted = {f"masc-server:{version}", f"{worker}:{version}", "redis:7.4-alpine"}
    found = {
        part["image"]
        for _, template in workloads(overlay(name))
        for part in [*template["spec"]["containers"], *template["spec"].get("initContainers", ())]
    }
    assert found == wanted


def test_what_the_manual_adds_is_there(tmp_path: Path) -> None:
    (written,) = [block for block in MANUAL.blocks("yaml") if "kind: Kustomization" in block]
    there = os.path.relpath(ROOT, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(written.replace("[masc/", f"[{there}/"))
    objects = build(tmp_path)
    images = {part["image"] for _, one in workloads(objects) for part in one["spec"]["containers"]}
    assert {image.split("/")[0] for image in images} == {"registry.example", "redis:7.4-alpine"}
    settings = one(objects, "ConfigMap", "masc-settings")
    assert settings["data"].items() >= {"MASC_MAX_QUEUE": "512", "MASC_DRAIN_SECONDS": "25"}.items()
    (source,) = container(objects, "Deployment", "masc-server")["envFrom"]
    assert source["configMapRef"]["name"] == settings["metadata"]["name"]
    assert settings["data"].keys() <= default_settings().keys()


def test_every_component_is_tried(combinations: dict[str, list[Manifest]]) -> None:
    told = {cells[0].strip("`") for cells in MANUAL.rows("component")}
    assert told == {path.name for path in (KUBERNETES / "components").iterdir()}
