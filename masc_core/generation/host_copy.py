"""Copies of tensors on their way from the device to the host, which nobody has to wait for yet."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """Begins to copy; the device goes on meanwhile.

    Parameters
    ----------
    tensors : as they are when the device has done what was enqueued so far; on a CPU they are
        taken as they are, and must not be changed
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors, self._arrived = tensors, None
        if tensors[0].is_cuda:
            self._tensors = tuple(_copied(tensor) for tensor in tensors)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> tuple[Tensor, ...]:
        """Wait for the copies, and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _copied(tensor: Tensor) -> Tensor:
    # Only to pinned memory does a copy not wait for its end.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
