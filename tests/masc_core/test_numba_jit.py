from __future__ import annotations

import subprocess
import sys

import pytest

from tests.command_line import ROOT, environment

TREE = """
import numpy as np
from masc_core.tree.build import build_tree
build_tree(np.random.default_rng(0).normal(size=(300, 4)))
"""
ATTENTION = """
from masc_core.cpu_kernels.attention import attend
keys, values = torch.zeros(2, 4, 2, 16, 8)
places = torch.arange(4), torch.zeros(4, dtype=torch.int64)
attend(torch.ones(4, 6, 8), torch.ones(4, 2, 8), *places, keys, values)
"""


@pytest.mark.parametrize("loops", [TREE, ATTENTION], ids=["tree", "attention"])
def test_torch_keeps_its_threads_when_numba_starts_its_own(loops: str) -> None:
    program = f"import torch\n{loops}\nprint(torch.get_num_threads())"
    threads = {"OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment() | threads,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2\n"
