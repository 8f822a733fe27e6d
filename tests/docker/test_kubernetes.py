"""Kubernetes' manifests against its schemas, and against the program that they start."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.routes import health
from server.settings import load_settings as server_settings
from tests.command_line import ROOT
from tests.default_settings import default_settings
from tests.docker.manifests import (
    DOCKERFILE,
    OVERLAYS,
    Manifest,
    container,
    environment,
    image_environment,
    one,
    overlay,
    workloads,
)
from tests.docs.markdown import Document
from worker.settings import load_settings as worker_settings

OLDEST, NEWEST = "1.30", "1.37"  # docs/kubernetes.md says from which version on
MARGIN = 15  # seconds after the drain: last answers and reports, and traces to a slow collector
OTHERS = {
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "REDISCLI_AUTH",
}  # variables of other programs
SECRETS = {"masc-queue": {"url": "redis://:pw@masc-redis:6379/0", "password": "pw"}}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
MANUAL = Document(ROOT / "docs" / "kubernetes.md")


def is_of_an_extension(manifest: Manifest) -> bool:
    """Whether a cluster knows it only with an operator."""
    return manifest["apiVersion"].split("/")[0] in {"monitoring.coreos.com", "keda.sh"}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_one_that_kubernetes_knows(
    combinations: dict[str, list[Manifest]], version: str
) -> None:
    different = {str(one): one for objects in combinations.values() for one in objects}
    for manifest in different.values():
        if not is_of_an_extension(manifest):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_noticed() -> None:
    manifest = yaml.safe_load(yaml.safe_dump(one(overlay("cpu"), "Deployment", "masc-server")))
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 55
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


@pytest.mark.slow  # the models take ten seconds to load
def test_every_object_of_an_operator_is_one_that_it_knows(
    combinations: dict[str, list[Manifest]],
) -> None:
    from cloudcoil.models.keda import v1alpha1 as keda  # noqa: PLC0415
    from cloudcoil.models.prometheus_operator import v1 as prometheus  # noqa: PLC0415

    kinds: dict[str, Any] = {
        "ScaledObject": keda.ScaledObject,
        "ServiceMonitor": prometheus.ServiceMonitor,
        "PodMonitor": prometheus.PodMonitor,
        "PrometheusRule": prometheus.PrometheusRule,
    }
    seen = set()
    for manifest in [*combinations["keda"], *prometheus_rules()]:
        if is_of_an_extension(manifest):
            parsed = kinds[manifest["kind"]].model_validate(manifest)
            # What a model does not know it leaves out.
            assert parsed.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest
            seen.add(manifest["kind"])
    assert seen == set(kinds)


def prometheus_rules() -> list[Manifest]:
    """What the manual's command makes of the rules that Compose's Prometheus has."""
    (block,) = [block for block in MANUAL.blocks("sh") if "PrometheusRule" in block]
    script, _, rest = block.partition("| kubectl apply")
    assert rest.strip() == "-f -"
    done = subprocess.run(["bash", "-euc", script], cwd=ROOT, capture_output=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def test_the_rules_for_the_operator_are_all_rules() -> None:
    told = [group for rule in prometheus_rules() for group in rule["spec"]["groups"]]
    files = sorted((ROOT / "docker" / "prometheus" / "rules").glob("*.yml"))
    assert told == [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]


def test_every_variable_is_a_setting(combinations: dict[str, list[Manifest]]) -> None:
    known = default_settings().keys() | OTHERS
    for objects in combinations.values():
        assert one(objects, "ConfigMap", "masc-settings")["data"].keys() <= known
        for name, template in workloads(objects):
            for part in template["spec"]["containers"]:
                for variable in part.get("env", ()):
                    assert variable["name"] in known, (name, variable)


@pytest.mark.parametrize("name", OVERLAYS)
def test_programs_can_read_what_they_are_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = overlay(name)
    for part, load in (("server", server_settings), ("worker", worker_settings)):
        given = environment(objects, container(objects, "Deployment", f"masc-{part}"), SECRETS)
        for variable, value in (image_environment(part) | given).items():
            monkeypatch.setenv(variable, value)
        settings = load().model_dump()
        assert settings["queue_url"] == SECRETS["masc-queue"]["url"]
        assert settings["log_format"] == "json"
        for variable in given.keys() - OTHERS:
            assert str(settings[variable.removeprefix("MASC_").lower()]) in {
                given[variable],
                f"{given[variable]}.0",
            }


def seconds_to_drain(objects: Sequence[Manifest]) -> float:
    return float(one(objects, "ConfigMap", "masc-settings")["data"]["MASC_DRAIN_SECONDS"])


def test_a_pod_has_time_to_drain(combinations: dict[str, list[Manifest]]) -> None:
    for objects in combinations.values():
        for name in ("masc-server", "masc-worker"):
            pod = one(objects, "Deployment", name)["spec"]["template"]["spec"]
            (part,) = pod["containers"]
            before = part.get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})
            needed = before["sleep"]["seconds"] + seconds_to_drain(objects) + MARGIN
            assert pod["terminationGracePeriodSeconds"] >= needed
            # A program is not process 1, which ignores a signal that it has no handler for yet.
            assert pod["shareProcessNamespace"] is True


def test_a_rollout_waits_for_as_long_as_a_worker_may_take(
    combinations: dict[str, list[Manifest]],
) -> None:
    for objects in combinations.values():
        probe = container(objects, "Deployment", "masc-worker")["startupProbe"]
        longest = probe["periodSeconds"] * probe["failureThreshold"]
        for name in ("masc-server", "masc-worker"):
            deadline = one(objects, "Deployment", name)["spec"]["progressDeadlineSeconds"]
            assert deadline > longest


def test_a_front_end_serves_until_nobody_sends_to_it_any_more() -> None:
    part = container(overlay("cpu"), "Deployment", "masc-server")
    assert part["lifecycle"]["preStop"]["sleep"]["seconds"] >= 10
    assert "lifecycle" not in container(overlay("cpu"), "Deployment", "masc-worker")


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_ask_for_what_there_is(name: str) -> None:
    server = container(overlay(name), "Deployment", "masc-server")
    paths = {route.path for route in health.router.routes}  # type: ignore[attr-defined]  # all have one
    asked = {kind: server[kind]["httpGet"] for kind in PROBES}
    assert {probe["path"] for probe in asked.values()} <= paths
    assert asked["readinessProbe"]["path"] == "/readyz"
    assert {probe["port"] for probe in asked.values()} == {server["ports"][0]["name"]}
    # The worker's is the check of its image.
    _, check = re.findall(r"CMD (\[.*healthcheck\.py.*\])", DOCKERFILE.read_text())
    worker = container(overlay(name), "Deployment", "masc-worker")
    for kind in PROBES:
        probe = worker[kind]
        assert probe["exec"]["command"] == yaml.safe_load(check)
        assert probe["timeoutSeconds"] > 4  # that of the check itself


@pytest.mark.parametrize(
    ("part", "variable"), [("server", "MASC_PORT"), ("worker", "MASC_METRICS_PORT")]
)
def test_ports_are_those_of_the_images(part: str, variable: str) -> None:
    (port,) = container(overlay("cpu"), "Deployment", f"masc-{part}")["ports"]
    assert str(port["containerPort"]) == image_environment(part)[variable]
    assert f"EXPOSE {port['containerPort']}" in DOCKERFILE.read_text()
    assert image_environment(part)[variable.replace("PORT", "HOST")] == "0.0.0.0"  # noqa: S104


def test_containers_have_few_rights(combinations: dict[str, list[Manifest]]) -> None:
    for objects in combinations.values():
        assert one(objects, "Namespace", "masc")["metadata"]["labels"] == {
            "app.kubernetes.io/part-of": "masc",
            "pod-security.kubernetes.io/enforce": "restricted",
        }
        for name, template in workloads(objects):
            pod = template["spec"]
            assert pod["automountServiceAccountToken"] is False, name
            assert pod["enableServiceLinks"] is False, name
            assert pod["securityContext"]["runAsNonRoot"] is True, name
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            if name != "masc-redis":
                assert f"USER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE.read_text()
            assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}, name
            for part in [*pod["containers"], *pod.get("initContainers", ())]:
                assert part["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }, name
                assert part["resources"]["limits"]["memory"], name
                assert part["resources"]["requests"]["memory"], name
