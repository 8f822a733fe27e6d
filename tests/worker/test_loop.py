"""What a worker makes of requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from masc_core.bundle.read import Bundle, load_bundle
from masc_core.errors import ConfigError, NonFiniteError
from masc_core.generation.generate import generate
from masc_core.images import ImageFormat
from masc_core.sampling.cfg_schedule import CFG_SCHEDULES
from tests.tiny_bundle import CLASS_NAMES, GRID, NUM_CLUSTERS, save_tiny_bundle
from tests.worker.tiny_worker import (
    REQUEST,
    RecordingEngine,
    engine_of,
    expected,
    failure,
    images,
    make_loop,
    outcomes,
    running,
    submit,
)
from worker.engine.engine import Engine
from worker.engine.request import EngineOutput, ImageTask
from worker.job_run import image_params
from worker.jobs.job import MAX_SEED, GenerationRequest
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobFailure, JobResult, Outcome

FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp")
# One of each kind, so that the batch around a request is as mixed as it gets.
OTHERS = [
    replace(
        REQUEST,
        class_id=i % len(CLASS_NAMES),
        cfg_scale=(1.0, 2.0, 4.5)[i % 3],
        seed=100 + i,
        temperature=(1.0, 0.5)[i % 2],
        top_k=(0, 3)[i // 2 % 2],
        top_p=(1.0, 0.8)[i // 4 % 2],
        decoding=("uniform", "frequency")[i % 2],
        cfg_schedule=CFG_SCHEDULES[i % len(CFG_SCHEDULES)],
        num_images=1 + i % 2,
        format=FORMATS[i % 3],
    )
    for i in range(16)
]


def serve(
    bundle: Bundle,
    requests: Sequence[GenerationRequest],
    capacity: int = 64,
    engine: type[Engine] = Engine,
) -> list[Outcome]:
    """Outcomes of requests that all waited when the worker came."""

    async def main() -> list[Outcome]:
        queue = MemoryQueue()
        job_ids = await submit(queue, requests)
        with running(make_loop(bundle, queue, capacity, engine)):
            return await outcomes(queue, job_ids)

    return asyncio.run(main())


def test_a_request_gives_the_same_bytes_alone_and_among_sixteen_others(bundle: Bundle) -> None:
    (alone,) = images(serve(bundle, [REQUEST])[0])
    (again,) = images(serve(bundle, [REQUEST])[0])
    assert alone.data == again.data
    for capacity in (64, 7):
        mixed = serve(bundle, [*OTHERS[:8], REQUEST, *OTHERS[8:]], capacity)
        (among,) = images(mixed[8])
        assert among.data == alone.data
        assert among.entropies == alone.entropies
        assert len({image.data for outcome in mixed for image in images(outcome)}) == 25


def test_every_image_is_that_of_the_plain_loop(bundle: Bundle) -> None:
    assert {request.format for request in OTHERS} == set(FORMATS)
    for request, outcome in zip(OTHERS, serve(bundle, OTHERS), strict=True):
        assert [image.data for image in images(outcome)] == expected(bundle, request)


def test_a_result_says_what_made_it(bundle: Bundle) -> None:
    request = replace(REQUEST, seed=MAX_SEED, num_images=2)
    (outcome,) = serve(bundle, [request])
    assert isinstance(outcome, JobResult)
    assert (outcome.model, outcome.version) == ("tiny", "1")
    assert outcome.weights_sha256 == bundle.manifest.weights_sha256
    assert [image.seed for image in outcome.images] == [MAX_SEED, 0]
    alone = generate(bundle.transformer, bundle.code_sampler, [image_params(request, 1)]).entropies[
        0
    ]
    image = outcome.images[1]
    assert image.entropies == tuple(alone.tolist())
    assert image.entropy_bits == pytest.approx(float(alone.double().mean()))
    assert image.entropy_ratio == pytest.approx(image.entropy_bits / math.log2(NUM_CLUSTERS))
    times = outcome.timings
    stages = (times.queue, times.prefill, times.decode, times.vq_decode)
    assert min(*stages, times.encode) > 0
    assert sum(stages) <= times.total


def test_a_job_larger_than_the_worker_is_run_in_parts(bundle: Bundle) -> None:
    large = replace(REQUEST, num_images=5)

    async def main() -> tuple[list[Outcome], list[list[ImageTask]]]:
        queue = MemoryQueue()
        job_ids = await submit(queue, [large, REQUEST])
        loop = make_loop(bundle, queue, 4, RecordingEngine)
        with running(loop):
            found = await outcomes(queue, job_ids)
        return found, engine_of(loop).batches

    (of_large, of_small), batches = asyncio.run(main())
    assert [image.data for image in images(of_large)] == expected(bundle, large)
    assert images(of_small)[0].data == images(of_large)[0].data
    sizes = [sum(task.batch_rows for task in batch) for batch in batches]
    # The warm-up image, then 2, 2, 1 and 1 images.
    assert sizes == [2] * GRID**2 + [4] * 3 * GRID**2
    assert len({task.job_id for task in batches[-1]}) == 2


def test_a_job_that_is_given_up_after_its_first_part_takes_no_more_steps(bundle: Bundle) -> None:
    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 4, RecordingEngine)
    engine = engine_of(loop)
    (given_up,) = asyncio.run(submit(queue, [replace(REQUEST, num_images=16)]))
    for _ in range(GRID**2 + 2):  # the second image is rendered in a step of its own
        loop.step()
    assert len(engine.batches) == GRID**2 + 1
    assert len(loop._models["tiny"].newest._backlog) == 12
    asyncio.run(queue.cancel(given_up))
    loop.step()
    assert len(engine.batches) == GRID**2 + 1
    assert engine.free_rows == 4
    assert loop.is_idle
    assert not loop._models["tiny"].newest._backlog
    assert asyncio.run(queue.stats()).completion_rate == 0.0  # no job was done

    asyncio.run(submit(queue, [REQUEST]))
    for _ in range(GRID**2):
        loop.step()
    assert [len(batch) for batch in engine.batches[-(GRID**2) :]] == [1] * GRID**2
    assert loop.is_idle


def test_a_job_that_is_given_up_leaves_the_engine_to_the_others(bundle: Bundle) -> None:
    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 8, RecordingEngine)
    engine = engine_of(loop)
    ids = asyncio.run(submit(queue, [replace(REQUEST, num_images=2), REQUEST]))
    loop.step()
    assert engine.free_rows == 2
    asyncio.run(queue.cancel(ids[0]))
    for _ in range(GRID**2 - 1):
        loop.step()
    assert [len(batch) for batch in engine.batches] == [3] + [1] * (GRID**2 - 1)
    assert engine.batches[1][0].job_id == ids[1]
    (outcome,) = asyncio.run(outcomes(queue, ids[1:]))
    assert [image.data for image in images(outcome)] == expected(bundle, REQUEST)
    counted = loop._metrics.images.collect()
    assert [s.value for m in counted for s in m.samples if s.name.endswith("_total")] == [1]


def test_requests_that_cannot_be_done_fail_alone(bundle: Bundle) -> None:
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"version": "2"}, "NoWorkerError", ""),
        ({"class_id": 5}, "UnknownClassError", "class_id"),
        ({"class_id": -1}, "UnknownClassError", "class_id"),
        ({"decoding": "refine"}, "InvalidFieldError", "decoding"),
        ({"num_images": 0}, "InvalidFieldError", "num_images"),
        ({"cfg_scale": math.nan}, "InvalidFieldError", "cfg_scale"),
        ({"cfg_scale": 0.5}, "InvalidFieldError", "cfg_scale"),
        ({"temperature": math.inf}, "InvalidFieldError", "temperature"),
        ({"top_p": 0.0}, "InvalidFieldError", "top_p"),
        ({"top_k": -1}, "InvalidFieldError", "top_k"),
        ({"cluster_top_k": -1}, "InvalidFieldError", "cluster_top_k"),
        ({"cluster_top_k": 2}, "InvalidFieldError", "cluster_top_k"),  # of no partition
        ({"cluster_top_p": 0.5}, "InvalidFieldError", "cluster_top_p"),
    ]
    requests = [replace(REQUEST, **changes) for changes, _, _ in wrong]
    *bad, good = serve(bundle, [*requests, REQUEST])
    for (_, error, field), outcome in zip(wrong, bad, strict=True):
        assert (failure(outcome).error, failure(outcome).field) == (error, field)
    assert [image.data for image in images(good)] == expected(bundle, REQUEST)


def test_refined_images_are_the_same_among_others(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, refiner=True)
    bundle = load_bundle(tmp_path / "tiny" / "1")
    refined = replace(REQUEST, decoding="refine", num_images=3)
    (alone,) = serve(bundle, [refined])
    assert [image.data for image in images(alone)] == expected(bundle, refined)
    among = serve(bundle, [*OTHERS[:4], refined, *OTHERS[4:8]])
    assert images(among[4]) == images(alone)
    assert expected(bundle, refined) != expected(bundle, replace(refined, decoding="uniform"))


def test_completed_images_are_the_same_among_others(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, completer=True)
    bundle = load_bundle(tmp_path / "tiny" / "1")
    completed = replace(REQUEST, decoding="complete", code_cfg_scale=1.5, num_images=3)
    (alone,) = serve(bundle, [completed])
    assert [image.data for image in images(alone)] == expected(bundle, completed)
    others = [replace(other, decoding="complete", code_top_k=2) for other in OTHERS[4:8]]
    among = serve(bundle, [*OTHERS[:4], completed, *others])
    assert images(among[4]) == images(alone)
    uniform, *_ = serve(bundle, [replace(REQUEST, num_images=3)])
    assert images(uniform) != images(alone)
    assert isinstance(alone, JobResult)
    assert isinstance(uniform, JobResult)
    assert alone.timings.complete > 0
    assert uniform.timings.complete == 0


def test_completed_images_of_filtered_clusters_are_the_same_among_others(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, counts=False, completer=True, partitions=(4,))
    bundle = load_bundle(tmp_path / "tiny" / "1")
    filters: dict[str, Any] = {"cluster_top_k": 2, "cluster_top_p": 0.7}
    asked = replace(
        REQUEST, decoding="complete", code_cfg_scale=1.5, code_top_k=1, num_images=3, **filters
    )
    (alone,) = serve(bundle, [asked])
    assert [image.data for image in images(alone)] == expected(bundle, asked)
    kinds: list[dict[str, Any]] = [
        {"decoding": "uniform"},
        {"decoding": "uniform", **filters},
        {"decoding": "complete"},
        {"decoding": "complete", "cluster_top_p": 0.5},
    ]
    others = [replace(other, **kinds[i % 4]) for i, other in enumerate(OTHERS)]
    among = serve(bundle, [*others[:6], asked, *others[6:]])
    assert images(among[6]) == images(alone)
    for request, outcome in zip(others, [*among[:6], *among[7:]], strict=True):
        assert [image.data for image in images(outcome)] == expected(bundle, request)
    unfiltered, by_count = serve(
        bundle,
        [
            replace(asked, cluster_top_k=0, cluster_top_p=1.0),
            replace(REQUEST, decoding="frequency"),
        ],
    )
    assert images(unfiltered) != images(alone)
    assert failure(by_count).field == "decoding"


def test_an_image_that_cannot_be_rendered_fails_its_job_alone(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(REQUEST, seed=8)
    codes = [
        set(
            generate(bundle.transformer, bundle.code_sampler, [image_params(r, 0)])
            .codes[0]
            .tolist()
        )
        for r in (REQUEST, other)
    ]
    poison = min(codes[1] - codes[0])
    torch.nn.init.constant_(bundle.tokenizer.quantize.embedding.weight[poison], math.nan)
    good, bad = serve(bundle, [REQUEST, other])
    assert failure(bad).error == "NonFiniteError"
    assert not [record for record in caplog.records if record.exc_info]  # it says all by itself
    assert [image.data for image in images(good)] == expected(bundle, REQUEST)


def test_an_image_that_cannot_be_encoded_fails_its_job_alone(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = replace(REQUEST, format=cast("ImageFormat", "gif"))
    bad, good = serve(bundle, [unknown, REQUEST])
    assert failure(bad) == JobFailure("EngineError", "the generation failed unexpectedly")
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]
    assert [image.data for image in images(good)] == expected(bundle, REQUEST)


def test_a_job_that_cannot_be_admitted_fails_alone(bundle: Bundle) -> None:
    wrong = replace(REQUEST, class_id=cast("int", None))  # nothing foresees it
    bad, *good = serve(bundle, [wrong, REQUEST, REQUEST])
    assert failure(bad) == JobFailure("EngineError", "the generation failed unexpectedly")
    for outcome in good:
        assert [image.data for image in images(outcome)] == expected(bundle, REQUEST)


class FaultyEngine(Engine):
    """Cannot run a batch that holds class 4, for a reason that nobody foresaw."""

    def step(self) -> Sequence[EngineOutput]:
        if any(task.params.class_id == 4 for task in self.tasks):
            raise RuntimeError("out of memory")
        return super().step()


def test_an_unforeseen_error_fails_the_batch_and_the_worker_goes_on(bundle: Bundle) -> None:
    poison = replace(REQUEST, class_id=4, num_images=3)
    # Room for two images: the poison meets nobody, and its third image must not come after them.
    good = [replace(REQUEST, seed=seed) for seed in range(3)]
    bad, *rest = serve(bundle, [poison, *good], 4, FaultyEngine)
    assert failure(bad) == JobFailure("EngineError", "the generation failed unexpectedly")
    for request, outcome in zip(good, rest, strict=True):
        assert [image.data for image in images(outcome)] == expected(bundle, request)


def test_a_stopped_worker_finishes_what_it_claimed_and_claims_nothing_new(bundle: Bundle) -> None:
    class StoppingEngine(Engine):
        """Stops its loop in the middle of the first job."""

        def step(self) -> Sequence[EngineOutput]:
            if all(task.job_id != "warm-up" for task in self.tasks):
                loop.stop()
            return super().step()

    async def main() -> tuple[Outcome, int, int]:
        job_ids = await submit(queue, [replace(REQUEST, num_images=3), REQUEST, REQUEST])
        await asyncio.to_thread(loop.run)
        first = await queue.outcome(job_ids[0])
        return first, (await queue.stats()).depth, len(await queue.workers())

    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 2, StoppingEngine)
    first, depth, num_workers = asyncio.run(main())
    assert len(images(first)) == 3
    assert depth == 2
    assert num_workers == 0


def test_a_worker_is_ready_only_after_a_real_image(bundle: Bundle) -> None:
    queue = MemoryQueue()
    loop = make_loop(bundle, queue, engine=RecordingEngine)
    assert asyncio.run(queue.workers()) == ()
    loop.warm_up()
    (status,) = asyncio.run(queue.workers())
    assert (status.worker_id, status.ready) == ("w1", True)
    assert (status.model, status.version) == ("tiny", "1")
    batches = engine_of(loop).batches
    assert len(batches) == GRID**2
    ((task,),) = batches[:1]
    assert task.params.cfg_scale == bundle.manifest.defaults.cfg_scale


def test_a_worker_whose_first_image_fails_says_so_and_is_not_ready(bundle: Bundle) -> None:
    torch.nn.init.constant_(bundle.transformer.norm.weight, math.nan)
    queue = MemoryQueue()
    with pytest.raises(NonFiniteError):
        make_loop(bundle, queue).run()
    (status,) = asyncio.run(queue.workers())
    assert not status.ready
    assert status.detail.startswith("the warm-up image failed: the model produced a NaN")


def test_an_engine_without_room_for_a_guided_image_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="two rows"):
        make_loop(bundle, MemoryQueue(), capacity=1)
