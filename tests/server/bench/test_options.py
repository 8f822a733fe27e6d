from __future__ import annotations

from typing import Any

import pytest

from masc_core.errors import ConfigError
from server.bench.options import DEFAULT_DURATION, read_options


def test_a_run_without_an_end_gets_one() -> None:
    assert read_options(rate=3.0).duration == DEFAULT_DURATION
    assert read_options(rate=3.0, requests=5).duration is None
    assert read_options(rate=3.0, requests=5, duration=2.0).duration == 2.0


def test_an_address_ends_without_a_slash_and_may_have_a_path() -> None:
    assert read_options(rate=1, url="http://[::1]:9/").url == "http://[::1]:9"
    assert read_options(rate=1, url="https://host/masc/").url == "https://host/masc"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "exactly one of --rate (open loop) and --clients (closed loop)"),
        ({"rate": 1.0, "clients": 1}, "exactly one of --rate"),
        ({"rate": 0.0}, "--rate: "),
        ({"rate": float("nan")}, "--rate: "),
        ({"rate": float("inf")}, "--rate: "),
        ({"clients": 0}, "--clients: "),
        ({"duration": -1.0}, "--duration: "),
        ({"requests": 0}, "--requests: "),
        ({"warm_up": -0.1}, "--warm-up: "),
        ({"cfg_scale": 0.5}, "--cfg-scale: "),
        ({"cfg_schedule": "sine"}, "--cfg-schedule: "),
        ({"cfg_start": 1.5}, "--cfg-start: "),
        ({"temperature": 0.0}, "--temperature: "),
        ({"decoding": "any"}, "--decoding: "),
        ({"code_temperature": float("nan")}, "--code-temperature: "),
        ({"cluster_top_p": 0.0}, "--cluster-top-p: "),
        ({"priority": "urgent"}, "--priority: "),
        ({"num_images": 17}, "--num-images: "),
        ({"format": "tiff"}, "--format: "),
        ({"seed": -1}, "--seed: "),
        ({"timeout": 0.0}, "--timeout: "),
        ({"url": "127.0.0.1:8000"}, "URL: must be an address"),
        ({"url": "ftp://host"}, "URL: must be an address"),
        ({"url": "http://"}, "URL: must be an address"),
        ({"url": "http://a..b"}, "URL: must be an address"),
        ({"url": f"http://{'a' * 70}"}, "URL: must be an address"),
        ({"url": "http://host:70000"}, "URL: "),
        ({"url": "http://host:0"}, "URL: must not name port 0"),
        ({"url": "http://host/?key=hidden"}, "URL: must end before"),
        ({"url": "http://me:hidden@host"}, "URL: must not hold a password"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(given: dict[str, Any], named: str) -> None:
    options = given if {"rate", "clients"} & set(given) or not given else {"rate": 1.0, **given}
    with pytest.raises(ConfigError) as raised:
        read_options(**options)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "hidden" not in str(raised.value)
