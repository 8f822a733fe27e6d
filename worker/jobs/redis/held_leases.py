"""The leases that a worker holds, as far as it knows without asking Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from worker.jobs.job import Lease


class HeldLeases:
    """Jobs and the tokens of their leases; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, int] = {}
        self._num_claims = 0
        self._lost_early: set[tuple[str, int]] = set()

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the held leases, by job id."""
        with self._lock:
            return dict(self._tokens)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Remember leases that are lost before the claim that brings them returns."""
        with self._lock:
            self._num_claims += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_claims -= 1
                if not self._num_claims:
                    self._lost_early.clear()

    def add(self, leases: Iterable[Lease]) -> None:
        """Add claimed leases; within `claiming`."""
        with self._lock:
            for lease in leases:
                if (lease.job_id, lease.token) not in self._lost_early:
                    self._tokens[lease.job_id] = lease.token

    def drop(self, job_id: str, token: int) -> None:
        """Forget a lease that is over."""
        with self._lock:
            if self._tokens.get(job_id) == token:
                del self._tokens[job_id]
            elif self._num_claims:
                self._lost_early.add((job_id, token))

    def lost(self, leases: Iterable[Lease]) -> set[str]:
        """Return the jobs among these whose lease is not held."""
        with self._lock:
            return {
                lease.job_id for lease in leases if self._tokens.get(lease.job_id) != lease.token
            }
