"""Small faults of a source text: Cosmic Ray's operators for Python, statements left out, and Lua.

A site is a place and a kind of fault. It has variants (for `<` every other comparison), of which
one is taken, so that a sample spreads over the text. Left out is what nobody can notice:
annotations, which nothing evaluates, options of dataclasses, `strict` of `zip`, and that an
argument has to be named.
"""

from __future__ import annotations

import ast
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

Variant = Callable[[], str | None]

NEED_ARGUMENTS = {"core/VariableInserter", "core/VariableReplacer"}
LUA = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" <= ", " < "), (r" < ", " <= "), (r" >= ", " > "), (r" > ", " >= "),
        (r" == ", " ~= "), (r" ~= ", " == "), (r"\band\b", "or"), (r"\bor\b", "and"),
        (r"\bnot ", ""), (r"\btrue\b", "false"), (r" \+ ", " - "), (r" - ", " + "),
        (r"(?<=\w)_ms\b", "_ms * 10"), (r"\bbreak\b", ""),
    )
]  # fmt: skip
LUA_NUMBER = re.compile(r"(?<![\w.'-])\d+\b")
LUA_STATEMENT = re.compile(
    r"\s*(?!local\b|return\b|if\b|for\b|while\b)[\w.]+(\[.*?\])?(\(.*\)| = [^{]*)$"
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A file with one fault; `old` and `new` are the first line that differs."""

    file: Path
    text: str
    line: int
    old: str
    new: str


def sample(files: list[Path], num: int) -> tuple[list[Mutant], int]:
    """Return at most ``num`` mutants, the same each time, and the number of sites."""
    sites = [(file, site) for file in files for site in _sites(file)]
    rng = random.Random(0)
    rng.shuffle(sites)
    mutants: list[Mutant] = []
    for file, variants in sites:
        rng.shuffle(variants)
        made = (_mutant(file, variant()) for variant in variants)
        mutants += [mutant for mutant in made if mutant is not None][:1]
        if len(mutants) == num:
            break
    return mutants, len(sites)


def _sites(file: Path) -> list[list[Variant]]:
    """Places of a text, each with its variants."""
    text = file.read_text()
    sites: dict[object, list[Variant]] = defaultdict(list)
    for place, variant in (_lua if file.suffix == ".lua" else _python)(text):
        sites[place].append(variant)
    return list(sites.values())


def _python(text: str) -> Iterator[tuple[object, Variant]]:
    tree = get_ast(text)
    for name in sorted(set(operator_names()) - NEED_ARGUMENTS):
        operator = get_operator(name)()
        positions = [start for node in ast_nodes(tree)
                     for start, _ in operator.mutation_positions(node)]  # fmt: skip
        for occurrence, start in enumerate(positions):
            kind = name.partition("_")[0]
            yield (kind, start), partial(mutate_code, text, operator, occurrence)
    for node in ast.walk(ast.parse(text)):
        match node:
            case (
                ast.Expr(value=ast.Call() | ast.Await())
                | ast.AugAssign()
                | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])
            ):
                yield node, partial(_without, text, node)


def _without(text: str, node: ast.stmt) -> str:
    lines = text.splitlines(keepends=True)
    assert node.end_lineno is not None
    lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + "pass\n"]
    return "".join(lines)


def _lua(text: str) -> Iterator[tuple[object, Variant]]:
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        code = line.partition("--")[0].rstrip()
        for pattern, replacement in LUA:
            for found in pattern.finditer(code):
                new = code[: found.start()] + replacement + code[found.end() :]
                yield (i, found.start()), partial(_with, lines, i, new)
        for found in LUA_NUMBER.finditer(code):
            for number in (int(found[0]) + 1, int(found[0]) - 1):
                new = f"{code[: found.start()]}{number}{code[found.end() :]}"
                yield (i, found.start()), partial(_with, lines, i, new)
        if LUA_STATEMENT.match(code) and code.count("(") == code.count(")"):
            yield (i, "statement"), partial(_with, lines, i, "")


def _with(lines: list[str], index: int, new: str) -> str:
    return "".join([*lines[:index], new + "\n", *lines[index + 1 :]])


def _mutant(file: Path, text: str | None) -> Mutant | None:
    """The mutant, unless it is none: no program any more, or the same one as before."""
    before = file.read_text()
    if text is None or (file.suffix == ".py" and _meaning(text) in {None, _meaning(before)}):
        return None
    old, new = before.splitlines(), text.splitlines()
    line = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    return Mutant(file, text, line + 1, old[line].strip(), new[line].strip())


def _meaning(text: str) -> str | None:
    try:
        return ast.dump(_Meaning().visit(ast.parse(text)))
    except SyntaxError:
        return None


class _Meaning(ast.NodeTransformer):
    """Leaves out what has no effect."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.defaults += [default for default in node.kw_defaults if default is not None]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_dataclass = isinstance(node.func, ast.Name) and node.func.id == "dataclass"
        node.keywords = [k for k in node.keywords if not is_dataclass and k.arg != "strict"]
        return self.generic_visit(node)
