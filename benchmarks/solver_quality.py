"""How good are the library's own samplers at each number of evaluations?

    python benchmarks/solver_quality.py

Uses the exact denoiser of a mixture of four normals in one dimension, so that only the
solver causes errors. Prints the Wasserstein-1 distance of 16,384 samples to as
many draws of the data, as the mean over 8 seeds, in units of the mean distance between
two such sets of draws. Log-SNR runs from its value at each diffusion's default t1 up to
13.3; evaluations include the posterior mean at t0. The random diffusions of three
variables are those of the kernel tests.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, Literal

import diffrax as dfx
import jax
import jax.random as jr
import numpy as np
import tyro


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import _common as common
import references

import eqmdm


MEANS, STD = references.MODES, references.MODE_STD
TOP_LOG_SNR = 13.3

SOLVERS = {
    "dpm-solver-1": eqmdm.DPMSolver(order=1),
    "dpm-solver": eqmdm.DPMSolver(),
    "dpm-solver-3": eqmdm.DPMSolver(order=3),
    "dpm-solver-whole-state": eqmdm.DPMSolver(),
    "edm-heun": eqmdm.EDMHeun(),
    "ancestral": eqmdm.AncestralSampler(),
    "sscs": eqmdm.SSCS(),
    "langevin": eqmdm.LangevinCorrector(eqmdm.DPMSolver()),
}
GRIDS = {
    "log-snr": eqmdm.LogSNRGrid(),
    "rho": eqmdm.RhoGrid(),
    "quadratic": eqmdm.QuadraticGrid(),
    "uniform": eqmdm.UniformGrid(),
}
# The limits by evaluations, for solvers of the statistic and of the whole state.
BARS = {"dpm-solver": {10: 14.0, 20: 4.0, 50: 1.5}}
BARS["dpm-solver-whole-state"] = {n: 2 * bar for n, bar in BARS["dpm-solver"].items()}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Compares samples of the library's own samplers with the data."""

    evaluations: tuple[int, ...] = (10, 20, 50)
    """Denoiser evaluations allowed per sample."""
    solvers: tuple[str, ...] = (
        "dpm-solver",
        "dpm-solver-whole-state",
        "euler-maruyama",
    )
    """Solvers of this file; euler-maruyama is Diffrax's, for comparison."""
    grid: Literal["log-snr", "rho", "quadratic", "uniform"] = "log-snr"
    """The spacing of the steps; Euler-Maruyama uses the default of its sampler."""
    n_random: int = 3
    """Random diffusions of three variables, besides the named ones."""
    n_samples: int = 16384
    """Samples, and data points, per comparison."""
    n_seeds: int = 8
    """The number of comparisons to average."""
    dtype: Literal["float32", "float64"] = "float32"
    """The dtype of all computations."""
    quick: bool = False
    """Run only two diffusions, with 10 evaluations and 2,048 samples of two seeds."""


