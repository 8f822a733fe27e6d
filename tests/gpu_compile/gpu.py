"""A GPU that is not there: enough of one for torch and Triton to generate its code.

Tensors have shapes and a device and no values. Streams and captures do nothing, except that while
a graph is captured whatever a real capture would refuse is noted: a number that the host reads, a
shape that depends on values, a tensor of the host.
"""

# What is replaced has no types, and parts of it no public name.
# mypy: disable-error-code="no-untyped-call, assignment, attr-defined, no-untyped-def"

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch._dynamo.device_interface as interfaces
import torch._dynamo.utils
import torch.utils._triton
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor
from torch._inductor import compile_fx
from torch._inductor.fx_passes import joint_graph, pad_mm
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    GPUTarget,
)

DEVICE = torch.device("cuda:0")


@dataclass(frozen=True)
class Properties:
    """What torch asks of a device; an H200's."""

    name: str = "NVIDIA H200"
    major: int = 9
    minor: int = 0
    multi_processor_count: int = 132
    total_memory: int = 141 * 10**9
    regs_per_multiprocessor: int = 65536
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    warp_size: int = 32
    shared_memory_per_block: int = 48 * 2**10
    shared_memory_per_block_optin: int = 227 * 2**10
    shared_memory_per_multiprocessor: int = 228 * 2**10
    L2_cache_size: int = 50 * 2**20
    clock_rate: int = 1_980_000
    memory_clock_rate: int = 3_201_000
    memory_bus_width: int = 6144
    gcnArchName: str = ""  # noqa: N815 - torch's name


PROPERTIES = Properties()
TARGET = GPUTarget("cuda", 10 * PROPERTIES.major + PROPERTIES.minor, PROPERTIES.warp_size)


