"""The callback by which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int, str], None]  # done, total, a few words


def no_progress(done: int, total: int, text: str) -> None:
    """Report to nobody."""
