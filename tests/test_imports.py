"""The drawn structure of the packages, read from the sources: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("masc_core", "object_storage", "training", "worker", "server")
HEAVY = ("torch", "safetensors", "scipy", "numba", "sklearn", "matplotlib")

# What the stages and studies of training are made of; none of it imports one.
TRAINING = {
    f"training.{name}"
    for name in [
        "changes",
        "config",
        "data",
        "downloads",
        "pretrained",
        "loop",
        "losses",
        "metrics",
        "plot_png",
        "provenance",
        "torch_file",
    ]
}

# A part may import itself and these. The longest name that fits is a module's part.
MAY_IMPORT: dict[str, set[str]] = {
    "masc_core": set(),
    "object_storage": {"masc_core"},
    **{part: {"masc_core", *TRAINING} for part in TRAINING},
    "training.stages": {"masc_core", "object_storage", *TRAINING},
    "training.studies": {"masc_core", *TRAINING, "training.stages"},
    "training": {
        *("masc_core", "object_storage", "training.stages", "training.studies"),
        *TRAINING,
    },
    "worker.jobs": {"masc_core"},
    "worker": {"masc_core", "object_storage", "worker.jobs"},
    "server": {"masc_core", "object_storage", "worker.jobs"},
    "server.bench": {"masc_core"},
    "masc": {
        *("masc_core", "object_storage", "training", "worker", "worker.jobs"),
        *("server", "server.bench"),
        *TRAINING,
    },
    "tests": set(),  # nothing imports these two
    "benchmarks": set(),
}

Imports = dict[str, bool]  # imported name -> does it happen at run time


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in {getattr(test, "id", ""), getattr(test, "attr", "")}


def statements(tree: ast.AST, *, runtime: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement, in functions too, and whether it is more than a type's."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, runtime
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for typed in node.body:
                yield from statements(ast.Module([typed], []), runtime=False)
            yield from statements(ast.Module(node.orelse, []), runtime=runtime)
        else:
            yield from statements(node, runtime=runtime)


def imports_of(name: str, source: str, modules: set[str], *, is_package: bool = False) -> Imports:
    found: Imports = {}
    for node, runtime in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                package = parts[: len(parts) - node.level + is_package]
                base = ".".join(filter(None, [*package, base]))
            within = [f"{base}.{alias.name}" for alias in node.names]
            names = [inner if inner in modules else base for inner in within]
        for imported in names:
            found[imported] = found.get(imported, False) or runtime
    return found


def read_graph(sources: Mapping[Path, str]) -> dict[str, Imports]:
    modules = {module_name(path) for path in sources}
    return {
        module_name(path): imports_of(
            module_name(path), source, modules, is_package=path.name == "__init__.py"
        )
        for path, source in sources.items()
    }


def part_of(name: str) -> str | None:
    """The part that a module belongs to; None for other people's."""
    fitting = [part for part in MAY_IMPORT if name == part or name.startswith(f"{part}.")]
    return max(fitting, key=len, default=None)


def upward_imports(graph: Mapping[str, Imports]) -> list[str]:
    wrong = []
    for module, imports in graph.items():
        part = part_of(module)
        assert part is not None
        for imported in imports:
            target = part_of(imported)
            if target is not None and target not in MAY_IMPORT[part] | {part}:
                wrong.append(f"{module} imports {imported}")
    return wrong


def find_cycle(graph: Mapping[str, Imports]) -> list[str] | None:
    own = {module: {name for name in imports if name in graph} for module, imports in graph.items()}
    try:
        TopologicalSorter(own).prepare()
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return None


