"""How often the parts of a step are compiled, over all shapes and from one model to the next.

The compiler here counts graphs, and does them as they are: what a GPU makes of them is another
matter (`tests.gpu_compile`).
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

from masc_core.generation.batch import StepShape, lay_out
from masc_core.generation.step import Step, StepInputs
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler
from worker.engine.cuda_graphs import capture_shapes

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own
CAPACITY = 8
VARIABLE = "of variable shapes"
MAX_GRAPHS = 3  # of a part: for one image, for one number of rows, for all others


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Graphs by the name of what is compiled, and those of them whose shapes are variable."""
    made: Counter[str] = Counter()
    # Its records would be made up for pytest to keep, and take longer than the rest.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    really, backends = torch.compile, dict[str, Callable[..., Any]]()

    def backend(name: str) -> Callable[..., Any]:
        def count(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            made[name] += 1
            made[VARIABLE] += any(isinstance(given, torch.SymInt) for given in inputs)
            return graph.forward

        return count

    def compile_(work: Callable[..., Any], *, fullgraph: bool, **_: object) -> Any:
        name = work.__qualname__
        return really(work, fullgraph=fullgraph, backend=backends.setdefault(name, backend(name)))

    for module in ("gpt", "projection"):  # as on a GPU: oneDNN's blocks cannot be traced
        monkeypatch.setattr(f"masc_core.models.{module}.can_pack", lambda _: False)
    monkeypatch.setattr("masc_core.sampling.in_cluster.can_pack", lambda _: False)
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", compile_)
    return made


def step_of(width: int, *, refines: bool = False, largest: int = 2) -> Step:
    """A compiled step of a model whose largest cluster has so many codes."""
    config = GPTConfig(12, width, n_layer=2, n_head=2, num_classes=3, block_size=16)
    labels = np.append(np.arange(24) % 12, np.zeros(largest, dtype=np.int64))
    refiner = Refiner(RefinerConfig(len(labels), 12, width, 16, width=16, n_head=2, ffn_dim=16))
    prior = ClusterMap.from_labels(labels)
    partition = ClusterMap.from_labels(prior.labels // 2)
    code_sampler = CodeSampler(
        prior,
        np.ones_like(labels),
        refiner=refiner if refines else None,
        coarse_partition=partition,
    )
    return Step(GPT(config).eval(), code_sampler, CAPACITY, compiled=True, kernels=False)


@torch.inference_mode()
def run(step: Step, shape: StepShape) -> None:
    layout = lay_out(shape, (), padding_slot=CAPACITY)
    inputs = (torch.tensor(part, dtype=torch.int64) for part in layout)
    step(StepInputs(*inputs), has_filters=shape.has_filters)


def test_all_shapes_share_three_graphs_of_a_part(graphs: Counter[str]) -> None:
    # Those with filters and refiner have all parts, and take longest: the others are left out.
    shapes = [s for s in capture_shapes(4, with_refiner=True) if s.has_filters and s.refined]
    step = step_of(16, refines=True)
    for shape in shapes:
        run(step, shape)
    del graphs[VARIABLE]
    assert set(graphs) == {
        *("row_inputs", "GPT.embed", "run_block", "GPT.head", "draw_noise"),
        *("sample_filtered", "refine_code_and_write"),
    }
    assert max(graphs.values()) <= MAX_GRAPHS
    before = sum(graphs.values())
    other = step_of(16, refines=True)
    for shape in shapes:
        run(other, shape)
    assert sum(graphs.values()) == before


def test_a_model_of_other_sizes_is_compiled_as_if_it_were_the_first(graphs: Counter[str]) -> None:
    for width, largest in ((16, 2), (24, 3)):
        graphs.clear()
        run(step_of(width, largest=largest), StepShape(4, 4, has_filters=False))
        assert not graphs.pop(VARIABLE)
        assert set(graphs.values()) == {1}


def test_the_kernels_that_serve_outlive_those_of_another_model(graphs: Counter[str]) -> None:
    first, shape = step_of(16), StepShape(2, 2, has_filters=False)
    run(first, shape)
    run(step_of(24), shape)
    graphs.clear()
    run(first, shape)
    assert not graphs


def test_compiled_parts_keep_float32_and_say_nothing(graphs: Counter[str]) -> None:
    torch.set_float32_matmul_precision("high")
    step_of(16)
    assert torch.get_float32_matmul_precision() == "highest"
    warnings.warn("TensorFloat32 tensor cores for float32 are available", stacklevel=1)
