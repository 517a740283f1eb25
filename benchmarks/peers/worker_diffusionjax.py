"""The worker of diffusionjax: its loss, training step and samplers, on a VP SDE.

It has no likelihood. Its examples define their own networks, any with `init` and
`apply`; its U-Net, that of EDM2, is for another loss.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import jax_shared as shared
import numpy as np
import optax
import problems
from diffusionjax.run_lib import get_step_fn
from diffusionjax.sde import VP
from diffusionjax.solvers import DDIMVP, EulerMaruyama
from diffusionjax.utils import (
    get_epsilon,
    get_linear_beta_function,
    get_loss,
    get_sampler,
    get_score,
    get_times,
)
from protocol import Case, serve


class Network:
    """eqmdm's network as a diffusionjax model, through `apply`."""

    def __init__(self, network):
        self.params, self._apply = shared.as_arrays(network)

    def apply(self, params, x, t):
        return self._apply(params, t, x)


def network_of(images: bool) -> Network:
    return Network(shared.unet() if images else shared.mlp())


def sde() -> VP:
    return VP(*get_linear_beta_function(*problems.RATES))


def times(n_steps: int):
    steps, _ = get_times(n_steps, t0=problems.T_RANGE[0])
    return steps


def train(images: bool):
    def build(settings):
        if images:
            x = problems.as_data(problems.images(settings["images"], 0))
        else:
            x = problems.points().draw(settings["points"], 0).astype(np.float32)
        batch, model, process = jnp.asarray(x), network_of(images), sde()
        solver = EulerMaruyama(process, times(1000))
        # The settings of its example.
        loss = get_loss(
            process, solver, model, score_scaling=True, likelihood_weighting=False
        )
        optimiser = optax.adam(1e-3)
        step = get_step_fn(loss, optimiser, train=True, pmap=False)
        carry = jr.PRNGKey(1), model.params, optimiser.init(model.params)

        def call():
            nonlocal carry
            carry, value = step(carry, batch)
            jax.block_until_ready((carry, value))

        name = "unet" if images else "mlp"
        return Case(call, shared.own_network_facts()[name] | {"network": "the same"})

    return build


def sample(images: bool, solver: str):
    def build(settings):
        n_samples = settings["sampled_images" if images else "sampled_points"]
        shape = (n_samples, *(problems.IMAGE_SHAPE if images else (2,)))
        steps, process = times(settings["evaluations"]), sde()

        def sampler(score, epsilon):
            if solver == "DDIMVP":
                outer = DDIMVP(epsilon, beta=process.beta, ts=steps)
            else:
                outer = EulerMaruyama(process.reverse(score), steps)
            draw = jax.jit(get_sampler(shape, outer))
            return lambda: jax.block_until_ready(draw(jr.PRNGKey(2))[0])

        def check():
            law = problems.points()
            score = jax.vmap(lambda y, t: shared.vp_score(law, t, y))
            epsilon = lambda y, t: -jnp.sqrt(process.variance(t))[:, None] * score(y, t)
            found = np.asarray(sampler(score, epsilon)())
            return problems.sample_distance(law, found)

        model = network_of(images)
        call = sampler(
            get_score(process, model, model.params, score_scaling=True),
            get_epsilon(process, model, model.params, score_scaling=True),
        )
        facts = {"n_samples": n_samples, "evaluations": settings["evaluations"]}
        return Case(call, facts, None if images else check)

    return build


CASES = {("train images", ""): train(True), ("train points", ""): train(False)}
for _task, _images in (("sample images", True), ("sample points", False)):
    for _solver in ("EulerMaruyama", "DDIMVP"):
        CASES[_task, _solver] = sample(_images, _solver)

if __name__ == "__main__":
    packages = ("diffusionjax", "jax", "jaxlib", "flax", "optax")
    serve(CASES, {"versions": shared.versions(*packages)})
