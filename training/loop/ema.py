"""Exponential moving average of a model's parameters.

``a <- d a + (1 - d) p`` after every step, starting from the parameters themselves; buffers are not
averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """The averages of a model's parameters, ``values`` by name; the decay d is in (0, 1)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._parameters = dict(model.named_parameters())
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}

    def update(self) -> None:
        """Take a step's parameters in, all of them in a few kernels."""
        self._average(list(self.values.values()), list(self._parameters.values()), None)

    @torch.no_grad()
    def restart(self, parameter: Tensor, rows: Tensor) -> None:
        """Average a parameter's rows, bool (rows,), from their present values on."""
        for name, value in self.values.items():
            if self._parameters[name] is parameter:
                value[rows] = parameter[rows]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages into the model for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.values.items():
            parameter = self._parameters[name]
            kept: Tensor = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)
