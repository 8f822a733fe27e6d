"""What a stage gives the loop to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

Indices = NDArray[np.int64]
ItemRandomBits = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TrainedModule:
    """One network that the loop optimises: a GAN has two, everything else has one.

    Attributes
    ----------
    model : its weights are saved and clipped; those of the first may be averaged, too
    loss_module : holds the model; called with a batch, it gives named scalar tensors. The one
        called ``loss`` is minimised, and logged for the first module. Ranks are joined around it
    optimizer : of the model's parameters
    """

    model: nn.Module
    loss_module: nn.Module
    optimizer: Optimizer


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """What is trained, on what, and what becomes of it; `training.loop.trainer.fit` runs it.

    Attributes
    ----------
    trained_modules : each one's loss is computed and differentiated in this order, on the same
        batch; then all of them step
    num_items : items an epoch draws from
    batch : indices int64 (B,) below ``num_items`` and random bits, uint64 (B, 4), four words an
        item, to tensors on the CPU. All random choices about the data come from these bits. Called
        ahead of time, in a thread of its own
    validate : after every epoch, named values; the lower ``objective``, the better
    save_best : write the weights that users take; called with the values when ``objective``
        improved, on every rank, since the model may be sharded; only the main rank writes
    after_step : called with the number of finished steps
    restart_rows : called after that; overwrites rows of parameters, and returns each of these with
        a mask of its rows, bool (rows,): their average and moments start anew
    after_epoch : called with the number of finished epochs and the validation's values
    extra_metrics : items a second to further numbers for the log
    """

    trained_modules: tuple[TrainedModule, ...]
    num_items: int
    batch: Callable[[Indices, ItemRandomBits], tuple[Tensor, ...]]
    validate: Callable[[], dict[str, float]]
    save_best: Callable[[dict[str, float]], None]
    after_step: Callable[[int], None] = lambda _: None
    restart_rows: Callable[[int], Sequence[tuple[Tensor, Tensor]]] = lambda _: ()
    after_epoch: Callable[[int, dict[str, float]], None] = lambda _epoch, _values: None
    extra_metrics: Callable[[float], dict[str, float]] = lambda _: {}
