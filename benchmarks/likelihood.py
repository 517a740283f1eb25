"""Which clock, scaling and solver make the exact likelihood cheapest?

    python benchmarks/likelihood.py

Solves the probability-flow ODE of a mixture of four normals in one dimension, with the
exact denoiser and log-SNR from 13.3 down to -13.3, in float64, for the scaled statistic
$z / r$ on a clock: log-SNR, the time of a VPSDE, or the angle $\\arctan(\\sigma / c)$.
The scale r is 1, or $\\sqrt{c^2 + \\sigma^2}$, which makes the variance constant, with
$c = 1$ for unit data or $c$ the standard deviation of the mixture. Prints for each the
mean number of evaluations and the root mean square error of log p(x), in nats, at a
tolerance of 1e-5; and the fewest evaluations, over tolerances a quarter of a decade
apart, for an error of at most 1e-4.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from jax.scipy.stats import norm


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import _common as common
import references

import eqmdm
from eqmdm._model.diffrax_solvers import n_evaluations


TOP_LOG_SNR = 13.3
TOLERANCE, TARGET = 1e-5, 1e-4
DATA_STD = math.sqrt(np.var(references.MODES) + references.MODE_STD**2)


def to_unit_variance(c: float) -> Callable[[jax.Array], jax.Array]:
    """The logarithm of the scale r as a function of log-SNR."""
    return lambda log_snr: 0.5 * jnp.log(c**2 + jnp.exp(-log_snr))


# The logarithm of each scale, and the c of the matching angle clock.
SCALES = {
    "1": (jnp.zeros_like, 1.0),
    "of unit data": (to_unit_variance(1.0), 1.0),
    "of the mixture": (to_unit_variance(DATA_STD), DATA_STD),
}
SOLVERS = {
    "tsit5": dfx.Tsit5(),
    "dopri5": dfx.Dopri5(),
    "dopri8": dfx.Dopri8(),
    "bosh3": dfx.Bosh3(),
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Compares ways to solve the ODE of the exact likelihood."""

    n_examples: int = 200
    """The number of examples, which are drawn from the mixture."""
    seed: int = 0
    """The seed of the examples."""
    quick: bool = False
    """Run only Tsit5, with 50 examples."""


def log_density(x: jax.Array) -> jax.Array:
    """The log-density of the mixture with the noise that remains at t0."""
    std = math.sqrt(references.MODE_STD**2 + math.exp(-TOP_LOG_SNR))
    parts = norm.logpdf(x[:, None], jnp.asarray(references.MODES), std)
    return jax.nn.logsumexp(parts, axis=1) - math.log(len(references.MODES))


def clocks(c: float) -> dict[str, tuple[Callable[[jax.Array], jax.Array], Any, Any]]:
    """Log-SNR as a function of each clock, and the readings at t0 and t1."""
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-TOP_LOG_SNR, TOP_LOG_SNR))
    angle = eqmdm.AngleClock()
    first = angle.reading(jnp.asarray(TOP_LOG_SNR), c)
    last = angle.reading(jnp.asarray(-TOP_LOG_SNR), c)
    return {
        "log-SNR": (lambda s: -s, -TOP_LOG_SNR, TOP_LOG_SNR),
        "time of VPSDE": (diffusion.log_snr, diffusion.t0, diffusion.t1),
        "angle": (lambda s: angle.log_snr(s, c), first, last),
    }


def make_solve(solver, log_snr, start, end, log_scale):
    """A function that gives the log-density of each example and its evaluations."""
    log_scales = log_scale(jnp.asarray([TOP_LOG_SNR, -TOP_LOG_SNR]))

    def velocity(s, u):
        # dz / d(log-SNR) = (x_hat - z) / 2, for u = z / r.
        value, rate = jax.jvp(log_snr, (s,), (jnp.ones_like(s),))
        log_r, log_r_rate = jax.jvp(log_scale, (value,), (jnp.ones_like(value),))
        z = u * jnp.exp(log_r)
        gap = references.mixture_denoiser(value, z) - z
        return rate * (0.5 * gap * jnp.exp(-log_r) - log_r_rate * u)

    def field(s, state, args):
        del args
        u, _ = state
        # In one dimension the derivative of one evaluation is the divergence.
        return jax.jvp(lambda u: velocity(s, u), (u,), (jnp.ones_like(u),))

    def one(x, tolerance):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            solver,
            jnp.asarray(start),
            jnp.asarray(end),
            0.01 * (end - start),
            (x * jnp.exp(-log_scales[0]), jnp.zeros(())),
            stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
            adjoint=dfx.ForwardMode(),
            max_steps=None,
        )
        assert solution.ys is not None
        u, gain = (values[-1] for values in solution.ys)
        # The statistic of VPSDE's standard normal prior, at a log-SNR of -13.3.
        std = math.sqrt(1 + math.exp(TOP_LOG_SNR))
        prior = norm.logpdf(u * jnp.exp(log_scales[1]), 0.0, std)
        value = prior + log_scales[1] - log_scales[0] + gain
        return value, n_evaluations(solver, solution.stats["num_steps"])

    over_examples = jax.vmap(one, in_axes=(0, None))
    return jax.jit(jax.vmap(over_examples, in_axes=(None, 0)))


def main(settings: Settings) -> None:
    jax.config.update("jax_enable_x64", True)
    solvers = SOLVERS
    if settings.quick:
        settings = dataclasses.replace(settings, n_examples=50)
        solvers = {"tsit5": SOLVERS["tsit5"]}
    facts = common.facts(settings.seed)
    common.show(facts)
    key_mode, key_noise = jr.split(jr.key(settings.seed))
    modes = jr.choice(key_mode, jnp.asarray(references.MODES), (settings.n_examples,))
    noise = jr.normal(key_noise, modes.shape)
    std = math.sqrt(references.MODE_STD**2 + math.exp(-TOP_LOG_SNR))
    x = modes + std * noise
    exact = log_density(x)
    tolerances = 10.0 ** np.arange(-3, -7.1, -0.25)
    at_stated = int(np.argmin(np.abs(tolerances - TOLERANCE)))
    print(f"{'':44}{'at a tolerance of 1e-5':>24}{'to err by 1e-4':>16}")
    print(f"{'clock':16}{'scale':18}{'solver':10}{'evaluations':>12}{'error':>12}")
    results = []
    for scale, (log_scale, c) in SCALES.items():
        for clock, (log_snr, start, end) in clocks(c).items():
            for name, solver in solvers.items():
                solve = make_solve(solver, log_snr, start, end, log_scale)
                found = solve(x, jnp.asarray(tolerances))
                values, counts = (np.asarray(array) for array in found)
                errors = np.sqrt(np.mean((values - np.asarray(exact)) ** 2, axis=1))
                evaluations = np.mean(counts, axis=1)
                needed = float(np.min(evaluations[errors <= TARGET], initial=np.inf))
                row = {"clock": clock, "scale": scale, "solver": name}
                row |= {"evaluations": evaluations.tolist()}
                row |= {"rms_errors": errors.tolist()}
                row |= {"evaluations_at_target": needed if needed < np.inf else None}
                results.append(row)
                count, error = evaluations[at_stated], errors[at_stated]
                print(
                    f"{clock:16}{scale:18}{name:10}{count:12.1f}{error:12.1e}"
                    f"{needed:16.1f}",
                    flush=True,
                )
    common.write(
        settings,
        facts,
        tolerances=tolerances.tolist(),
        target=TARGET,
        results=results,
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
