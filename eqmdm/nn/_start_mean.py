"""The mean of a conditioned start, from a network."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.checks import check_count


@final
class StartMean(eqx.Module):
    """A network as the mean of the auxiliaries at the start, a function of the data
    alone; see [`eqmdm.ConditionedStartModel`][].

    The networks of this library return zero before training, so that training begins
    with auxiliaries that are independent of the data.

    **Arguments:**

    - `network`: a callable `(t, y) -> y` with `n_aux` variables, such as
        [`eqmdm.nn.MLP`][]`(shape, n_aux)`. It is called at `t = 0` with the data in
        every variable.
    - `n_aux`: the number of auxiliary variables, one less than those of the diffusion.
    """

    network: Callable[..., Array]
    n_aux: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        check_count("n_aux", self.n_aux)

    def __call__(self, x: Float[Array, "*data"]) -> Float[Array, "aux *data"]:
        copies = jnp.broadcast_to(x[None], (self.n_aux, *x.shape))
        return self.network(jnp.zeros((), x.dtype), copies)
