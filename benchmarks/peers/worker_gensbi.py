"""The worker of GenSBI: its unconditional pipeline, with score matching on a VP SDE.

Its pipelines take any model; it has no U-Net and no network for points.
"""

import os
import tempfile

import gensbi  # noqa: F401  (before JAX, as its own examples do)
import jax
import jax.numpy as jnp
import jax.random as jr
import jax_shared as shared
import numpy as np
import problems
from flax import nnx
from gensbi.core import ScoreMatchingMethod
from gensbi.diffusion.solver.sm_ode_solver import SMODESolver
from gensbi.recipes import UnconditionalPipeline
from gensbi.recipes.pipeline import ema_step
from protocol import Case, serve


class Network(nnx.Module):
    """eqmdm's network with parameters that GenSBI manages."""

    def __init__(self, network):
        arrays, apply = shared.as_arrays(network)
        leaves, treedef = jax.tree.flatten(arrays)
        self.leaves = nnx.List([nnx.Param(leaf) for leaf in leaves])
        self.apply = lambda leaves, t, y: apply(treedef.unflatten(leaves), t, y)

    def __call__(self, obs, t, **ignored):
        return self.apply([leaf[...] for leaf in self.leaves], t, obs)


class Exact(nnx.Module):
    """The score of a law in closed form."""

    def __init__(self, law):
        self.score = lambda t, y: shared.vp_score(law, t, y[:, 0])[:, None]

    def __call__(self, obs, t, **ignored):
        t = jnp.broadcast_to(t.reshape(-1), (len(obs),))
        return jax.vmap(self.score)(t, obs)


def pipeline(model, batches, dim):
    config = UnconditionalPipeline.get_default_training_config()
    low, high = problems.RATES
    config |= {"beta_min": low, "beta_max": high}
    config["checkpoint_dir"] = os.path.join(tempfile.gettempdir(), "gensbi")
    made = UnconditionalPipeline(
        model, batches, batches, dim, ScoreMatchingMethod("VP"), training_config=config
    )
    # `train` does this at the end, and sampling needs it.
    made._wrap_model()
    return made


def train(images: bool):
    def build(settings):
        if images:
            x = problems.as_data(problems.images(settings["images"], 0))
            network, name = shared.unet(), "unet"
        else:
            x = problems.points().draw(settings["points"], 0).astype(np.float32)
            network, name = shared.mlp(), "mlp"
        x = jnp.asarray(x.reshape(len(x), -1, 1))
        made = pipeline(Network(network), [x], x.shape[1])
        optimiser, ema_optimiser = made._get_optimizer(), made._get_ema_optimizer()
        step = made.get_train_step_fn(made.get_loss_fn())
        rngs = nnx.Rngs(1)

        def call():
            # The training step inside `train`.
            loss = step(made.model, optimiser, x, rngs.train_step())
            ema_step(made.ema_model, made.model, ema_optimiser)
            jax.block_until_ready((loss, nnx.state(made.ema_model)))

        facts = shared.own_network_facts()[name] | {"network": "the same"}
        return Case(call, facts)

    return build


def sample(images: bool, options: dict):
    def build(settings):
        dim = 784 if images else 2
        n_samples = settings["sampled_images" if images else "sampled_points"]
        n_steps = settings["evaluations"]

        def sampler(model):
            made = pipeline(model, [], dim)
            draw = made.get_sampler(nsteps=n_steps, **options)
            return lambda: jax.block_until_ready(draw(jr.key(2), n_samples))

        def check():
            law = problems.points()
            found = np.asarray(sampler(Exact(law))())
            return problems.sample_distance(law, found.reshape(n_samples, 2))

        network = shared.unet() if images else shared.mlp()
        facts = {"n_samples": n_samples, "evaluations": n_steps}
        return Case(sampler(Network(network)), facts, None if images else check)

    return build


def likelihood(task: str, tolerance: float = 1e-5):
    def build(settings):
        law, n = problems.law_of(task, settings)
        x = jnp.asarray(law.draw(n, 3)[..., None], jnp.float32)
        exact = not task.endswith("probe")
        made = pipeline(Exact(law), [], law.dim)
        options = {"exact_divergence": exact, "rtol": tolerance, "atol": tolerance}
        evaluate = jax.jit(made.get_log_prob_fn(**options))
        key = jr.key(4)

        def check():
            count = _count_evaluations(law, x, key, options)
            errors = problems.likelihood_errors(
                law, x[..., 0], evaluate(x, key=key), of_statistic=False
            )
            return errors | {"evaluations": count, "evaluations_of_batch": count}

        call = lambda: jax.block_until_ready(evaluate(x, key=key))
        return Case(call, {"n_examples": n}, check)

    return build


def _count_evaluations(law, x, key, options) -> int:
    """The number of evaluations of the ODE's drift with its divergence.

    Each calls the model twice, for its value and for its derivatives.
    """
    calls = []

    class Counted(Exact):
        def __call__(self, obs, t, **ignored):
            jax.debug.callback(lambda: calls.append(1))
            return super().__call__(obs, t, **ignored)

    made = pipeline(Counted(law), [], law.dim)
    evaluate = jax.jit(made.get_log_prob_fn(**options))
    jax.block_until_ready(evaluate(x, key=key))
    jax.effects_barrier()
    n_evaluations, odd = divmod(len(calls), 2)
    assert not odd
    return n_evaluations


CASES = {("train images", ""): train(True), ("train points", ""): train(False)}
for _task, _images in (("sample images", True), ("sample points", False)):
    CASES[_task, "SMSDESolver Euler, the default"] = sample(_images, {})
    CASES[_task, "SMODESolver Euler"] = sample(_images, {"solver": (SMODESolver, {})})
for _task in problems.LIKELIHOODS:
    CASES[_task, "log_prob, the default"] = likelihood(_task)
    for _tolerance in (1e-6, 1e-7):
        _name = f"log_prob, tolerance {_tolerance:.0e}"
        CASES[_task, _name] = likelihood(_task, _tolerance)

if __name__ == "__main__":
    packages = ("gensbi", "jax", "jaxlib", "flax", "diffrax", "optax")
    serve(
        CASES,
        {
            "versions": shared.versions(*packages),
            "networks": shared.own_network_facts(),
        },
    )
