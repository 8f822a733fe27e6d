"""How long work tells how far it has come."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int, str], None]  # what is done, of how much, and a few words


def no_progress(done: int, total: int, text: str) -> None:
    """Tell nobody."""
