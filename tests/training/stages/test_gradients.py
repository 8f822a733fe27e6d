"""Gradients of micro-batches on ranks beside those of the whole batch at once."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from tests.training.rank_processes import all_well
from training.loop.distributed import Ranks, init_distributed
from training.loop.parallel import full_tensor, gradient_sync, is_sharded, wrap_ddp
from training.loop.task import TrainedModule
from training.losses.transformer import ClusterLevel, LinearNextClusterLoss, NextClusterLoss
from training.stages.transformer import shard_blocks

SIZES: dict[str, Any] = {
    "vocab_size": 7,
    "dim": 8,
    "n_layer": 2,
    "n_head": 2,
    "num_classes": 3,
    "block_size": 4,
}
BATCH = 8


def model() -> GPT:
    torch.manual_seed(0)
    made = GPT(GPTConfig(**SIZES, class_dropout=0.0)).eval()
    nn.init.normal_(made.output.weight)
    return made


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.arange(BATCH) % 3, torch.randint(7, (BATCH, 4), generator=generator)


def exchanged(model: nn.Module, ranks: Ranks) -> bool:
    """Whether the gradients that a rank has are of all ranks."""
    if is_sharded(model):
        return all(p.grad is not None for p in model.parameters())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return all(torch.equal(ranks.all_reduce_mean(grad.clone()), grad) for grad in grads)


def micro_batches_have_the_gradients_of_the_batch() -> None:
    plain, with_level = model(), model()
    NextClusterLoss(plain)(*batch())["loss"].backward()
    level = ClusterLevel(ClusterMap.from_labels([0, 1, 1, 2, 0, 1, 1]), 0.5)
    LinearNextClusterLoss(with_level, [level])(*batch())["loss"].backward()
    cases: list[tuple[GPT, list[ClusterLevel]]] = [(plain, []), (with_level, [level])]
    with init_distributed("cpu") as ranks:
        for parallel, micro_batch, (expected, levels) in product(("ddp", "fsdp"), (4, 2, 1), cases):
            found = model()
            if parallel == "fsdp":
                shard_blocks(found, ranks, bfloat16=False)
            trained = TrainedModule(
                found, LinearNextClusterLoss(found, levels), torch.optim.SGD(found.parameters())
            )
            objective = wrap_ddp(trained, ranks)
            share = [tensor[ranks.rank :: ranks.world_size] for tensor in batch()]
            parts = list(zip(*(torch.split(tensor, micro_batch) for tensor in share), strict=True))
            for number, part in enumerate(parts):
                with gradient_sync(objective, number, len(parts)):
                    (objective(*part)["loss"] / len(parts)).backward()
                assert exchanged(found, ranks) == (number == len(parts) - 1)
            for one, other in zip(found.parameters(), expected.parameters(), strict=True):
                assert one.grad is not None
                torch.testing.assert_close(full_tensor(one.grad), other.grad)


def test_ranks_and_micro_batches_have_the_gradients_of_the_batch() -> None:
    all_well(2, micro_batches_have_the_gradients_of_the_batch)
