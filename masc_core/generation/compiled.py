"""Parts of a step as compiled kernels, for models of one set of sizes at a time.

Models of the same sizes share what was compiled. One of other sizes would add two or three entries
to every part, of which dynamo keeps eight and then refuses; and it would let the compiler take
widths for variable, with slower kernels. So it begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import TypeVar, cast

import torch

Work = TypeVar("Work", bound=Callable[..., object])

# Padding of shapes is decided by the clock, so another process might have other kernels and bits.
OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"shape_padding": False}


def compile_part(work: Work) -> Work:
    """Return a function as kernels, to be made in its first calls.

    The first number of rows gets kernels of its own, all others share theirs. A function that is
    not one graph raises an error then, and so does one that reads a number on the host.
    """
    return cast("Work", torch.compile(work, fullgraph=True, options=OPTIONS))


@lru_cache(maxsize=1)
def begin_sizes(sizes: Hashable) -> None:  # noqa: ARG001 - what the cache goes by
    """Forget what was compiled for other sizes than these; before parts are compiled.

    Who has recorded such parts does not need them: a recorded step replays kernels alone.

    Parameters
    ----------
    sizes : all that a model's shapes follow from
    """
    torch.compiler.reset()
