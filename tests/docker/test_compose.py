"""The compose files and the Dockerfile, as far as they can be judged without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from masc_core.models.gpt_config import GPTConfig
from tests.default_settings import default_settings

ROOT = Path(__file__).parents[2]
COMPOSE, GPU = ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
PROMETHEUS = ROOT / "docker" / "prometheus" / "prometheus.yml"
VARIABLE = re.compile(r"\$\{([A-Z_]+)")
SETTING = re.compile(r"(?:# )?[A-Z_]+=")
DEFAULT = re.compile(r"\$\{([A-Z_]+):-([^}]+)\}")
EXAMPLE = ROOT / ".env.example"
PLUGINS = ("/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins")


def compose_command() -> list[str] | None:
    """Compose of version 2, as a plugin of docker or by itself; None where there is neither."""
    path = os.pathsep.join([os.environ["PATH"], *PLUGINS])
    alone = shutil.which("docker-compose", path=path)
    for command in (["docker", "compose"], [alone] if alone else []):
        if command and shutil.which(command[0]):
            asked = [*command, "version", "--short"]
            version = subprocess.run(asked, capture_output=True, text=True, check=False)
            if version.returncode == 0 and not version.stdout.startswith("1."):
                return command
    return None


def configuration(*files: Path, **variables: str) -> dict[str, Any]:
    """The file as Compose understands it, with nothing but these variables."""
    command = compose_command()
    if command is None:
        pytest.skip("Compose 2 is not installed; Debian's docker-compose has it from trixie on")
    given = [part for file in files for part in ("-f", str(file))]
    arguments = ["--env-file", os.devnull, "config", "--format", "json"]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [*command, *given, *arguments],
        cwd=ROOT,
        env=kept | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """As they are written, with the shared parts merged in."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_compose_understands_the_file() -> None:
    config = configuration(COMPOSE)
    assert set(config["services"]) == {"server", "worker", "redis", "prometheus", "grafana"}
    published = {
        (port["host_ip"], port["published"])
        for service in config["services"].values()
        for port in service.get("ports", ())
    }
    assert published == {("127.0.0.1", port) for port in ("8000", "9090", "3000")}
    assert config["networks"]["inside"]["internal"] is True


def test_compose_understands_settings() -> None:
    config = configuration(
        COMPOSE, MASC_MODELS="./models", MASC_PUBLISH="192.0.2.1", MASC_API_KEYS_FILE="/keys/a"
    )
    server = config["services"]["server"]
    assert server["ports"][0]["host_ip"] == "192.0.2.1"
    assert server["environment"]["MASC_PUBLISHED_HOST"] == "192.0.2.1"
    assert server["environment"]["MASC_API_KEYS_FILE"] == "/keys/a"
    models = {volume["target"]: volume for volume in server["volumes"]}["/models"]
    assert (models["type"], models["source"]) == ("bind", str(ROOT / "models"))


def gpu_workers(**variables: str) -> dict[str, Any]:
    """Workers of the file for GPUs, by their name."""
    found = configuration(COMPOSE, GPU, **variables)["services"]
    return {name: service for name, service in found.items() if name.startswith("worker")}


def test_compose_understands_the_file_for_gpus() -> None:
    (worker,) = gpu_workers().values()
    assert worker["build"]["args"] == {"TORCH_BUILD": "cu130"}
    assert worker["build"]["target"] == "worker"
    assert worker["tmpfs"] == ["/tmp"]  # noqa: S108
    assert worker["read_only"] is True


def test_every_gpu_has_a_worker_that_is_like_the_first() -> None:
    workers = gpu_workers(COMPOSE_PROFILES=",".join(f"gpu{number}" for number in range(1, 8)))
    assert list(workers) == ["worker", *(f"worker-{number}" for number in range(1, 8))]
    for number, worker in enumerate(workers.values()):
        (device,) = worker["deploy"]["resources"]["reservations"].pop("devices")
        assert device == {"driver": "nvidia", "capabilities": ["gpu"], "device_ids": [str(number)]}
        # Prometheus asks for the addresses of `worker`.
        names = (worker.pop("networks")["inside"] or {}).get("aliases", [])
        assert names == (["worker"] if number else [])
        assert worker.pop("profiles", []) == ([f"gpu{number}"] if number else [])
        assert worker["environment"]["MASC_DEVICE"] == "cuda"
    first, *others = workers.values()
    assert all(worker == first for worker in others)


def test_a_profile_is_a_gpu() -> None:
    assert list(gpu_workers(COMPOSE_PROFILES="gpu2")) == ["worker", "worker-2"]


