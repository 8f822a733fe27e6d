"""Priorities of jobs; by itself, since the command line reads it without NumPy."""

from __future__ import annotations

from typing import Literal, get_args

Priority = Literal["interactive", "batch"]  # somebody waits for it; or it may wait for others
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
