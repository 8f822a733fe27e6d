"""Graphs that torch.compile asks for: counted, and turned into code for the GPU.

In place of the code a graph is done on shapes alone, once for each set of shapes.
"""

# mypy: disable-error-code="no-untyped-call, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Self, cast
from unittest import mock

import torch
from torch import Tensor
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_map

from tests.gpu_compile.gpu import DEVICE, Device

KERNEL = re.compile(r"(triton_\w+) = async_compile\.triton\('\w+', '''(.*?)'''", re.DOTALL)
ALLOCATION = re.compile(r"empty_strided_cuda\(\(([^)]*)\)")
WAITS = re.compile(r"\.item\(\)|\.tolist\(\)|\.cpu\(\)|nonzero|masked_select|_local_scalar_dense")
Run = Callable[..., Any]


@dataclass(frozen=True)
class Code:
    """What Inductor has made of a graph.

    Attributes
    ----------
    text : the module
    sources : Triton kernels by name
    launches : of them in a call, by name
    external : products and other operators of libraries in a call, by name
    allocations : shapes of the buffers of a call, as they stand there
    constants : tensors that the module keeps from one call to the next
    waits : what in a call waits for the device
    """

    text: str
    sources: dict[str, str]
    launches: Counter[str]
    external: Counter[str]
    allocations: list[str]
    constants: list[str]
    waits: list[str]

    @classmethod
    def of(cls, text: str) -> Code:
        """Read a module."""
        call = text[text.index("def call(") :]
        external = re.findall(r"extern_kernels\.(\w+)\(", call)
        external += re.findall(r"torch\.ops\.([\w.]+?)\(", call)
        return cls(
            text,
            dict(KERNEL.findall(text)),
            Counter(re.findall(r"(triton_\w+?)\.run\(", call)),
            Counter(name for name in external if "reinterpret" not in name),
            ALLOCATION.findall(call),
            re.findall(r"^(\w+) = None  # (?:\w+)$", text, re.MULTILINE),
            WAITS.findall(call),
        )

    @property
    def num_kernels(self) -> int:
        """Kernels of a call, one for each external operator."""
        return self.launches.total() + self.external.total()

    def largest_allocation(self) -> int:
        """Numbers in the largest buffer whose shape is fixed."""
        shapes = [text.replace(" ", "").strip(",").split(",") for text in self.allocations]
        sizes = [prod(map(int, shape)) for shape in shapes if all(s.isdigit() for s in shape)]
        return max(sizes, default=0)


@dataclass
class Part:
    """A function that is compiled: its graphs in the order in which they were asked for."""

    name: str
    graphs: list[Code | None] = field(default_factory=list)


class Compiler:
    """Stands for torch.compile.

    Parameters
    ----------
    device : what is compiled for
    generates : whether code is made, or graphs are only counted

    Attributes
    ----------
    parts : by the name of the function
    """

    _codes: ClassVar[dict[str, Code]] = {}  # models of several widths share some graphs

    def __init__(self, device: Device, *, generates: bool) -> None:
        self.parts: dict[str, Part] = {}
        self._device, self._generates = device, generates
        self._backends: dict[str, Run] = {}
        self._compile = torch.compile

    def __enter__(self) -> Self:
        torch._dynamo.reset()
        torch.compile = self.compile
        return self

    def __exit__(self, *_: object) -> None:
        torch.compile = self._compile

    def num_graphs(self) -> Counter[str]:
        """Graphs of each part so far."""
        return Counter({name: len(part.graphs) for name, part in self.parts.items()})

    def compile(
        self,
        work: Run,
        *,
        fullgraph: bool = False,
        dynamic: bool | None = None,
        backend: str = "inductor",
        options: dict[str, Any] | None = None,
    ) -> Run:
        """As `torch.compile`."""
        assert backend == "inductor"
        name = getattr(work, "__qualname__", type(work).__qualname__)
        if name not in self._backends:
            part = self.parts.setdefault(name, Part(name))
            self._backends[name] = self._backend(part, options)
        made: Run = self._compile(
            work, fullgraph=fullgraph, dynamic=dynamic, backend=self._backends[name]
        )
        return made

    def _backend(self, part: Part, changes: dict[str, Any] | None) -> Run:
        def backend(graph: GraphModule, inputs: Sequence[Any]) -> Run:
            if not self._generates:
                part.graphs.append(None)
                return self._on_shapes(graph, part.name, None)
            made: Run = cast(
                "Any",
                compile_fx(graph, inputs, inner_compile=inner, config_patches=changes),
            )
            return made

        def inner(graph: GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
            key = f"{graph.code} {inputs}"
            if key not in self._codes:
                self._codes[key] = Code.of(generate(*on_device(graph, inputs), **options))
            made = self._codes[key]
            part.graphs.append(made)
            run = self._on_shapes(graph, part.name, made)
            run._boxed_call = True
            return run

        return backend

    def _on_shapes(self, graph: GraphModule, name: str, made: Code | None) -> Run:
        done: dict[object, Any] = {}

        def run(*args: Any) -> Any:
            given = args[0] if made is not None else args
            key = tuple(a.shape if isinstance(a, Tensor) else a for a in given)
            with self._device.calling(name, made.num_kernels if made else 0):
                if key not in done:
                    done[key] = graph(*given)
            return done[key]

        return run


def on_device(graph: GraphModule, inputs: Sequence[Any]) -> tuple[GraphModule, list[Any]]:
    """Copy a graph and its inputs, with all that is on the host on the device.

    Gradients have to be traced on the host: their engine would ask the device's driver.
    """
    moved = copy.deepcopy(graph)
    if all(value.device == DEVICE for value in inputs if isinstance(value, Tensor)):
        return moved, list(inputs)
    for node in moved.graph.nodes:
        node.meta = {key: tree_map(_on_device, value) for key, value in node.meta.items()}
        node.args = tree_map(_on_device, node.args)
        node.kwargs = tree_map(_on_device, node.kwargs)
    return moved, [_on_device(value) for value in inputs]


def _on_device(value: Any) -> Any:
    if isinstance(value, torch.device):
        return DEVICE
    if not isinstance(value, FakeTensor) or value.device == DEVICE:
        return value
    with value.fake_mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)


def generate(graph: GraphModule, inputs: Sequence[Any], **options: Any) -> str:
    """Inductor's code for a graph, as a module's text.

    Raises
    ------
    Exception : whatever stops Inductor
    """
    texts: list[str] = []

    def stop(lowering: GraphLowering) -> None:
        code: Any = lowering.codegen()[0]
        texts.append(getattr(code, "value", code))
        raise StopIteration

    with mock.patch.object(GraphLowering, "compile_to_module", stop):
        try:
            compile_fx_inner(graph, inputs, **options)
        except Exception:
            if not texts:
                raise
    return texts[0]
