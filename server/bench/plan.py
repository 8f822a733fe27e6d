"""What is sent and when: a Poisson process of requests, fixed by the seed.

Gaps between arrivals are exponential, ``-ln(1 - u) / rate`` with ``u`` uniform in [0, 1), and
request *i* of a phase is the same in an open and in a closed loop. Warm-up and measurement draw
from streams of their own, so what is measured does not depend on how long the warm-up took.
This module sends nothing and reads no clock.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, Literal

from masc_core.images import ImageFormat

SEED_RANGE = 2**53  # every client can read such a number

Phase = Literal["warm-up", "measured"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What all requests share; None leaves the choice to the service.

    ``class_ids`` are what each request's class is drawn from.
    """

    class_ids: Sequence[int]
    num_images: int = 1
    format: ImageFormat = "png"
    cfg_scale: float | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests of one run.

    Attributes
    ----------
    seed : the same seed gives the same requests at the same times
    warm_up : seconds of load before time 0, which are not measured
    duration, requests : where the measured requests end; None is no limit
    """

    shape: Shape
    seed: int = 0
    warm_up: float = 0.0
    duration: float | None = None
    requests: int | None = None

    def bodies(self, phase: Phase) -> Iterator[bytes]:
        """JSON of the requests of a phase: of the measured ones `requests`, else without end."""
        return islice(self._bodies(phase), self.requests if phase == "measured" else None)

    def schedule(self, rate: float) -> Iterator[tuple[float, bytes]]:
        """Arrivals of an open loop: seconds, those of the warm-up negative, and what is sent."""
        warm_up = self._timed(rate, "warm-up")
        for at, body in takewhile(lambda arrival: arrival[0] < self.warm_up, warm_up):
            yield at - self.warm_up, body
        end = math.inf if self.duration is None else self.duration
        measured = self._timed(rate, "measured")
        yield from takewhile(lambda arrival: arrival[0] < end, measured)

    def _timed(self, rate: float, phase: Phase) -> Iterator[tuple[float, bytes]]:
        return zip(self._arrivals(rate, phase), self.bodies(phase), strict=False)

    def _bodies(self, phase: Phase) -> Iterator[bytes]:
        draw = _uniform(self.seed, phase, "requests")
        classes, fields = self.shape.class_ids, self._common_fields()
        while True:
            class_id = classes[int(next(draw) * len(classes))]
            seed = int(next(draw) * SEED_RANGE)
            yield json.dumps({"class_id": class_id, "seed": seed, **fields}).encode()

    def _arrivals(self, rate: float, phase: Phase) -> Iterator[float]:
        at = 0.0
        for u in _uniform(self.seed, phase, "arrivals"):
            at -= math.log1p(-u) / rate
            yield at

    def _common_fields(self) -> dict[str, Any]:
        shape = self.shape
        fields: dict[str, Any] = {"num_images": shape.num_images, "format": shape.format}
        optional = {"cfg_scale": shape.cfg_scale, "model": shape.model}
        return fields | {name: value for name, value in optional.items() if value is not None}


def _uniform(seed: int, *stream: str) -> Iterator[float]:
    """Draw from [0, 1); of all generators at hand only this method's numbers never change."""
    generator = random.Random("/".join([*stream, str(seed)]))  # noqa: S311 - load, not secrets
    while True:
        yield generator.random()
