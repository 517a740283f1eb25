"""Augmentation of one image."""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PRNGKeyArray, Shaped


def random_flip(
    x: Shaped[Array, "height width channels"], *, key: PRNGKeyArray
) -> Shaped[Array, "height width channels"]:
    """The image `x`, or with probability one half its mirror image, left for right."""
    return jnp.where(jr.bernoulli(key), x[:, ::-1], x)
