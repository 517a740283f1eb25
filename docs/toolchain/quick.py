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


# The largest counts of the short form, by the names of arguments and variables.
_MOST = {"steps": 20, "n_samples": 100, "n": 100, "n_draws": 4}


class _Fewer(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> ast.Pass:
        return ast.copy_location(ast.Pass(), node)

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        self.generic_visit(node)
        node.value = _at_most(_MOST.get(node.arg or ""), node.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        self.generic_visit(node)
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Name):
            node.value = _at_most(_MOST.get(target.id), value)
        # As in `std, n = 0.4, 2000`.
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            value.elts = [
                _at_most(_MOST.get(name.id), part)
                if isinstance(name, ast.Name)
                else part
                for name, part in zip(target.elts, value.elts, strict=True)
            ]
        return node


def _at_most(most: int | None, node: ast.expr) -> ast.expr:
    if most and isinstance(node, ast.Constant) and isinstance(node.value, int):
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
