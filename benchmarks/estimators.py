"""What variance does each form of the bound have, and does it affect training?

    python benchmarks/estimators.py --output FILE

On a density in the plane, with a free score and a learned diffusion of two variables,
measures for each form of the bound and each distribution of times: the standard
deviation of one draw of the bound, the noise of a batch gradient in the network and in
(Q, D), its cost in floating-point operations, and the bound after training with it. The
forms have the same expectation, except for DSM, whose decoder is of the whole state at
t0; so less noise is better at equal cost.
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
from eqmdm._training.objective import batch_loss


_FORMS = {
    "low variance": (eqmdm.LowVariance(), eqmdm.DataDecoder()),
    "HSM": (eqmdm.HybridScoreMatching(), eqmdm.DataDecoder()),
    "DSM": (eqmdm.DenoisingScoreMatching(), eqmdm.StartDecoder()),
    "ISM": (eqmdm.ImplicitScoreMatching(), eqmdm.DataDecoder()),
    "ISM, one probe": (
        eqmdm.ImplicitScoreMatching(eqmdm.HutchinsonDivergence()),
        eqmdm.DataDecoder(),
    ),
}
_TIMES = {
    "uniform": eqmdm.UniformTimeSampler(),
    "importance": eqmdm.ImportanceTimeSampler(),
}
# The reference estimator, which also trains the model for the measurements.
_FIRST = "low variance", "importance"


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Measures the variance of every form of the bound, and trains with each."""

    dataset: str = "rings"
    """A density in the plane."""
    steps: int = 4000
    """Steps of every training run."""
    batch_size: int = 256
    """Examples per step, and per measured gradient."""
    draws: int = 2000
    """Draws of the bound for its standard deviation, each for another example."""
    gradients: int = 200
    """Batch gradients for their noise."""
    seeds: int = 3
    """Training runs with each form."""
    quick: bool = False
    """Run with few steps, draws and seeds."""


def new_model(key):
    key_network, key_diffusion = jr.split(key)
    network = eqmdm.nn.MLP((2,), 2, width=64, depth=3, key=key_network)
    return eqmdm.NoiseModel(network, eqmdm.LearnedDiffusion(2, key=key_diffusion))


def train(objective, data, settings, seed):
    """The averaged model after training, or `None` if the loss was not finite."""
    optimiser = eqmdm.make_optimiser(1e-3, warmup=100)
    key_model, key_train = jr.split(jr.key(seed))
    state = eqmdm.TrainState.create(new_model(key_model), optimiser, key=key_train)
    metrics = {}
    for _ in range(settings.steps):
        state, metrics = eqmdm.train_step(
            state, data, objective, optimiser, batch_size=settings.batch_size
        )
    finite = bool(jnp.isfinite(metrics["loss"]).all())
    return state.ema_model if finite else None


def bound_deviation(model, objective, data, settings, key):
    """The standard deviation of one draw about its example's mean, in nats."""
    key_u, key_draw = jr.split(key)
    examples = data[: settings.draws]
    u = jr.uniform(key_u, (2, len(examples)), jnp.float32)
    keys = jr.split(key_draw, (2, len(examples)))
    total = lambda x, key, u: objective.bound(model, x, key, u)[0].total
    pairs = jax.jit(jax.vmap(jax.vmap(total), (None, 0, 0)))(examples, keys, u)
    # The difference of two draws of an example has twice the variance of one.
    squares = np.asarray(pairs[0] - pairs[1], np.float64) ** 2 / 2
    error = squares.std(ddof=1) / np.sqrt(len(squares))
    deviation = np.sqrt(squares.mean())
    return float(deviation), float(error / (2 * deviation))


