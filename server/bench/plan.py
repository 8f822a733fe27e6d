"""The requests of a run and their times: a Poisson process, fixed by the seed.

Gaps between arrivals are exponential, ``-ln(1 - u) / rate`` with ``u`` uniform in [0, 1), and
request *i* of a phase is the same in an open and in a closed loop. Warm-up and measurement draw
from streams of their own, so what is measured does not depend on how long the warm-up took.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, Literal

from server.bench.options import BenchOptions

SEED_RANGE = 2**53  # every client can read such a number

Phase = Literal["warm-up", "measured"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests of one run.

    Attributes
    ----------
    options : the seed, where warm-up and measurement end, and what every request asks for
    class_ids : each request's class is drawn from these
    """

    options: BenchOptions
    class_ids: Sequence[int]

    def bodies(self, phase: Phase) -> Iterator[bytes]:
        """JSON of the requests of a phase; only the measured ones end, after `requests`."""
        return islice(self._bodies(phase), self.options.requests if phase == "measured" else None)

    def schedule(self, rate: float) -> Iterator[tuple[float, bytes]]:
        """Arrivals of an open loop: seconds, those of the warm-up negative, and what is sent."""
        options, warm_up = self.options, self._timed(rate, "warm-up")
        for at, body in takewhile(lambda arrival: arrival[0] < options.warm_up, warm_up):
            yield at - options.warm_up, body
        end = math.inf if options.duration is None else options.duration
        measured = self._timed(rate, "measured")
        yield from takewhile(lambda arrival: arrival[0] < end, measured)

    def _timed(self, rate: float, phase: Phase) -> Iterator[tuple[float, bytes]]:
        return zip(self._arrivals(rate, phase), self.bodies(phase), strict=False)

    def _bodies(self, phase: Phase) -> Iterator[bytes]:
        draw = _uniform(self.options.seed, phase, "requests")
        classes, fields = self.class_ids, self._common_fields()
        while True:
            class_id = classes[int(next(draw) * len(classes))]
            seed = int(next(draw) * SEED_RANGE)
            yield json.dumps({"class_id": class_id, "seed": seed, **fields}).encode()

    def _arrivals(self, rate: float, phase: Phase) -> Iterator[float]:
        at = 0.0
        for u in _uniform(self.options.seed, phase, "arrivals"):
            at -= math.log1p(-u) / rate
            yield at

    def _common_fields(self) -> dict[str, Any]:
        options = self.options
        fields: dict[str, Any] = {"num_images": options.num_images, "format": options.format}
        optional = {"cfg_scale": options.cfg_scale, "model": options.model}
        return fields | {name: value for name, value in optional.items() if value is not None}


def _uniform(seed: int, *stream: str) -> Iterator[float]:
    """Draw from [0, 1); of all generators at hand only this method's numbers never change."""
    generator = random.Random("/".join([*stream, str(seed)]))  # noqa: S311 - load, not secrets
    while True:
        yield generator.random()
