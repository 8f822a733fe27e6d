"""What models take, known before they are loaded, and what is said where that is too much."""

from __future__ import annotations

import asyncio
import gc
import math
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import nn

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.errors import ConfigError
from tests.tiny_bundle import save_tiny_bundle
from tests.worker.tiny_worker import WatchedQueue, make_loaded, running
from worker.jobs.memory import MemoryQueue
from worker.loop import WorkerLoop
from worker.main import build_worker
from worker.model.memory import MemoryNeed, ModelMemory, free_memory, free_of_group, memory_need
from worker.settings import load_settings

ROWS, CPU = 6, torch.device("cpu")


def num_bytes(module: nn.Module) -> int:
    return sum(weights.nbytes for weights in module.parameters())


def test_the_need_is_what_the_loaded_model_has(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path, refiner=True, completer=True)
    folder = tmp_path / "tiny" / "1"
    bundle = load_bundle(folder)
    need = memory_need(folder, bundle.manifest, ROWS, torch.float32, CPU)
    loaded = make_loaded(bundle, ROWS)
    loaded.engine.prepare()
    sampler = bundle.code_sampler
    assert sampler.refiner is not None
    assert sampler.completer is not None
    transformer, decoded = num_bytes(bundle.transformer), num_bytes(bundle.tokenizer)
    drawn = transformer + num_bytes(sampler.refiner) + num_bytes(sampler.completer)
    layers = loaded.engine._batch._step._cache.layers
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    # A CPU's decoder has copies besides.
    assert need == MemoryNeed(weights=drawn + 3 * decoded, steps=transformer + cache)
    half = memory_need(folder, bundle.manifest, ROWS, torch.bfloat16, torch.device("cuda"))
    assert half == MemoryNeed(drawn // 2 + decoded, need.steps // 2)


def test_a_model_that_does_not_fit_beside_the_others_is_refused_in_numbers(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path)
    loaded = make_loaded(load_bundle(tmp_path / "tiny" / "1"))
    memory = ModelMemory(5_000_000, lambda: math.inf)
    memory.hold(loaded, MemoryNeed(2_000_000, 1_000_000))
    memory.check("b 1", MemoryNeed(1_500_000, 500_000))
    with pytest.raises(ConfigError) as refused:
        memory.check("b 1", MemoryNeed(1_500_000, 500_001))
    assert str(refused.value) == (
        "b 1 takes 2.0 MB of memory (1.5 of weights, 0.5 of their copy for steps and of keys and "
        "values), and 2.0 MB are left of MASC_MAX_MODEL_BYTES=5000000: serve fewer models "
        "(--model, MASC_SERVED_MODELS), or lower MASC_MAX_BATCH"
    )
    loaded.close()
    del loaded
    gc.collect()
    memory.check("b 1", MemoryNeed(4_000_000, 1_000_000))  # what has gone leaves room


def test_without_a_limit_what_is_free_counts_but_for_what_others_are_to_take(
    tmp_path: Path,
) -> None:
    save_tiny_bundle(tmp_path)
    loaded = make_loaded(load_bundle(tmp_path / "tiny" / "1"))
    memory = ModelMemory(None, lambda: 1_000_000)
    memory.check("b 1", MemoryNeed(1_000_000, 0))
    with pytest.raises(ConfigError, match=r"and 1\.0 MB are free: serve fewer models"):
        memory.check("b 1", MemoryNeed(1_000_000, 1))
    memory.hold(loaded, MemoryNeed(5_000_000, 400_000))
    with pytest.raises(ConfigError, match=r"and 0\.6 MB are free: serve fewer models"):
        memory.check("b 1", MemoryNeed(600_000, 1))
    loaded.warm_up()
    memory.check("b 1", MemoryNeed(600_000, 1))


def build(root: Path, limit: int, queue: MemoryQueue, **options: str) -> WorkerLoop:
    settings = load_settings(
        models_dir=root, device="cpu", max_batch=ROWS, max_model_bytes=limit, **options
    )
    return build_worker(settings, queue, CollectorRegistry())


def test_a_worker_refuses_models_and_versions_that_do_not_fit_together(tmp_path: Path) -> None:
    manifests = [save_tiny_bundle(tmp_path, name) for name in ("a", "b")]
    need = memory_need(tmp_path / "a" / "1", manifests[0], ROWS, torch.float32, CPU).total
    with pytest.raises(ConfigError, match="b 1 takes"):
        build(tmp_path, 2 * need - 1, MemoryQueue(), served_models="a,b")
    with pytest.raises(ConfigError, match="a 1 takes"):
        build(tmp_path, need - 1, MemoryQueue(), served_models="a")
    queue = WatchedQueue()
    with running(build(tmp_path, 3 * need - 1, queue, served_models="all")):
        queue.await_status(lambda status: status.ready)
        save_tiny_bundle(tmp_path, "a", "2")
        refusal = queue.await_status(lambda status: status.refused == "2")
        assert (refusal.model, refusal.ready, refusal.version) == ("a", True, "1")
        assert refusal.detail.startswith("a 2 takes")
        assert "left of MASC_MAX_MODEL_BYTES" in refusal.detail
    assert asyncio.run(queue.workers()) == ()
    assert Registry(tmp_path).current("a") == "2"


def test_free_memory_is_what_the_machine_and_the_group_leave(tmp_path: Path) -> None:
    free = free_memory(torch.device("cpu"))
    total = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) * 1024
    assert 0 < free <= total
    assert free_of_group(tmp_path) == math.inf
    (tmp_path / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("700\n")
    (tmp_path / "memory.stat").write_text("cache 5\ntotal_inactive_file 100\ninactive_file 1\n")
    assert free_of_group(tmp_path) == 400
    (tmp_path / "memory.max").write_text("2000\n")
    (tmp_path / "memory.current").write_text("700\n")
    assert free_of_group(tmp_path) == 1301
    (tmp_path / "memory.max").write_text("max\n")
    assert free_of_group(tmp_path) == math.inf
