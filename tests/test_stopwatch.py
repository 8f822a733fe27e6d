from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.command_line import ROOT
from tests.stopwatch import Stopwatch

# Says how long it waited for a line, by the stopwatch and by the clock.
WAITING = """
import time
from tests.stopwatch import Stopwatch
with Stopwatch() as watch:
    started = time.monotonic()
    print("waiting", flush=True)
    input()
    print(watch.seconds, time.monotonic() - started)
"""


def test_waiting_counts() -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        with Stopwatch() as watch:
            time.sleep(0.5)
        times.append(watch.seconds)
        assert watch.seconds <= time.monotonic() - started
        assert watch.seconds == times[-1]
    assert max(times) > 0.25  # a busy machine leaves at least half of it once


def test_work_counts_that_lets_no_other_thread_run() -> None:
    with Stopwatch() as watch:
        started = time.process_time()
        sum(range(20_000_000))
        worked = time.process_time() - started
    assert watch.seconds > 0.9 * worked > 0.05


def test_being_held_up_does_not() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        process.send_signal(signal.SIGCONT)
        print(file=process.stdin, flush=True)
        seconds, clock = map(float, process.stdout.readline().split())
    assert clock - seconds > 0.9
