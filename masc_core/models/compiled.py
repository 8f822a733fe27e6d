"""Functions as compiled kernels, each set of sizes with kernels of its own.

Models of the same sizes share what was compiled. Dynamo keeps what it compiles by the function's
code object: eight entries, of which models of other sizes would take two or three each, and from
the second size on it would take widths for variable, with slower kernels. So the functions are
copied for every set of sizes; the model that serves meanwhile keeps its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from itertools import count
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeVar, cast

import torch

MAX_SIZES = 4  # kept at once; a worker serves one set and makes another ready

# Padding of shapes is decided by the clock, so another process might have other kernels and bits.
OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"shape_padding": False}

Work = TypeVar("Work", bound=Callable[..., object])

_numbers = count()


def compile_part(work: Work, sizes: Hashable, **options: Any) -> Work:  # noqa: ANN401 - torch's
    """Return a function as kernels, to be made in its first calls.

    The first number of rows gets kernels of its own, all others share theirs. A function that is
    not one graph raises an error then, and so does one that reads a number on the host.

    Parameters
    ----------
    work : a function or a bound method
    sizes : all that the shapes of its arguments follow from, but for their number
    options : of `torch.compile`, in place of ``OPTIONS``
    """
    method = work if isinstance(work, MethodType) else None
    function = cast("FunctionType", method.__func__ if method else work)
    copy = FunctionType(
        _code(sizes, function.__code__),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    compiled = torch.compile(
        MethodType(copy, method.__self__) if method else copy,
        fullgraph=True,
        **(options or {"options": OPTIONS}),
    )
    return cast("Work", compiled)


def _code(sizes: Hashable, code: CodeType) -> CodeType:
    copies = _copies(sizes)
    if code not in copies:
        # The name, too: what dynamo learns of variable widths goes by file, line and name.
        copies[code] = code.replace(co_name=f"{code.co_name}_{next(_numbers)}")
    return copies[code]


@lru_cache(MAX_SIZES)
def _copies(sizes: Hashable) -> dict[CodeType, CodeType]:  # noqa: ARG001 - the cache's key
    return {}
