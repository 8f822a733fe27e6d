"""What the loops have in common: tensors by their addresses, bfloat16, and the exponential.

Tensors come as addresses, because `Tensor.numpy` is three operators and a tensor has several users
in every layer. numba has no bfloat16: such numbers are taken by their bits, as int16, and computed
in float32.
"""

# numba has no types that mypy knows.
# ruff: noqa: ANN001, ANN202, ANN401, ARG001
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import carray  # type: ignore[attr-defined]
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from masc_core.numba_jit import njit_serial

# What numba takes for the numbers of a tensor.
DTYPES = {torch.float32: np.dtype(np.float32), torch.bfloat16: np.dtype(np.int16)}

_LOG2_E = np.float32(1.0 / math.log(2.0))
# ln 2 in two parts: a whole number of times the first is exact (Cody and Waite).
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(math.log(2.0) - 0.693359375)
_ONE, _HALF = np.float32(1), np.float32(0.5)
# Below it the exponential would leave the normal numbers.
_LOWEST = np.float32(-87.0)
_MANTISSA_BITS, _EXPONENT_BIAS = np.int32(23), np.int32(127)


def array(address: Any, shape: Any, dtype: Any) -> Any:
    """An array of a tensor's ``data_ptr``; only for compiled loops."""
    raise NotImplementedError


@overload(array, inline="always")
def _array(address, shape, dtype):
    return _array_at


def _array_at(address, shape, dtype):
    return carray(_pointer(address), shape, dtype)  # type: ignore[call-arg]


@intrinsic
def _pointer(_typing_context, address):
    def generate(_context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def widen(number: Any) -> Any:
    """The float32 of a stored number; only for compiled loops."""
    raise NotImplementedError


def narrow(number: Any, like: Any) -> Any:
    """A float32 as it is stored, in the type of ``like``; only for compiled loops."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(number):
    return _from_bits if isinstance(number, types.Integer) else _unchanged


@overload(narrow, inline="always")
def _narrow(number, like):
    return _nearest_bits if isinstance(like, types.Integer) else _unchanged_like


def _unchanged(number):
    return number


def _unchanged_like(number, like):
    return number


def _from_bits(number):
    return np.int32(np.int32(number) << np.int32(16)).view(np.float32)


def _nearest_bits(number, like):
    bits = np.float32(number).view(np.uint32)
    # To the nearest, and of two equally near ones to the even one, as torch rounds.
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.int16(np.uint32(rounded) >> np.uint32(16))


@njit_serial
def exp(x: np.float32) -> np.float32:
    """``e^x`` for x <= 0, to two units in the last place; 0 at worst becomes ``e^-87``.

    A polynomial that the processor computes for many numbers at once, unlike the C library's
    function. Coefficients: Cephes Mathematical Library, ``expf``.
    """
    x = max(x, _LOWEST)
    power = np.floor(x * _LOG2_E + _HALF)
    x = x - power * _LN2_HIGH - power * _LN2_LOW
    value = np.float32(1.9875691500e-4)
    value = value * x + np.float32(1.3981999507e-3)
    value = value * x + np.float32(8.3334519073e-3)
    value = value * x + np.float32(4.1665795894e-2)
    value = value * x + np.float32(1.6666665459e-1)
    value = value * x + np.float32(5.0000001201e-1)
    value = value * x * x + x + _ONE
    two_to_power = np.int32((np.int32(power) + _EXPONENT_BIAS) << _MANTISSA_BITS)
    return value * two_to_power.view(np.float32)
