"""The worker of eqmdm, through its public interface."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax_shared as shared
import numpy as np
import problems
from protocol import Case, serve

import eqmdm


def diffusion() -> eqmdm.VPSDE:
    schedule = eqmdm.LinearSchedule(*problems.RATES)
    return eqmdm.VPSDE(
        schedule=schedule, interval=eqmdm.TimeInterval(*problems.T_RANGE)
    )


def model(network, score: str):
    """The model to train: a denoiser, or a network that predicts the noise."""
    process = diffusion()
    if score == "free":
        return network, process
    low, high = (float(process.log_snr(t)) for t in (process.t1, process.t0))
    ends = {"log_snr_range": (low - 0.01, high + 0.01)}
    return eqmdm.PreconditionedDenoiser(network, data_std=0.5, **ends), process


def train(images: bool, score: str):
    def build(settings):
        network = shared.unet() if images else shared.mlp()
        name = "unet" if images else "mlp"
        facts = shared.own_network_facts()[name] | {"network": "the same"}
        if images:
            data, grey_levels = problems.images(1024, 0), eqmdm.GreyLevels(256)
            batch_size = settings["images"]
        else:
            data, grey_levels = problems.points().draw(65536, 0), None
            data, batch_size = data.astype(np.float32), settings["points"]
        time = (
            eqmdm.LogSNRTimeSampler()
            if score == "denoiser"
            else eqmdm.ImportanceTimeSampler()
        )
        objective = eqmdm.Objective(time_sampler=time, levels=grey_levels)
        optimiser = eqmdm.make_optimiser()
        state = eqmdm.TrainState.create(model(network, score), optimiser, key=jr.key(1))
        data = jnp.asarray(data)

        def call():
            nonlocal state
            state, metrics = eqmdm.train_step(
                state, data, objective, optimiser, batch_size=batch_size
            )
            jax.block_until_ready(metrics)

        return Case(call, facts)

    return build


def sample(images: bool, solver: str):
    def build(settings):
        network = shared.unet() if images else shared.mlp()
        n_samples = settings["sampled_images" if images else "sampled_points"]
        shape = problems.IMAGE_SHAPE if images else (2,)
        options = {"n_steps": settings["evaluations"] - 1, "n_samples": n_samples}
        options["sampler"] = eqmdm.DPMSolver() if solver == "DPMSolver" else dfx.SEA()
        denoiser, process = model(network, "denoiser")
        key = jr.key(2)

        def draw(score):
            return eqmdm.sample(score, shape, key=key, **options)

        def check():
            law = problems.points()
            exact = lambda log_snr, z: shared.denoiser(law, jnp.exp(-log_snr), z)
            found = draw(eqmdm.DenoiserModel(exact, process))
            return problems.sample_distance(law, np.asarray(found))

        score = eqmdm.DenoiserModel(denoiser, process)
        facts = {"n_samples": n_samples, "evaluations": settings["evaluations"]}
        call = lambda: jax.block_until_ready(draw(score))
        return Case(call, facts, None if images else check)

    return build


def likelihood(task: str, route: str, tolerance: float = 1e-5):
    def build(settings):
        law, n = problems.law_of(task, settings)
        process = diffusion()
        x = jnp.asarray(law.draw(n, 3), jnp.float32)
        keys = jr.split(jr.key(4), n)
        control = dfx.PIDController(rtol=tolerance, atol=tolerance)
        options = {"stepsize_controller": control}
        if task.endswith("probe"):
            options["divergence"] = eqmdm.HutchinsonDivergence()
        if route == "CollapsedRoute":
            score = eqmdm.DenoiserModel(
                lambda log_snr, z: shared.denoiser(law, jnp.exp(-log_snr), z), process
            )
        else:
            score = eqmdm.FunctionModel(
                lambda t, y: shared.vp_score(law, t, y[0])[None], process
            )

        @jax.jit
        @jax.vmap
        def evaluate(x, key):
            return eqmdm.log_likelihood(score, x, key=key, **options)

        def check():
            found = evaluate(x, keys)
            errors = problems.likelihood_errors(
                law, x, found.log_likelihood, of_statistic=True
            )
            counts = np.asarray(found.n_evaluations)
            return errors | {
                "evaluations": float(counts.mean()),
                "evaluations_of_batch": int(counts.max()),
            }

        call = lambda: jax.block_until_ready(evaluate(x, keys))
        return Case(call, {"n_examples": n}, check)

    return build


CASES = {
    ("train images", "denoiser"): train(True, "denoiser"),
    ("train images", "free score"): train(True, "free"),
    ("train points", "denoiser"): train(False, "denoiser"),
    ("train points", "free score"): train(False, "free"),
}
for _task, _images in (("sample images", True), ("sample points", False)):
    CASES[_task, "SEA, the default"] = sample(_images, "SEA")
    CASES[_task, "DPMSolver"] = sample(_images, "DPMSolver")
for _task in problems.LIKELIHOODS:
    CASES[_task, "CollapsedRoute, the default"] = likelihood(_task, "CollapsedRoute")
    CASES[_task, "AugmentedRoute"] = likelihood(_task, "AugmentedRoute")
    for _tolerance in (3e-5, 1e-4, 1e-3):
        _name = f"CollapsedRoute, tolerance {_tolerance:.0e}"
        CASES[_task, _name] = likelihood(_task, "CollapsedRoute", _tolerance)

if __name__ == "__main__":
    packages = ("eqmdm", "jax", "jaxlib", "equinox", "diffrax", "optax")
    serve(
        CASES,
        {
            "versions": shared.versions(*packages),
            "networks": shared.own_network_facts(),
        },
    )
