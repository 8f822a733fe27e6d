"""How the ranks share the work on a network: copies of it (DDP), or parts of it (FSDP)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from training.loop.distributed import Ranks
from training.loop.task import TrainedModule


def shard(
    model: nn.Module,
    parts: Sequence[nn.Module],
    ranks: Ranks,
    *,
    bfloat16: bool,
    methods: Sequence[str] = (),
) -> None:
    """Split a model's parameters over the ranks (FSDP2), to be gathered part by part.

    Parameters
    ----------
    model : changed in place, before it has an optimiser
    parts : modules of it that are gathered by themselves, such as the blocks
    ranks : collective, call on every rank
    bfloat16 : gather and compute in bfloat16; gradients are summed in float32
    methods : of the model, which are called besides ``forward``; afterwards its own parameters, but
        not those of the parts, are there until the backward pass has ended
    """
    dtype = torch.bfloat16 if bfloat16 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for method in methods:
        register_fsdp_forward_method(model, method)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return isinstance(model, FSDPModule)


def wrap_ddp(trained: TrainedModule, ranks: Ranks) -> nn.Module:
    """The loss module, whose gradients are means over the ranks."""
    if ranks.world_size == 1 or is_sharded(trained.model):
        return trained.loss_module
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(
        trained.loss_module, device_ids=devices, gradient_as_bucket_view=True
    )


def gradient_sync(loss_module: nn.Module, number: int, count: int) -> AbstractContextManager[Any]:
    """Leave the exchange of gradients to the last of ``count`` micro-batches, counted from 0."""
    last = number == count - 1
    if count == 1:
        return nullcontext()
    if isinstance(loss_module, DistributedDataParallel):
        return nullcontext() if last else loss_module.no_sync()
    for module in loss_module.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
    return nullcontext()


def reshard(model: nn.Module) -> None:
    """Gather a model's parts anew when they are next used: their values have changed.

    After a forward pass without a backward one, FSDP keeps what it gathered last.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def compile_each(parts: Sequence[nn.Module]) -> None:
    """Compile parts of a model by themselves, so that FSDP can do its work between them.

    To be called before `checkpoint_activations` and `shard`, whose work is not to be compiled.
    """
    for part in parts:
        part.forward = torch.compile(part.forward)


def checkpoint_activations(parts: Sequence[nn.Module]) -> None:
    """Let parts of a model keep their inputs alone, and compute the rest again when it is needed.

    To be called before `shard`.
    """
    for part in parts:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)


def full_state_dict(
    model: nn.Module, device: torch.device, ranks: Ranks
) -> dict[str, Tensor] | None:
    """Weights of a model that may be sharded, on the main rank; collective, call on every rank."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        gathered = full_tensor(value)
        if ranks.is_main:
            state[name] = gathered.detach().to(device)
    return state if ranks.is_main else None


def full_tensor(value: Tensor) -> Tensor:
    """A tensor that may be sharded, gathered; collective, call on every rank."""
    return value.full_tensor() if isinstance(value, DTensor) else value
