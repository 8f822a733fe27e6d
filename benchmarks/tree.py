"""Time the tree's builder beside fastcluster and SciPy, and take their memory and their word.

::

    python benchmarks/tree.py                                     # 16,384 codes of 8 dimensions
    python benchmarks/tree.py --full --out benchmarks/results     # every row of the table; 30 min
    python benchmarks/tree.py --full --dimensions 32,256 --out benchmarks/results  # these rows anew
    python benchmarks/tree.py --full --device cuda --out benchmarks/results
    python benchmarks/tree.py --full --shapes mixture --repeats 1 --device cuda     # in two minutes
    python benchmarks/tree.py --quick                             # 1,024 codes, for a try

Every build is a process of its own, every figure the median of ``--repeats`` of them. Seconds are
those of the call, with kernels compiled before; what compiling takes is a line of its own. Memory
is the peak of the whole process and, behind the plus, how much of it the call has added. The
difference is the largest relative one between heights and fastcluster's, or between all threads and
one where fastcluster would need more memory than there is; a GPU is held against the CPU. Where
distances are equal, merges may come in another order, and heights differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]

QUADRATIC_LIMIT = 20_000  # rows; beyond, fastcluster's N^2 / 2 distances fill this machine


def unit(rows: Rows) -> Rows:
    """Rows of length one."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float64)


