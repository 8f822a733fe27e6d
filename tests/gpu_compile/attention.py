"""The kernel of attention: as machine code for a GPU, and in Triton's interpreter."""

# Triton has no types.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
import subprocess
import sys

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
from triton.backends.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    GPUTarget,
)
from triton.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    ASTSource,
)

from masc_core.models import decode_attention
from tests.gpu_compile.gpu import TARGET
from tests.gpu_compile.kernels import Machine, assemble
from tests.gpu_compile.report import Report

NAMES = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
THREADS, REGISTERS = 32 * decode_attention.NUM_WARPS, 65536
OLDER = (80, 86, 89)
INTERPRETED = """
import torch
from masc_core.models.decode_attention import attend
from tests.masc_core.models.test_kv_cache import TOLERANCES, check_kernel

for dtype, tolerance in TOLERANCES:
    check_kernel(attend, dtype, "cpu", tolerance)
"""


def check(report: Report, dim: int, heads: int, length: int, dtype: torch.dtype) -> None:
    """Assemble it for one shape of a cache, heads of 64 for all GPUs; say what it takes."""
    for arch in (TARGET.arch, *OLDER) if dim == 64 else (TARGET.arch,):
        made = compile_kernel(dim, heads, length, dtype, arch)
        report.num_kernels += 1
        if made.spilled:
            report.fail(f"attention of {dim}, {dtype}, sm_{arch}: spills {made.spilled} bytes")
        if arch == TARGET.arch:
            block = decode_attention.block_size(dim, dtype)
            fitting = REGISTERS // (THREADS * made.registers)
            report.say(
                f"   head of {dim:3}, {heads:2} heads, {length} positions: {block:3} at once, "
                f"{made.registers:3} registers, {made.shared:5} bytes shared, "
                f"{fitting:2} programs a multiprocessor"
            )


def compile_kernel(dim: int, heads: int, length: int, dtype: torch.dtype, arch: int) -> Machine:
    """Machine code for tensors that are aligned, as torch's are."""
    name = NAMES[dtype]
    pointers = {
        "qkv": name,
        "cos_sin": "*fp32",
        "slots": "*i64",
        "positions": "*i64",
        "keys": name,
        "values": name,
        "out": name,
    }
    constants = {
        "H": heads,
        "T": length,
        "D": dim,
        "WIDTH": triton.next_power_of_2(dim),
        "BLOCK": decode_attention.block_size(dim, dtype),
    }
    signature = pointers | {"scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(len(pointers))}
    source = ASTSource(decode_attention._kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": decode_attention.NUM_WARPS}
    return assemble(source, GPUTarget("cuda", arch, 32), options)


def interpret() -> str:
    """Compare what the kernel computes with the plain function, in a process of its own.

    Raises
    ------
    RuntimeError : they differ
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return "as the plain function, and a row has the same bits alone"
