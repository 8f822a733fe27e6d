"""The optimisation loop that every stage shares: order of the data, schedule, log, checkpoints.

The order of the data is a function of (seed, epoch) and every random state is in the checkpoint, so
a run that was killed and resumed takes the same steps as one that was not.
This module does not know what is being trained: a stage gives it a loss and a validation.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from masc_core.errors import ConfigError, DivergedError
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.config import LoopConfig
from training.run import Run
from training.schedule import learning_rate, set_learning_rate

Report = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """What a stage brings to the loop.

    Attributes
    ----------
    model, optimizer : what is trained
    num_items : items an epoch draws from; batches are index tensors (batch_size,) int64 below it
    loss : indices to named scalar tensors; the one called ``loss`` is minimised
    validate : after every epoch, named values; the one called ``objective`` is to be small
    keep : write the weights that users take; called with the values when ``objective`` improved
    after_step : called with the number of finished steps
    """

    model: nn.Module
    optimizer: Optimizer
    num_items: int
    loss: Callable[[Tensor], dict[str, Tensor]]
    validate: Callable[[], dict[str, float]]
    keep: Callable[[dict[str, float]], None]
    after_step: Callable[[int], None] = lambda _: None


def no_report(step: int, total: int, text: str) -> None:
    """Report progress to nobody."""


def fit(run: Run, config: LoopConfig, stage: Stage, report: Report = no_report) -> Progress:
    """Train to the end of the last epoch, from the run's checkpoint if there is one.

    Raises
    ------
    ConfigError
        There are fewer items than a batch holds.
    DivergedError
        The loss became a NaN or an infinity.
    KeyboardInterrupt
        SIGINT or SIGTERM came; the state was saved first.
    """
    if stage.num_items < config.batch_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} is more than the {stage.num_items} training items"
        )
    with StopRequest() as stop:
        return _Loop(run, config, stage, report, stop).fit()


class _Loop:
    """State of one call of `fit`."""

    def __init__(
        self, run: Run, config: LoopConfig, stage: Stage, report: Report, stop: StopRequest
    ) -> None:
        self.run, self.config, self.stage, self.report, self.stop = run, config, stage, report, stop
        self.steps_per_epoch = stage.num_items // config.batch_size
        self.total = self.steps_per_epoch * config.epochs
        self.progress = Progress()
        if run.checkpoint.exists():
            self.progress = load_checkpoint(run.checkpoint, stage.model, stage.optimizer)
            run.rewind_log(self.progress.step)
        self.clock = time.perf_counter() - self.progress.seconds
        self.losses: dict[str, Tensor] = {}

    def fit(self) -> Progress:
        """Run the epochs that are left."""
        while self.progress.step < self.total:
            self.epoch()
            self.validate()
            self.save()
            if self.stop.requested:
                raise KeyboardInterrupt
        return self.progress

    def epoch(self) -> None:
        """Finish the current epoch; its last step is saved only after the validation."""
        number, first = divmod(self.progress.step, self.steps_per_epoch)
        order = epoch_order(self.stage.num_items, self.config.seed, number)
        size = self.config.batch_size
        batches = [order[i * size : (i + 1) * size] for i in range(self.steps_per_epoch)]
        self.stage.model.train()
        for batch in batches[first:-1]:
            self.step(batch)
            if self.stop.requested or self.progress.step % self.config.checkpoint_every == 0:
                self.save()
            if self.stop.requested:
                raise KeyboardInterrupt
        self.step(batches[-1])

    def step(self, batch: Tensor) -> None:
        """One optimiser step, and what is to be said of it."""
        started = time.perf_counter()
        config, step = self.config, self.progress.step + 1
        rate = learning_rate(
            self.progress.step,
            total_steps=self.total,
            peak=config.lr,
            min_ratio=config.min_lr_ratio,
            warmup_steps=config.warmup_steps,
        )
        set_learning_rate(self.stage.optimizer, rate)
        self.losses = self.descend(batch)
        self.stage.after_step(step)
        if step % config.log_every == 0 or step % config.checkpoint_every == 0:
            values = _finite(self.losses, step)
            pace = len(batch) / (time.perf_counter() - started)
            self.run.log(kind="train", step=step, lr=rate, items_per_second=pace, **values)
            self.report(step, self.total, f"loss {values['loss']:.4f}  {pace:.0f}/s")
        self.progress = replace(self.progress, step=step)

    def descend(self, batch: Tensor) -> dict[str, Tensor]:
        """Forward, backward, clip, update."""
        model, optimizer = self.stage.model, self.stage.optimizer
        device = next(model.parameters()).device
        low = self.config.precision == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            losses = self.stage.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.grad_clip)
        optimizer.step()
        return losses

    def validate(self) -> None:
        """Measure, and keep the weights if they are the best so far."""
        step = self.progress.step
        _finite(self.losses, step)
        self.stage.model.eval()
        with torch.inference_mode():
            values = self.stage.validate()
        if not math.isfinite(values["objective"]):
            raise DivergedError(f"the validation after step {step} is {values['objective']}")
        self.run.log(kind="validation", step=step, epoch=step // self.steps_per_epoch, **values)
        if values["objective"] < self.progress.best:
            self.stage.keep(values)
            self.progress = replace(self.progress, best=values["objective"])

    def save(self) -> None:
        """Write the checkpoint, unless there is nothing sound to write."""
        _finite(self.losses, self.progress.step)
        self.progress = replace(self.progress, seconds=time.perf_counter() - self.clock)
        save_checkpoint(
            self.run.checkpoint,
            self.progress,
            self.stage.model,
            self.stage.optimizer,
            self.run.config,
        )


def _finite(losses: dict[str, Tensor], step: int) -> dict[str, float]:
    values = {name: float(value.detach()) for name, value in losses.items()}
    if not math.isfinite(values["loss"]):
        raise DivergedError(f"the loss is {values['loss']} at step {step}; a lower lr may help")
    return values


def epoch_order(num_items: int, seed: int, epoch: int) -> Tensor:
    """Permutation (num_items,) int64 of an epoch; a function of its arguments alone."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return torch.randperm(num_items, generator=generator)


class StopRequest:
    """Turn the first SIGINT or SIGTERM into a request that the loop honours between two steps."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # only the main thread may set handlers
            self._previous.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
