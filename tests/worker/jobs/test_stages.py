from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, generate_latest

from worker.jobs.stages import stage_histogram


def test_both_sides_of_one_registry_share_the_histogram() -> None:
    registry = CollectorRegistry()
    stage_histogram(registry).labels("admit").observe(0.002)
    stage_histogram(registry).labels("decode").observe(1.5)
    text = generate_latest(registry).decode()
    assert 'masc_stage_duration_seconds_bucket{le="0.0025",stage="admit"} 1.0' in text
    assert 'masc_stage_duration_seconds_bucket{le="60.0",stage="decode"} 1.0' in text
    bounds = re.findall(r'_bucket\{le="([0-9.]+)",stage="decode"', text)
    assert bounds[bounds.index("1.0") :] == ["1.0", "2.5", "5.0", "10.0", "25.0", "50.0", "60.0"]
    assert text.count("# TYPE masc_stage_duration_seconds histogram") == 1


def test_two_registries_do_not_share() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    stage_histogram(first).labels("admit").observe(1)
    assert b"_count" not in generate_latest(second)
    assert stage_histogram(first) is not stage_histogram(second)
