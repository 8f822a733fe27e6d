"""Plant small faults in the modules that carry promises, and count those that the tests notice.

::

    python -m tests.mutation                       # 25 of every target
    python -m tests.mutation keys limits --num 100 # more of some; the table keeps the others
    python -m tests.mutation keys --resume         # only those that were not caught the last time

The tree is copied, and every fault is planted in the copy, where the few test files run that guard
its module (`targets.py`). Each run is a fork of a process that has imported the libraries, which
saves most of its time. A fault counts as caught when a test fails or when the tests take several
times as long as without it. What is not caught and cannot be is explained in `explained.toml`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any, Literal

from masc_core.io.files import atomic_write
from tests.mutation.mutants import Mutant, sample
from tests.mutation.targets import TARGETS, Target, sources_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
EXPLAINED = Path(__file__).with_name("explained.toml")
PYTEST = (
    *("-x", "-q", "--timeout=0", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
OURS = {"masc", "masc_core", "object_storage", "training", "worker", "server", "tests"}
LIMIT_SECONDS, LIMIT_FACTOR = 60.0, 3.0

PIPE = "\\|"
HEAD = """# Faults that the tests notice

`make mutants` plants small faults, one at a time, at a fixed random sample of the places where one
fits. Caught are those at which a test fails or takes several times as long: {share:.1%} of those
that can be noticed at all. They stand at {planted:.0%} of the places.

| target | places | planted | caught | of these by time | explained | open |
|---|---:|---:|---:|---:|---:|---:|"""

Outcome = Literal["caught", "late", "survived"]
Fault = dict[str, Any]  # file, line, old and new text of the line, outcome
Results = dict[str, Any]


def main() -> None:
    """Run what the command line names, and rewrite the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="Mutation tests")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--num", type=int, default=25, help="faults of each target (default 25)")
    parser.add_argument("--resume", action="store_true", help="all but those caught before")
    parser.add_argument("--report", action="store_true", help="only rewrite the table")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so leave no copy behind
    for name in () if arguments.report else arguments.targets or TARGETS:
        measure(name, arguments.num, resumes=arguments.resume)
    atomic_write(RESULTS.with_suffix(".md"), table(read_results()).encode())