@dataclass
class Work:
    """What was captured.

    Attributes
    ----------
    parts : kernels of each call of a compiled function, by its name
    operators : names of the operators between them
    refused : what a capture would have refused
    """

    parts: Counter[str] = field(default_factory=Counter)
    operators: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Device:
    """Tensors on the device that is not there, as a context manager.

    Attributes
    ----------
    work : of the last capture
    """

    def __init__(self) -> None:
        self.work = Work()
        self._is_capturing = False
        # torch finds rules for its operators by the mode's exact class.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._dispatch = self._mode.dispatch
        self._mode.dispatch = self._noted

    def __enter__(self) -> Self:
        self._mode.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._mode.__exit__(None, None, None)

    @contextmanager
    def capture(self, *_: object, **__: object) -> Iterator[None]:
        """Stand for `torch.cuda.graph`."""
        self.work, self._is_capturing = Work(), True
        try:
            yield
        finally:
            self._is_capturing = False

    @contextmanager
    def calling(self, part: str, num_kernels: int) -> Iterator[None]:
        """Note a call of a compiled function, and nothing of what is done in its place."""
        is_capturing, self._is_capturing = self._is_capturing, False
        if is_capturing:
            self.work.parts[part] += num_kernels
        try:
            yield
        finally:
            self._is_capturing = is_capturing

    def _noted(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operator's work on shapes, and note it."""
        out = self._dispatch(func, types, args, kwargs or {})
        if self._is_capturing:
            self._note(func, (args, kwargs), out)
        return out

    def _note(self, func: torch._ops.OpOverload, given: object, out: object) -> None:
        taken, made = list(_tensors(given)), list(_tensors(out))
        # A number of the host is an argument of a kernel, but none comes from the device.
        if any(t.device.type == "cpu" and t.dim() for t in taken):
            self.work.refused.append(f"{func} takes a tensor of the host")
        if any(t.device.type == "cpu" for t in made):
            self.work.refused.append(f"{func} makes a tensor of the host")
        is_work = not getattr(func, "is_view", False) and func.namespace != "prim"
        if is_work and any(t.device.type == "cuda" for t in taken + made):
            self.work.operators.append(str(func))


class OnHost(TorchDispatchMode):
    """Makes on the host what is asked for on the device: numbers that a compiler reckons with."""

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operator."""
        changed = {"device": "cpu"} if "device" in (kwargs or {}) else {}
        return func(*args, **{**(kwargs or {}), **changed})


class Stream:
    """A stream, of which there is nothing to wait for."""

    def __init__(self, *_: object, **__: object) -> None:
        self.cuda_stream = 0
        self.device = DEVICE

    def wait_stream(self, _: Stream) -> None:
        """Do nothing."""

    def wait_event(self, _: object) -> None:
        """Do nothing."""

    def record_event(self, *_: object) -> Event:
        """Return an event that has happened."""
        return Event()

    def synchronize(self) -> None:
        """Do nothing."""


class Event:
    """An event that has happened."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def record(self, *_: object) -> None:
        """Do nothing."""

    def wait(self, *_: object) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""


class Graph:
    """A captured graph that does nothing."""

    def pool(self) -> None:
        """Return no memory."""

    def replay(self) -> None:
        """Do nothing."""


class Driver:
    """What Triton asks of a driver."""

    utils = None

    def get_current_target(self) -> GPUTarget:
        """Return the architecture."""
        return TARGET

    def get_current_device(self) -> int:
        """Return the only one."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """Return the default one."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return the only one."""
        return DEVICE

    def get_device_interface(self) -> object:
        """Return torch's."""
        return torch.cuda


def plug_in() -> Device:
    """Let this process believe that it has the device. Once, before anything is compiled."""
    device = Device()
    _patch_torch(device)
    _patch_compiler()
    triton.runtime.driver.set_active(Driver())
    return device


def _patch_torch(device: Device) -> None:
    replaced: dict[str, object] = {
        "device_count": lambda: 1,
        "current_device": lambda: DEVICE.index,
        "set_device": lambda _: None,
        "synchronize": lambda _=None: None,
        "get_device_properties": lambda _=None: PROPERTIES,
        "get_device_capability": lambda _=None: (PROPERTIES.major, PROPERTIES.minor),
        "get_device_name": lambda _=None: PROPERTIES.name,
        "is_bf16_supported": lambda *_, **__: True,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "current_stream": lambda _=None: Stream(),
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "graph": device.capture,
    }
    for name, stand_in in replaced.items():
        setattr(torch.cuda, name, stand_in)
    setattr(Tensor, "pin_memory", lambda self, *_: self)  # noqa: B010 - not for mypy to see


def _patch_compiler() -> None:
    """Let dynamo and Inductor find the device."""
    interface = interfaces.CudaInterface
    replaced: dict[str, Callable[..., object]] = {
        "is_available": lambda: True,
        "current_device": lambda: DEVICE.index,
        "synchronize": lambda _=None: None,
        "get_compute_capability": lambda _=None: TARGET.arch,
        "get_device_properties": lambda _=None: PROPERTIES,
        "is_bf16_supported": lambda *_, **__: True,
        "is_triton_capable": lambda _=None: True,
        "raise_if_triton_unavailable": lambda _=None: None,
    }
    for name, function in replaced.items():
        setattr(interface, name, staticmethod(function))
    interface.Worker.get_device_properties = staticmethod(lambda _=None: PROPERTIES)
    torch.utils._triton.has_triton = lambda: True
    pad_mm._should_pad = _refuse_to_measure
    compile_fx._warn_tf32_disabled = _advise_tf32
    folder = joint_graph.UniformValueConstantFolder
    deduce = folder._deduce_value

    def deduce_on_host(self: joint_graph.UniformValueConstantFolder, node: Node) -> object:
        with OnHost():
            return deduce(self, node)

    folder._deduce_value = deduce_on_host
    # Parameters without values are what this is about.
    torch._dynamo.utils.assert_no_fake_params_or_buffers = lambda _: None


def _refuse_to_measure(*_: object, **__: object) -> bool:
    raise RuntimeError("whether shapes are padded would be decided by the clock")


def _advise_tf32() -> None:
    """As torch does on a device that has it."""
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        warnings.warn("TensorFloat32 tensor cores are not enabled", stacklevel=1)


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))
    elif isinstance(values, Sequence) and not isinstance(values, str):
        for value in values:
            yield from _tensors(value)
