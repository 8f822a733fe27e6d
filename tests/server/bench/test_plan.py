from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest
from scipy import stats

from server.bench.load import SEED_RANGE, Plan
from tests.server.bench.runs import make_plan

CLASS_IDS = (3, 5, 8)


def requests(plan: Plan, number: int, rate: float = 50.0) -> list[tuple[float, dict[str, Any]]]:
    return [(at, json.loads(body)) for at, body in islice(plan.schedule(rate), number)]


def test_the_same_seed_gives_the_same_requests_at_the_same_times() -> None:
    plan = make_plan(CLASS_IDS, seed=4, warm_up=1.0)
    assert list(islice(plan.schedule(50), 500)) == list(islice(plan.schedule(50), 500))
    other = make_plan(CLASS_IDS, seed=5, warm_up=1.0)
    times, bodies = zip(*islice(plan.schedule(50), 500), strict=True)
    other_times, other_bodies = zip(*islice(other.schedule(50), 500), strict=True)
    assert not set(times) & set(other_times)
    assert not set(bodies) & set(other_bodies)


def test_the_requests_of_a_seed_stay_the_same_from_version_to_version() -> None:
    at, body = next(make_plan(CLASS_IDS, seed=0).schedule(1.0))
    assert at == pytest.approx(2.6894404832147276)
    assert json.loads(body) == {
        "class_id": 5, "seed": 5857257728995083, "num_images": 1, "format": "png",
    }  # fmt: skip


def test_gaps_are_exponential() -> None:
    streams = [islice(make_plan(CLASS_IDS, seed=seed).schedule(40.0), 2000) for seed in range(20)]
    gaps = np.array([np.diff([0.0, *(at for at, _ in stream)]) for stream in streams])
    assert stats.kstest(gaps.ravel(), "expon", args=(0, 1 / 40)).pvalue > 0.01
    assert gaps.std() == pytest.approx(1 / 40, rel=0.02)
    assert abs(np.corrcoef(gaps[:, 1:].ravel(), gaps[:, :-1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(gaps[0], gaps[1])[0, 1]) < 0.1


def test_classes_and_seeds_are_uniform() -> None:
    drawn = [json.loads(body) for body in islice(make_plan(CLASS_IDS).bodies("measured"), 3000)]
    _, counts = np.unique([body["class_id"] for body in drawn], return_counts=True)
    assert len(counts) == 3
    assert stats.chisquare(counts).pvalue > 0.01
    seeds = np.array([body["seed"] for body in drawn])
    assert stats.kstest(seeds / SEED_RANGE, "uniform").pvalue > 0.01
    assert len(set(seeds.tolist())) == 3000


def test_open_and_closed_loops_send_the_same_measured_requests() -> None:
    plan = make_plan(CLASS_IDS, seed=9, warm_up=2.0)
    measured = [body for at, body in islice(plan.schedule(30), 200) if at >= 0]
    assert measured
    assert measured == list(islice(plan.bodies("measured"), len(measured)))
    hurried = make_plan(CLASS_IDS, seed=9)
    assert list(islice(hurried.bodies("measured"), 50)) == measured[:50]
    assert next(plan.bodies("warm-up")) != measured[0]


def test_the_warm_up_comes_before_time_zero_and_the_end_is_kept() -> None:
    plan = make_plan(CLASS_IDS, seed=1, warm_up=3.0, duration=2.0)
    times = [at for at, _ in plan.schedule(100.0)]
    assert times == sorted(times)
    assert -3.0 <= times[0] < -2.8
    assert 1.8 < times[-1] < 2.0
    assert 200 < sum(at < 0 for at in times) < 400
    limited = make_plan(CLASS_IDS, seed=1, warm_up=3.0, duration=2.0, requests=7)
    assert sum(at >= 0 for at, _ in limited.schedule(100.0)) == 7
    assert len(list(limited.bodies("measured"))) == 7
    assert len(list(islice(limited.bodies("warm-up"), 50))) == 50


def test_a_request_says_what_was_asked_for_and_no_more() -> None:
    (_, body), *_ = requests(make_plan(CLASS_IDS), 1)
    assert body == {
        "class_id": body["class_id"], "seed": body["seed"], "num_images": 1, "format": "png",
    }  # fmt: skip
    full = make_plan((2,), num_images=4, format="webp", cfg_scale=1.5, model="tiny")
    (_, body), *_ = requests(full, 1)
    assert body == {
        "class_id": 2, "seed": body["seed"], "num_images": 4, "format": "webp", "cfg_scale": 1.5,
        "model": "tiny",
    }  # fmt: skip
