"""With its interval fixed in log-SNR, is anything of a diffusion left to learn?

    python benchmarks/gradients.py --output FILE

On a density in the plane, trains a network under a fixed diffusion of two variables,
as a denoiser or a free score, on an interval in log-SNR or in time. Then estimates the
gradient of the bound in the entries of Q and D, separately for the prior term and for
all others. With a denoiser the others depend on the interval alone, so that on a fixed
interval in log-SNR their gradient is zero; with a free score the network distinguishes
diffusions.
"""

import dataclasses

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import eqmdm


# The gradient is taken in the one coupling of Q and all entries of D.
_ENTRIES = "Q01", "D00", "D01", "D11"
_SCORES = {
    # The default time sampler of each score.
    "denoiser": eqmdm.Objective(time_sampler=eqmdm.LogSNRTimeSampler()),
    "free": eqmdm.Objective(time_sampler=eqmdm.ImportanceTimeSampler()),
}
_INTERVALS = {
    "log-SNR": {"interval": eqmdm.LogSNRInterval(-9.0, 13.3)},
    "time": {"interval": eqmdm.TimeInterval(1e-3, 1.0)},
}
# The margin of the denoiser's range, since the interval moves with the entries.
_MARGIN = 0.5


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Measures the gradient in (Q, D) of the terms of the bound."""

    dataset: str = "rings"
    """A density in the plane."""
    entries: tuple[float, float, float, float] = (-1.0, 1.0, -0.1, 1.0)
    """Q01, D00, D01 and D11, at which the network is trained and the gradient taken."""
    steps: int = 4000
    """Steps of every training run."""
    batch_size: int = 256
    """Examples per step, and per gradient."""
    gradients: int = 2000
    """Batch gradients, whose mean is reported with its standard error."""
    seed: int = 0
    """The seed of the networks, their training and the gradients."""
    quick: bool = False
    """Run with few steps and gradients."""


def new_diffusion(entries, interval):
    """The diffusion with these entries, differentiable in them if they are arrays."""
    q, d00, d01, d11 = entries
    array = np.array if isinstance(q, float) else jnp.array
    linalg = np.linalg if isinstance(q, float) else jnp.linalg
    return eqmdm.LinearDiffusion(
        array([[0.0, q], [-q, 0.0]]),
        dissipation_root=linalg.cholesky(array([[d00, d01], [d01, d11]])),
        **interval,
    )


def new_model(score, diffusion, data, *, key):
    n_vars = 1 if score == "denoiser" else 2
    network = eqmdm.nn.MLP((2,), n_vars, width=64, depth=3, key=key)
    if score == "free":
        return eqmdm.NoiseModel(network, diffusion)
    low, high = (float(diffusion.log_snr(t)) for t in (diffusion.t1, diffusion.t0))
    denoiser = eqmdm.PreconditionedDenoiser(
        network,
        data_std=float(jnp.sqrt(jnp.mean(data**2))),
        log_snr_range=(low - _MARGIN, high + _MARGIN),
    )
    return eqmdm.DenoiserModel(denoiser, diffusion)


def train(model, data, objective, settings):
    """The averaged model after training under a fixed diffusion."""
    optimiser = eqmdm.make_optimiser(1e-3, warmup=100)
    data = eqmdm.TrainingSet(data, objective)
    state = eqmdm.TrainState.create(model, optimiser, key=jr.key(settings.seed + 1))
    for _ in range(settings.steps):
        state, _ = eqmdm.train_step(
            state, data, objective, optimiser, batch_size=settings.batch_size
        )
    return state.ema_model


def gradients(model, interval, data, objective, settings):
    """The mean gradient and its standard error, for the prior term and the others."""

    def terms(entries, key):
        diffusion = new_diffusion(entries, interval)
        key_u, key_examples, key_draws = jr.split(key, 3)
        place = jr.randint(key_examples, (settings.batch_size,), 0, len(data))
        keys = jr.split(key_draws, settings.batch_size)
        u = eqmdm.low_discrepancy(settings.batch_size, key=key_u).astype(jnp.float32)
        moved = eqx.tree_at(lambda model: model.diffusion, model, diffusion)
        bound = lambda x, key, u: objective.bound(moved, x, key, u)[0]
        bounds = jax.vmap(bound)(data[place], keys, u)
        others = bounds.total - bounds.prior
        return {"prior": bounds.prior.mean(), "others": others.mean()}

    gradient = jax.jit(jax.jacrev(terms))
    entries = jnp.asarray(settings.entries, jnp.float32)
    keys = jr.split(jr.key(settings.seed + 2), settings.gradients)
    found = [gradient(entries, key) for key in keys]
    for name in found[0]:
        values = np.stack([np.asarray(row[name], np.float64) for row in found])
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        yield name, values.mean(axis=0), error


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(settings, steps=200, gradients=100)
    data = jnp.asarray(eqmdm.data.load(settings.dataset).train)
    columns = " ".join(f"{name:>18}" for name in _ENTRIES)
    print(f"{'score':9} {'ends':8} {'term':7} {columns}")
    results = []
    for score, objective in _SCORES.items():
        for interval_name, interval in _INTERVALS.items():
            diffusion = new_diffusion(settings.entries, interval)
            key = jr.key(settings.seed)
            model = new_model(score, diffusion, data, key=key)
            model = train(model, data, objective, settings)
            case = model, interval, data, objective, settings
            for term, mean, error in gradients(*case):
                results.append(
                    {
                        "score": score,
                        "ends": interval_name,
                        "term": term,
                        "gradient": dict(zip(_ENTRIES, mean.tolist(), strict=True)),
                        "error": dict(zip(_ENTRIES, error.tolist(), strict=True)),
                    }
                )
                shown = " ".join(
                    f"{m:9.2g} ± {e:6.1g}" for m, e in zip(mean, error, strict=True)
                )
                print(f"{score:9} {interval_name:8} {term:7} {shown}", flush=True)
    common.write(settings, common.facts(settings.seed), results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
