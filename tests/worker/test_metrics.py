"""The worker's metrics after real work: names, labels and numbers."""

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from masc_core.bundle.read import Bundle, load_bundle
from tests.tiny_bundle import GRID, save_tiny_bundle
from worker.engine.engine import Engine
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import ImageOutput, JobResult
from worker.jobs.stages import stage_histogram
from worker.loop import WorkerLoop
from worker.metrics import WorkerMetrics
from worker.model.loaded_version import LoadedVersion
from worker.model.served import ServedModel

L = GRID**2
GUIDED = GenerationRequest(model="tiny", class_id=1, cfg_scale=2.0, seed=0, num_images=2)
PLAIN = replace(GUIDED, cfg_scale=1.0, num_images=1, format="webp")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return load_bundle(root / "tiny" / "1")


def serve(
    bundle: Bundle, registry: CollectorRegistry, plain: GenerationRequest = PLAIN
) -> list[JobResult]:
    """Results of the two requests, which run in one batch of five rows."""

    async def main() -> list[JobResult]:
        queue = MemoryQueue()
        jobs = [Job(GUIDED), Job(plain)]
        for job in jobs:
            await queue.submit(job)
        metrics = WorkerMetrics(registry)
        loaded = LoadedVersion(
            bundle, Engine(bundle.transformer, bundle.code_sampler, 8, metrics.step)
        )
        loop = WorkerLoop(queue, [ServedModel("tiny", loaded)], metrics, "w")
        thread = threading.Thread(target=loop.run)
        thread.start()
        outcomes = [await queue.outcome(job.id) for job in jobs]
        loop.stop()
        thread.join()
        return [outcome for outcome in outcomes if isinstance(outcome, JobResult)]

    return asyncio.run(main())


def test_the_stage_complete_is_of_jobs_that_are_completed(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, completer=True)
    bundle, registry = load_bundle(tmp_path / "tiny" / "1"), CollectorRegistry()
    _, completed = serve(bundle, registry, replace(PLAIN, decoding="complete"))

    def value(kind: str, stage: str) -> float | None:
        return registry.get_sample_value(f"masc_stage_duration_seconds_{kind}", {"stage": stage})

    assert (value("count", "vq_decode"), value("count", "complete")) == (2, 1)
    assert value("sum", "complete") == completed.timings.complete > 0


def test_metrics_count_what_was_done(bundle: Bundle) -> None:
    registry = CollectorRegistry()
    before = time.time()
    results = serve(bundle, registry)
    images: list[ImageOutput] = [image for result in results for image in result.images]
    assert len(images) == 3

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("masc_images_total", model="tiny", format="png") == 2
    assert value("masc_images_total", model="tiny", format="webp") == 1
    assert value("masc_tokens_total", kind="conditional") == 3 * L
    assert value("masc_tokens_total", kind="unconditional") == 2 * L
    # The warm-up image is guided, so it has two rows.
    assert value("masc_engine_steps_total") == 2 * L
    assert value("masc_batch_rows_count") == 2 * L
    assert value("masc_batch_rows_sum") == L * 2 + L * 5
    assert value("masc_decode_step_duration_seconds_count") == 2 * L
    for name, total in (
        ("masc_prediction_entropy_bits", sum(image.entropy_bits for image in images)),
        ("masc_prediction_entropy_ratio", sum(image.entropy_ratio for image in images)),
    ):
        assert value(f"{name}_count") == 3
        assert value(f"{name}_sum") == pytest.approx(total)
    for stage in ("queue", "prefill", "decode", "vq_decode", "encode"):
        assert value("masc_stage_duration_seconds_count", stage=stage) == 2
        assert value("masc_stage_duration_seconds_sum", stage=stage) == pytest.approx(
            sum(getattr(result.timings, stage) for result in results)
        )
    code_seconds = value("masc_stage_duration_seconds_sum", stage="cluster_to_code")
    assert value("masc_stage_duration_seconds_count", stage="cluster_to_code") == 2
    assert code_seconds is not None
    assert 0 < code_seconds < sum(r.timings.prefill + r.timings.decode for r in results)
    assert value("masc_batch_rows_capacity") == 8
    assert value("masc_batch_rows_active") == 0
    assert before <= (value("masc_last_step_timestamp_seconds") or 0) <= time.time()
    assert (
        value(
            "masc_model_info",
            model="tiny",
            version="1",
            weights_sha256=bundle.manifest.weights_sha256,
            clusters="16",
            tokens="16",
            dtype="float32",
        )
        == 1
    )


def test_there_is_no_label_that_grows_with_traffic_and_no_gpu_without_one() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    names = {metric.name for metric in registry.collect()}
    assert names == {
        "masc_images",
        "masc_tokens",
        "masc_engine_steps",
        "masc_stage_duration_seconds",
        "masc_decode_step_duration_seconds",
        "masc_batch_rows",
        "masc_prediction_entropy_bits",
        "masc_prediction_entropy_ratio",
        "masc_prediction_cluster_entropy_bits",
        "masc_batch_rows_active",
        "masc_batch_rows_capacity",
        "masc_last_step_timestamp_seconds",
        "masc_model_info",
        "masc_engine_mode",
        "masc_gpu_memory_bytes",
    }
    text = generate_latest(registry).decode()
    assert "masc_engine_steps_total 0.0" in text
    assert 'masc_decode_step_duration_seconds_bucket{le="0.0002"}' in text
    assert 'masc_decode_step_duration_seconds_bucket{le="0.1"}' in text
    assert "masc_gpu_memory_bytes{" not in text


def test_the_stage_histogram_is_the_front_ends() -> None:
    registry = CollectorRegistry()
    shared = stage_histogram(registry)
    assert WorkerMetrics(registry).stage_seconds is shared


def test_an_engine_has_one_mode() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    for mode in ("graphs", "eager"):
        metrics.engine("tiny", mode)
    (gauge,) = [metric for metric in registry.collect() if metric.name == "masc_engine_mode"]
    assert [(sample.labels, sample.value) for sample in gauge.samples] == [({"mode": "eager"}, 1)]


def test_a_new_version_replaces_the_old_one(tmp_path: Path, bundle: Bundle) -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    metrics.serve(bundle)
    save_tiny_bundle(tmp_path, version="2")
    metrics.serve(load_bundle(tmp_path / "tiny" / "2"))
    (info,) = [metric for metric in registry.collect() if metric.name == "masc_model_info"]
    assert [sample.labels["version"] for sample in info.samples] == ["2"]


@pytest.mark.gpu
def test_memory_is_told_of_a_gpu(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    save_tiny_bundle(tmp_path)
    WorkerMetrics(registry).serve(load_bundle(tmp_path / "tiny" / "1", torch.device("cuda")))
    kinds = ("allocated", "reserved", "used", "total")
    allocated, reserved, used, total = (
        registry.get_sample_value("masc_gpu_memory_bytes", {"kind": kind}) or 0.0 for kind in kinds
    )
    assert 0 < allocated <= reserved <= used <= total
