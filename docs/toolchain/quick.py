"""A short form of the code of several pages in one process: what the quick tests run.

PYTHONPATH=docs python -m toolchain.quick PAGE PAGE ...
"""

import ast
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import jax

from .cache import ROOT
from .execution import execute


# The largest counts of the short form, by the names of arguments.
_MOST = {"steps": 20, "n_draws": 4, "depth": 1}
# An integer from here on counts draws, examples or paths, unless it is an argument of
# one of these names or functions. All become as many, so that what was equally long
# stays so.
_MANY, _FEW = 500, 100
_KEPT = ("max_steps", "Simulation")


class _Fewer(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        many = type(node.value) is int and node.value >= _MANY
        return ast.copy_location(ast.Constant(_FEW), node) if many else node

    def visit_Assert(self, node: ast.Assert) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)

    def visit_For(self, node: ast.For) -> ast.For:
        # Each number of steps compiles programs of its own.
        self.generic_visit(node)
        if isinstance(node.iter, ast.Tuple) and len(node.iter.elts) > 2:
            values = node.iter.elts
            if all(map(_is_number, values)):
                node.iter.elts = values[:1]
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        kept = isinstance(node.func, ast.Attribute) and node.func.attr in _KEPT
        return node if kept else self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        if node.arg in _KEPT:
            return node
        self.generic_visit(node)
        node.value = _at_most(_MOST.get(node.arg or ""), node.value)
        return node


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _at_most(most: int | None, node: ast.expr) -> ast.expr:
    # The type, since `True` is an integer.
    if most and isinstance(node, ast.Constant) and type(node.value) is int:
        return ast.copy_location(ast.Constant(min(node.value, most)), node)
    return node


def short_form(tree: ast.Module) -> ast.Module:
    """Code that trains for few steps and takes few draws, and whose results, which
    then mean nothing, are not asserted."""
    return _Fewer().visit(tree)


def run(pages: list[str]) -> None:
    """Runs the short form of pages of `docs`, each in a namespace of its own.

    Keeps no result, and prints the processor seconds of each.
    """
    # Most of the time goes into compilation, which is faster without optimisations.
    jax.config.update("jax_disable_most_optimizations", True)
    for name in pages:
        start = time.process_time()
        # A page may change the directory that it runs in.
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(ROOT):
            execute(ROOT / "docs" / name, Path(directory), change=short_form)
        print(f"{name:36} {time.process_time() - start:6.1f} s", flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
