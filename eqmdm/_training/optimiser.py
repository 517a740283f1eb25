"""The default optimiser: Adam with separate rates for network and diffusion."""

import math
from typing import Any

import jax.tree_util as jtu
import optax
from jaxtyping import PyTree

from .._core.checks import check_count


# The learning rate after its decay, as a fraction of the largest.
_LEAST_RATE = 0.01


def make_optimiser(
    learning_rate: float = 2e-4,
    *,
    diffusion_learning_rate: float | None = None,
    clip: float = 1.0,
    warmup: int = 0,
    decay_steps: int | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Adam with clipped gradients and a separate learning rate for the diffusion.

    Training also accepts any other Optax optimiser.

    **Arguments:**

    - `learning_rate`: the learning rate of the network, reached after `warmup` updates.
    - `diffusion_learning_rate`: the learning rate of the parameters in the model's
        field `diffusion`; by default that of the network.
    - `clip`: the largest norm of the gradient of all parameters together. Larger
        gradients are scaled down to it.
    - `warmup`: the number of updates over which both learning rates rise linearly.
    - `decay_steps`: the number of updates over which both learning rates, after the
        warm-up, fall to 0.01 of themselves along half a cosine; by default they stay.
    - `accumulate`: the number of steps whose gradients are averaged into one update.

    **Raises:**

    `ValueError` for a rate or norm that is not positive and finite, or a count that is
    too low.
    """
    if diffusion_learning_rate is None:
        diffusion_learning_rate = learning_rate
    rates = {"learning_rate": learning_rate}
    rates |= {"diffusion_learning_rate": diffusion_learning_rate, "clip": clip}
    for name, value in rates.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be positive and finite; got {value}.")
    check_count("accumulate", accumulate)
    check_count("warmup", warmup, least=0)
    rate = learning_rate
    if decay_steps is not None:
        check_count("decay_steps", decay_steps, least=warmup + 1)
        rate = optax.warmup_cosine_decay_schedule(
            learning_rate / max(warmup, 1),
            learning_rate,
            warmup_steps=max(warmup - 1, 0),
            decay_steps=decay_steps,
            end_value=_LEAST_RATE * learning_rate,
        )
    elif warmup:
        # Count from 1, so that the first update is not zero.
        rate = optax.linear_schedule(
            learning_rate / warmup, learning_rate, warmup - 1 or 1
        )
    rules = [optax.clip_by_global_norm(clip), optax.adam(rate)]
    if diffusion_learning_rate != learning_rate:
        # Adam's updates are proportional to the learning rate, so one Adam serves both
        # rates. `optax.partition` would run two, and double the program.
        scale = optax.scale(diffusion_learning_rate / learning_rate)
        rules.append(optax.masked(scale, _in_diffusion))
    rule = optax.chain(*rules)
    if accumulate == 1:
        return rule
    return optax.MultiSteps(rule, accumulate).gradient_transformation()


def _in_diffusion(trainable: PyTree) -> PyTree:
    """Whether each parameter is in the field `diffusion` of the model, or of the model
    that it wraps in its field `model`."""
    diffusion, inner = jtu.GetAttrKey("diffusion"), jtu.GetAttrKey("model")

    def is_inside(path: tuple[Any, ...]) -> bool:
        outside = (key for key in path if key != inner)
        return next(outside, None) == diffusion

    return jtu.tree_map_with_path(lambda path, _: is_inside(path), trainable)
