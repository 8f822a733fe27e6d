from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from worker.jobs.stages import stage_histogram


def test_both_sides_of_one_registry_share_the_histogram() -> None:
    registry = CollectorRegistry()
    stage_histogram(registry).labels("admit").observe(0.002)
    stage_histogram(registry).labels("decode").observe(1.5)
    text = generate_latest(registry).decode()
    assert 'masc_stage_duration_seconds_bucket{le="0.0025",stage="admit"} 1.0' in text
    assert 'masc_stage_duration_seconds_bucket{le="60.0",stage="decode"} 1.0' in text
    assert text.count("# TYPE masc_stage_duration_seconds histogram") == 1


def test_two_registries_do_not_share() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    stage_histogram(first).labels("admit").observe(1)
    assert b"_count" not in generate_latest(second)
    assert stage_histogram(first) is not stage_histogram(second)


def test_the_buckets_are_the_contract_s() -> None:
    registry = CollectorRegistry()
    stage_histogram(registry).labels("queue").observe(1)
    text = generate_latest(registry).decode()
    bounds = [
        line.split('le="')[1].split('"')[0] for line in text.splitlines() if "_bucket" in line
    ]
    assert bounds[0] == "0.001"
    assert bounds[-2:] == ["60.0", "+Inf"]
    steps = ["1.0", "2.5", "5.0", "10.0", "25.0", "50.0"]
    assert bounds[bounds.index("1.0") :][:6] == steps
