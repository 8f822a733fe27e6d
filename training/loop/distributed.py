"""The processes of one run: alone, or as many as torchrun started.

torchrun tells each process its rank by environment variables. Gradients go over nccl where there
are GPUs and over gloo where not; all else goes over gloo always, so that no GPU has to be waited
for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from masc_core.device import resolve_device
from masc_core.errors import ConfigError

# That ranks wait, for example while rank 0 writes weights or draws sheets.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process among its peers."""

    device: torch.device  # where it computes
    rank: int = 0
    world_size: int = 1
    gloo_group: dist.ProcessGroup | None = None  # for what is no gradient; None for one rank

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files that all share."""
        return self.rank == 0

    def all_equal(self, value: int) -> bool:
        """Whether a number is the same on all ranks; collective, call on every rank."""
        return self._all_reduce_max(value) == -self._all_reduce_max(-value)

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - the value itself
        """Whether the flag is set on any rank; collective, call on every rank."""
        return self._all_reduce_max(int(flag)) > 0

    def _all_reduce_max(self, value: int) -> int:
        if self.gloo_group is None:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.gloo_group)
        return int(shared)

    def barrier(self) -> None:
        """Wait for all others."""
        self._all_reduce_max(0)

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the ranks; collective, call on every rank."""
        if self.world_size == 1:
            return values
        total = values.clone()  # the caller's stays as it is
        dist.all_reduce(total)
        return total / self.world_size

    def all_reduce_sum(self, *values: float) -> tuple[float, ...]:
        """Sums of numbers over the ranks, float64; collective, call on every rank."""
        if self.gloo_group is None:
            return values
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, group=self.gloo_group)
        return tuple(shared.tolist())

    def broadcast(self, values: Tensor) -> None:
        """Overwrite a tensor with the main rank's; collective, call on every rank."""
        if self.world_size > 1:
            dist.broadcast(values, 0)

    def gather(self, values: Tensor) -> Tensor | None:
        """Rows of all ranks, on the main rank, None elsewhere; collective, call on every rank.

        They are on the CPU, of one shape and type on all ranks.
        """
        if self.gloo_group is None:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world_size)] if self.is_main else None
        dist.gather(values.contiguous(), parts, dst=0, group=self.gloo_group)
        return torch.cat(parts) if parts is not None else None

    @contextmanager
    def raise_on_all_ranks(self, what: str) -> Iterator[None]:
        """Around work of the main rank: if it fails there, all others get a `ConfigError`."""
        failed = True
        try:
            yield
            failed = False
        finally:
            elsewhere = self.any(failed)
        if elsewhere:
            raise ConfigError(f"{what} failed on another rank, which says why")


@contextmanager
def init_distributed(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun describes; without torchrun, be alone.

    On ``cuda``, as on ``auto`` with GPUs, each rank of a machine takes a GPU of its own; a
    `ConfigError` where it is not there.
    """
    if "LOCAL_RANK" not in os.environ:
        yield Ranks(resolve_device(device))
        return
    local = int(os.environ["LOCAL_RANK"])
    chosen = resolve_device(device)
    if chosen.type == "cuda":
        chosen = resolve_device(f"cuda:{local}")
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        gloo_group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        ranks = Ranks(chosen, dist.get_rank(), dist.get_world_size(), gloo_group)
        yield ranks
        ranks.barrier()  # one that leaves early takes the connections of others with it
    finally:
        dist.destroy_process_group()
