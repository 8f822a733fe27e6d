"""Products of small matrices in a processor's registers, for loops that numba compiles.

A tile is a few rows of 16 columns. Its sums stay in registers while the depth is gone through, and
every number that is read serves the whole tile. LLVM makes of 16 floats what the processor has: two
vectors with AVX2, one with AVX-512. A sum runs over the depth in order, so its bits depend on
nothing but its row and its column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from masc_core.arrays import Float32Array

COLUMNS = 16
ROWS = 6  # 12 of AVX2's 16 registers are sums then, the others hold what comes in

INDEX = ir.IntType(64)
VECTOR = ir.VectorType(ir.FloatType(), COLUMNS)
ALL_FIRST = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS), [0] * COLUMNS)


def pack(matrix: Float32Array) -> Float32Array:
    """A matrix (K, N) as panels (N / 16, K, 16), the last filled up with zeros."""
    depth, width = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -width % COLUMNS)))
    return np.ascontiguousarray(padded.reshape(depth, -1, COLUMNS).transpose(1, 0, 2))


def tile_product(rows: int) -> Any:  # noqa: ANN401 - as untyped as numba's intrinsics
    """Return the compiled ``c[i, :16] = sum of a[i, k] b[k, :16] over k``, for i below `rows`.

    It takes a, b, c and the depth, at least 1. Each matrix is a contiguous float32 array, the index
    of its first element in it, and the stride of its rows. What follows in a and b, the next rows
    and the next panel, is fetched into the cache.
    """

    @intrinsic
    def product(_context: Any, a: Any, b: Any, c: Any, depth: Any) -> Any:  # noqa: ANN401
        return types.void(a, b, c, depth), _generator(rows)

    return product


def _generator(rows: int) -> Callable[..., Any]:
    def generate(context: Any, to: ir.IRBuilder, signature: Any, values: Any) -> Any:  # noqa: ANN401
        def matrix(i: int) -> tuple[ir.Value, ir.Value]:
            array, first, row = (to.extract_value(values[i], part) for part in range(3))
            data = context.make_array(signature.args[i][0])(context, to, array).data
            return to.gep(data, [first]), row

        (a, a_row), (b, b_row), (c, c_row), depth = matrix(0), matrix(1), matrix(2), values[3]
        start, loop, end = to.block, to.append_basic_block("loop"), to.append_basic_block("end")
        to.branch(loop)
        to.position_at_end(loop)
        k = to.phi(INDEX)
        sums = [to.phi(VECTOR) for _ in range(rows)]
        b_k = to.load(_vector(to, b, to.mul(k, b_row)), align=4)
        _prefetch(to, _vector(to, b, to.mul(to.add(k, depth), b_row)))
        _prefetch(to, _vector(to, a, to.mul(to.add(k, a_row), INDEX(rows))))
        new_sums = [
            _add_product(to, to.gep(a, [to.add(to.mul(INDEX(i), a_row), k)]), b_k, sums[i])
            for i in range(rows)
        ]
        next_k = to.add(k, INDEX(1))
        for phi, value in ((k, next_k), *zip(sums, new_sums, strict=True)):
            phi.add_incoming(ir.Constant(phi.type, None), start)
            phi.add_incoming(value, loop)
        to.cbranch(to.icmp_signed("<", next_k, depth), loop, end)
        to.position_at_end(end)
        for i, total in enumerate(new_sums):
            to.store(total, _vector(to, c, to.mul(INDEX(i), c_row)), align=4)
        return context.get_dummy_value()

    return generate


def _vector(to: ir.IRBuilder, base: ir.Value, offset: ir.Value) -> ir.Value:
    """Return the address of 16 floats."""
    return to.bitcast(to.gep(base, [offset]), VECTOR.as_pointer())


def _prefetch(to: ir.IRBuilder, address: ir.Value) -> None:
    """Fetch what is there into the nearest cache; an address that does not exist does no harm."""
    flag = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
    prefetch = to.module.globals.get(name := "llvm.prefetch.p0") or ir.Function(
        to.module, kind, name
    )
    to.call(prefetch, [address, flag(0), flag(3), flag(1)])  # to read, to keep, data


def _add_product(to: ir.IRBuilder, factor: ir.Value, vector: ir.Value, total: ir.Value) -> ir.Value:
    """Return ``total + factor * vector``, rounded once."""
    nothing = ir.Constant(VECTOR, ir.Undefined)
    one = to.insert_element(nothing, to.load(factor), ir.IntType(32)(0))
    spread = to.shuffle_vector(one, nothing, ALL_FIRST)
    return to.fadd(to.fmul(spread, vector, flags=("contract",)), total, flags=("contract",))