def gradient_noise(model, objective, data, settings, key):
    """The noise of a batch gradient over its norm, for the network and for (Q, D).

    Also returns the operations of a gradient.
    """
    values, rest = eqx.partition(model, eqx.is_inexact_array)
    n_reconstruction = max(1, settings.batch_size // 16)

    def gradient(key):
        key_u, key_examples, key_draws = jr.split(key, 3)
        place = jr.randint(key_examples, (settings.batch_size,), 0, len(data))
        keys = jr.split(key_draws, settings.batch_size)
        n_times = settings.batch_size - n_reconstruction
        u = eqmdm.low_discrepancy(n_times, key=key_u).astype(jnp.float32)

        def loss(values):
            return batch_loss(
                eqx.combine(values, rest),
                objective,
                data[place],
                keys,
                u,
                n_reconstruction=n_reconstruction,
            )[0]

        grads = jax.grad(loss)(values)
        part = lambda tree: jnp.concatenate([v.ravel() for v in jax.tree.leaves(tree)])
        return part(grads.network), part(grads.diffusion)

    compiled = jax.jit(gradient).lower(key).compile()
    samples = [compiled(k) for k in jr.split(key, settings.gradients)]
    noises = []
    for part in zip(*samples, strict=True):
        part = np.stack([np.asarray(g, np.float64) for g in part])
        variance = part.var(axis=0, ddof=1).sum()
        # Subtract the noise of the mean gradient from its squared norm.
        length = (part.mean(axis=0) ** 2).sum() - variance / len(part)
        noises.append(float(np.sqrt(variance / length)) if length > 0 else None)
    return noises, compiled.cost_analysis()["flops"]


def _objective(form: str, times: str) -> eqmdm.Objective:
    kind, decoder = _FORMS[form]
    return eqmdm.Objective(form=kind, decoder=decoder, time_sampler=_TIMES[times])


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings, steps=100, draws=500, gradients=40, seeds=1
        )
    dataset = eqmdm.data.load(settings.dataset)
    data = jnp.asarray(dataset.train)
    test = dataset.test[:2000]
    truth = float(np.mean(jax.vmap(dataset.log_density)(test)))
    cases = {
        (form, times): _objective(form, times) for form in _FORMS for times in _TIMES
    }
    model = train(cases[_FIRST], data, settings, 0)
    assert model is not None
    _, first_cost = gradient_noise(model, cases[_FIRST], data, settings, jr.key(2))
    print(
        f"{'form':15} {'times':11} {'bound, sd':>16} {'network':>9} {'(Q, D)':>9} "
        f"{'cost':>6} {'nats above the truth, trained':>30}"
    )
    results = []
    for (form, times), objective in cases.items():
        deviation, error = bound_deviation(model, objective, data, settings, jr.key(1))
        noises, cost = gradient_noise(model, objective, data, settings, jr.key(2))
        gaps = []
        for seed in range(settings.seeds):
            trained = train(objective, data, settings, seed)
            if trained is None:
                continue
            # All forms are evaluated with the same estimator.
            bound = eqmdm.evaluate(
                trained, test, cases[_FIRST], key=jr.key(3), n_draws=16, batch_size=4000
            )
            gaps.append(truth - float(bound.terms["total"].mean()))
        spread = np.std(gaps, ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else None
        results.append(
            {
                "form": form,
                "times": times,
                "bound_deviation": deviation,
                "bound_deviation_error": error,
                "network_gradient_noise": noises[0],
                "diffusion_gradient_noise": noises[1],
                "relative_cost": cost / first_cost,
                "gap_after_training": float(np.mean(gaps)) if gaps else None,
                "gap_error_over_seeds": None if spread is None else float(spread),
                "diverged": settings.seeds - len(gaps),
            }
        )
        show = lambda value, digits=2: "-" if value is None else f"{value:.{digits}f}"
        print(
            f"{form:15} {times:11} {deviation:9.3f} ± {error:<5.2g} "
            f"{show(noises[0]):>8} {show(noises[1]):>9} {cost / first_cost:6.2f} "
            f"{show(results[-1]['gap_after_training'], 4):>19} ± {show(spread, 4)}",
            flush=True,
        )
    common.write(settings, common.facts(), results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
