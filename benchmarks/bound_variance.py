"""How much does a draw of the bound vary, by its control variate and its times?

    python scripts/train.py --data mnist --preset laptop --run-dir runs/mnist-laptop
    python benchmarks/bound_variance.py --run runs/mnist-laptop --output FILE

For a run with a spike-and-slab denoiser. Its bound without its network is known, so
that only what the network changes has to be estimated. The other control variate, that
of any denoiser, is in effect if the library does not know what the denoiser is: if it
is wrapped in a plain function. All bounds have the same images and dequantisation.
"""

import dataclasses
from pathlib import Path
from typing import Any

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _short_run import LAPTOP, given_or_short

import eqmdm
from eqmdm._bound.times import Focus
from eqmdm.cli import build
from eqmdm.cli.trained import load_trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(common.Settings):
    """Measures the variance of single draws of the bound."""

    run: Path | None = None
    """The run; with --quick, by default a short one."""
    data_dir: str | None = None
    """A directory with its image files."""
    examples: int = 200
    """Test images, from the first."""
    draws: int = 16
    """Independent draws of time and noise for each of them."""
    seed: int = 0
    """The seed of every random draw."""
    quick: bool = False
    """Few images."""


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(settings, examples=4, draws=2)
    facts = common.facts(settings.seed)
    common.show(facts)
    with given_or_short(settings.run, LAPTOP, quick=settings.quick) as run:
        trained = load_trained(run, data_dir=settings.data_dir)
    levels = build.build_grey_levels(trained.options, trained.dataset)
    denoiser, diffusion = trained.model.network, trained.model.diffusion
    models = {
        "any denoiser": eqmdm.DenoiserModel(
            lambda log_snr, z: denoiser(log_snr, z), diffusion
        ),
        "independent pixels": trained.model,
    }
    samplers = {
        "uniform": eqmdm.LogSNRTimeSampler(),
        "focused": eqmdm.LogSNRTimeSampler(density=Focus(*trained.options.focus)),
    }
    key_levels, key_draws = jr.split(jr.key(settings.seed))
    images = jnp.asarray(trained.dataset.test[: settings.examples])
    encode = lambda image, key: levels.encode(image, key=key, check=False)
    x, correction = jax.vmap(encode)(images, jr.split(key_levels, len(images)))
    n_dims = int(np.prod(trained.dataset.shape))

    @eqx.filter_jit
    def bounds(model: Any, sampler: Any, x: Any, keys: Any) -> Any:
        def one(x: Any, key: Any) -> Any:
            return eqmdm.elbo(model, x, key=key, time_sampler=sampler).total

        draws = jax.vmap(one, (None, 0))
        return jax.lax.map(lambda arguments: draws(*arguments), (x, keys))

    keys = jax.vmap(lambda key: jr.split(key, settings.draws))(
        jr.split(key_draws, len(images))
    )
    rows = []
    for control, model in models.items():
        for times, sampler in samplers.items():
            total = bounds(model, sampler, x.astype(trained.dtype), keys)
            losses = np.asarray(
                eqmdm.bits_per_dim(total + correction[:, None], n_dims=n_dims), float
            )
            mean, error = eqmdm.Estimate.from_mean(losses.mean(axis=1))
            deviation = losses.var(axis=1, ddof=1).mean() ** 0.5
            rows.append(
                {
                    "control_variate": control,
                    "times": times,
                    "bits_per_dim": mean,
                    "standard_error": error,
                    "standard_deviation_of_a_draw": deviation,
                }
            )
            print(
                f"{control:20}{times:10}{mean:8.3f} +- {error:.3f} bits/dim, standard "
                f"deviation of a draw {deviation:.3f}",
                flush=True,
            )
            common.write(settings, facts, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
