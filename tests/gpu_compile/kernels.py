"""Triton kernels to machine code, by the assembler that comes with Triton."""

# Triton has no types.
# mypy: disable-error-code="no-untyped-call, attr-defined, assignment"

from __future__ import annotations

import importlib.util
import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch._inductor import config
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from triton.backends.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    GPUTarget,
)
from triton.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    ASTSource,
)

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Machine:
    """A kernel's machine code.

    Attributes
    ----------
    registers : of a thread
    spilled : bytes that a thread puts aside and fetches again, and that it has on a stack
    shared : bytes of a block of threads
    ptx : the code that was assembled
    """

    registers: int
    spilled: int
    shared: int
    ptx: str


def assemble(source: ASTSource, target: GPUTarget, options: Options) -> Machine:
    """Compile a kernel.

    Raises
    ------
    Exception : whatever stops Triton or the assembler
    """
    triton.knobs.nvidia.dump_ptxas_log = True
    triton.knobs.compilation.always_compile = True
    with redirect_stdout(io.StringIO()) as said:
        made = triton.compile(source, target=target, options=dict(options))
    log = said.getvalue()
    bytes_aside = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)
    (registers,) = re.findall(r"Used (\d+) registers", log)
    return Machine(
        int(registers), sum(map(int, bytes_aside)), made.metadata.shared, made.asm["ptx"]
    )


def generated(source: str, target: GPUTarget) -> Iterator[tuple[str, Machine]]:
    """Compile a kernel of Inductor's in every configuration that it would choose from.

    Parameters
    ----------
    source : text of its module
    target : for what

    Yields
    ------
    the configuration in words, and the code

    Raises
    ------
    Exception : whatever stops Triton or the assembler
    """
    config.use_static_triton_launcher = False
    triton_helpers.set_driver_to_gpu = lambda: None
    for tuner in _tuners(source):
        for choice in tuner.configs:
            meta = tuner._create_compile_meta(choice)
            options = tuner._create_compile_options(choice, meta)
            syntax = ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
            yield f"{choice.kwargs}", assemble(syntax, target, options)


def _tuners(source: str) -> list[CachingAutotuner]:
    """What the module defines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("kernel", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return [made for made in vars(module).values() if isinstance(made, CachingAutotuner)]
