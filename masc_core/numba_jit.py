"""How loops are compiled: once a machine, kept on disk, the same bits for any number of threads.

Floating-point sums keep the order in which they are written, only products may be fused with them.
The exception is `njit_reassociated`, whose sums a processor may split among its vector lanes: its
last bits can differ between processors, never between runs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

import numba
from numba import njit

logger = logging.getLogger(__name__)

FASTMATH_FUSED = {"contract"}  # a product and a sum in one instruction
FASTMATH_UNSIGNED_ZERO = FASTMATH_FUSED | {"nsz"}
FASTMATH_REASSOCIATED = FASTMATH_UNSIGNED_ZERO | {"reassoc"}

F = TypeVar("F", bound=Callable[..., Any])


def _compile(function: F, **options: Any) -> F:  # noqa: ANN401 - numba's
    try:
        return cast("F", njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # the cache can be written neither beside the source nor in the home
        _warn_of_no_cache()
        return cast("F", njit(nogil=True, **options)(function))


@cache  # one line in the log, however many loops there are
def _warn_of_no_cache() -> None:
    logger.warning(
        "compiled loops cannot be kept, so every process compiles them anew: NUMBA_CACHE_DIR "
        "names a folder that can be written"
    )


def njit_parallel(function: F) -> F:
    """Compile a loop nest whose outermost `prange` runs on all threads; it releases the GIL."""
    compiled = _compile(function, parallel=True, fastmath=FASTMATH_FUSED)

    @wraps(function)
    def call(*arguments: object) -> Any:  # noqa: ANN401 - what the loop returns
        start_threads()
        return compiled(*arguments)

    return cast("F", call)


@cache
def start_threads() -> None:
    """Start numba's threads, before their number is set or a loop runs on them.

    They share OpenMP with torch, which would have as many as numba from then on.
    """
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    numba.get_num_threads()
    if torch:
        torch.set_num_threads(threads)


def njit_serial(function: F) -> F:
    """Compile what is sequential: a loop, or a small function that becomes part of its callers."""
    return _compile(function, fastmath=FASTMATH_FUSED)


def njit_unchecked(function: F) -> F:
    """Compile a sequential loop that never divides by zero and ignores the sign of zeros."""
    return _compile(function, error_model="numpy", fastmath=FASTMATH_UNSIGNED_ZERO)


def njit_reassociated(function: F) -> F:
    """Compile a small summing function, to be inlined; its sums may be reordered."""
    return _compile(function, fastmath=FASTMATH_REASSOCIATED)
