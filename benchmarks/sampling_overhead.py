"""What does the public `sample` cost beyond a hand-written loop?

    python benchmarks/sampling_overhead.py

Solves the reverse SDE of VPSDE on a fixed grid, with a U-Net as denoiser, interleaved
in one run: by a hand-written `lax.scan` of Euler-Maruyama; by `eqmdm.sample` with
Diffrax's Euler, whose steps, network and amount of noise are the same; with Diffrax's
SEA; and with the library's own sampler, of the statistic and of the whole state, for as
many network evaluations. The hand-written steps are also compiled one at a time and
called from a Python loop, because on a CPU XLA's convolutions may be slower inside a
compiled loop than outside. Prints medians over the repeats; a ratio is the median of
the ratios to the hand-written loop in the same repeat.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import _common as common
import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import eqmdm


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Times `eqmdm.sample` against a hand-written loop."""

    n_samples: int = 16
    """Samples drawn at once."""
    n_steps: int = 20
    """Steps from noise to data, with one evaluation each, and one more at t0."""
    shape: tuple[int, int, int] = (28, 28, 1)
    """Height, width and channels of the images."""
    width: int = 32
    """Channels of the U-Net's first level."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """The width of each level, in multiples of the first."""
    n_blocks: int = 2
    """Residual blocks per level."""
    repeats: int = 15
    """Timed calls of each sampler, after one that compiles."""
    seed: int = 0
    """The seed of parameters and noise."""
    quick: bool = False
    """Use a tiny network on 8x8 images, and two repeats."""


def make_model(settings: Settings, diffusion: Any) -> eqmdm.DenoiserModel:
    network = eqmdm.nn.UNet(
        settings.shape,
        1,
        width=settings.width,
        multipliers=settings.multipliers,
        n_blocks=settings.n_blocks,
        key=jr.key(settings.seed),
    )
    denoiser = eqmdm.PreconditionedDenoiser(
        network, data_std=0.5, log_snr_range=(-15.0, 15.0)
    )
    return eqmdm.DenoiserModel(denoiser, diffusion)


def make_by_hand(model: eqmdm.DenoiserModel, settings: Settings, *, whole=True):
    """Euler-Maruyama for VPSDE from its scalar coefficients, compiled as a whole loop
    or one step at a time."""
    n_samples, shape = settings.n_samples, (1, *settings.shape)
    diffusion = model.diffusion
    # The quadratic grid, and the coefficients of its steps.
    r = jnp.linspace(1, 0, settings.n_steps + 1)
    times = diffusion.t0 + (diffusion.t1 - diffusion.t0) * r**2
    rates = jax.vmap(diffusion.schedule.rate)(times[:-1])
    steps = times[:-1], times[:-1] - times[1:], rates

    def step(y, inputs):
        t, dt, rate, key = inputs
        s = jax.vmap(model.score_at, in_axes=(None, 0))(diffusion.compute_kernel(t), y)
        noise = jr.normal(key, y.shape)
        return y + dt * rate * (0.5 * y + s) + jnp.sqrt(dt * rate) * noise, None

    def last(y):
        kernel = diffusion.compute_kernel(diffusion.t0)
        return jax.vmap(lambda y: model.data_estimate(kernel, y))(y)

    def start(key):
        key_start, key_noise = jr.split(key)
        keys = jr.split(key_noise, settings.n_steps)
        return jr.normal(key_start, (n_samples, *shape)), keys

    @jax.jit
    def all_steps(key):
        y, keys = start(key)
        y, _ = jax.lax.scan(step, y, (*steps, keys))
        return last(y)

    start, one_step, last_step = jax.jit(start), jax.jit(step), jax.jit(last)

    def step_by_step(key):
        y, keys = start(key)
        for i in range(settings.n_steps):
            y, _ = one_step(y, (*(part[i] for part in steps), keys[i]))
        return last_step(y)

    return all_steps if whole else step_by_step


def make_calls(settings: Settings) -> dict[str, Callable[[jax.Array], jax.Array]]:
    model = make_model(settings, eqmdm.VPSDE())
    # The same score without a denoiser, so that the sampler solves for the whole state.
    of_state = eqmdm.FunctionModel(model.score, model.diffusion)

    def public(model, sampler):
        return lambda key: eqmdm.sample(
            model,
            settings.shape,
            key=key,
            n_samples=settings.n_samples,
            n_steps=settings.n_steps,
            sampler=sampler,
        )

    return {
        "by hand": make_by_hand(model, settings),
        "by hand, step by step": make_by_hand(model, settings, whole=False),
        "sample, Euler": public(model, dfx.Euler()),
        "sample, SEA": public(model, dfx.SEA()),
        "sample, DPMSolver, state": public(of_state, eqmdm.DPMSolver()),
        "sample, DPMSolver": public(model, eqmdm.DPMSolver()),
    }


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings,
            n_samples=4,
            n_steps=5,
            shape=(8, 8, 1),
            multipliers=(1,),
            n_blocks=1,
            repeats=2,
        )
    facts = common.facts(settings.seed)
    common.show(facts)
    calls = make_calls(settings)
    key = jr.key(settings.seed)
    for call in calls.values():
        common.timed(call, key)
    seconds = common.interleaved(
        calls, settings.repeats, lambda i: (jr.fold_in(key, i),)
    )
    results = []
    print(f"{'':24}{'seconds':>9}{'ratio':>8}  quartiles of the ratio")
    for name in calls:
        ratios = np.divide(seconds[name], seconds["by hand"])
        low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        median = float(np.median(seconds[name]))
        row = {"loop": name, "seconds": median, "over_by_hand": float(ratio)}
        row |= {"quartiles": [float(low), float(high)]}
        results.append(row | {"every_second": seconds[name]})
        print(f"{name:24}{median:9.3f}{ratio:8.3f}  {low:.3f} to {high:.3f}")
    common.write(settings, facts, results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
