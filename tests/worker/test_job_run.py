"""Book-keeping of one job."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from masc_core.bundle.manifest import Manifest
from masc_core.bundle.read import load_bundle
from masc_core.errors import InvalidFieldError, NoWorkerError, UnknownModelError
from tests.masc_core.bundle.test_manifest import manifest as make_manifest
from tests.tiny_bundle import GRID, NUM_CLUSTERS, save_tiny_bundle
from worker.engine.engine import Engine
from worker.engine.request import FinishedImage, ImageTask
from worker.job_run import RunningJob, check_request
from worker.jobs.job import MAX_IMAGES, MAX_SEED, GenerationRequest, Job, Lease
from worker.model.loaded_version import EncodedFile, EncodedImage, LoadedVersion

REQUEST = GenerationRequest(
    model="tiny", class_id=1, cfg_scale=2.0, seed=MAX_SEED - 1, num_images=3, top_k=5
)


@pytest.fixture
def manifest() -> Manifest:
    return make_manifest()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedVersion]:
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    bundle = load_bundle(root / "tiny" / "1")
    loaded = LoadedVersion(bundle, Engine(bundle.transformer, bundle.code_sampler, 8))
    yield loaded
    loaded.close()


def running_job(
    loaded: LoadedVersion, request: GenerationRequest = REQUEST, **fields: Any
) -> RunningJob:
    return RunningJob(Lease(replace(Job(request, id="j"), **fields), 1, 60.0), loaded)


def made(task: ImageTask, index: int, entropies: list[float]) -> EncodedImage:
    codes = torch.zeros(4, dtype=torch.int64)
    bits = torch.tensor(entropies)
    image = FinishedImage(task, codes, bits, bits[:0], 0.5 * index, 3.0 - index)
    return EncodedImage(image, EncodedFile(bytes([index]), 0.5, 0.25, 0.125))


def test_a_job_has_one_task_an_image(loaded: LoadedVersion) -> None:
    tasks = running_job(loaded).tasks()
    assert [task.key for task in tasks] == [("j", 0), ("j", 1), ("j", 2)]
    assert [task.params.seed for task in tasks] == [MAX_SEED - 1, MAX_SEED, 0]
    assert {task.batch_rows for task in tasks} == {2}
    assert {task.preview_rows for task in tasks} == {()}
    assert tasks[0].params.top_k == 5
    (task, *_) = running_job(loaded, replace(REQUEST, cfg_scale=1.0)).tasks()
    assert task.batch_rows == 1


def test_a_job_that_is_watched_tells_of_every_row(loaded: LoadedVersion) -> None:
    job = running_job(loaded, previews=True)
    (task, *_) = job.tasks()
    assert task.preview_rows == tuple(range(1, GRID))


def test_images_may_come_in_any_order_and_times_are_the_slowest_or_summed(
    loaded: LoadedVersion,
) -> None:
    job = running_job(loaded, submitted_at=time.time() - 100)
    assert not job.is_started
    job.image_started(time.time())
    assert job.is_started
    for index, task in reversed(list(enumerate(job.tasks()))):
        assert not job.is_complete
        job.add_image(made(task, index, [1.0, 2.0]))
    assert job.is_complete
    result = job.result()
    assert (result.model, result.version) == ("tiny", "1")
    assert [image.data for image in result.images] == [b"\0", b"\1", b"\2"]
    assert [image.seed for image in result.images] == [MAX_SEED - 1, MAX_SEED, 0]
    assert result.images[0].entropy_bits == 1.5
    assert result.images[0].entropy_ratio == 1.5 / math.log2(NUM_CLUSTERS)
    times = result.timings
    assert (times.prefill, times.decode) == (1.0, 3.0)
    assert (times.complete, times.vq_decode, times.encode) == (1.5, 0.75, 0.375)
    assert 100 <= times.queue <= times.total < 200


def test_a_request_for_another_version_is_refused_and_without_one_any_will_do(
    manifest: Manifest,
) -> None:
    request = replace(REQUEST, model=manifest.name)
    check_request(request, manifest)
    check_request(replace(request, version=manifest.version), manifest)
    with pytest.raises(NoWorkerError, match="tiny other any more"):
        check_request(replace(request, version="other"), manifest)


def test_a_request_for_another_version_is_done_where_the_class_is_the_same(
    manifest: Manifest,
) -> None:
    name = manifest.class_names[REQUEST.class_id]
    request = replace(REQUEST, model=manifest.name, version="other", class_name=name)
    check_request(request, manifest)
    wrong: list[dict[str, Any]] = [{"class_id": 0}, {"class_id": -1}, {"class_name": ""}]
    for changes in wrong:
        with pytest.raises(NoWorkerError, match="tiny other any more"):
            check_request(replace(request, **changes), manifest)


def test_one_cluster_has_no_entropy_to_compare_with(
    loaded: LoadedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_cluster = loaded.manifest.model_copy(update={"num_clusters": 1})
    monkeypatch.setattr(LoadedVersion, "manifest", one_cluster)
    job = running_job(loaded)
    assert job.add_image(made(job.tasks()[0], 0, [0.0])).entropy_ratio == 0.0


def test_a_job_has_one_image_or_as_many_as_one_may_have(manifest: Manifest) -> None:
    request = replace(REQUEST, model=manifest.name)
    for num_images in (1, MAX_IMAGES):
        check_request(replace(request, num_images=num_images), manifest)
    for num_images in (0, MAX_IMAGES + 1):
        with pytest.raises(InvalidFieldError, match=f"must be from 1 to {MAX_IMAGES}"):
            check_request(replace(request, num_images=num_images), manifest)


def test_another_model_is_refused(manifest: Manifest) -> None:
    with pytest.raises(UnknownModelError, match="serves 'tiny'"):
        check_request(replace(REQUEST, model="other"), manifest)
