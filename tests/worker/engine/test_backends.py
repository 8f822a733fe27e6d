"""Backends that do not work here, and what is served then."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from prometheus_client import CollectorRegistry

from masc_core.bundle.read import Bundle
from masc_core.errors import NonFiniteError
from masc_core.generation.batch import Batch, StepShape
from masc_core.images import encode_image
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import CodeSampler
from tests.worker.tiny_worker import REQUEST, expected
from worker.engine.engine import Backend, Engine, EngineMode
from worker.engine.request import FinishedImage, ImageTask
from worker.job_run import image_params
from worker.main import engine_backends
from worker.metrics import WorkerMetrics
from worker.model.loaded_version import LoadedVersion
from worker.settings import load_settings


def failing(error: Exception, *, at_once: bool = False) -> type[Batch]:
    """A batch that cannot be prepared, or not even made."""

    class Failing(Batch):
        def __init__(self, model: GPT, code_sampler: CodeSampler, num_slots: int) -> None:
            if at_once:
                raise error
            super().__init__(model, code_sampler, num_slots)

        def prepare(self) -> None:
            raise error

    return Failing


def loaded_of(bundle: Bundle, backends: list[Backend], prepared: list[EngineMode]) -> LoadedVersion:
    engine = Engine(
        bundle.transformer, bundle.code_sampler, 8, backends=backends, on_prepared=prepared.append
    )
    return LoadedVersion(bundle, engine)


class Stuck(Batch):
    """A batch whose steps fail."""

    def _run(self, shape: StepShape) -> float:
        raise PTXAS


PTXAS = RuntimeError("Internal Triton PTX codegen error: ptxas fatal")


@pytest.mark.parametrize("at_once", [False, True])
def test_what_cannot_be_compiled_is_served_eagerly(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, *, at_once: bool
) -> None:
    prepared: list[EngineMode] = []
    broken = failing(PTXAS, at_once=at_once)
    backends = [Backend("graphs", broken), Backend("compiled", broken), Backend("eager", Batch)]
    loaded = loaded_of(bundle, backends, prepared)
    with caplog.at_level(logging.ERROR, "worker.engine.engine"):
        loaded.warm_up()
    assert prepared == ["eager"]
    assert [record.args for record in caplog.records] == [
        ("graphs", "compiled"),
        ("compiled", "eager"),
    ]
    assert all("ptxas fatal" in str(record.exc_info) for record in caplog.records)
    request = replace(REQUEST, num_images=1)
    params = image_params(request, 0)
    loaded.engine.add(ImageTask("job", 0, params))
    drawn = [o for _ in range(bundle.transformer.config.block_size) for o in loaded.engine.step()]
    (image,) = (outcome for outcome in drawn if isinstance(outcome, FinishedImage))
    pixels = bundle.render(image.codes[None])
    description = bundle.manifest.describe_image(params)
    assert encode_image(pixels[0], REQUEST.format, description) == expected(bundle, request)[0]
    loaded.close()


def test_what_works_is_not_left(bundle: Bundle) -> None:
    prepared: list[EngineMode] = []
    loaded = loaded_of(
        bundle, [Backend("graphs", Batch), Backend("eager", failing(PTXAS))], prepared
    )
    loaded.warm_up()
    loaded.warm_up()
    assert prepared == ["graphs"] * 2
    loaded.close()


@pytest.mark.parametrize(
    "error", [NonFiniteError("NaN"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_a_fault_of_the_model_is_not_the_compilers(bundle: Bundle, error: Exception) -> None:
    loaded = loaded_of(bundle, [Backend("graphs", failing(error)), Backend("eager", Batch)], [])
    with pytest.raises(type(error)):
        loaded.warm_up()
    loaded.close()


def test_when_no_backend_works_the_worker_says_why(bundle: Bundle) -> None:
    last = RuntimeError("CUDA error: unspecified launch failure")
    loaded = loaded_of(
        bundle, [Backend("graphs", failing(PTXAS)), Backend("eager", failing(last))], []
    )
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        loaded.warm_up()
    loaded.close()


def modes(device: str, **options: bool) -> list[EngineMode]:
    settings = load_settings(**options)
    return [backend.mode for backend in engine_backends(settings, torch.device(device))]


def test_the_ways_of_a_device() -> None:
    assert modes("cpu") == ["cpu"]
    assert modes("cuda") == ["graphs", "compiled", "eager"]
    assert modes("cuda", cuda_graphs=False) == ["eager", "eager"]  # with Triton, and without
    assert modes("cuda", deterministic=True) == ["graphs"]  # any other has other bits


def test_the_metric_is_of_the_way_that_works(bundle: Bundle) -> None:
    registry = CollectorRegistry()
    Engine(
        *(bundle.transformer, bundle.code_sampler, 4),
        backends=[Backend("graphs", failing(PTXAS)), Backend("eager", Batch)],
        on_prepared=partial(WorkerMetrics(registry).engine, "tiny"),
    ).prepare()
    assert registry.get_sample_value("masc_engine_mode", {"mode": "eager"}) == 1
    assert registry.get_sample_value("masc_engine_mode", {"mode": "graphs"}) is None


def test_a_step_of_nobody_tells_whether_a_backend_works(bundle: Bundle) -> None:
    prepared: list[EngineMode] = []
    loaded_of(bundle, [Backend("eager", Stuck), Backend("cpu", Batch)], prepared).warm_up()
    assert prepared == ["cpu"]
