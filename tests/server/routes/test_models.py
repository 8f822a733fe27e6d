from __future__ import annotations

from pathlib import Path

import pytest

from masc_core.bundle.manifest import MANIFEST_FILE
from tests.server.service import CLASS_NAMES, GRID, Service, assert_problem, write_model
from worker.jobs.queue import WorkerStatus


def test_the_list_says_what_each_model_offers(service: Service) -> None:
    response = service.get("/models")
    assert response.status_code == 200
    (model,) = response.json()["models"]
    assert len(model.pop("weights_sha256")) == 64
    assert model == {
        "name": "tiny",
        "version": "v1",
        "default": True,
        "ready": True,
        "workers": 1,
        "num_classes": len(CLASS_NAMES),
        "num_positions": GRID**2,
        "tokenizer": "vq",
        "latent_shape": [GRID, GRID],
        "num_codes": 32,
        "num_clusters": 16,
        "partitions": [],
        "image_size": 16,
        "decodings": ["uniform", "frequency"],
        "defaults": {
            "cfg_scale": 3.0,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "decoding": "uniform",
            "cfg_schedule": "constant",
            "cfg_start": 0.18,
            "code_temperature": 1.0,
            "code_top_k": 0,
            "code_cfg_scale": 1.0,
            "cluster_top_k": 0,
            "cluster_top_p": 1.0,
        },
        "has_thumbnails": False,
        "has_codebook": False,
        "metrics": {"psnr_db": 23.5},
    }


def test_classes_in_the_order_of_their_ids(service: Service) -> None:
    response = service.get("/models/tiny/classes")
    assert response.json() == {
        "model": "tiny",
        "version": "v1",
        "classes": [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES)],
    }


@pytest.mark.parametrize("name", ["huge", "..", "%2e%2e", "tiny%00", "%ff", "a" * 500, "current"])
def test_an_unknown_model_is_a_404(service: Service, name: str) -> None:
    response = service.get(f"/models/{name}/classes")
    assert_problem(response, 404, *(["model"] if name != ".." else []))


def test_a_damaged_model_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("broken", "tiny"):
        write_model(tmp_path / "models", name)
    with Service(tmp_path, default_model="tiny") as service:
        assert [model["name"] for model in service.get("/models").json()["models"]] == [
            "broken",
            "tiny",
        ]
        (tmp_path / "models" / "broken" / "v1" / MANIFEST_FILE).write_text("{")
        assert [model["name"] for model in service.get("/models").json()["models"]] == ["tiny"]
        assert_problem(service.get("/models/broken/classes"), 500)


def versions(service: Service) -> tuple[str, str]:
    (model,) = service.get("/models").json()["models"]
    return model["version"], service.get("/models/tiny/classes").json()["version"]


def test_without_a_worker_the_active_version_is_shown(tmp_path: Path) -> None:
    with Service(tmp_path, working=False) as service:
        assert versions(service) == ("v1", "v1")
        write_model(service.root, version="v2")
        assert versions(service) == ("v2", "v2")
        service.announce(ready=False, version="v1")
        assert versions(service) == ("v2", "v2")


def test_of_several_versions_that_are_served_the_active_one_counts(own_service: Service) -> None:
    write_model(own_service.root, version="v2")
    own_service.queue.announce(WorkerStatus("second", ready=True, model="tiny", version="v2"))
    assert versions(own_service) == ("v2", "v2")
    (own_service.root / "tiny" / "current").write_text("v1\n")
    assert versions(own_service) == ("v1", "v1")
    (own_service.root / "tiny" / "current").write_text("v3\n")
    assert versions(own_service) == ("v1", "v1")


def test_a_served_version_that_is_gone_is_damage_of_the_service(own_service: Service) -> None:
    own_service.announce(version="v0")
    assert own_service.get("/models").json() == {"models": []}
    assert_problem(own_service.get("/models/tiny/classes"), 500)
    assert_problem(own_service.generate(), 500)
    assert own_service.painter.requests == []


def test_a_model_is_ready_while_a_worker_serves_it(tmp_path: Path) -> None:
    for name in ("big", "tiny"):
        write_model(tmp_path / "models", name)
    with Service(tmp_path, working=False, default_model="tiny") as service:

        def ready() -> dict[str, bool]:
            models = service.get("/models").json()["models"]
            return {model["name"]: model["ready"] for model in models}

        assert ready() == {"big": False, "tiny": False}
        service.announce(ready=False)
        assert ready() == {"big": False, "tiny": False}
        service.announce()
        assert ready() == {"big": False, "tiny": True}
        service.queue.remove_worker("painter")
        assert ready() == {"big": False, "tiny": False}


def test_a_model_without_an_active_version_is_unknown(tmp_path: Path) -> None:
    for name in ("draft", "tiny"):
        write_model(tmp_path / "models", name)
    (tmp_path / "models" / "draft" / "current").unlink()
    with Service(tmp_path) as service:
        assert [model["name"] for model in service.get("/models").json()["models"]] == ["tiny"]
        assert_problem(service.get("/models/draft/classes"), 404, "model")
        assert_problem(service.generate(model="draft"), 404, "model")
