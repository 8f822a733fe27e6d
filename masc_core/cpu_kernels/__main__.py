"""Compile all loops that serve, so that no process has to: ``python -m masc_core.cpu_kernels``.

They are kept beside the sources, or where ``NUMBA_CACHE_DIR`` says.
"""

import torch

from masc_core.cpu_kernels import attention, feed_forward, philox
from masc_core.cpu_kernels.bfloat16 import DTYPES
from masc_core.models.cpu_decoder import CPUDecoder
from masc_core.models.vq import VQConfig, VQModel

for num_threads in (1, 2):
    torch.set_num_threads(num_threads)
    for dtype in DTYPES:
        row, slot = torch.zeros(1, 4, dtype=dtype), torch.zeros(1, dtype=torch.int64)
        cache = torch.zeros(1, 1, 1, 4, dtype=dtype)
        qkv = torch.zeros(1, 3, 4, dtype=dtype)
        attention.attend(qkv, torch.zeros(1, 2, 4), slot, slot, cache, cache)
        feed_forward.add_rms_norm(row, row, row[0], 1e-5)
        feed_forward.swiglu(row)
philox.random_bits(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 4, 0)

with torch.inference_mode():
    tokenizer = VQModel(VQConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)).eval()
    CPUDecoder(tokenizer.decoder)(tokenizer.latents(torch.zeros(1, 16, dtype=torch.int64)))