def reached_from(module: str, graph: Mapping[str, Imports]) -> set[str]:
    """All that importing the module can import while the program runs, other people's included."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            parents = [name.rsplit(".", 1)[0]] if "." in name else []  # their __init__ runs first
            imports = graph.get(name, {})
            waiting += parents + [imported for imported, runtime in imports.items() if runtime]
    return reached


def needs_heavy(module: str, graph: Mapping[str, Imports]) -> bool:
    return any(name in HEAVY for name in reached_from(module, graph))


def read_sources() -> dict[Path, str]:
    paths = [*ROOT.glob("*.py")]
    for package in PACKAGES:
        paths += sorted((ROOT / package).rglob("*.py"))
    return {path: path.read_text() for path in paths}


GRAPH = read_graph(read_sources())
FRONT_END = sorted(name for name in GRAPH if part_of(name) in {"server", "worker.jobs"})
LOAD_GENERATOR = sorted(name for name in GRAPH if part_of(name) == "server.bench")
# Lazy imports count as needing; these modules are light even when their functions run.
LIGHT_CORE = sorted(
    name for name in GRAPH if part_of(name) == "masc_core" and not needs_heavy(name, GRAPH)
)


def test_the_walk_finds_the_packages() -> None:
    assert {part_of(module) for module in GRAPH} >= {*PACKAGES, "worker.jobs"}
    assert needs_heavy("masc_core.sampling.in_cluster", GRAPH)
    assert {"masc_core.errors", "masc_core.prior"} <= set(LIGHT_CORE)
    assert "server.app" in FRONT_END


def test_no_upward_import() -> None:
    assert upward_imports(GRAPH) == []


def test_no_import_cycle() -> None:
    assert find_cycle(GRAPH) is None


@pytest.mark.parametrize("module", FRONT_END)
def test_front_end_reaches_no_torch(module: str) -> None:
    assert not {name for name in reached_from(module, GRAPH) if name in HEAVY}


def test_load_generator_reaches_matplotlib_for_its_picture_alone() -> None:
    reaching = {name: reached_from(name, GRAPH) & set(HEAVY) for name in LOAD_GENERATOR}
    assert reaching.pop("server.bench.plot") == {"matplotlib"}
    assert {name for name, heavy in reaching.items() if heavy} <= {"server.bench.cli"}
    assert set().union(*reaching.values()) <= {"matplotlib"}


def run_python(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).stdout


def test_front_end_leaves_torch_out_of_the_process() -> None:
    imports = "\n".join(f"import {module}" for module in [*FRONT_END, *LIGHT_CORE])
    assert run_python(f"import sys\n{imports}\nprint('torch' in sys.modules)") == "False\n"


def test_front_end_imports_where_torch_is_not_installed() -> None:
    imports = "\n".join(f"import {module}" for module in [*FRONT_END, *LIGHT_CORE])
    absent = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    assert run_python(f"{absent}{imports}\nprint('imported')") == "imported\n"


def graph_of(**sources: str) -> dict[str, Imports]:
    """Graph of a made-up tree: ``server__app="import torch"`` is ``server/app.py``."""
    return read_graph(
        {
            ROOT.joinpath(*name.split("__")).with_suffix(".py"): source
            for name, source in sources.items()
        }
    )


@pytest.mark.parametrize(
    "source",
    [
        "if TYPE_CHECKING:\n    pass\nelse:\n    import masc_core.b",
        "import masc_core.b",
        "import masc_core.b as other",
        "from masc_core import b",
        "from masc_core.b import name",
        "from . import b",
        "from .b import name",
        "def f():\n    from masc_core.b import name",
        "class C:\n    def f(self):\n        import masc_core.b",
        "try:\n    import masc_core.b\nexcept ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from masc_core.b import name",
        "import typing\nif typing.TYPE_CHECKING:\n    from masc_core import b",
    ],
)
def test_every_form_of_import_closes_a_cycle(source: str) -> None:
    graph = graph_of(masc_core__a=source, masc_core__b="import masc_core.a")
    cycle = find_cycle(graph)
    assert cycle is not None
    assert set(cycle) == {"masc_core.a", "masc_core.b"}
    assert find_cycle(graph_of(masc_core__a=source, masc_core__b="import os")) is None


def test_relative_imports_of_packages() -> None:
    name, modules = "worker.jobs", {"worker.jobs", "worker.jobs.queue", "worker.loop"}
    source = "from . import queue\nfrom .queue import x\nfrom .. import loop"
    assert list(imports_of(name, source, modules, is_package=True)) == [
        "worker.jobs.queue",
        "worker.loop",
    ]
    source = "from ..loop import y\nfrom . import queue"
    assert list(imports_of("worker.jobs.memory", source, modules)) == [
        "worker.loop",
        "worker.jobs.queue",
    ]


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("masc_core", "worker.jobs.job"),
        ("masc_core", "masc"),
        ("masc_core", "object_storage.registry"),
        ("object_storage", "worker.jobs.job"),
        ("worker.jobs", "object_storage.registry"),
        ("training", "worker.loop"),
        ("training", "server.app"),
        ("worker", "training.stages.codes"),
        ("training.data", "training.stages.codes"),
        ("training.metrics", "training.studies.compare"),
        ("training.stages", "training.studies.compare"),
        ("worker", "server"),
        ("worker.jobs", "worker.loop"),
        ("server", "worker.loop"),
        ("server", "server.bench.load"),
        ("server.bench", "server.schemas"),
        ("server.bench", "worker.jobs.job"),
        ("server", "training.stages.codes"),
        ("server", "tests.server"),
    ],
)
def test_upward_imports_are_found(importer: str, imported: str) -> None:
    graph = graph_of(**{f"{importer.replace('.', '__')}__x": f"from {imported} import y"})
    assert upward_imports(graph) == [f"{importer}.x imports {imported}"]


def test_torch_is_found_through_other_modules_but_not_behind_types() -> None:
    graph = graph_of(
        masc_core__a="def f():\n    import torch.nn",
        masc_core__b="from masc_core.a import f",
        masc_core__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        server__app="import masc_core.b, masc_core.c",
    )
    needing = [module for module in graph if needs_heavy(module, graph)]
    assert needing == ["masc_core.a", "masc_core.b", "server.app"]
