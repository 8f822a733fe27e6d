"""Compile all that a GPU runs, on a machine without one, and say what is wrong with it.

::

    make gpu-compile
    make gpu-compile ARGS='--only step --sizes L'

torch, Inductor and Triton generate the code that they would on an H200, and Triton's assembler
makes machine code of it. A line for each part says what it is made of. The exit status is 1 if
anything does not compile, breaks into several graphs, waits for the device, spills registers,
copies the cache, or is compiled more often than shapes and models account for.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch._functorch import config as functorch
from torch._inductor import config as inductor
from triton.backends.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    GPUTarget,
)

from tests.gpu_compile import attention, product, training
from tests.gpu_compile.gpu import TARGET, Device, Work, plug_in
from tests.gpu_compile.graphs import Compiler
from tests.gpu_compile.report import Report, cpu_seconds

CAPACITY = 256  # rows
MAX_GRAPHS = 3  # of a part: for one image, for one number of rows, for all others
SWAPS = 10
IMAGES = 8  # decoded at once
Asked = tuple[bool, bool]  # whether there are filters, and a refiner
OLDER = (80, 86, 89)  # architectures that share the code but for its machine code


def main() -> int:
    """Run the sections; 1 if anything has failed."""
    sections: dict[str, Callable[[Report, Device, argparse.Namespace], None]] = {
        "attention": check_attention,
        "step": check_steps,
        "swaps": check_swaps,
        "vq": check_images,
        "training": check_training,
    }
    parser = argparse.ArgumentParser(prog="make gpu-compile", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(sections), help="sections, with commas")
    parser.add_argument("--sizes", default="B,L,XL", help="of the transformer, with commas")
    options = parser.parse_args()
    # The compiler's own tracebacks: what it raises is told in a line.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    warnings.filterwarnings("error", message="TensorFloat32")
    report, device, started = Report(), plug_in(), cpu_seconds()
    for name in options.only.split(","):
        sections[name](report, device, options)
    report.say(
        f"\n{report.num_kernels} kernels assembled in {cpu_seconds() - started:.0f} s of a core, "
        f"{len(report.failures)} failures"
    )
    for failure in report.failures:
        report.say(f"  {failure}")
    return bool(report.failures)


def check_attention(report: Report, _: Device, __: argparse.Namespace) -> None:
    """The kernel of attention at every head size, and what it computes."""
    for dtype in (torch.bfloat16, torch.float32):
        with report.section(f"attention, {dtype}"):
            for dim, heads, length in product.HEADS:
                attention.check(report, dim, heads, length, dtype)
    with report.section("attention in Triton's interpreter"):
        report.say(f"   {attention.interpret()}")


def check_steps(report: Report, device: Device, options: argparse.Namespace) -> None:
    """The step of every size, in every shape; one in float32 and with a partition too."""
    models = {f"GPT-{n}": product.Sizes.named(f"GPT-{n}") for n in options.sizes.split(",")}
    in_float32 = replace(product.Sizes.named("GPT-B", torch.float32), has_partition=True)
    models["GPT-B in float32, with a partition"] = in_float32
    for name, sizes in models.items():
        with (
            report.section(f"step of {name}"),
            device,
            Compiler(device, generates=True) as compiler,
        ):
            captured = product.Captured(sizes, CAPACITY)
            works = capture_all(report, device, compiler, captured)
            for part, graphs in compiler.parts.items():
                for number, code in enumerate(graphs.graphs):
                    assert code is not None
                    title = f"{part.rpartition('.')[2]} {number + 1}"
                    report.check(title, code, TARGET, largest=captured.cache_size)
            if sizes is next(iter(models.values())):
                older_gpus(report, compiler)
            say_steps(report, sizes, works)


def capture_all(
    report: Report, device: Device, compiler: Compiler, captured: product.Captured
) -> dict[Asked, Work]:
    """Capture all shapes; returns the last capture with and without filters and refiner."""
    works: dict[Asked, Work] = {}
    for shape in captured.prepare():
        works[shape.has_filters, bool(shape.refined)] = device.work
        for refused in device.work.refused:
            report.fail(f"{shape}: {refused}")
    bound_graphs(report, compiler.num_graphs(), "all shapes")
    return works


def bound_graphs(report: Report, graphs: Counter[str], where: str) -> None:
    """Refuse more graphs of a part than shapes account for."""
    for part, number in graphs.items():
        if number > MAX_GRAPHS:
            report.fail(f"{where}: {part} is compiled {number} times")


def older_gpus(report: Report, compiler: Compiler) -> None:
    """Assemble the kernels that most shapes share for older architectures too."""
    for arch in OLDER:
        for name, part in compiler.parts.items():
            code = part.graphs[-1]
            assert code is not None
            report.assemble(name, code, GPUTarget("cuda", arch, 32))


def say_steps(report: Report, sizes: product.Sizes, works: dict[Asked, Work]) -> None:
    """Print the kernels of a whole step."""
    layers = sizes.config.n_layer
    for (filters, refine), work in works.items():
        each = work.parts[product.EACH_LAYER] // product.LAYERS
        rest = work.parts.total() - work.parts[product.EACH_LAYER] + len(work.operators)
        asked = " and ".join(["filters"] * filters + ["refiner"] * refine) or "nothing"
        report.say(
            f"   a step that asks for {asked}: {layers * each + rest} kernels, {each} a layer and "
            f"{rest}, of which not compiled: {', '.join(work.operators) or 'none'}"
        )


def check_swaps(report: Report, device: Device, __: argparse.Namespace) -> None:
    """Ten changes of a worker's model, each to new sizes, some to the same again."""
    with report.section(f"{SWAPS} swaps"), device, Compiler(device, generates=False) as compiler:
        for number in range(SWAPS + 1):
            width = 32 + 16 * number
            sizes = product.Sizes.of_width(width, refines=number % 4 == 0, largest=3 + number)
            for again in (False, True) if number < 2 else (False,):
                before = compiler.num_graphs()
                for _ in product.Captured(sizes, 2).prepare():
                    pass
                made = compiler.num_graphs() - before
                bound_graphs(report, made, f"model {number}")
                if again and made:
                    report.fail(f"model {number}: one of the same sizes is compiled anew: {made}")
        report.say(f"   {compiler.num_graphs().total()} graphs of {SWAPS + 1} sizes of models")


