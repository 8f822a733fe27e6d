"""The optimisation loop that every stage shares: schedule, accumulation, log, checkpoints, ranks.

The order of the data and its random choices are functions of (seed, step), dropout is one of (seed,
step, rank), and every moment is in the checkpoint: a run that was killed and resumed takes the same
steps as one that was not. On another number of ranks it sees the same data in the same order; only
dropout draws otherwise, and sums round otherwise.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from types import FrameType
from typing import Any, Literal, NoReturn, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from masc_core.device import has_bfloat16
from masc_core.errors import ConfigError, DivergedError
from masc_core.progress import ProgressCallback, no_progress
from training.config import LoopConfig
from training.loop.batches import Batches, MicroBatch
from training.loop.checkpoint import TrainState, load_checkpoint, save_checkpoint
from training.loop.distributed import Ranks
from training.loop.ema import EMA
from training.loop.parallel import full_tensor, gradient_sync, reshard, wrap_ddp
from training.loop.run_dir import Run
from training.loop.task import TrainingTask


def fit(
    run: Run, config: LoopConfig, task: TrainingTask, report: ProgressCallback = no_progress
) -> TrainState:
    """Train to the end of the last epoch, from the run's checkpoint if there is one.

    Raises
    ------
    ConfigError : there are fewer items than a batch holds, the ranks cannot share a batch, or the
        memory of the device is too small
    DivergedError : the loss became a NaN or an infinity
    KeyboardInterrupt : SIGINT or SIGTERM came; the state was saved first
    """
    try:
        with StopRequest() as stop:
            return _Trainer(run, config, task, report, stop).fit()
    except torch.OutOfMemoryError as error:
        items = config.micro_batch_of(run.ranks.world_size)
        raise ConfigError(
            f"micro_batch: {items} items at once are too many for the memory of the device"
        ) from error


class _Trainer:
    """State of one call of `fit`."""

    def __init__(
        self,
        run: Run,
        config: LoopConfig,
        task: TrainingTask,
        report: ProgressCallback,
        stop: StopRequest,
    ) -> None:
        self.run, self.config, self.task, self.report, self.stop = run, config, task, report, stop
        self.ranks, self.modules = run.ranks, task.trained_modules
        self.batches = _batches(config, task, self.ranks)
        self.total = self.batches.steps_per_epoch * config.epochs
        self.loss_modules = [wrap_ddp(trained, self.ranks) for trained in self.modules]
        self.ema = EMA(self.modules[0].model, config.ema_decay) if config.ema_decay else None
        self.state = TrainState()
        if run.checkpoint is not None:
            self.state = load_checkpoint(run.checkpoint, self.modules, self.ema, self.ranks)
        run.rewind_log(self.state.step)
        self.started = time.perf_counter() - self.state.seconds
        self.last_log = (self.state.step, time.perf_counter())
        self.losses: dict[str, Tensor] = {}
        # Of all gradients so far, and on the device: looking at each would wait for it.
        self.all_finite = torch.ones((), dtype=torch.bool, device=self.ranks.device)

    def fit(self) -> TrainState:
        """Take the steps that are left."""
        self.train_mode(on=True)
        with closing(self.batches.prefetch(self.state.step, self.total)) as batches:
            for batch in batches:
                self.step(batch)
                step = self.state.step
                stopped = self.ranks.any(self.stop.requested)
                if step % self.batches.steps_per_epoch == 0:
                    self.end_epoch(step // self.batches.steps_per_epoch)
                elif stopped or step % self.config.checkpoint_every == 0:
                    self.save()
                if stopped:
                    raise KeyboardInterrupt
        return self.state

    def step(self, batch: list[MicroBatch]) -> None:
        """One training step, what the task does after it, and a line of the log."""
        config, step = self.config, self.state.step + 1
        rate = learning_rate(
            self.state.step,
            total_steps=self.total,
            peak=config.lr,
            min_ratio=config.min_lr_ratio,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
        )
        torch.manual_seed(step_seed(config.seed, self.state.step, self.ranks.rank))
        self.losses = self.training_step(batch, rate)
        self.task.after_step(step)
        for parameter, rows in self.task.restart_rows(step):
            self.reset_rows(parameter, rows)
        self.state = replace(self.state, step=step)
        if step % config.log_every == 0 or step % config.checkpoint_every == 0:
            self.log_step(rate)

    def training_step(self, batch: list[MicroBatch], rate: float) -> dict[str, Tensor]:
        """Forward, backward, clip, update; returns the losses, means over the micro-batches."""
        for trained in self.modules:
            trained.optimizer.zero_grad(set_to_none=True)
            set_learning_rate(trained.optimizer, rate)
        means: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(batch):
            tensors = [t.to(self.ranks.device, non_blocking=True) for t in micro_batch]
            for module_index, loss_module in enumerate(self.loss_modules):
                with gradient_sync(loss_module, number, len(batch)):
                    with autocast(self.config, self.ranks.device):
                        losses = loss_module(*tensors)
                    (losses["loss"] / len(batch)).backward()
                for name, value in losses.items():
                    if module_index and name == "loss":
                        continue  # the log has the first module's
                    means[name] = means.get(name, 0.0) + value.detach() / len(batch)
        for trained in self.modules:
            norm = clip_grad_norm_(trained.model.parameters(), self.config.grad_clip)
            self.all_finite = self.all_finite & full_tensor(norm).isfinite()
            trained.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        return means

    def reset_rows(self, parameter: Tensor, rows: Tensor) -> None:
        """Start the average and the optimiser's moments of overwritten rows anew."""
        if self.ema is not None:
            self.ema.restart(parameter, rows)
        for trained in self.modules:
            for moment in trained.optimizer.state.get(parameter, {}).values():
                if moment.shape == parameter.shape:  # not the count of steps
                    moment[rows] = 0

    def log_step(self, rate: float) -> None:
        """Log the losses, and the items a second since the last time."""
        step, (last_step, last_time) = self.state.step, self.last_log
        values = self.finite_losses()
        now = time.perf_counter()
        items_per_second = (step - last_step) * self.config.batch_size / (now - last_time)
        self.last_log = (step, now)
        extra = self.task.extra_metrics(items_per_second)
        self.run.log(
            kind="train",
            step=step,
            lr=rate,
            items_per_second=items_per_second,
            **extra,
            **values,
        )
        self.report(step, self.total, f"loss {values['loss']:.4f}  {items_per_second:.0f}/s")

    def end_epoch(self, epoch: int) -> None:
        """Validate, keep the weights if they are the best so far, save."""
        step = self.state.step
        self.finite_losses()
        with self.evaluating():
            with torch.inference_mode():
                values = self.mean_over_ranks(self.task.validate())
            if not math.isfinite(values["objective"]):
                raise DivergedError(f"the validation after step {step} is {values['objective']}")
            self.run.log(kind="validation", step=step, epoch=epoch, **values)
            with self.ranks.raise_on_all_ranks("keeping the weights"):
                if values["objective"] < self.state.best:
                    self.task.save_best(values)
                    self.state = replace(self.state, best=values["objective"])
            with self.ranks.raise_on_all_ranks("what follows an epoch"):
                self.task.after_epoch(epoch, values)
        self.save()

    def mean_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each value over the ranks; collective, call on every rank."""
        numbers = torch.tensor(list(values.values()), dtype=torch.float64).to(self.ranks.device)
        return dict(zip(values, self.ranks.all_reduce_mean(numbers).tolist(), strict=True))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The models in evaluation mode, with averaged weights if there are any."""
        self.train_mode(on=False)
        with self.ema.in_place() if self.ema else nullcontext():
            yield
        for trained in self.modules:
            reshard(trained.model)
        self.train_mode(on=True)

    def train_mode(self, *, on: bool) -> None:
        """Switch all models to training or to evaluation."""
        for trained in self.modules:
            trained.model.train(on)

    def save(self) -> None:
        """Write the checkpoint, unless there is nothing finite to write."""
        self.finite_losses()
        self.state = replace(self.state, seconds=time.perf_counter() - self.started)
        save_checkpoint(
            self.run.folder, self.state, self.modules, self.ema, self.run.config, self.ranks
        )
        self.last_log = (self.state.step, time.perf_counter())  # counts training alone

    def finite_losses(self) -> dict[str, float]:
        """The last step's losses, means over all ranks; a `DivergedError` without finite ones."""
        stacked = self.ranks.all_reduce_mean(torch.stack([v.float() for v in self.losses.values()]))
        values = dict(zip(self.losses, stacked.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            self.diverged(f"the loss is {values['loss']}")
        if self.ranks.any(not self.all_finite):
            self.diverged("the gradient is not finite")
        return values

    def diverged(self, reason: str) -> NoReturn:
        """End a run that left the finite numbers; its last checkpoint is from before that."""
        raise DivergedError(
            f"{reason} at step {self.state.step}; another run with a lower lr may help"
        )


class StopRequest:
    """Turn the first SIGINT or SIGTERM into a request that the loop honours between two steps."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:  # only the main thread may set handlers
            self._previous.clear()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # Who presses Ctrl-C twice does not want to wait; a scheduler sends SIGTERM more than once.
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def learning_rate(
    step: int,
    *,
    total_steps: int,
    peak: float,
    min_ratio: float,
    warmup_steps: int,
    schedule: Literal["cosine", "wsd"] = "cosine",
) -> float:
    """Rate of a step counted from 0: warm-up and a cosine to a share of the peak, or WSD."""
    if schedule == "wsd":
        return peak * wsd_share(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (min_ratio + (1 - min_ratio) * cosine)


def wsd_share(step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the peak as GigaTok has it: warm-up from 1 %, constant, ``1 - sqrt`` to 0.

    Upstream sets the rate after a step for the next one, so the very first has the whole peak.
    """
    if 0 < step < warmup_steps:
        return step / warmup_steps + (1 - step / warmup_steps) / 100
    decay = 0.2 * total_steps
    progress = 1 - (total_steps - step) / decay
    return 1 - math.sqrt(max(0.0, progress))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def autocast(config: LoopConfig, device: torch.device) -> torch.autocast:
    """The precision of the forward pass, in training and in validation."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=trains_in_bfloat16(config, device)
    )


def trains_in_bfloat16(config: LoopConfig, device: torch.device) -> bool:
    """Whether the forward pass is in bfloat16; it is where that is asked for by name, if slow."""
    return config.precision == "bfloat16" or (config.precision == "auto" and has_bfloat16(device))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a step's dropout on a rank, 64 bits."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def _batches(config: LoopConfig, task: TrainingTask, ranks: Ranks) -> Batches:
    if task.num_items < config.batch_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} is more than the {task.num_items} training items"
        )
    if config.batch_size % ranks.world_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} cannot be shared by {ranks.world_size} ranks"
        )
    share = config.batch_size // ranks.world_size
    micro = config.micro_batch_of(ranks.world_size)
    if share % micro:
        raise ConfigError(
            f"micro_batch: {micro} does not divide a rank's share of the batch, {share}"
        )
    return Batches(
        task.batch,
        task.num_items,
        config.seed,
        config.batch_size,
        micro,
        ranks.rank,
        ranks.world_size,
        pinned=ranks.device.type == "cuda",
    )
