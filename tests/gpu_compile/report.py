"""What was compiled, what is wrong with it, and how that is printed."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from triton.backends.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    GPUTarget,
)

from tests.gpu_compile.gpu import TARGET
from tests.gpu_compile.graphs import Code
from tests.gpu_compile.kernels import generated


def cpu_seconds() -> float:
    """What this process and those that have ended have computed for so far."""
    return sum(os.times()[:4])


@dataclass
class Report:
    """Failures so far, and kernels that have been seen: parts of several models share some.

    Attributes
    ----------
    failures : a line each
    num_kernels : that were assembled
    """

    failures: list[str] = field(default_factory=list)
    num_kernels: int = 0
    _seen: set[tuple[str, str]] = field(default_factory=set)

    def say(self, line: str) -> None:
        """Print a line at once."""
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def fail(self, line: str) -> None:
        """Note a failure."""
        self.failures.append(line)
        self.say(f"  FAILURE {line}")

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        """Head a part of the program; whatever it raises is a failure of it."""
        self.say(f"\n== {title}")
        started = cpu_seconds()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the next sections are to be told of too
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][:2]
            self.fail(f"{title}: {type(error).__name__}: {' '.join(reason)}")
            traceback.print_exc()
        self.say(f"   {cpu_seconds() - started:.0f} s of a core")

    def check(self, part: str, code: Code, target: GPUTarget, *, largest: int = 0) -> None:
        """Assemble a graph's kernels, and print what it is made of.

        Parameters
        ----------
        part : what the graph is called
        code : of the graph
        target : the architecture
        largest : numbers that a buffer must not reach, or 0
        """
        external = ", ".join(f"{n} {name}" for name, n in sorted(code.external.items()))
        self.say(
            f"   {part:<22} {code.launches.total():3} Triton, {code.external.total():3} external"
            f" ({external}), {len(code.allocations)} allocations"
        )
        if largest and code.largest_allocation() >= largest:
            self.fail(f"{part}: allocates {code.largest_allocation()} numbers: a copy of the cache")
        if code.constants:
            self.fail(
                f"{part}: keeps constants, which a captured step would lose: {code.constants}"
            )
        if code.waits:
            self.fail(f"{part}: waits for the device: {', '.join(code.waits)}")
        self.assemble(part, code, target)

    def assemble(self, part: str, code: Code, target: GPUTarget) -> None:
        """Assemble a graph's kernels for an architecture, those that are new."""
        for name, source in code.sources.items():
            self._assemble(f"{part}, {name}", source.replace(name, "kernel"), target)

    def _assemble(self, name: str, source: str, target: GPUTarget) -> None:
        if (source, str(target)) in self._seen:
            return
        self._seen.add((source, str(target)))
        try:
            made = list(generated(source, target))
        except Exception as error:  # noqa: BLE001 - whatever stops it is the finding
            self.fail(f"{name}: sm_{target.arch}: {str(error).strip().splitlines()[-1]}")
            return
        self.num_kernels += len(made)
        # Inductor passes over a configuration that spills where it has another one.
        if made and all(machine.spilled for _, machine in made):
            least = min(machine.spilled for _, machine in made)
            told = f"{name}: sm_{target.arch}: spills {least} bytes"
            # An older GPU may wait for a few bytes; what is promised is of the newer one.
            (self.fail if target.arch == TARGET.arch else self.say)(told)
