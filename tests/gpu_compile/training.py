"""The step of training, on one of several ranks that are not there.

It is traced on the host, as the engine of gradients demands, and its graphs are taken to the
device: attention, which no kernel of ours does, stays the host's operator in them.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from training.loop.distributed import Ranks
from training.loop.parallel import compile_each, shard
from training.losses.transformer import LinearNextClusterLoss, NextClusterLoss

BATCH, LAYERS, RANKS = 32, 2, 8


class Copies:
    """What dynamo asks of a model in copies: it cuts graphs where gradients can be sent."""

    bucket_bytes_cap = 25 * 2**20
    parameters_to_ignore = ()


def step(parallel: str) -> None:
    """Compile the loss and its gradients, as training does; ``parallel`` is its setting."""
    counters.clear()
    config = replace(GPTConfig.named("GPT-L", vocab_size=8192), n_layer=LAYERS)
    with _ranks() as ranks:
        model = GPT(config).train()
        labels = torch.zeros(BATCH, dtype=torch.int64)
        clusters = torch.zeros(BATCH, config.block_size, dtype=torch.int64)
        if parallel == "fsdp":
            compile_each(model.blocks)
            with mock.patch("training.loop.parallel.init_device_mesh", _mesh):
                shard(model, model.blocks, ranks, bfloat16=True, methods=["hidden"])
            objective: nn.Module = LinearNextClusterLoss(model)
        else:
            objective = NextClusterLoss(model)
            objective.compile()
        with _cut(parallel == "ddp"), torch.autocast("cpu", dtype=torch.bfloat16):
            loss = objective(labels, clusters)["loss"]
        loss.backward()


def graph_breaks() -> list[str]:
    """Why dynamo has left a graph, since the last step began."""
    return [reason.splitlines()[0] for reason in counters["graph_break"]]


def _mesh(kind: str, shape: tuple[int, ...]) -> DeviceMesh:
    """A mesh, whose numbers are real."""
    with unset_fake_temporarily():
        return init_device_mesh(kind, shape)


@contextmanager
def _ranks() -> Iterator[Ranks]:
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    try:
        yield Ranks(torch.device("cpu"), 0, RANKS)
    finally:
        dist.destroy_process_group()


@contextmanager
def _cut(is_copy: bool) -> Iterator[None]:
    with mock.patch.object(
        DistributedDataParallel, "_active_ddp_module", Copies() if is_copy else None
    ):
        yield
