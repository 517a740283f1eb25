"""The posterior means of normal data at a noise level, as weights."""

import math

import jax
import jax.numpy as jnp

from .._core.types import Data, LogSNR


def normal_shares(log_snr: LogSNR, z: Data, data_std: float) -> tuple[LogSNR, LogSNR]:
    r"""$c^2 / (c^2 + \sigma^2)$ and $\sigma^2 / (c^2 + \sigma^2)$, where $c$ is the
    standard deviation of the data: the weights of $z$ and of 0 in the posterior mean of
    normal data. Both are accurate where they are small."""
    relative = jnp.asarray(log_snr, z.dtype) + 2 * math.log(data_std)
    return jax.nn.sigmoid(relative), jax.nn.sigmoid(-relative)