def test_compiled_kernels_outlive_a_container() -> None:
    (worker,) = gpu_workers().values()
    volumes = {volume["target"]: volume for volume in worker["volumes"]}
    assert (volumes["/kernels"]["type"], volumes["/kernels"]["source"]) == ("volume", "kernels")
    assert not volumes["/kernels"].get("read_only")
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert worker["environment"][name].startswith("/kernels/")
    # A new volume takes its owner from the image's folder; containers run as 10001, masc.
    assert "install -d -o masc -g masc /kernels" in DOCKERFILE.read_text()


def test_a_worker_on_a_gpu_has_memory_to_load_a_large_model() -> None:
    (worker,) = gpu_workers().values()
    # The file as it is mapped, and the module in float32; CUDA and compilers besides.
    needed = 8 * GPTConfig.named("GPT-XL").num_parameters + 4 * 2**30
    assert int(worker["mem_limit"]) > 1.25 * needed


def test_containers_have_few_rights(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert "mem_limit" in service, name
        assert service["logging"]["options"]["max-size"], name


def test_what_prometheus_did_not_see_go_is_soon_forgotten(services: dict[str, Any]) -> None:
    options = dict(option[2:].split("=") for option in services["prometheus"]["command"])
    scraped = yaml.safe_load(PROMETHEUS.read_text())["global"]
    lookback, interval = options["query.lookback-delta"], scraped["scrape_interval"]
    assert lookback[-1] == interval[-1] == "s"
    assert 4 <= int(lookback[:-1]) / int(interval[:-1]) <= 8  # tries to reach what is there


def test_workers_can_be_many(services: dict[str, Any]) -> None:
    assert "container_name" not in services["worker"]
    assert "ports" not in services["worker"]


def test_a_set_number_of_workers_stays() -> None:
    config = configuration(COMPOSE, MASC_WORKERS="3")
    assert config["services"]["worker"]["scale"] == 3


def test_grafana_does_not_start_with_a_password_that_it_cannot_read(
    services: dict[str, Any],
) -> None:
    given = services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert given == "$$__file{/run/secrets/grafana_admin_password}"


def test_images_take_the_model_that_ships_and_no_other() -> None:
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    shipped = {f"models/{name}" for name in ("cifar10/current", "cifar10/1")}
    assert {name for name in kept if name.startswith("models")} == shipped
    assert all((ROOT / name).exists() for name in kept)


def test_processes_have_time_to_drain(services: dict[str, Any]) -> None:
    for name in ("server", "worker"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) >= 25 + 15


def test_base_images_are_pinned(services: dict[str, Any]) -> None:
    images = [service["image"] for service in services.values() if "build" not in service]
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE.read_text(), re.MULTILINE)
    names = {name for _, name in stages}
    images += [image for image, _ in stages if image not in names]
    assert len(images) == 4
    for image in images:
        assert re.search(r":v?\d+\.\d+", image), image


def test_the_example_holds_every_setting_and_its_default(services: dict[str, Any]) -> None:
    text = COMPOSE.read_text() + GPU.read_text()
    lines = EXAMPLE.read_text().splitlines()
    example = dict(line.removeprefix("# ").split("=", 1) for line in lines if SETTING.match(line))
    assert set(example) == set(VARIABLE.findall(text))
    for name, default in DEFAULT.findall(COMPOSE.read_text()):
        assert example[name] == default, name


def test_the_example_changes_nothing() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if not line.startswith("#")]
    given = dict(line.split("=", 1) for line in lines if line)
    for files in ([COMPOSE], [COMPOSE, GPU]):
        plain, copied = configuration(*files), configuration(*files, **given)
        for name, service in plain["services"].items():
            left_open = {
                key for key, value in (service.get("environment") or {}).items() if not value
            }
            for key in left_open & given.keys():
                assert given[key] == default_settings()[key], key
                copied["services"][name]["environment"][key] = ""
        assert copied["services"] == plain["services"]


def test_no_secret_is_in_a_variable(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            is_secret = re.search(r"PASSWORD|KEY|SECRET|TOKEN", name)
            assert not is_secret or name.endswith("_FILE") or value.startswith("$$__file{"), name


def test_hadolint_is_content() -> None:
    program = str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_image_needs_no_front_end_of_the_builder() -> None:
    assert "syntax=" not in DOCKERFILE.read_text()


@pytest.mark.parametrize("extras", [[], ["worker"]])
def test_what_an_image_installs_is_what_the_project_says(extras: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docker" / "requirements.py"), *extras],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    assert done.stdout.splitlines() == wanted
    assert any(line.startswith("torch") for line in wanted) is bool(extras)