def mixture(rng: np.random.Generator, count: int, dimensions: int) -> Rows:
    """Sixty-four rows a centre, of uneven spread, on the sphere: like a trained codebook."""
    centres = rng.normal(size=(count // 64, dimensions))
    noise = 0.35 * rng.normal(size=(count, dimensions)) * rng.gamma(1.0, 1.0, size=(count, 1))
    return unit(centres[rng.integers(0, len(centres), count)] + noise)


def duplicates(rng: np.random.Generator, count: int, dimensions: int) -> Rows:
    """A twentieth of the rows, each about twenty times."""
    few = rng.normal(size=(count // 20, dimensions))
    return np.asarray(few[rng.integers(0, len(few), count)], np.float64)


def clump(rng: np.random.Generator, count: int, dimensions: int) -> Rows:
    """Unused codes close together near the origin, used ones all around: one cluster grows."""
    rows = rng.normal(size=(count, dimensions))
    rows[: 3 * count // 8] *= 1e-3
    return np.asarray(rows, np.float64)


SHAPES: dict[str, Callable[[np.random.Generator, int, int], Rows]] = {
    "mixture": mixture,
    "sphere": lambda rng, n, d: unit(rng.normal(size=(n, d))),
    "heavy tails": lambda rng, n, d: unit(rng.normal(size=(n, d))) * rng.pareto(1.0, size=(n, 1)),
    "duplicates": duplicates,
    "all equal": lambda _, n, d: np.ones((n, d)),
    "collinear": lambda rng, n, d: np.outer(rng.normal(size=n), np.ones(d)),
    "evenly collinear": lambda _, n, d: np.outer(np.arange(float(n)), np.ones(d)),
    "two clumps": lambda rng, n, d: rng.normal(size=(n, d)) + 1e6 * (np.arange(n) % 2)[:, None],
    "gaussian": lambda rng, n, d: rng.normal(size=(n, d)),
    "clump in a cloud": clump,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One codebook to cluster."""

    shape: str
    count: int
    dimensions: int

    def rows(self) -> Rows:
        """Build the codebook, the same in every process."""
        return SHAPES[self.shape](np.random.default_rng(0), self.count, self.dimensions)

    @property
    def small(self) -> bool:
        """Whether builders with quadratic memory can do it."""
        return self.count <= QUADRATIC_LIMIT


TINY = (Case("mixture", 1_024, 8),)
USUAL = (Case("mixture", 16_384, 8),)
FULL = (
    *(Case("mixture", count, 8) for count in (16_384, 65_536, 262_144)),
    *(Case("mixture", 16_384, dimensions) for dimensions in (32, 256)),
    *(Case(shape, 16_384, 8) for shape in SHAPES if shape not in {"mixture", "gaussian"}),
    Case("clump in a cloud", 16_384, 64),
    *(Case("gaussian", 16_384, dimensions) for dimensions in (8, 32, 256)),
    Case("two clumps", 16_384, 256),
)


def build(builder: str, rows: Rows, device: str) -> Rows:
    """Linkage matrix of the rows."""
    if builder == "masc":
        from masc_core.tree import build_tree  # noqa: PLC0415 - memory is measured

        return build_tree(rows, device=device).linkage
    if builder == "fastcluster":
        import fastcluster  # noqa: PLC0415

        return np.asarray(fastcluster.linkage(rows, "average"))
    from scipy.cluster import hierarchy  # noqa: PLC0415
    from scipy.spatial import distance  # noqa: PLC0415

    return hierarchy.linkage(distance.pdist(rows), "average")


def measure_here(builder: str, case: Case, device: str, heights: Path) -> dict[str, float]:
    """Build once in this process; seconds, and peak memory in bytes."""
    small = unit(np.random.default_rng(1).normal(size=(2_500, case.dimensions)))
    small[0] = 0.0  # as far from all others: so that every kernel is needed
    started = time.perf_counter()
    build(builder, small, device)  # compiles, or loads what was compiled
    warm = time.perf_counter() - started
    rows = case.rows()
    if device != "cpu":
        import torch  # noqa: PLC0415

        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak so far
    before = resident("VmRSS")
    started = time.perf_counter()
    linkage = build(builder, rows, device)
    seconds = time.perf_counter() - started
    np.save(heights, linkage[:, 2])
    peak = resident("VmHWM")
    figures = {"seconds": seconds, "first": warm, "peak": peak, "added": peak - before}
    if device != "cpu" and builder == "masc":
        figures["device_peak"] = torch.cuda.max_memory_allocated()
    return figures


def resident(key: str) -> int:
    """Memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key + ":")))


def measure(
    builder: str, case: Case, device: str, heights: Path, **environment: str
) -> dict[str, float]:
    """Build once in a process of its own."""
    arguments = [builder, case.shape, str(case.count), str(case.dimensions), device, str(heights)]
    run = subprocess.run(  # noqa: S603 - this program
        [sys.executable, __file__, "--one", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(run.stdout)
    return figures


def median_of(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of every figure."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def largest_difference(path: Path, reference: Path) -> float:
    """Largest relative difference between two sets of heights."""
    ours, theirs = np.load(path), np.load(reference)
    return float(np.max(np.abs(ours - theirs) / np.maximum(theirs, 1e-300), initial=0.0))


def compile_seconds(device: str) -> tuple[float, float]:
    """Seconds of the first small tree with nothing compiled, and with kernels on disk."""
    case = Case("mixture", 4_096, 8)
    with tempfile.TemporaryDirectory() as cache:
        heights = Path(cache) / "heights.npy"
        runs = [measure("masc", case, device, heights, NUMBA_CACHE_DIR=cache) for _ in range(2)]
    return runs[0]["first"], runs[1]["first"]


def rows_of_table(cases: Sequence[Case], device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Measure every case with every builder that can do it."""
    for case in cases:
        builders = ["masc", "fastcluster", "scipy"] if case.small and device == "cpu" else ["masc"]
        with tempfile.TemporaryDirectory() as folder:
            paths = {builder: Path(folder) / f"{builder}.npy" for builder in builders}
            figures = {
                builder: median_of([measure(builder, case, device, path) for _ in range(repeats)])
                for builder, path in paths.items()
            }
            reference = paths.get("fastcluster", Path(folder) / "one-thread.npy")
            if device != "cpu":
                measure("masc", case, "cpu", reference)
            elif not case.small:
                measure("masc", case, device, reference, NUMBA_NUM_THREADS="1")
            difference = largest_difference(paths["masc"], reference)
        yield {
            "shape": case.shape,
            "codes": case.count,
            "dimensions": case.dimensions,
            "difference": difference,
            **figures,
        }


HEADER = (
    "| codebook | V | E | masc | fastcluster | SciPy | faster | MB masc | MB fastcluster "
    "| difference |\n|---|---|---|---|---|---|---|---|---|---|"
)


def line_of(result: dict[str, Any]) -> str:
    """Row of the table."""
    ours, fast, scipy = (result.get(builder) for builder in ("masc", "fastcluster", "scipy"))

    def seconds(figures: dict[str, float] | None) -> str:
        return f"{figures['seconds']:.2f} s" if figures else "-"

    def memory(figures: dict[str, float] | None) -> str:
        if not figures:
            return "-"
        text = f"{figures['peak'] / 1e6:.0f} (+{figures['added'] / 1e6:.0f})"
        if "device_peak" in figures:
            text += f", GPU {figures['device_peak'] / 1e6:.0f}"
        return text

    faster = f"{fast['seconds'] / ours['seconds']:.1f}x" if fast and ours else "-"
    difference = f"{result['difference']:.0e}"
    cells = (result["shape"], f"{result['codes']:,}", result["dimensions"])
    figures = (seconds(ours), seconds(fast), seconds(scipy), faster, memory(ours), memory(fast))
    return "| " + " | ".join(map(str, (*cells, *figures, difference))) + " |"


def machine(device: str) -> str:
    """What the figures were measured on."""
    if device != "cpu":
        import torch  # noqa: PLC0415

        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    import numba  # noqa: PLC0415

    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    )
    return (
        f"{os.cpu_count()} cores of {model} ({platform.machine()}), "
        f"numba {numba.__version__}, numpy {np.__version__}"
    )


def main() -> None:
    """Print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description="time the tree's builder")
    parser.add_argument("--full", action="store_true", help="every size, dimension and shape")
    parser.add_argument("--dimensions", help="only these, of --full: 8, 32, 256")
    parser.add_argument("--shapes", help="only these, of --full: mixture, sphere, ...")
    parser.add_argument("--quick", action="store_true", help="1,024 codes, once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of masc: cpu, cuda, cuda:1")
    parser.add_argument("--out", type=Path, help="folder for tree-<device>.md and .json")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        builder, shape, count, dimensions, device, heights = options.one
        case = Case(shape, int(count), int(dimensions))
        print(json.dumps(measure_here(builder, case, device, Path(heights))))
        return
    cases = chosen_cases(options)
    if options.quick:
        options.repeats = 1
    title = f"Average linkage on {machine(options.device)}; medians of {options.repeats}."
    if not options.quick:
        first, loaded = compile_seconds(options.device)
        title += (
            f"\n\nThe first tree of an installation takes {first:.0f} s more, to compile; "
            f"the first of a process {loaded:.1f} s, to load what was compiled."
        )
    text = f"{title}\n\n{HEADER}"
    print(text, flush=True)
    for row in rows_of_table(cases, options.device, options.repeats):
        print(line_of(row), flush=True)
        if options.out:
            write(options.out / f"tree-{options.device.partition(':')[0]}", text, row)


def chosen_cases(options: argparse.Namespace) -> Sequence[Case]:
    """What is to be measured."""
    if options.quick:
        return TINY
    cases = FULL if options.full else USUAL
    dimensions = {int(number) for number in (options.dimensions or "").split(",") if number}
    shapes = set((options.shapes or "").split(",")) - {""}
    return [
        case
        for case in cases
        if (not dimensions or case.dimensions in dimensions)
        and (not shapes or case.shape in shapes)
    ]


def write(name: Path, text: str, result: dict[str, Any]) -> None:
    """Add a row to the table and its figures; those of earlier runs stay, unless measured anew."""
    name.parent.mkdir(parents=True, exist_ok=True)
    figures = name.with_suffix(".json")
    earlier = json.loads(figures.read_text("utf-8")) if figures.exists() else []
    by_case = {(r["shape"], r["codes"], r["dimensions"]): r for r in (*earlier, result)}
    order = [(case.shape, case.count, case.dimensions) for case in (*TINY, *FULL)]
    rows = [by_case[case] for case in order if case in by_case]
    lines = "\n".join(line_of(row) for row in rows)
    name.with_suffix(".md").write_text(f"{text}\n{lines}\n", "utf-8")
    figures.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