def check_images(report: Report, device: Device, _: argparse.Namespace) -> None:
    """The decoder of VQ-16, at a fixed size of a batch."""
    with (
        report.section(f"VQ-16, {IMAGES} images"),
        device,
        Compiler(device, generates=True) as compiler,
    ):
        product.decode_images(IMAGES)
        for name, part in compiler.parts.items():
            for code in part.graphs:
                assert code is not None
                report.check(name.rpartition(".")[2], code, TARGET)


def check_training(report: Report, device: Device, _: argparse.Namespace) -> None:
    """The step of training, with copies of the model on several ranks, and with parts of it."""
    for parallel in ("ddp", "fsdp"):
        with (
            report.section(f"training of GPT-L, {parallel}"),
            device,
            Compiler(device, generates=True) as compiler,
        ):
            training.step(parallel)
            for name, part in compiler.parts.items():
                for number, code in enumerate(part.graphs):
                    assert code is not None
                    report.check(f"{name.rpartition('.')[2]} {number + 1}", code, TARGET)
            for reason in training.graph_breaks():
                report.fail(f"training, {parallel}: {reason}")


@contextmanager
def no_caches() -> Iterator[None]:
    """Take nothing from an earlier run, and leave nothing behind; use one core."""
    inductor.compile_threads = 1
    inductor.fx_graph_cache = functorch.enable_autograd_cache = False
    with tempfile.TemporaryDirectory(prefix="gpu-compile-") as folder:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
        yield


if __name__ == "__main__":
    with no_caches():
        sys.exit(main())
