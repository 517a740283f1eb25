"""The worker of sbgm: its training step, samplers and log-likelihood, on a VP SDE."""

import sys
import types


# Replace torch and torchvision, which its data sets import and nothing here uses.
sys.modules["sbgm.data"] = types.ModuleType("sbgm.data")

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax.random as jr  # noqa: E402
import jax_shared as shared  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import problems  # noqa: E402
import sbgm  # noqa: E402
from protocol import Case, serve  # noqa: E402
from sbgm.sde import VPSDE  # noqa: E402


class Network(eqx.Module):
    """eqmdm's network with the arguments of sbgm's networks."""

    network: eqx.Module
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, t, x, q=None, a=None, *, key=None):
        return self.network(t, x.reshape(1, *self.shape)).reshape(x.shape)


class Exact(eqx.Module):
    """The score of a law in closed form."""

    law: problems.Mixture = eqx.field(static=True)

    def __call__(self, t, x, q=None, a=None, *, key=None):
        return shared.vp_score(self.law, t, x)


def own_unet():
    """sbgm's U-Net of about the same size, with the heads of its configurations."""
    return sbgm.UNet(
        dim=32,
        channels=1,
        dim_mults=(1, 2, 2),
        attn_heads=4,
        attn_dim_head=64,
        learned_sinusoidal_cond=True,
        random_fourier_features=True,
        key=jr.key(0),
    )


def sde(dt: float = 0.1) -> VPSDE:
    """`dt` is the step of its ODE solvers; 0.1 is its default."""
    low, high = problems.RATES
    integral = lambda t: low * t + 0.5 * (high - low) * t**2
    t0, t1 = problems.T_RANGE
    return VPSDE(beta_integral_fn=integral, dt=dt, t0=t0, t1=t1)


def network_of(kind: str):
    if kind == "own U-Net":
        return own_unet()
    if kind == "images":
        return Network(shared.unet(), problems.IMAGE_SHAPE)
    return Network(shared.mlp(), (2,))


def facts_of(kind: str):
    if kind == "own U-Net":
        example = np.zeros((1, 28, 28), np.float32)
        facts = shared.network_facts(own_unet(), np.float32(0.5), example)
        return facts | {"network": "its own"}
    name = "unet" if kind == "images" else "mlp"
    return shared.own_network_facts()[name] | {"network": "the same"}


def train(kind: str):
    def build(settings):
        if kind == "points":
            x = problems.points().draw(settings["points"], 0).astype(np.float32)
        else:
            x = problems.as_data(problems.images(settings["images"], 0))
            x = np.moveaxis(x, -1, 1)
        model, process = network_of(kind), sde()
        optimiser = optax.adam(1e-4)
        state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
        batch, key = (jnp.asarray(x), None, None), jr.key(1)

        def call():
            # The training step inside `train`, without the parameter averaging and
            # validation that follow each step.
            nonlocal model, key, state
            loss, model, key, state = sbgm.train.make_step(
                model, process, batch, key, state, optimiser
            )
            jax.block_until_ready((loss, eqx.filter(model, eqx.is_array)))

        return Case(call, facts_of(kind))

    return build


def sample(kind: str, by: str):
    def build(settings):
        images = kind != "points"
        n_samples = settings["sampled_images" if images else "sampled_points"]
        n_evaluations = settings["evaluations"]
        shape = (1, 28, 28) if images else (2,)
        if by == "ode":
            # Six evaluations per step.
            n_steps = max(1, n_evaluations // 6)
            n_evaluations = 6 * n_steps + 1

        def sampler(model):
            if by == "ode":
                t0, t1 = problems.T_RANGE
                process = sde((t1 - t0) / n_steps)
                draw = sbgm.sample.get_ode_sample_fn(model, process, shape)
            else:
                draw = sbgm.sample.get_eu_sample_fn(model, sde(), shape, n_evaluations)
            draw = eqx.filter_jit(eqx.filter_vmap(draw))
            keys = jr.split(jr.key(2), n_samples)
            return lambda: jax.block_until_ready(draw(keys))

        def check():
            law = problems.points()
            return problems.sample_distance(law, np.asarray(sampler(Exact(law))()))

        facts = {"n_samples": n_samples, "evaluations": n_evaluations}
        call = sampler(network_of(kind))
        return Case(call, facts, None if images else check)

    return build


def likelihood(task: str, dt: float):
    def build(settings):
        law, n = problems.law_of(task, settings)
        x = jnp.asarray(law.draw(n, 3), jnp.float32)
        keys = jr.split(jr.key(4), n)
        exact = not task.endswith("probe")
        one = sbgm.ode.get_log_likelihood_fn(
            Exact(law), sde(dt), data_shape=(law.dim,), exact_log_prob=exact
        )
        evaluate = eqx.filter_jit(eqx.filter_vmap(lambda x, key: one(x, key=key)))
        t0, t1 = problems.T_RANGE
        count = 6 * round(np.ceil((t1 - t0) / dt)) + 1

        def check():
            errors = problems.likelihood_errors(
                law, x, evaluate(x, keys), of_statistic=False
            )
            return errors | {"evaluations": count, "evaluations_of_batch": count}

        call = lambda: jax.block_until_ready(evaluate(x, keys))
        return Case(call, {"n_examples": n}, check)

    return build


CASES = {
    ("train images", "same U-Net"): train("images"),
    ("train images", "own U-Net"): train("own U-Net"),
    ("train points", ""): train("points"),
    ("sample images", "Euler-Maruyama"): sample("images", "eu"),
    ("sample images", "Euler-Maruyama, own U-Net"): sample("own U-Net", "eu"),
    ("sample images", "ODE Tsit5"): sample("images", "ode"),
    ("sample points", "Euler-Maruyama"): sample("points", "eu"),
    ("sample points", "ODE Tsit5"): sample("points", "ode"),
}
for _task in problems.LIKELIHOODS:
    CASES[_task, "Tsit5, steps of 0.1, the default"] = likelihood(_task, 0.1)
    for _dt in (0.03, 0.01):
        CASES[_task, f"Tsit5, steps of {_dt}"] = likelihood(_task, _dt)

if __name__ == "__main__":
    packages = ("sbgm", "jax", "jaxlib", "equinox", "diffrax", "optax")
    serve(CASES, {"versions": shared.versions(*packages)})
