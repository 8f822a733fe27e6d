"""The fastest backend to step a batch that works on this machine.

Recording and compiling depend on the driver, on Triton and on the age of the GPU. Where they fail
the worker goes on with a slower backend and says so in `masc_engine_mode`.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import torch

from masc_core.errors import MascError
from masc_core.generation.batch import HostCopy, StepReport
from masc_core.models.gpt import GPT
from masc_core.sampling.in_cluster import InClusterDecoder
from masc_core.sampling.params import SamplingParams
from worker.engine.engine import BatchFactory, StepBatch

logger = logging.getLogger(__name__)

EngineMode = Literal["graphs", "compiled", "eager", "cpu"]


class Backend(NamedTuple):
    """One backend to step a batch, and its name in the metrics."""

    mode: EngineMode
    make: BatchFactory


class FallbackBatch:
    """Steps a batch in the first of several backends that can be prepared.

    Parameters
    ----------
    model, decoder, num_slots : as a `BatchFactory` takes them
    backends : the fastest first, at least one
    on_prepared : called with the mode once it is prepared
    """

    def __init__(
        self,
        model: GPT,
        decoder: InClusterDecoder,
        num_slots: int,
        *,
        backends: Sequence[Backend],
        on_prepared: Callable[[EngineMode], None],
    ) -> None:
        self._parts = model, decoder, num_slots
        self._backend, *self._others = backends
        self._on_prepared = on_prepared
        self._batch: StepBatch | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the transformer's batch in use."""
        return 0 if self._batch is None else self._batch.num_rows

    @property
    def reads_late(self) -> bool:
        """See `StepBatch.reads_late`."""
        return self._made().reads_late

    def prepare(self) -> None:
        """Prepare the first backend that works. Call it before images join: the next has none.

        Raises
        ------
        MascError, torch.OutOfMemoryError : the model is at fault, or too large, in any backend
        Exception : what the last backend failed with
        """
        while not self._try():
            self._batch = None  # its memory goes before the next one takes some
            gc.collect()
            self._backend = self._others.pop(0)
        self._on_prepared(self._backend.mode)

    def join(self, params_list: Sequence[SamplingParams]) -> list[int]:
        """Add images; see `StepBatch.join`."""
        return self._made().join(params_list)

    def leave(self, slots: Collection[int]) -> None:
        """Let images go; see `StepBatch.leave`."""
        self._made().leave(slots)

    def step(self) -> StepReport:
        """Draw the next position of every image; see `StepBatch.step`."""
        return self._made().step()

    def read(self, slots: Sequence[int]) -> HostCopy:
        """Begin to read what some images have drawn; see `StepBatch.read`."""
        return self._made().read(slots)

    def _made(self) -> StepBatch:
        if self._batch is None:
            self._batch = self._backend.make(*self._parts)
        return self._batch

    def _try(self) -> bool:
        try:
            self._made().prepare()
        except (MascError, torch.OutOfMemoryError):
            raise
        except Exception:  # torch, Triton, a C compiler and the driver each have their own errors
            if not self._others:
                raise
            logger.exception(
                "%s does not work on this machine; the engine goes on as %s, SEVERAL TIMES SLOWER",
                self._backend.mode,
                self._others[0].mode,
            )
            return False
        return True
