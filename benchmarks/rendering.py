"""Time the VQ decoder as it serves against the module as it is trained, and compare their pixels.

::

    python benchmarks/rendering.py                       # the shipped model and VQ-16
    python benchmarks/rendering.py --sizes VQ-8 --threads 1,2,4

On a CPU one image at a time, on a GPU batches. The two take turns, milliseconds an image are the
least of all. Named sizes have random weights and 256 pixels a side. Decibels are of 8-bit pixels.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from masc_core.bundle.read import load_bundle
from masc_core.bundle.registry import Registry
from masc_core.device import resolve_device
from masc_core.models.cpu_decoder import CPUDecoder
from masc_core.models.gpu_decoder import GPUDecoder
from masc_core.models.vq import VQConfig, VQModel, to_uint8

IMAGE_SIZE = 256
MODELS = Path(__file__).parent.parent / "models"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description="time the VQ decoder")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--sizes", default="VQ-16", help="named tokenizers, besides the shipped")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", type=int, default=16, help="on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the table")
    options = parser.parse_args()
    device = resolve_device(options.device)
    torch.manual_seed(0)
    registry = Registry(options.models)
    name = registry.default("")
    bundle = load_bundle(registry.path(name))
    tokenizers = {name: (bundle.tokenizer, bundle.manifest.grid)}
    for size in filter(None, options.sizes.split(",")):
        config = VQConfig.named(size)
        tokenizers[size] = VQModel(config).eval(), config.grid_size(IMAGE_SIZE)
    table = [
        f"{device} ({platform.machine()}), torch {torch.__version__}\n",
        "| decoder | pixels | threads | ms before | ms after | times | prepared in s | PSNR |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(table))
    threads = [int(num) for num in options.threads.split(",")] if device.type == "cpu" else [1]
    for name, (tokenizer, grid) in tokenizers.items():
        batch = 1 if device.type == "cpu" else options.batch
        for num in threads:
            torch.set_num_threads(num)
            table.append(row(name, tokenizer.to(device), grid, num, batch, options.repeats))
            print(table[-1], flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"rendering-{device.type}.md"
        path.write_text("\n".join(table) + "\n", "utf-8")


@torch.inference_mode()
def row(name: str, tokenizer: VQModel, grid: int, threads: int, batch: int, repeats: int) -> str:
    """Return a row of the table."""
    codes = torch.randint(tokenizer.config.num_codes, (batch, grid * grid))
    z = tokenizer.latents(codes.to(tokenizer.post_quant_conv.weight.device))
    plain = tokenizer.decoder
    expected = to_uint8(plain(z)).double()
    started = time.perf_counter()
    fast = GPUDecoder(plain) if z.device.type == "cuda" else CPUDecoder(plain)
    prepared = time.perf_counter() - started
    error = (to_uint8(fast(z)).double() - expected).square().mean()
    psnr = 10 * torch.log10(255**2 / error).item()
    before, after = times([plain, fast], z, repeats)
    return (
        f"| {name} | {expected.shape[1]} | {threads} | {before / batch:.1f} | {after / batch:.1f} "
        f"| {before / after:.2f} | {prepared:.1f} | {psnr:.0f} dB |"
    )


def times(decoders: list[Callable[[Tensor], Tensor]], z: Tensor, repeats: int) -> list[float]:
    """Least milliseconds of each."""
    least = [float("inf")] * len(decoders)
    for _ in range(repeats):
        for i, decode in enumerate(decoders):
            started = time.perf_counter()
            decode(z).cpu()
            least[i] = min(least[i], 1e3 * (time.perf_counter() - started))
    return least


if __name__ == "__main__":
    main()
