"""How loops are compiled: once a machine, kept on disk, the same bits for any number of threads.

Floating-point sums keep the order in which they are written, only products may be fused with them.
The exception is `reduction`, whose sums a processor may split among its vector lanes: its last bits
can differ between processors, never between runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

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
    return _compile(function, parallel=True, fastmath=FUSE)


def serial(function: F) -> F:
    """Compile what is sequential: a loop, or a small function that becomes part of its callers."""
    return _compile(function, fastmath=FUSE)


def unchecked(function: F) -> F:
    """Compile a sequential loop that never divides by zero, and to which zeros have no sign."""
    return _compile(function, error_model="numpy", fastmath=UNSIGNED)


def reduction(function: F) -> F:
    """Compile a small function that adds up into its callers."""
    return _compile(function, fastmath=SPLIT)
