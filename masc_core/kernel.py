"""How loops are compiled: once a machine, kept on disk, the same bits for any number of threads.

Floating-point sums keep the order in which they are written, only products may be fused with them.
The exception is `reduction`, whose sums a processor may split among its vector lanes: its last bits
can differ between processors, never between runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

FUSE = {"contract"}
UNSIGNED = {"contract", "nsz"}
SPLIT = {"contract", "nsz", "reassoc"}

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a loop nest whose outermost `prange` runs on all threads; it releases the GIL."""
    return cast("F", njit(parallel=True, cache=True, nogil=True, fastmath=FUSE)(function))


def serial(function: F) -> F:
    """Compile a loop that is sequential, or that runs inside a `kernel`."""
    return cast("F", njit(cache=True, nogil=True, fastmath=FUSE)(function))


def unchecked(function: F) -> F:
    """Compile a sequential loop that never divides by zero, and to which zeros have no sign."""
    compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=UNSIGNED)
    return cast("F", compiled(function))


def inline(function: F) -> F:
    """Compile a small function into its callers."""
    return cast("F", njit(cache=True, nogil=True, fastmath=FUSE)(function))


def reduction(function: F) -> F:
    """Compile a small function that adds up into its callers."""
    return cast("F", njit(cache=True, nogil=True, fastmath=SPLIT)(function))