def read_results() -> Results:
    """Places and faults of every target that was measured, in the order of `targets.py`."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {name: results[name] for name in TARGETS if name in results}


def measure(name: str, num: int, *, resumes: bool) -> None:
    """Plant the faults of a target, and keep each result at once."""
    earlier = read_results().get(name, {"faults": []})["faults"] if resumes else []
    known = {key(fault): fault for fault in earlier if fault["outcome"] != "survived"}
    with tempfile.TemporaryDirectory(prefix="masc-mutation-") as folder:
        root = copy_tree(Path(folder))
        mutants, places = sample(sources_of(root, TARGETS[name]), max(num, len(earlier)))
        faults = [fault_of(root, mutant) for mutant in mutants]
        faults = [known.get(key(fault), fault) for fault in faults]
        tests = None
        for i, mutant in enumerate(mutants):
            if "outcome" in faults[i]:
                continue
            tests = tests or Tests(root, TARGETS[name])
            faults[i]["outcome"] = tests.run(mutant)
            print(name, *faults[i].values(), sep=" | ", flush=True)  # noqa: T201 - a program
            tested = [fault for fault in faults if "outcome" in fault]
            results = read_results() | {name: {"places": places, "faults": tested}}
            atomic_write(RESULTS, (json.dumps(results, indent=1) + "\n").encode())


def fault_of(root: Path, mutant: Mutant) -> Fault:
    """What is kept of a fault, but for its outcome."""
    file = str(mutant.file.relative_to(root))
    return {"file": file, "line": mutant.line, "old": mutant.old, "new": mutant.new}


def key(fault: Fault) -> tuple[object, ...]:
    """Which fault it is."""
    return fault["file"], fault["line"], fault["old"], fault["new"]


def copy_tree(folder: Path) -> Path:
    """Copy what git knows of, and the loops that are compiled already."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    compiled = [path.relative_to(ROOT) for path in ROOT.glob("masc_core/**/*.nb[ic]")]
    for path in (*map(Path, listed), *compiled):
        if (ROOT / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
    return folder


class Tests:
    """The tests of a target in a copy of the tree; without faults they pass."""

    def __init__(self, root: Path, target: Target) -> None:
        self.root, self.target = root, target
        self.stamp = time.time()
        started = time.monotonic()
        imported = root / "imported"
        if self._fork(3600.0, imported) != 0:
            sys.exit(f"without a fault: {(root / 'log').read_text()[-3000:]}")
        self.seconds = max(LIMIT_SECONDS, LIMIT_FACTOR * (time.monotonic() - started))
        for module in imported.read_text().split():
            try:
                __import__(module)
            except ImportError:  # only there while something else runs
                continue

    def run(self, mutant: Mutant) -> Outcome:
        """Plant a fault, and take it back."""
        original = mutant.file.read_text()
        self._write(mutant.file, mutant.text)
        try:
            status = self._fork(self.seconds)
            while status is None and self._has_slowed_down(mutant, original):
                status = self._fork(self.seconds)
        finally:
            self._write(mutant.file, original)
        return "late" if status is None else "caught" if status else "survived"

    def _has_slowed_down(self, mutant: Mutant, original: str) -> bool:
        """Whether the machine is at fault: then all is given the time that it needs by now."""
        self._write(mutant.file, original)
        started = time.monotonic()
        self._fork(3600.0)
        self._write(mutant.file, mutant.text)
        earlier = self.seconds
        self.seconds = max(earlier, LIMIT_FACTOR * (time.monotonic() - started))
        return self.seconds > earlier

    def _write(self, file: Path, text: str) -> None:
        """Give it a date of its own: compiled files are kept by the second."""
        file.write_text(text)
        self.stamp += 2
        os.utime(file, (self.stamp, self.stamp))

    def _fork(self, seconds: float, imported: Path | None = None) -> int | None:
        """Exit status of the tests, None when they took too long."""
        child = os.fork()
        if child == 0:
            self._child(imported)
        until, ended, status = time.monotonic() + seconds, 0, 0
        try:
            while not ended and time.monotonic() < until:
                time.sleep(0.02)
                ended, status = os.waitpid(child, os.WNOHANG)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # with whatever it has started
        if not ended:
            os.waitpid(child, 0)
            return None
        return status

    def _child(self, imported: Path | None) -> None:
        status = 1
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            log = os.open(self.root / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(self.root)
            os.environ.update({"PYTHONPATH": str(self.root), **dict(self.target.variables)})
            for name in [name for name in sys.modules if is_ours(name)]:
                del sys.modules[name]
            sys.path[:0] = [str(self.root)]
            import pytest  # noqa: PLC0415 - after the variables are set
            from hypothesis import Phase, settings  # noqa: PLC0415

            # That a test fails is enough: the example need not be shrunk.
            settings.register_profile("unshrunk", derandomize=True, phases=(Phase.generate,))
            settings.load_profile("unshrunk")
            status = int(pytest.main([*PYTEST, *self.target.options, *self.target.tests]))
            if imported is not None:
                names = [n for n in sys.modules if not is_ours(n) and n != "__main__"]
                imported.write_text("\n".join(names))
        finally:
            os._exit(status)


def is_ours(module: str) -> bool:
    """Whether a module is one of the tree, to be imported anew from the copy."""
    return module.partition(".")[0] in OURS


def table(results: Results) -> str:
    """The results as Markdown."""
    explained = tomllib.loads(EXPLAINED.read_text()).get("fault", [])
    why = {(fault["file"], fault["old"], fault.get("new")): fault["why"] for fault in explained}
    rows, open_or_explained = {}, []
    for name, result in results.items():
        outcomes = [fault["outcome"] for fault in result["faults"]]
        survivors = [fault for fault in result["faults"] if fault["outcome"] == "survived"]
        reasons = [
            why.get((fault["file"], fault["old"], fault["new"]))
            or why.get((fault["file"], fault["old"], None))
            for fault in survivors
        ]
        open_or_explained += list(zip(survivors, reasons, strict=True))
        late, num_open = outcomes.count("late"), reasons.count(None)
        caught = len(outcomes) - len(survivors)
        rows[name] = [result["places"], len(outcomes), caught, late,
                      len(survivors) - num_open, num_open]  # fmt: skip
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    places, planted, caught, _, unnoticeable, _ = rows["all"]
    share = caught / max(1, planted - unnoticeable)
    lines = [
        HEAD.format(share=share, planted=planted / places),
        *(f"| {name} | {' | '.join(f'{n:,}' for n in row)} |" for name, row in rows.items()),
        "\n| not caught | planted | why |\n|---|---|---|",
    ]
    for fault, reason in open_or_explained:
        cells = (f"{fault['file']}: `{fault['old']}`", f"`{fault['new']}`", reason or "**open**")
        lines.append(f"| {' | '.join(cell.replace('|', PIPE) for cell in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
