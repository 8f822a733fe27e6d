"""Memory of models, before they are loaded: what one takes, and what there is.

What a model takes, in bytes, is

    2 b T + b (R + C) + 4 c V + 2 b (S + 1) P W N

of T, R, C and V weights in its transformer, refiner, completer and tokenizer, b bytes each (4 of
the tokenizer), S rows of a batch, P positions, W the width and N the layers of the transformer.
Steps read a copy of the transformer's weights in another order, hence twice; the last term is keys
and values, of one row more for padding. A CPU decodes a grid with copies of the weights that are
about twice as large, so c is 3 there, and else 1. With LlamaGen's GPT-B in float32 and 32 rows a
worker grew by 2.09 GB; this is 1.91. It leaves out what steps, decoders and CUDA take beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from masc_core.bundle.manifest import (
    COMPLETER_FILE,
    ENCODER_FILE,
    REFINER_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    Manifest,
)
from masc_core.errors import ConfigError
from masc_core.io.tensors import read_shapes
from worker.model.loaded_version import LoadedVersion
from worker.model.threads import groups_of_process

MEMORY_INFO = Path("/proc/meminfo")
GROUP_FILES = (  # of version 1, and 2: the limit, what is used, and of that pages of files
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)


class MemoryNeed(NamedTuple):
    """What a model takes, in bytes."""

    weights: int  # as it is loaded
    steps: int  # as it is warmed up: the copy of weights, keys and values

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.steps


def memory_need(
    folder: Path, manifest: Manifest, rows: int, dtype: torch.dtype, device: torch.device
) -> MemoryNeed:
    """What the bundle in a folder takes with a batch of so many rows; reads no weights.

    Raises
    ------
    ArtifactError : a file is missing, or cannot be read
    """

    def num_weights(name: str) -> int:
        if name not in manifest.files:
            return 0
        return sum(map(math.prod, read_shapes(folder / name).values()))

    transformer, gpt, size = num_weights(TRANSFORMER_FILE), manifest.gpt, dtype.itemsize
    drawn = transformer + num_weights(REFINER_FILE) + num_weights(COMPLETER_FILE)
    decoded = num_weights(TOKENIZER_FILE) + num_weights(ENCODER_FILE)
    cache = 2 * (rows + 1) * gpt.block_size * gpt.dim * gpt.n_layer
    copies = 3 if device.type == "cpu" and manifest.tokenizer == "vq" else 1
    return MemoryNeed(
        weights=size * drawn + torch.float32.itemsize * copies * decoded,
        steps=size * (transformer + cache),
    )


class ModelMemory:
    """Refuses models that do not fit beside those that are loaded.

    Parameters
    ----------
    limit : bytes that all of them may take together; None is what is free when one is loaded
    free_bytes : tells that
    """

    def __init__(self, limit: int | None, free_bytes: Callable[[], float]) -> None:
        self._limit, self._free_bytes = limit, free_bytes
        self._held: WeakKeyDictionary[LoadedVersion, MemoryNeed] = WeakKeyDictionary()

    def check(self, label: str, need: MemoryNeed) -> None:
        """Refuse a model, in words that name the numbers.

        Raises
        ------
        ConfigError : it does not fit
        """
        if self._limit is None:
            # What is loaded and not warm yet has not taken all of its own.
            cold = (held.steps for loaded, held in self._held.items() if not loaded.is_warm)
            free, source = self._free_bytes() - sum(cold), "free"
        else:
            free = self._limit - sum(held.total for held in self._held.values())
            source = f"left of MASC_MAX_MODEL_BYTES={self._limit}"
        if need.total > free:
            raise ConfigError(
                f"{label} takes {_megabytes(need.total)} MB of memory ({_megabytes(need.weights)} "
                f"of weights, {_megabytes(need.steps)} of their copy for steps and of keys and "
                f"values), and {_megabytes(max(free, 0))} MB are {source}: serve fewer models "
                "(--model, MASC_SERVED_MODELS), or lower MASC_MAX_BATCH"
            )

    def hold(self, loaded: LoadedVersion, need: MemoryNeed) -> None:
        """Count a model that was loaded, until it is gone."""
        self._held[loaded] = need


def free_memory(device: torch.device) -> float:
    """Bytes that this process can take of a device; infinity where nothing tells of it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has taken and does not use it gives to the next model.
        return float(
            free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        )
    return min(_free_of_machine(), *map(free_of_group, groups_of_process("memory")))


def _free_of_machine() -> float:
    try:
        lines = MEMORY_INFO.read_text("ascii").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return 1024.0 * int(values["MemAvailable"].split()[0])
    except (OSError, ValueError, LookupError):  # not Linux
        return math.inf


def free_of_group(folder: Path) -> float:
    """Bytes that a control group leaves; pages of files that can go count as free."""
    limit, used, pages = GROUP_FILES[(folder / "memory.max").exists()]
    try:
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
        free = int((folder / limit).read_text("ascii"))  # where it is "max" there is no bound
        free -= int((folder / used).read_text("ascii"))
        return float(free + int(dict(line.split() for line in lines)[pages]))
    except (OSError, ValueError, LookupError):  # no such group
        return math.inf


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}"
