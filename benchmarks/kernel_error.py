"""How accurate are transition kernels, in float32 and float64?

    python benchmarks/kernel_error.py

For every named diffusion, and random ones of two to four variables, prints the worst
error over tau from 1e-5 to 20 against 60-digit arithmetic, for kernels given the whole
start and given the data: of the diagonal of the root relative to itself, of its entries
relative to their row, and of the mean map relative to its largest entry, up to tau = 5
and at 20.
"""

import dataclasses
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import _common as common
import references

import eqmdm


_SETTINGS = {
    "schedule": eqmdm.ConstantSchedule(1.0),
    "interval": eqmdm.TimeInterval(1e-6, 20.0),
}
_COLUMNS = ("root_diagonal", "root_rows", "mean_to_5", "mean_at_20")
# The required accuracy of kernels.
_BARS = {
    "float32": (5e-6, 5e-6, 2e-5, 1e-3),
    "float64": (1e-12, 1e-12, 1e-12, 1e-11),
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Compares kernels with 60-digit arithmetic."""

    n_random: int = 20
    """Random diffusions for each number of variables."""
    seed: int = 0
    """The seed of the random diffusions."""
    quick: bool = False
    """Run only two named diffusions, two random ones and few times."""


@eqx.filter_jit
def _computed(diffusion, taus):
    return jax.vmap(diffusion.compute_kernel)(taus)


def worst_errors(diffusion, parts, taus, dtype) -> np.ndarray:
    """The four columns for one diffusion; `parts` are the roots of its recipe."""
    laws = jax.tree.map(np.asarray, _computed(diffusion, jnp.asarray(taus, dtype)))
    *matrices, start = parts
    worst = np.zeros(4)
    for i, tau in enumerate(taus):
        psi, given_start = references.exact_kernel(*matrices, 0 * start, tau)
        _, given_data = references.exact_kernel(*matrices, start, tau)
        step, kernel = laws.step, laws
        mean = kernel.mean_map[i][:, None]
        for mean_map, root, exact in (
            (step.mean_map[i], step.root[i], (psi, given_start)),
            (mean, kernel.root[i], (psi[:, 0], given_data)),
        ):
            diagonal, rows, mean_error = references.errors(mean_map, root, *exact)
            # Subnormal numbers have too few digits to compare.
            largest = np.abs(np.array(exact[0].tolist(), float)).max()
            if largest <= jnp.finfo(dtype).tiny:
                mean_error = 0.0
            late = tau > 5
            found = diagonal, rows, 0.0 if late else mean_error, late * mean_error
            worst = np.maximum(worst, found)
    return worst


def cases(settings: Settings):
    """The diffusions by name, each with a list of (diffusion, exact parts)."""
    named = references.named_diffusions(**_SETTINGS)
    if settings.quick:
        named = {name: named[name] for name in ("VPSDE", "CLD")}
    for name, diffusion in named.items():
        recipe = diffusion.recipe
        parts = recipe.skew, recipe.dissipation_root, recipe.stationary_root
        start = np.asarray(recipe.start_root).reshape(diffusion.n_vars, -1)
        yield name, [(diffusion, (*parts, start))]
    n = 2 if settings.quick else settings.n_random
    for n_vars in (2,) if settings.quick else (2, 3, 4):
        skews, roots = references.random_recipes(n_vars, n=n, seed=settings.seed)
        start = np.sqrt(0.01) * np.diag([0.0] + [1.0] * (n_vars - 1))
        of_one = [
            (
                # Learned, so that all share one compiled program.
                eqmdm.LinearDiffusion(
                    Q,
                    dissipation_root=B,
                    learn=("skew", "dissipation"),
                    **_SETTINGS,
                ),
                (Q, B, np.eye(n_vars), start),
            )
            for Q, B in zip(skews, roots, strict=True)
        ]
        yield f"random, K = {n_vars} ({n})", of_one


def main(settings: Settings) -> None:
    jax.config.update("jax_enable_x64", True)
    facts = common.facts()
    common.show(facts)
    header = f"{'diffusion':22} {'dtype':8}"
    print(header + "".join(f"{column:>15}" for column in _COLUMNS))
    taus = references.TAUS[1::3] if settings.quick else references.TAUS
    results = []
    for name, of_one in cases(settings):
        for dtype in ("float32", "float64"):
            errors = [worst_errors(*case, taus, dtype) for case in of_one]
            worst = np.max(errors, axis=0)
            figures = dict(zip(_COLUMNS, worst.tolist(), strict=True))
            # The limit is exceeded only if a row is much larger than its diagonal
            # entry, where rounding the matrices once already has this effect.
            within = bool(np.all(worst <= _BARS[dtype]))
            row = {"diffusion": name, "dtype": dtype, "within_bars": within}
            results.append(row | figures)
            line = "".join(f"{value:15.1e}" for value in worst)
            print(f"{name:22} {dtype:8}{line}{'' if within else '  *'}", flush=True)
    bars = {
        dtype: dict(zip(_COLUMNS, bar, strict=True)) for dtype, bar in _BARS.items()
    }
    for dtype, bar in _BARS.items():
        line = "".join(f"{value:15.1e}" for value in bar)
        print(f"{'bar':22} {dtype:8}{line}")
    if not all(row["within_bars"] for row in results):
        print("* beyond the bar in some column")
    common.write(settings, facts, taus=taus, bars=bars, results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
