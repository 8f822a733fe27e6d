from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from worker.model.threads import ThreadTuner, available_cores, numbers_to_try


def trial_of(seconds: dict[int, float], num_steps: int = 12) -> ThreadTuner:
    """Steps that take as long as is given for the number of threads that torch is told."""
    now = 0.0
    trial = ThreadTuner(sorted(seconds), clock=lambda: now)

    def work() -> int:
        nonlocal now
        now += seconds[torch.get_num_threads()]
        return torch.get_num_threads()

    tried = [trial.run(work) for _ in range(num_steps)]
    assert tried[: len(seconds)] == sorted(seconds)[:num_steps]
    return trial


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 1.7}, 1),
        ({1: 1.0, 2: 0.95}, 1),  # not worth a core
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 0.6, 4: 0.57}, 2),
        ({1: 1.0, 2: 1.1, 4: 0.5}, 4),
    ],
)
def test_the_fewest_threads_that_are_fast(seconds: dict[int, float], best: int) -> None:
    assert trial_of(seconds).best() == best


def test_a_number_that_was_not_tried_is_not_taken() -> None:
    assert trial_of({1: 1.0, 2: 0.5}, num_steps=1).best() == 1


@pytest.mark.parametrize(
    ("cores", "numbers"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_which_numbers_are_tried(cores: int, numbers: list[int]) -> None:
    assert numbers_to_try(cores) == numbers


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_a_quota_of_time_is_respected(files: dict[str, str], limit: float, tmp_path: Path) -> None:
    free = available_cores(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == min(free, limit)


CFS_QUOTA, CFS_PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        (
            "0::/system.slice/masc.service\n",
            {"system.slice/masc.service/cpu.max": "100000 100000\n"},
            1,
        ),
        ("0::/a/b/c\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1),
        ("0::/a\n", {"a.service/cpu.max": "100000 100000\n"}, math.inf),
        ("0::/gone\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/../../x\n", {"cpu.max": "100000 100000\n"}, 1),
        (
            "5:memory:/m\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/s\n",
            {f"cpu/docker/{CFS_QUOTA}": "100000\n", f"cpu/docker/{CFS_PERIOD}": "100000\n"},
            1,
        ),
        ("5:memory:/m\n", {"m/cpu.max": "100000 100000\n"}, math.inf),
        ("0::/a\n", {"a/cpu.max": "what\n"}, math.inf),
        ("0::/a\n", {"a/cpu.max": "100000 0\n"}, math.inf),
    ],
)
def test_so_is_that_of_every_group_above(
    own: str, files: dict[str, str], limit: float, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    mounted = tmp_path / "mounted"
    free = available_cores(mounted)
    for name, text in files.items():
        (mounted / name).parent.mkdir(parents=True, exist_ok=True)
        (mounted / name).write_text(text)
    assert available_cores(mounted, tmp_path / "own") == min(free, limit)
