"""Book-keeping of one job."""

import math
import time
from dataclasses import replace

import pytest
import torch

from masc_core.errors import NoWorkerError
from masc_core.manifest import Manifest
from tests.masc_core.test_manifest import manifest as make_manifest
from worker.engine.request import FinishedImage
from worker.jobs.job import MAX_SEED, GenerationRequest, Job
from worker.running_job import RunningJob, check_request

REQUEST = GenerationRequest(
    model="tiny", class_id=1, cfg_scale=2.0, seed=MAX_SEED - 1, num_images=3, top_k=5
)


@pytest.fixture
def manifest() -> Manifest:
    return make_manifest()


def test_a_job_has_one_task_an_image() -> None:
    tasks = RunningJob(Job(REQUEST, id="j")).tasks()
    assert [task.key for task in tasks] == [("j", 0), ("j", 1), ("j", 2)]
    assert [task.spec.seed for task in tasks] == [MAX_SEED - 1, MAX_SEED, 0]
    assert {task.num_rows for task in tasks} == {2}
    assert tasks[0].spec.top_k == 5
    (task, *_) = RunningJob(Job(replace(REQUEST, cfg_scale=1.0))).tasks()
    assert task.num_rows == 1


def test_images_may_come_in_any_order_and_times_are_the_slowest_or_summed(
    manifest: Manifest,
) -> None:
    running = RunningJob(Job(REQUEST, submitted_at=time.time() - 100))
    running.started()
    for index, task in reversed(list(enumerate(running.tasks()))):
        assert not running.is_complete
        codes, entropies = torch.zeros(4, dtype=torch.int64), torch.tensor([1.0, 2.0])
        running.generated(FinishedImage(task, codes, entropies, 0.5 * index, 3.0 - index), 0.25)
        running.encoded(index, bytes([index]), entropies.tolist(), 4.0, 0.125)
    assert running.is_complete
    result = running.result(manifest)
    assert [image.data for image in result.images] == [b"\0", b"\1", b"\2"]
    assert [image.seed for image in result.images] == [MAX_SEED - 1, MAX_SEED, 0]
    assert result.images[0].entropy_bits == 1.5
    assert result.images[0].entropy_ratio == 0.375
    times = result.timings
    assert (times.prefill, times.decode) == (1.0, 3.0)
    assert (times.vq_decode, times.encode) == (0.75, 0.375)
    assert 100 <= times.queue <= times.total < 200


def test_a_request_for_another_version_is_refused_and_without_one_any_will_do(
    manifest: Manifest,
) -> None:
    request = replace(REQUEST, model=manifest.name)
    check_request(request, manifest)
    check_request(replace(request, version=manifest.version), manifest)
    with pytest.raises(NoWorkerError, match="tiny other any more"):
        check_request(replace(request, version="other"), manifest)


def test_one_cluster_has_no_entropy_to_compare_with() -> None:
    image = RunningJob(Job(REQUEST)).encoded(0, b"", [0.0], math.log2(1), 0.0)
    assert image.entropy_ratio == 0.0
