from __future__ import annotations

import os
import subprocess
import sys

from tests.command_line import ROOT

# Two threads attend in parallel, with the one layer of numba that cannot take it.
PROGRAM = """
import threading
import numba
import torch
from masc_core.cpu_kernels.attention import attend

def work(seed):
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    keys, values = torch.zeros(2, 4, 2, 16, 8)
    slots = torch.arange(4)
    for position in range(16):
        qkv, cos_sin = torch.randn(4, 6, 8), torch.randn(4, 2, 8)
        for _ in range(50):
            attend(qkv, cos_sin, slots, torch.full((4,), position), keys, values)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(numba.threading_layer())
"""


def test_two_threads_may_attend_at_once() -> None:
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "workqueue\n"), done.stderr