def draw_data(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    modes = generator.integers(len(MEANS), size=shape)
    return MEANS[modes] + STD * generator.standard_normal(shape)


def wasserstein(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The distance between each row of `x` and the same row of `y`."""
    return np.mean(np.abs(np.sort(x) - np.sort(y)), axis=-1)


def expected_distance(n: int) -> float:
    r"""The mean distance between two sets of `n` draws of the data.

    $F_n - G_n$ is close to normal with variance $2 F (1 - F) / n$, and the distance is
    the integral of its absolute value.
    """
    x = np.linspace(MEANS.min() - 10 * STD, MEANS.max() + 10 * STD, 20_001)
    erf = np.vectorize(math.erf)((x[:, None] - MEANS) / (STD * math.sqrt(2)))
    F = np.mean(0.5 * (1 + erf), axis=1)
    deviation = np.sqrt(np.maximum(F * (1 - F), 0))
    return math.sqrt(4 / (math.pi * n)) * float(np.sum(deviation) * (x[1] - x[0]))


def cases(settings: Settings):
    """The diffusions by name, with their intervals."""
    classes = {
        "VPSDE": eqmdm.VPSDE,
        "CLD": eqmdm.CLD,
        "PSLD": eqmdm.PSLD,
        "CriticalThirdOrder": eqmdm.CriticalThirdOrder,
    }
    makers = {name: lambda cls=cls, **kw: cls(**kw) for name, cls in classes.items()}
    if settings.n_random and not settings.quick:
        skews, roots = references.random_recipes(3, n=settings.n_random)
        for i, (Q, B) in enumerate(zip(skews, roots, strict=True)):
            makers[f"random {i}"] = lambda Q=Q, B=B, **kw: eqmdm.LinearDiffusion(
                Q, dissipation_root=B, **kw
            )
    for name in list(makers)[: 2 if settings.quick else None]:
        default = makers[name]()
        low = float(default.log_snr(default.t1))
        yield name, makers[name](interval=eqmdm.LogSNRInterval(low, TOP_LOG_SNR))


def steps_within(sampler: Any, evaluations: int) -> int:
    n_steps = 1
    while sampler.n_evaluations(n_steps + 1) <= evaluations:
        n_steps += 1
    return n_steps


def make_model(name: str, diffusion) -> eqmdm.AbstractModel:
    model = eqmdm.DenoiserModel(references.mixture_denoiser, diffusion)
    if name != "dpm-solver-whole-state":
        return model
    # The same score without a denoiser, so that the solver takes the whole state.
    return eqmdm.FunctionModel(model.score, diffusion)


def sample(settings: Settings, name: str, diffusion, evaluations: int) -> np.ndarray:
    sampler = eqmdm.DiffraxSampler(dfx.Euler())
    if name != "euler-maruyama":
        sampler = dataclasses.replace(SOLVERS[name], grid=GRIDS[settings.grid])
    x = eqmdm.sample(
        make_model(name, diffusion),
        (),
        key=jr.key(0),
        n_samples=settings.n_seeds * settings.n_samples,
        sampler=sampler,
        n_steps=steps_within(sampler, evaluations),
        dtype=settings.dtype,
    )
    return np.asarray(x, np.float64).reshape(settings.n_seeds, settings.n_samples)


def main(settings: Settings) -> None:
    jax.config.update("jax_enable_x64", settings.dtype == "float64")
    for name in settings.solvers:
        if name not in (*SOLVERS, "euler-maruyama"):
            raise ValueError(f"`solvers` must be among {list(SOLVERS)}; got {name}.")
    if settings.quick:
        settings = dataclasses.replace(
            settings, evaluations=(10,), n_samples=2048, n_seeds=2
        )
    facts = common.facts()
    common.show(facts)
    generator = np.random.default_rng(0)
    shape = settings.n_seeds, settings.n_samples
    unit = expected_distance(settings.n_samples)
    data = draw_data(generator, shape)
    print(f"between draws of the data: {unit:.5f}, the unit of every figure")
    counts = "".join(f"{n:>16}" for n in settings.evaluations)
    print(f"{'diffusion':20} {'solver':26}{counts}")
    results = []
    for name, diffusion in cases(settings):
        for solver in settings.solvers:
            line = ""
            for n in settings.evaluations:
                x = sample(settings, solver, diffusion, n)
                finite, mean, error = bool(np.all(np.isfinite(x))), np.inf, np.inf
                if finite:
                    ratios = wasserstein(x, data) / unit
                    mean = float(np.mean(ratios))
                    error = float(np.std(ratios, ddof=1) / np.sqrt(len(ratios)))
                bar = BARS.get(solver, {}).get(n)
                within = None if bar is None or settings.quick else mean <= bar
                row = {"diffusion": name, "solver": solver, "evaluations": n}
                row |= {"ratio": mean if finite else None, "finite": finite}
                row |= {"standard_error": error if finite else None}
                results.append(row | {"bar": bar, "within_bar": within})
                figure = f"{mean:.2f} +- {error:.2f}" if finite else "not finite"
                line += f"{figure}{'  ' if within in (None, True) else ' *':2}".rjust(
                    16
                )
            print(f"{name:20} {solver:26}{line}", flush=True)
    if any(row["within_bar"] is False for row in results):
        print("* beyond the bar")
    common.write(settings, facts, unit=unit, results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
