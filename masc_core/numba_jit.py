"""How loops are compiled: once a machine, kept on disk, the same bits for any number of threads.

Floating-point sums keep the order in which they are written, only products may be fused with them.
The exception is `reduction`, whose sums a processor may split among its vector lanes: its last bits
can differ between processors, never between runs.
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

FUSE = {"contract"}
UNSIGNED = {"contract", "nsz"}
SPLIT = {"contract", "nsz", "reassoc"}

F = TypeVar("F", bound=Callable[..., Any])


def _compile(function: F, **options: Any) -> F:  # noqa: ANN401 - numba's
    try:
        return cast("F", njit(cache=True, nogil=True, **options)(function))
    except RuntimeError:  # neither beside the source nor at home can it write
        _warn_of_no_cache()
        return cast("F", njit(nogil=True, **options)(function))


@cache  # of many loops, one line
def _warn_of_no_cache() -> None:
    logger.warning(
        "compiled loops cannot be kept, so every process compiles them anew: NUMBA_CACHE_DIR "
        "names a folder that can be written"
    )


def kernel(function: F) -> F:
    """Compile a loop nest whose outermost `prange` runs on all threads; it releases the GIL."""
    compiled = _compile(function, parallel=True, fastmath=FUSE)

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


def serial(function: F) -> F:
    """Compile what is sequential: a loop, or a small function that becomes part of its callers."""
    return _compile(function, fastmath=FUSE)


def unchecked(function: F) -> F:
    """Compile a sequential loop that never divides by zero, and to which zeros have no sign."""
    return _compile(function, error_model="numpy", fastmath=UNSIGNED)


def reduction(function: F) -> F:
    """Compile a small function that adds up into its callers."""
    return _compile(function, fastmath=SPLIT)
